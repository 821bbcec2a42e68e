package aggregator

import (
	"context"
	"slices"
	"time"
)

// Watch has the rows that are committed mark the query, so that [Store.Watch] evaluates it; without
// on it ends that. It is for registered queries; one of which a selector has no metric name is not
// marked by that selector's series. A query is to be unwatched before it is closed.
func (q *Query) Watch(on bool) {
	w := &q.store.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	if q.watched == on {
		return
	}
	q.watched = on
	var as *mark
	if on {
		as = &q.mark
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

// Mark marks the query as a committed row would.
func (q *Query) Mark() { q.store.watches.mark(&q.mark, q.store.hook) }

// evaluationsPerFlush bounds how often a watched query is evaluated in a flush interval: its pods
// flush at different times, and with many of them each row alone changes little.
const evaluationsPerFlush = 10

// watchPause is how long marks gather between two rounds of evaluation: with a thousand flushes a
// second, waking up for each costs as much as what is evaluated then, and nobody acts within a
// hundredth of a flush.
const watchPause = 20 * time.Millisecond

// Watch calls evaluate for watched queries that committed rows have marked, one at a time, until
// the context ends. evaluate returns the longest flush interval of the query's pods: the next call
// for the same query comes a tenth of it later or after. It is called once for a store.
func (s *Store) Watch(ctx context.Context, evaluate func(*Query) (flush time.Duration)) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var marked []*mark
	var waiting []*Query
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.watches.wake:
		case <-timer.C:
		}
		marked = s.watches.take(marked[:0], s.hook)
		for _, m := range marked {
			if q := m.query.(*Query); !q.waiting { // else marked again while it waits
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
