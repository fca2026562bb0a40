// Makes one element's content like another's, keeping the nodes that stay: so
// focus, selection, scroll places and open details survive an update. Children
// are matched by data-key or id, else by place and tag.

const keyOf = (n) => (n.nodeType === 1 ? n.getAttribute('data-key') || n.id : '');

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

export function children(from, to) {
  const keyed = new Map();
  for (const n of from.childNodes) {
    const key = keyOf(n);
    if (key) keyed.set(key, n);
  }
  let at = from.firstChild;
  for (const want of [...to.childNodes]) {
    const key = keyOf(want);
    const match = key ? keyed.get(key) : at;
    if (match && match.parentNode === from && alike(match, want)) {
      if (match === at) at = at.nextSibling;
      else from.insertBefore(match, at);
      node(match, want);
      if (key) keyed.delete(key);
      continue;
    }
    // A keyed node that is wanted later must not be used up by place.
    from.insertBefore(want, at);
    if (at && !keyOf(at) && !key && at.nodeName === want.nodeName) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}
