// Shared by all tabs of the browser: holds the one stream of events and passes
// on what it says.

const tabs = new Map(); // port -> { logs, seen }
let source = null;
let following = null;
let state = '';
let hello = null;

onconnect = (e) => {
  const port = e.ports[0];
  tabs.set(port, { logs: [], seen: Date.now() });
  port.onmessage = (m) => {
    if (m.data.bye) tabs.delete(port);
    else tabs.set(port, { logs: m.data.logs || [], seen: Date.now() });
    settle();
  };
  if (state) port.postMessage({ kind: 'state', data: state });
  if (hello) port.postMessage({ kind: 'hello', data: hello });
  settle();
};

function tell(kind, data) {
  if (kind === 'state') state = data;
  // A tab that comes later compares its page with the newest change known here.
  if (kind === 'hello' || kind === 'changed') hello = { seq: data.seq };
  for (const port of tabs.keys()) port.postMessage({ kind, data });
}

// settle opens the stream anew when the set of followed logs has changed, and
// closes it when no tab is left.
function settle() {
  const logs = new Set();
  for (const tab of tabs.values()) for (const id of tab.logs) logs.add(id);
  const wanted = tabs.size ? [...logs].sort().slice(0, 16).join(',') : null;
  if (wanted === following) return;
  following = wanted;
  if (source) source.close();
  source = null;
  if (wanted !== null) open();
}

function open() {
  const mine = new EventSource('/events' + (following ? '?logs=' + following : ''));
  source = mine;
  mine.onopen = () => tell('state', 'live');
  mine.onerror = () => {
    tell('state', 'lost');
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => { if (source === mine) open(); }, 5000);
  };
  for (const kind of ['hello', 'changed', 'log']) {
    mine.addEventListener(kind, (e) => { if (source === mine) tell(kind, JSON.parse(e.data)); });
  }
}

setInterval(() => {
  for (const [port, tab] of tabs) if (Date.now() - tab.seen > 180000) tabs.delete(port);
  settle();
}, 60000);
