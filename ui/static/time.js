// Keeps the text of <time> elements current. The server wrote them once, in the
// same words.

const units = [[86400 * 2, 86400, 'd'], [3600, 3600, 'h'], [60, 60, 'm'], [0, 1, 's']];

function one(seconds) {
  for (const [from, unit, name] of units) {
    if (seconds >= from) return Math.floor(seconds / unit) + name;
  }
  return '0s';
}

export function ago(seconds) {
  if (seconds < -1) return 'in ' + one(-seconds);
  return seconds < 5 ? 'just now' : one(seconds) + ' ago';
}

const two = (n) => String(n).padStart(2, '0');

export function duration(seconds) {
  const s = Math.max(seconds, 0);
  if (s < 10) return s.toFixed(1) + 's';
  if (s < 60) return Math.floor(s) + 's';
  if (s < 3600) return Math.floor(s / 60) + 'm' + two(Math.floor(s) % 60) + 's';
  if (s < 48 * 3600) return Math.floor(s / 3600) + 'h' + two(Math.floor(s / 60) % 60) + 'm';
  return Math.floor(s / 86400) + 'd' + two(Math.floor(s / 3600) % 24) + 'h';
}

export function tick() {
  if (document.hidden) return;
  const now = Date.now();
  for (const e of document.querySelectorAll('time.rel, time.since')) {
    const seconds = (now - Date.parse(e.dateTime)) / 1000;
    // A running clock shows whole seconds: tenths would only flicker.
    const text = e.className === 'rel' ? ago(seconds) : duration(seconds < 10 ? Math.floor(seconds) : seconds).replace('.0s', 's');
    if (e.textContent !== text) e.textContent = text;
  }
}
