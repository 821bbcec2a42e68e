package aggregator

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// Watched queries are marked by the rows that are committed, and one goroutine evaluates the marked ones (Store.Watch).
//
// Who owns what:
//   - query.watched and the epoch are written by Query.Watch, under watches.mu, and read by writers of tables;
//   - a table's list of watched queries is its writer's own, under the table's mutex. It is made anew when the epoch has moved or
//     the table has a new column, so a writer asks nobody in the steady state: one load of the epoch, which is 0 while nothing is
//     watched, and one load of a flag for each query on its list;
//   - marked queries form a stack that writers push to with a compare-and-swap and the one goroutine takes as a whole.

// watches is what the store knows of watched queries.
type watches struct {
	mu     sync.Mutex
	count  int
	epochs uint64

	// epoch is 0 while nothing is watched, else another number after each change.
	epoch  atomic.Uint64
	marked atomic.Pointer[Query] // the newest of the stack
	// wake holds a token when the stack has ceased to be empty.
	wake chan struct{}
}

// Watch has the rows that are committed mark the query, so that [Store.Watch] evaluates it; without on it ends that. It is for
// registered queries; one of which a selector has no metric name is not marked by that selector's series. A query is
// to be unwatched before it is closed.
func (q *Query) Watch(on bool) {
	w := &q.store.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.watched == on {
		return
	}
	q.watched = on
	var as *Query
	if on {
		as = q
		w.count++
	} else {
		w.count--
	}
	for _, sel := range q.selectors {
		sel.watched.Store(as)
	}
	w.epochs++
	if w.count == 0 {
		w.tell(0, q.store.hook)
		return
	}
	w.tell(w.epochs, q.store.hook)
}

// tell has tables look anew for the watched queries of their series.
func (w *watches) tell(epoch uint64, h ring.Hook) {
	w.epoch.Store(epoch)
	h.After(stepWatched)
}

// Mark marks the query as a committed row would.
func (q *Query) Mark() { q.store.watches.mark(q) }

// mark pushes a query that is not on the stack yet. A query is pushed again only after take has taken it off, so next belongs to
// whoever has set marked, until the push, and to take from then on.
func (w *watches) mark(q *Query) {
	if q.marked.Load() || !q.marked.CompareAndSwap(false, true) {
		return
	}
	for {
		top := w.marked.Load()
		q.next = top
		if !w.push(q, top) {
			continue
		}
		if top == nil {
			w.rouse(q.store.hook)
		}
		return
	}
}

// push makes a query the newest of the stack, if that still is the other.
func (w *watches) push(q, top *Query) bool {
	if !w.marked.CompareAndSwap(top, q) {
		return false
	}
	q.store.hook.After(stepMarked)
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

// take returns the marked queries, none twice. A row that is committed from now on marks its queries anew.
func (w *watches) take(into []*Query) []*Query {
	for q := w.marked.Swap(nil); q != nil; {
		next := q.next
		q.next = nil
		q.unmark()
		into = append(into, q)
		q = next
	}
	return into
}

func (q *Query) unmark() {
	q.marked.Store(false)
	q.store.hook.After(stepUnmarked)
}

// markQueries marks the queries that the table's series belong to. The table's mutex is held.
func (t *table) markQueries() {
	w := &t.store.watches
	epoch := w.epoch.Load()
	if epoch == 0 {
		return
	}
	if epoch != t.watchEpoch {
		t.watchEpoch, t.watching = epoch, t.watchedQueries()
	}
	for _, q := range t.watching {
		w.mark(q)
	}
}

// watchedQueries returns the watched queries that select one of the table's series.
func (t *table) watchedQueries() []*Query {
	var found []*Query
	t.store.classes.selecting(t.columns, func(sel *selector) {
		if q := sel.watched.Load(); q != nil && !slices.Contains(found, q) {
			found = append(found, q)
		}
	})
	return found
}

// evaluationsPerFlush bounds how often a watched query is evaluated in a flush interval: its pods flush at different times, and
// with many of them each row alone changes little.
const evaluationsPerFlush = 10

// watchPause is how long marks gather between two rounds of evaluation: with a thousand flushes a second, waking up for each costs
// as much as what is evaluated then, and nobody acts within a hundredth of a flush.
const watchPause = 20 * time.Millisecond

// Watch calls evaluate for watched queries that committed rows have marked, one at a time, until the context ends. evaluate
// returns the longest flush interval of the query's pods: the next call for the same query comes a tenth of it later or after.
// It is called once for a store.
func (s *Store) Watch(ctx context.Context, evaluate func(*Query) (flush time.Duration)) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var marked, waiting []*Query
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.watches.wake:
		case <-timer.C:
		}
		marked = s.watches.take(marked[:0])
		for _, q := range marked {
			if !q.waiting { // else marked again while it waits
				q.waiting = true
				waiting = append(waiting, q)
			}
		}
		now, next := time.Now(), time.Hour
		waiting = slices.DeleteFunc(waiting, func(q *Query) bool {
			if wait := q.due.Sub(now); wait > 0 {
				next = min(next, wait)
				return false
			}
			q.waiting = false
			var flush time.Duration
			s.Contain("act", q.expr, func() { flush = evaluate(q) })
			q.due = now.Add(flush / evaluationsPerFlush)
			s.metrics.driven.Inc()
			return true
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchPause):
		}
		timer.Reset(next - watchPause)
	}
}
