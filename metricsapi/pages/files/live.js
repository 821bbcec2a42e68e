// Puts what changes in place, as the server has drawn it, and moves among HPAs by keys.
'use strict';

const lost = document.getElementById('lost');
let events;

function put(id, html) {
  const from = document.createElement('template');
  from.innerHTML = html;
  const fresh = from.content.firstElementChild;
  const old = document.getElementById(id);
  if (!old) return fresh;
  const selection = getSelection();
  if (!selection.isCollapsed && old.contains(selection.anchorNode)) return old; // somebody is copying
  const focused = old.contains(document.activeElement);
  old.replaceWith(fresh);
  if (focused) fresh.querySelector('a')?.focus({preventScroll: true});
  return fresh;
}

function change(message) {
  const now = new Map(Object.entries(message.pieces).map(([id, html]) => [id, put(id, html)]));
  if (!message.order) return;
  const focused = document.activeElement;
  document.getElementById('pieces').replaceChildren(...message.order.map(id => now.get(id) ?? document.getElementById(id)));
  focused.focus({preventScroll: true}); // moving it has taken that
}

// A page that nobody sees is not kept up to date: it costs the server, and one of the few connections
// that a browser has.
function follow() {
  events?.close();
  if (document.hidden) return;
  events = new EventSource('events');
  events.onmessage = event => {
    lost.hidden = true;
    change(JSON.parse(event.data));
  };
  events.onerror = () => {
    lost.hidden = false;
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, 2000); // else it tries again by itself
  };
}

function move(by) {
  const links = [...document.querySelectorAll('#pieces td.name a')];
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? 0 : Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
}

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const inTable = document.querySelector('#pieces td.name a');
  if (event.key === 'Escape') document.querySelector('a[rel=up]')?.click();
  else if (inTable && (event.key === 'j' || event.key === 'ArrowDown')) move(1);
  else if (inTable && (event.key === 'k' || event.key === 'ArrowUp')) move(-1);
  else return;
  event.preventDefault();
});
document.addEventListener('visibilitychange', follow);
follow();
