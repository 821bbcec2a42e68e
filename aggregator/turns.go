package aggregator

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// turns bounds how many of the engine's queries run: one at a time of each namespace, and few in
// all. Who waits gets a turn by what is known of his query: those that are slow have a third of the
// time where others wait too. Among its kind the namespace that has waited longest goes first: it
// has one place, however many queries it has, and keeps it where it does not come to its turn in
// the time of a request. A turn ends when it has had its share of the time and another namespace
// waits.
type turns struct {
	mu      sync.Mutex
	free    int
	number  uint64
	running map[string]*turn // by namespace
	waiting []*turn          // as they have come
	left    map[queue]uint64 // the places of namespaces that have left without a turn, of mostLeft
	// owed is how much time those that are not slow are owed for the time of those that are, below
	// 0 where it is the other way round.
	owed time.Duration
}

// pace is what is known of how long a query runs.
type pace int32

const (
	paceUnknown pace = iota
	paceQuick        // less than engineQuick, and less than leastTurn ever since: others' load makes any query slow at times
	paceSlow
)

const (
	// fullTurn is shared by slow queries of an HPA controller's five workers, so that the last of
	// them is answered in time: a request has 4 s. Two that need half of it are answered both.
	fullTurn = 3 * time.Second
	// leastTurn is how long one of them runs at least, and one that was quick.
	leastTurn = 500 * time.Millisecond
	// fullTrial is shared by those that nobody knows: new ones may come from a hundred namespaces
	// at once.
	fullTrial = 2 * time.Second
	// leastTrial is how long one of them runs at least: beside 400 pods, a hundred times as long as
	// a usual one.
	leastTrial = 20 * time.Millisecond
	// mostLeft is of how many that have left the places are kept: they may never come again.
	mostLeft = 10_000
	// mostOwed is for how long slow ones wait at most for others that do not end.
	mostOwed = time.Second
)

// errGaveWay is the cause of the end of a turn that another namespace waited for.
var errGaveWay = errors.New("it had its share of the time while others waited")

type turn struct {
	namespace string
	pace      pace
	began     chan struct{} // closed when it begins
	end       context.CancelCauseFunc
	// Under turns.mu:
	place uint64 // grows with the time at which it has come, or its namespace has had a turn
	since time.Time
	timer *time.Timer // looks whether it has had its share
}

// queue is a namespace's among its kind.
type queue struct {
	namespace string
	slow      bool
}

func (w *turn) queue() queue { return queue{w.namespace, w.pace == paceSlow} }

func newTurns(atATime int) *turns {
	return &turns{free: atATime, running: map[string]*turn{}, left: map[queue]uint64{}}
}

// wait returns when the namespace has its turn; the caller ends it. The query runs in the turn's
// context, whose cause is errGaveWay where another one's turn has ended it. The error is that of
// ctx, which ended before.
func (t *turns) wait(ctx context.Context, namespace string, p pace) (in context.Context, end func(), err error) {
	w := &turn{namespace: namespace, pace: p, began: make(chan struct{})}
	in, w.end = context.WithCancelCause(ctx)
	t.join(w)
	select {
	case <-w.began:
	case <-ctx.Done():
		t.leave(w)
		return nil, nil, ctx.Err()
	}
	return in, func() { t.leave(w) }, nil
}

func (t *turns) join(w *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number++
	w.place = t.number
	if place, ok := t.left[w.queue()]; ok {
		w.place = place
	}
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
		if place, ok := t.left[w.queue()]; (!ok || w.place < place) && len(t.left) < mostLeft {
			t.left[w.queue()] = w.place
		}
		return
	}
	delete(t.running, w.namespace)
	w.timer.Stop()
	took := time.Since(w.since)
	if w.pace == paceSlow {
		took *= -2
	}
	t.owed = min(max(t.owed-took, -engineQuick), mostOwed)
	t.free++
	t.number++
	for _, o := range t.waiting {
		if o.namespace == w.namespace {
			o.place = t.number
		}
	}
	delete(t.left, w.queue())
	t.next()
}

// next begins the turns that there is room for. Those that have had their share give way to those
// that there is none for.
func (t *turns) next() {
	for t.free > 0 {
		first := t.first()
		if first == nil {
			break
		}
		t.free--
		t.running[first.namespace] = first
		delete(t.left, first.queue())
		t.waiting = slices.DeleteFunc(t.waiting, func(o *turn) bool { return o == first })
		first.since = time.Now()
		first.timer = time.AfterFunc(fullTurn, t.press)
		close(first.began)
	}
	t.pressLocked()
}

// first is whose turn it is next, nil where nobody waits but for others of its namespace.
func (t *turns) first() (first *turn) {
	preferred := func(w *turn) bool { return (w.pace == paceSlow) == (t.owed < 0) }
	for _, w := range t.waiting {
		before := first == nil || preferred(w) == preferred(first) && w.place < first.place || preferred(w) && !preferred(first)
		if before && t.running[w.namespace] == nil {
			first = w
		}
	}
	return first
}

func (t *turns) press() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pressLocked()
}

// pressLocked ends the turns that have had their share, and looks again when others will have.
func (t *turns) pressLocked() {
	others := t.others()
	if others == 0 {
		return
	}
	for _, r := range t.running {
		if left := share(r.pace, others) - time.Since(r.since); left > 0 {
			r.timer.Reset(left)
		} else {
			r.end(errGaveWay)
		}
	}
}

// others is how many namespaces wait for one of the running turns to end.
func (t *turns) others() int {
	seen := map[string]bool{}
	for _, w := range t.waiting {
		if t.running[w.namespace] == nil {
			seen[w.namespace] = true
		}
	}
	return len(seen)
}

// share is how long a turn lasts while so many other namespaces wait.
func share(p pace, others int) time.Duration {
	switch p {
	case paceSlow:
		return max(fullTurn/time.Duration(others+1), leastTurn)
	case paceUnknown:
		return min(max(fullTrial/time.Duration(others+1), leastTrial), engineQuick)
	}
	return min(max(fullTrial/time.Duration(others+1), engineQuick), leastTurn) // it was quick once
}
