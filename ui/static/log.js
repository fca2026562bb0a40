// <log-view> scrolls through a log of any length. Only the lines near the view
// are fetched and mounted; the server keeps the index. Without scripts the same
// element holds a window of the log and links to the windows beside it.
import { listen, follow, unfollow } from './feed.js';

const rowHeight = 18; // as in the style sheet
const chunk = 500; // lines a request
const keep = 24; // chunks kept in memory
const around = 60; // rows mounted above and below the view
// Below this many lines all are mounted, so that the browser's own search finds
// them; above it, only those near the view are.
const whole = 5000;
// Browsers clamp the height of an element (Firefox at 17.9 million pixels), so a
// longer log is scrolled at a scale.
const tallest = 15000000;

class LogView extends HTMLElement {
  connectedCallback() {
    this.range = this.dataset.range;
    this.page = this.dataset.page;
    this.attempt = this.dataset.attempt;
    this.total = Number(this.dataset.lines);
    this.bytes = Number(this.dataset.bytes);
    this.sealed = 'sealed' in this.dataset;
    this.chunks = new Map(); // number -> rows, in order of use
    this.loading = new Map();
    this.stale = new Set(); // chunks whose last line may have grown
    this.rows = new Map(); // line -> element
    this.marked = null;
    this.matches = [];
    this.match = -1;
    this.following = false;
    this.top = 0; // the place in true pixels, which the scroll bar may not hold
    this.#build();
    this.#watch();
    this.#readHash();
  }

  disconnectedCallback() { unfollow(this.attempt); }

