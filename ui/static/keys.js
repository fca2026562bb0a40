// Single keys for those who want them; every one has a link or a control of its
// own on the page.

const dialog = document.getElementById('keys');
const box = document.getElementById('keys-on');
const store = 'maestro-keys';

function enabled() {
  try { return localStorage.getItem(store) !== 'off'; } catch { return true; }
}

document.getElementById('keys-open').hidden = false;
document.getElementById('keys-open').addEventListener('click', () => dialog.showModal());
box.checked = enabled();
box.addEventListener('change', () => {
  try { localStorage.setItem(store, box.checked ? 'on' : 'off'); } catch { /* not kept, then */ }
});

function rows(selector) {
  return [...document.querySelectorAll(selector)].filter((e) => e.querySelector('a'));
}

function move(list, step) {
  if (!list.length) return;
  const here = list.findIndex((e) => e.contains(document.activeElement));
  const at = here < 0 ? (step > 0 ? 0 : list.length - 1) : Math.min(Math.max(here + step, 0), list.length - 1);
  for (const e of document.querySelectorAll('.here')) e.classList.remove('here');
  list[at].classList.add('here');
  const link = list[at].querySelector('th a, a.name, a');
  link.focus();
  link.scrollIntoView({ block: 'nearest' });
}

const goto = (e) => { if (e) location.assign(e.href); };

const actions = {
  b: () => location.assign('/'),
  j: () => move(rows('[data-row]'), 1),
  k: () => move(rows('[data-row]'), -1),
  f: () => move(rows('[data-bad]'), 1),
  F: () => move(rows('[data-bad]'), -1),
  '[': () => goto(document.querySelector('a[data-nav="["]')),
  ']': () => goto(document.querySelector('a[data-nav="]"]')),
  u: () => goto([...document.querySelectorAll('.crumbs a')].pop()),
  '?': () => dialog.showModal(),
};

addEventListener('keydown', (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || dialog.open || !enabled()) return;
  if (e.target.closest('input, textarea, select, [contenteditable]')) return;
  const act = actions[e.key];
  if (!act || e.defaultPrevented) return;
  e.preventDefault();
  act();
});
