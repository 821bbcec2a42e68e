package aggregator

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// turns bounds how many of the engine's queries run: one at a time of each namespace, and few in all. One that is known to be quick
// and one that is not go first by turns, so neither kind waits for more than one of the other; among its kind the namespace that has waited
// longest does: it has one place, however many queries it has. One that has run for turnLong ends as soon as another namespace waits.
type turns struct {
	mu      sync.Mutex
	free    int
	number  uint64
	slow    bool             // the next one is preferably not quick: the last one was
	running map[string]*turn // by namespace
	waiting []*turn          // as they have come
}

// turnLong leaves an answer to who comes after queries that nobody knows yet of an HPA controller's other four workers: a request has 4 s.
const turnLong = 750 * time.Millisecond

// errGaveWay is the cause of the end of a turn that another namespace waited for.
var errGaveWay = errors.New("it ran for longer than " + turnLong.String() + " while others waited")

type turn struct {
	namespace string
	quick     bool
	began     chan struct{} // closed when it begins
	end       context.CancelCauseFunc
	// Under turns.mu:
	place uint64 // grows with the time at which it has come, or its namespace has had a turn
	long  bool   // it has run for turnLong
}

func newTurns(atATime int) *turns { return &turns{free: atATime, running: map[string]*turn{}} }

// wait returns when the namespace has its turn; the caller ends it. The query runs in the turn's context, whose cause is errGaveWay where
// another one's turn has ended it. The error is that of ctx, which ended before.
func (t *turns) wait(ctx context.Context, namespace string, quick bool) (in context.Context, end func(), err error) {
	w := &turn{namespace: namespace, quick: quick, began: make(chan struct{})}
	in, w.end = context.WithCancelCause(ctx)
	t.join(w)
	select {
	case <-w.began:
	case <-ctx.Done():
		t.leave(w)
		return nil, nil, ctx.Err()
	}
	long := time.AfterFunc(turnLong, func() { t.takesLong(w) })
	return in, func() { long.Stop(); t.leave(w) }, nil
}

func (t *turns) join(w *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number++
	w.place = t.number
	t.waiting = append(t.waiting, w)
	t.next()
}

// leave ends a turn, or the wait for it.
func (t *turns) leave(w *turn) {
	w.end(nil)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running[w.namespace] != w {
		t.waiting = slices.DeleteFunc(t.waiting, func(o *turn) bool { return o == w })
		return
	}
	delete(t.running, w.namespace)
	t.free++
	t.number++
	for _, o := range t.waiting {
		if o.namespace == w.namespace {
			o.place = t.number
		}
	}
	t.next()
}

// takesLong ends the turn if others wait, or when they will.
func (t *turns) takesLong(w *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.long = true
	t.next()
}

// next begins the turns that there is room for. What has run for long gives way to those that there is none for.
func (t *turns) next() {
	for {
		first := t.first()
		if first == nil {
			return
		}
		if t.free == 0 {
			break
		}
		t.free--
		t.slow = first.quick
		t.running[first.namespace] = first
		t.waiting = slices.DeleteFunc(t.waiting, func(o *turn) bool { return o == first })
		close(first.began)
	}
	for _, r := range t.running {
		if r.long {
			r.end(errGaveWay)
		}
	}
}

// first is whose turn it is next, nil where nobody waits but for others of its namespace.
func (t *turns) first() (first *turn) {
	for _, w := range t.waiting {
		before := first == nil || w.quick == first.quick && w.place < first.place || w.quick != first.quick && w.quick != t.slow
		if before && t.running[w.namespace] == nil {
			first = w
		}
	}
	return first
}
