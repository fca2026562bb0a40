// <live-region> is the part of a page that changes. When an event names one of
// its topics, the page's fragment is fetched again and morphed in. The event
// carries no data, so one that is lost, late or doubled does no harm.
import { listen } from './feed.js';
import { children } from './morph.js';
import { tick } from './time.js';

const least = 300; // ms between two fetches; longer when a fetch is dear
const slowly = 60000; // a look without any event, in case one was lost

class LiveRegion extends HTMLElement {
  #seq = 0;
  #topics = new Set();
  #dirty = false;
  #busy = false;
  #last = '';
  #rest = least;

  connectedCallback() {
    this.#read();
    listen((kind, data) => this.#hear(kind, data));
    setInterval(() => this.#mark(), slowly);
    document.addEventListener('visibilitychange', () => { if (!document.hidden && this.#dirty) this.#fetch(); });
  }

  #read() {
    const live = this.querySelector(':scope > .live');
    if (!live) return;
    this.#seq = Number(live.dataset.seq);
    this.#topics = new Set(live.dataset.topics.split(' '));
    document.title = live.dataset.title;
    const icon = document.querySelector('link[rel="icon"]');
    const href = icon.dataset.base.replace(/\.svg$/, '') + (live.dataset.mood ? '-' + live.dataset.mood : '') + '.svg';
    if (icon.getAttribute('href') !== href) icon.setAttribute('href', href);
  }

  #hear(kind, data) {
    if (kind === 'state') return showState(data);
    if (kind === 'hello' && data.seq !== this.#seq) this.#mark();
    if (kind === 'changed' && data.topics.some((t) => t === 'all' || this.#topics.has(t))) this.#mark();
  }

  #mark() {
    this.#dirty = true;
    this.#fetch();
  }

  async #fetch() {
    if (this.#busy || (document.hidden && this.#last)) return;
    this.#busy = true;
    this.#dirty = false;
    const began = performance.now();
    try {
      const url = new URL(location.href);
      url.hash = '';
      url.searchParams.set('fragment', '1');
      const answer = await fetch(url, { headers: { Accept: 'text/html' }, cache: 'no-cache' });
      if (answer.ok) this.#put(await answer.text());
    } catch {
      this.#dirty = true;
    }
    this.#rest = Math.max(least, 4 * (performance.now() - began));
    setTimeout(() => {
      this.#busy = false;
      if (this.#dirty) this.#fetch();
    }, this.#rest);
  }

  #put(html) {
    if (html === this.#last) return;
    this.#last = html;
    const parsed = new DOMParser().parseFromString(html, 'text/html');
    children(this, parsed.body);
    this.#read();
    tick();
    this.dispatchEvent(new CustomEvent('updated', { bubbles: true }));
  }
}

function showState(state) {
  const e = document.getElementById('feed');
  e.hidden = false;
  e.dataset.state = state;
  const text = state === 'live' ? 'live' : 'connection lost, trying again';
  if (e.textContent !== text) e.textContent = text;
}

customElements.define('live-region', LiveRegion);
