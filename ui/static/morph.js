// Makes one element's content like another's, keeping the nodes that stay: so
// focus, selection, scroll places and open details survive an update. Children
// are matched by data-key, id or aria-labelledby, else by place and tag.

const keyOf = (n) => (n.nodeType === 1 ? n.getAttribute('data-key') || n.id || n.getAttribute('aria-labelledby') || '' : '');

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
}

function attributes(from, to) {
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  for (const { name } of [...from.attributes]) {
    // What a reader has opened stays open, and a marked row stays marked.
    if (to.hasAttribute(name) || (name === 'open' && from.nodeName === 'DETAILS')) continue;
    from.removeAttribute(name);
  }
}

function node(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.nodeType !== 1) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  attributes(from, to);
  children(from, to);
}

// move keeps focus and scroll places where the browser can move a node in one step.
function move(parent, n, before) {
  if (parent.moveBefore) parent.moveBefore(n, before);
  else parent.insertBefore(n, before);
}

export function children(from, to) {
  const list = [...to.childNodes];
  const wanted = new Set(list.map(keyOf));
  const keyed = new Map();
  // What is keyed and not wanted goes first, so that what stays need not move: a
  // node that is moved loses its focus.
  for (const n of [...from.childNodes]) {
    const key = keyOf(n);
    if (!key) continue;
    if (wanted.has(key)) keyed.set(key, n);
    else n.remove();
  }
  let at = from.firstChild;
  const drop = () => {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  };
  for (const want of list) {
    const key = keyOf(want);
    const match = key ? keyed.get(key) : at && !keyOf(at) ? at : null;
    if (!match || !alike(match, want)) {
      from.insertBefore(want, at);
      continue;
    }
    keyed.delete(key);
    if (key) while (at && at !== match && !keyOf(at)) drop();
    if (match === at) at = at.nextSibling;
    else move(from, match, at);
    node(match, want);
  }
  while (at) drop();
}
