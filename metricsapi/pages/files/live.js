// Puts what changes in place, as the server has drawn it, and moves among HPAs by keys.
'use strict';

const lost = document.getElementById('lost');
let events;

// Puts a piece in place of another; of a row only the cells that are others, which is half the work.
function renew(old, fresh) {
  if (!fresh.cells || fresh.cells.length !== old.cells.length) {
    old.replaceWith(fresh);
    return;
  }
  [...fresh.cells].forEach((cell, i) => {
    if (!cell.isEqualNode(old.cells[i])) old.cells[i].replaceWith(cell);
  });
  old.className = fresh.className;
  old.title = fresh.title;
}

// What is asked of the document makes the browser lay it out anew, so it is asked once, not for each
// of a thousand rows.
function change(message) {
  const selection = getSelection();
  const chosen = selection.isCollapsed ? null : selection.anchorNode; // somebody is copying
  const focused = document.activeElement;
  const added = new Map();
  let focus = null;
  for (const [id, html] of Object.entries(message.pieces)) {
    const from = document.createElement('template');
    from.innerHTML = html;
    const fresh = from.content.firstElementChild;
    const old = document.getElementById(id);
    if (!old) {
      added.set(id, fresh);
    } else if (!old.contains(chosen) && !old.isEqualNode(fresh)) {
      renew(old, fresh);
      if (!focused.isConnected) focus ??= document.getElementById(id).querySelector('a');
    }
  }
  const pieces = document.getElementById('pieces');
  if (message.order && message.order.join('\n') !== [...pieces.children].map(p => p.id).join('\n')) {
    pieces.replaceChildren(...message.order.map(id => added.get(id) ?? document.getElementById(id)));
    focus ??= focused; // moving it has taken that
  }
  focus?.focus({preventScroll: true});
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
