package aggregator

import (
	"sync"
	"sync/atomic"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// mark is what of a watched query the rows that are committed know.
type mark struct {
	query   any         // whose it is
	watched bool        // under watches.mu
	marked  atomic.Bool // on the stack of watches
	next    *mark       // below it there
}

// Watched queries are marked by the rows that are committed, and one goroutine evaluates the marked
// ones (Store.Watch).
//
// Who owns what:
//   - query.watched and the epoch are written by Query.Watch, under watches.mu, and read by writers
//     of tables;
//   - a table's list of watched queries is its writer's own, under the table's mutex. It is made
//     anew when the epoch has moved or the table has a new column, so a writer asks nobody in the
//     steady state: one load of the epoch, which is 0 while nothing is watched, and one load of a
//     flag for each query on its list;
//   - marked queries form a stack that writers push to with a compare-and-swap and the one
//     goroutine takes as a whole.

// watches is what the store knows of watched queries.
type watches struct {
	mu     sync.Mutex
	count  int
	epochs uint64

	// epoch is 0 while nothing is watched, else another number after each change.
	epoch  atomic.Uint64
	marked atomic.Pointer[mark] // the newest of the stack
	// wake holds a token when the stack has ceased to be empty.
	wake chan struct{}
}

// tell has tables look anew for the watched queries of their series.
func (w *watches) tell(epoch uint64, h ring.Hook) {
	w.epoch.Store(epoch)
	h.After(stepWatched)
}

// mark pushes the mark of a query that is not on the stack yet. A query is pushed again only after
// take has taken it off, so next belongs to whoever has set marked, until the push, and to take
// from then on.
func (w *watches) mark(m *mark, h ring.Hook) {
	if m.marked.Load() || !m.marked.CompareAndSwap(false, true) {
		return
	}
	for {
		top := w.marked.Load()
		m.next = top
		if !w.push(m, top, h) {
			continue
		}
		if top == nil {
			w.rouse(h)
		}
		return
	}
}

// push makes a query the newest of the stack, if that still is the other.
func (w *watches) push(m, top *mark, h ring.Hook) bool {
	if !w.marked.CompareAndSwap(top, m) {
		return false
	}
	h.After(stepMarked)
	return true
}

// rouse wakes who takes the marked queries.
func (w *watches) rouse(h ring.Hook) {
	select {
	case w.wake <- struct{}{}:
	default:
	}
	h.After(stepWoken)
}

// take returns the marked queries, none twice. A row that is committed from now on marks its
// queries anew.
func (w *watches) take(into []*mark, h ring.Hook) []*mark {
	for m := w.marked.Swap(nil); m != nil; {
		next := m.next
		m.next = nil
		m.unmark(h)
		into = append(into, m)
		m = next
	}
	return into
}

func (m *mark) unmark(h ring.Hook) {
	m.marked.Store(false)
	h.After(stepUnmarked)
}

// markQueries marks the queries that the table's series belong to. The table's mutex is held.
func (t *table) markQueries() {
	w := &t.store.watches
	epoch := w.epoch.Load()
	if epoch == 0 {
		return
	}
	if epoch != t.watchEpoch {
		t.watchEpoch, t.watching = epoch, t.store.classes.marks(t.columns)
	}
	for _, m := range t.watching {
		w.mark(m, t.store.hook)
	}
}
