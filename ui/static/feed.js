// One stream of events for the whole browser: a shared worker holds it and every
// tab listens. Where there is no shared worker, the page holds it while it is
// visible. Browsers allow few connections to one host, so a stream for each tab
// would stop the seventh tab from loading at all.

const listeners = new Set();
const logs = new Map(); // attempt -> number of viewers on this page
let port = null;
let source = null;
let state = '';

// listen calls back with ('state' | 'hello' | 'changed' | 'log', data).
export function listen(fn) {
  listeners.add(fn);
  if (listeners.size === 1) start();
  else if (state) fn('state', state);
}

// follow asks for news of a log until the page goes away.
export function follow(attempt) {
  logs.set(attempt, (logs.get(attempt) || 0) + 1);
  announce();
}

export function unfollow(attempt) {
  if (logs.delete(attempt)) announce();
}

function tell(kind, data) {
  if (kind === 'state') state = data;
  for (const fn of listeners) fn(kind, data);
}

function announce() {
  if (port) port.postMessage({ logs: [...logs.keys()] });
  else if (source) open();
}

function start() {
  if (typeof SharedWorker === 'function') {
    try {
      const worker = new SharedWorker(new URL('./worker.js', import.meta.url), 'maestro');
      port = worker.port;
      port.onmessage = (e) => tell(e.data.kind, e.data.data);
      announce();
      // The worker forgets a tab that says nothing, because none says good-bye
      // when it crashes.
      setInterval(announce, 30000);
      addEventListener('pagehide', () => port.postMessage({ bye: true }));
      addEventListener('pageshow', (e) => { if (e.persisted) announce(); });
      return;
    } catch {
      port = null;
    }
  }
  open();
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) return open();
    if (source) source.close();
    source = null;
  });
}

function open() {
  if (source) source.close();
  source = new EventSource('/events' + (logs.size ? '?logs=' + [...logs.keys()].slice(0, 16).join(',') : ''));
  source.onopen = () => tell('state', 'live');
  source.onerror = () => {
    tell('state', 'lost');
    if (source && source.readyState === EventSource.CLOSED) setTimeout(open, 5000);
  };
  for (const kind of ['hello', 'changed', 'log']) {
    source.addEventListener(kind, (e) => tell(kind, JSON.parse(e.data)));
  }
}