  #build() {
    this.classList.add('log-view-on');
    for (const e of this.querySelectorAll('.log-more, .log-found, #log-end')) e.remove();
    this.pane = this.querySelector('.log-pane');
    this.lines = this.querySelector('.log-pane .log-lines');
    this.empty = this.querySelector('.log-empty');
    this.info = this.querySelector('.log-info');
    this.spacer = document.createElement('div');
    this.spacer.className = 'log-spacer';
    this.lines.classList.add('log-layer');
    this.lines.replaceChildren();
    this.pane.prepend(this.spacer);
    this.more = document.createElement('button');
    this.more.className = 'log-new';
    this.more.hidden = true;
    this.more.addEventListener('click', () => this.#toEnd());
    this.pane.append(this.more);
    this.pane.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    this.lines.addEventListener('click', (e) => this.#clicked(e));
    new ResizeObserver(() => this.#paint()).observe(this.pane);
    this.#tools();
    this.#size();
  }

  #tools() {
    this.form = this.querySelector('.log-search');
    this.input = this.form.querySelector('input[type="search"]');
    this.form.addEventListener('submit', (e) => { e.preventDefault(); this.#search(); });
    this.input.addEventListener('keydown', (e) => { if (e.key === 'Escape') { this.#clear(); this.pane.focus(); } });
    this.found = document.createElement('span');
    this.found.className = 'log-count num muted';
    this.found.setAttribute('role', 'status');
    this.form.append(this.found);
    const tools = this.querySelector('.log-tools');
    const add = (text, fn) => {
      const b = document.createElement('button');
      b.type = 'button';
      b.className = 'plain';
      b.textContent = text;
      b.addEventListener('click', fn);
      tools.prepend(b);
      return b;
    };
    add('copy link', () => this.#copy());
    add('end', () => this.#toEnd());
    add('start', () => this.#show(1, true));
    if (this.input.value) this.#search();
  }

  #watch() {
    addEventListener('hashchange', () => this.#readHash());
    addEventListener('keydown', (e) => this.#key(e));
    if (this.sealed) return;
    follow(this.attempt);
    listen((kind, data) => { if (kind === 'log' && data.attempt === this.attempt) this.#grown(data); });
  }

  // #readHash goes to the lines that the address names, to the end of a log that
  // grows, or to the end of one that does not.
  #readHash() {
    const m = /^#L(\d+)(?:-L(\d+))?$/.exec(location.hash);
    if (!m) {
      if (!this.marked) this.#toEnd();
      return;
    }
    const a = Number(m[1]), b = Number(m[2] || m[1]);
    this.marked = [Math.min(a, b), Math.max(a, b)];
    this.following = false;
    this.#show(this.marked[0], true);
    this.scrollIntoView({ block: 'nearest' });
  }

  // Geometry. `full` is the height that the lines would take; `tall` what the
  // spacer takes.
  get full() { return this.total * rowHeight; }
  get tall() { return Math.min(this.full, tallest); }
  get view() { return this.pane.clientHeight; }

  #size() {
    this.spacer.style.height = this.tall + 'px';
    if (this.empty) this.empty.hidden = this.total > 0;
    const n = String(this.total).replace(/\B(?=(\d{3})+$)/g, '\u2009');
    this.info.textContent = n + (this.total === 1 ? ' line' : ' lines') + (this.sealed ? '' : this.following ? ', following' : ', growing');
  }

  #scrolled() {
    const y = this.pane.scrollTop;
    const step = y - (this.lastY ?? y);
    this.lastY = y;
    const end = this.tall - this.view;
    if (this.full <= tallest) this.top = y;
    else if (y <= 0) this.top = 0;
    else if (y >= end - 1) this.top = this.full - this.view;
    // A small step is a wheel or a key and moves by lines; a large one is the
    // scroll bar and moves by share.
    else if (Math.abs(step) < 2 * this.view && !this.jumped) this.top = Math.min(Math.max(this.top + step, 0), this.full - this.view);
    else if (!this.jumped) this.top = y / end * (this.full - this.view);
    this.jumped = false;
    const atEnd = this.top >= this.full - this.view - rowHeight;
    if (this.following !== atEnd) {
      this.following = atEnd && !this.sealed;
      this.#size();
    }
    if (atEnd) this.more.hidden = true;
    this.#paint();
  }

  #goto(top) {
    this.top = Math.min(Math.max(top, 0), Math.max(this.full - this.view, 0));
    const end = this.tall - this.view;
    const y = this.full <= tallest ? this.top : this.top / (this.full - this.view) * end;
    this.jumped = Math.round(y) !== Math.round(this.pane.scrollTop);
    this.pane.scrollTop = y;
    this.lastY = this.pane.scrollTop;
    this.#paint();
  }

  #show(line, third) {
    const y = (line - 1) * rowHeight;
    if (!third && y >= this.top && y + rowHeight <= this.top + this.view) return this.#paint();
    this.#goto(y - Math.floor(this.view / 3 / rowHeight) * rowHeight);
  }

  #toEnd() {
    this.following = !this.sealed;
    this.more.hidden = true;
    this.#size();
    this.#goto(this.full);
  }

  // #paint mounts the rows near the view and fetches those it lacks.
  #paint() {
    let first = Math.max(1, Math.floor(this.top / rowHeight) + 1 - around);
    let last = Math.min(this.total, Math.ceil((this.top + this.view) / rowHeight) + around);
    if (this.total <= whole) { first = 1; last = this.total; }
    const shift = this.full <= tallest ? 0 : this.pane.scrollTop - this.top;
    this.lines.style.transform = 'translateY(' + ((first - 1) * rowHeight + shift) + 'px)';
    for (let c = Math.floor((first - 1) / chunk); c <= Math.floor((last - 1) / chunk); c++) {
      if (c >= 0 && (!this.chunks.has(c) || this.stale.has(c))) this.#fetch(c);
    }
    this.#mount(first, last);
  }

  #mount(first, last) {
    for (const [n, e] of this.rows) {
      if (n < first || n > last) { e.remove(); this.rows.delete(n); }
    }
    let after = null;
    for (let n = first; n <= last; n++) {
      const row = this.chunks.get(Math.floor((n - 1) / chunk))?.[(n - 1) % chunk];
      let e = this.rows.get(n);
      if (!e) {
        e = document.createElement('div');
        e.className = 'ln';
        e.id = 'L' + n;
        const a = document.createElement('a');
        a.href = '#L' + n;
        a.textContent = n;
        e.append(a, document.createElement('span'));
        this.rows.set(n, e);
      }
      // The markup is the server's, which escapes all text of a log.
      if (row && e.shown !== row.html) { e.lastChild.innerHTML = row.html; e.shown = row.html; }
      const marked = this.marked && n >= this.marked[0] && n <= this.marked[1];
      e.className = 'ln' + (marked ? ' marked' : '') + (n === this.matches[this.match] ? ' found' : '');
      if ((after ? after.nextSibling : this.lines.firstChild) !== e) {
        if (after) after.after(e); else this.lines.prepend(e);
      }
      after = e;
    }
  }

  async #fetch(c) {
    if (this.loading.has(c)) return;
    this.stale.delete(c);
    const work = (async () => {
      const answer = await fetch(this.range + '&from=' + (c * chunk + 1) + '&n=' + chunk, { cache: 'no-cache' });
      if (!answer.ok) throw new Error('log: ' + answer.status);
      return answer.json();
    })();
    this.loading.set(c, work);
    try {
      const got = await work;
      this.chunks.delete(c);
      this.chunks.set(c, got.rows);
      for (const old of this.chunks.keys()) {
        if (this.chunks.size <= keep || this.total <= whole) break;
        this.chunks.delete(old);
      }
      this.loading.delete(c);
      if (got.lines > this.total || got.sealed !== this.sealed) this.#grown(got);
      this.#paint();
    } catch {
      // Tried again with the next paint; a pane that cannot load stays readable.
      setTimeout(() => { this.loading.delete(c); this.#paint(); }, 2000);
    }
  }

  // #grown takes the news that the log is longer, or complete.
  #grown(info) {
    const before = this.total;
    if (info.bytes !== this.bytes) {
      // The last line may have been a part of one.
      this.stale.add(Math.floor(Math.max(before - 1, 0) / chunk));
      for (const c of this.chunks.keys()) if ((c + 1) * chunk > before) this.stale.add(c);
    }
    this.bytes = info.bytes;
    this.total = Math.max(info.lines, before);
    this.sealed = Boolean(info.sealed);
    if (this.sealed) unfollow(this.attempt);
    const follows = this.following;
    this.#size();
    if (follows) this.#goto(this.full);
    else this.#paint();
    if (this.sealed) { this.following = false; this.#size(); }
    if (!follows && this.total > before) {
      this.more.hidden = false;
      this.more.textContent = 'new lines below';
    }
  }

  #clicked(e) {
    const a = e.target.closest('.ln > a:first-child');
    if (!a || a.parentNode.parentNode !== this.lines) return;
    e.preventDefault();
    const n = Number(a.textContent);
    const from = e.shiftKey && this.marked ? this.marked[0] : n;
    this.marked = [Math.min(from, n), Math.max(from, n)];
    history.replaceState(null, '', '#' + this.#hash());
    this.#paint();
  }

  #hash() {
    if (!this.marked) return 'log';
    const [a, b] = this.marked;
    return 'L' + a + (b > a ? '-L' + b : '');
  }

  // #copy writes an address that means these lines for ever: it names the attempt.
  async #copy() {
    const line = this.marked ? '&line=' + this.marked[0] : '';
    const url = new URL(this.page + line + '#' + this.#hash(), location.href).href;
    try {
      await navigator.clipboard.writeText(url);
      this.found.textContent = 'copied';
    } catch {
      prompt('The address of these lines', url);
    }
  }

  async #search() {
    const q = this.input.value;
    if (!q) return this.#clear();
    const answer = await fetch(this.range + '&q=' + encodeURIComponent(q));
    if (!answer.ok) { this.found.textContent = 'search failed'; return; }
    const got = await answer.json();
    this.matches = got.rows.map((r) => r.n);
    this.matchTotal = got.total || 0;
    // The first match at or after the view, as a reader expects of "next".
    const here = Math.floor(this.top / rowHeight) + 1;
    this.match = Math.max(this.matches.findIndex((n) => n >= here), 0) - 1;
    this.#next(1);
    this.pane.focus({ preventScroll: true });
  }

  #next(step) {
    if (!this.matches.length) {
      this.found.textContent = this.input.value ? 'no match' : '';
      return;
    }
    this.match = (this.match + step + this.matches.length) % this.matches.length;
    this.found.textContent = (this.match + 1) + '/' + this.matchTotal;
    this.following = false;
    this.#size();
    this.#show(this.matches[this.match], false);
  }

  #clear() {
    this.input.value = '';
    this.matches = [];
    this.match = -1;
    this.found.textContent = '';
    this.#paint();
  }

  #key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented) return;
    if (e.target.closest('input, textarea, dialog')) return;
    try { if (localStorage.getItem('maestro-keys') === 'off') return; } catch { /* on */ }
    const act = {
      '/': () => this.input.focus(),
      n: () => this.#next(1),
      p: () => this.#next(-1),
      g: () => this.#show(1, true),
      G: () => this.#toEnd(),
      y: () => this.#copy(),
    }[e.key];
    if (!act) return;
    e.preventDefault();
    act();
  }
}

customElements.define('log-view', LogView);
