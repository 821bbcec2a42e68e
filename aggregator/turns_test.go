package aggregator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// begin has the namespace take a turn that is free.
func (t *turns) begin(tb testing.TB, namespace string) (in context.Context, end func()) {
	tb.Helper()
	in, end, err := t.wait(tb.Context(), namespace, false)
	if err != nil {
		tb.Fatal(err)
	}
	return in, end
}

func TestTurnsGoByNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		_, end := turns.begin(t, "evil")
		var order []string // in turn, so one at a time
		var all sync.WaitGroup
		for _, w := range []struct {
			namespace string
			quick     bool
		}{{"evil", false}, {"evil", false}, {"evil", true}, {"evil", false}, {"mine", false}, {"other", false}, {"quick", true}, {"mine", false}} {
			all.Go(func() {
				_, end, err := turns.wait(t.Context(), w.namespace, w.quick)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, w.namespace)
				end()
			})
			synctest.Wait()
		}
		end()
		all.Wait()
		if got := strings.Join(order, " "); got != "quick mine evil other mine evil evil evil" {
			t.Errorf("in the order %s", got)
		}
	})
}

// Quick queries of others come without end: one that is not known to be quick has its turn all the same, after one of them at most.
func TestAQueryThatIsNotQuickHasItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		quick, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range 50 {
			running.Go(func() {
				for {
					_, end, err := turns.wait(quick, fmt.Sprint("quick-", i), true)
					if err != nil {
						return
					}
					time.Sleep(90 * time.Millisecond)
					end()
				}
			})
		}
		synctest.Wait()
		time.Sleep(10 * time.Millisecond) // of the first one's turn
		began := time.Now()
		ctx, done := context.WithTimeout(t.Context(), 4*time.Second)
		defer done()
		_, end, err := turns.wait(ctx, "mine", false)
		if took := time.Since(began); err != nil || took > 180*time.Millisecond {
			t.Errorf("it waits for %s: %v", took, err)
		}
		cancel()
		if err == nil {
			end()
		}
		running.Wait()
	})
}

// And quick ones wait for one of the others at most.
func TestAQuickQueryGoesFirstEverySecondTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		slow, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range 50 {
			running.Go(func() {
				for {
					in, end, err := turns.wait(slow, fmt.Sprint("slow-", i), false)
					if err != nil {
						return
					}
					<-in.Done() // it gives way
					end()
				}
			})
		}
		synctest.Wait()
		for range 10 {
			began := time.Now()
			_, end, err := turns.wait(t.Context(), "mine", true)
			if took := time.Since(began); err != nil || took > turnLong {
				t.Errorf("it waits for %s: %v", took, err)
			}
			end()
		}
		cancel()
		running.Wait()
	})
}

// A turn that takes long ends once another namespace waits, and not for its own.
func TestALongTurnGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		in, end := turns.begin(t, "evil")
		wait := func(namespace string) (done chan struct{}) {
			done = make(chan struct{})
			go func() {
				_, end, err := turns.wait(t.Context(), namespace, false)
				if err != nil {
					t.Error(err)
				}
				end()
				close(done)
			}()
			synctest.Wait()
			return done
		}
		again := wait("evil")
		time.Sleep(2 * turnLong)
		synctest.Wait()
		if in.Err() != nil {
			t.Errorf("it gives way to its own namespace: %v", context.Cause(in))
		}
		mine := wait("mine")
		if !errors.Is(context.Cause(in), errGaveWay) {
			t.Errorf("another namespace waits, and its context says %v", context.Cause(in))
		}
		end()
		<-mine
		<-again

		in, end = turns.begin(t, "evil")
		mine = wait("mine")
		time.Sleep(turnLong - time.Millisecond)
		synctest.Wait()
		if in.Err() != nil {
			t.Error("it gives way before it has taken long")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !errors.Is(context.Cause(in), errGaveWay) {
			t.Errorf("it has taken long while another one waited, and its context says %v", context.Cause(in))
		}
		end()
		<-mine
		if len(turns.running)+len(turns.waiting) != 0 || turns.free != 1 {
			t.Errorf("left are %d that run, %d that wait, %d places", len(turns.running), len(turns.waiting), turns.free)
		}
	})
}

// gaveWay notes that others have ended the query's turn while it ran.
func (q *Query) gaveWay(ctx context.Context) error {
	in, cancel := context.WithCancelCause(ctx)
	cancel(errGaveWay)
	return q.ran(in, in.Err(), turnLong)
}

// A query that has given way to others is none that takes too much: their load may have made it slow.
func TestAQueryThatGaveWayIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRangesFleet(t, 0, 2, 10)
		f.flush(12)
		f.s.engine.turns = newTurns(1)
		q, err := f.s.RegisterFor("mine", hungry)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 * engineYields { // never so often in a row
			for range engineYields - 1 {
				if err := q.gaveWay(t.Context()); !errors.Is(err, errGaveWay) || errors.Is(err, ErrTooMuch) ||
					!strings.Contains(err.Error(), "750ms while others waited: name a metric and a namespace") {
					t.Fatalf("it gives way: %v", err)
				}
			}
			if q.quick.Load() || q.TooMuch() {
				t.Fatalf("quick: %t, too much: %t", q.quick.Load(), q.TooMuch())
			}
			if _, err := q.Eval(t.Context(), f.now); err != nil || !q.quick.Load() {
				t.Fatalf("alone: %v, quick: %t", err, q.quick.Load())
			}
		}
	})
}

// One that never ends before it gives way is refused for a while, as one that is too much, and asks for no turn meanwhile.
func TestAQueryThatGaveWayThreeTimesInARowIsTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRangesFleet(t, 0, 2, 10)
		f.flush(12)
		e := f.s.engine
		e.turns = newTurns(1)
		q, err := f.s.RegisterFor("evil", hungry)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := q.gaveWay(t.Context()); errors.Is(err, ErrTooMuch) {
				t.Errorf("it gives way: %v", err)
			}
		}
		if err := q.ran(t.Context(), context.Canceled, time.Second); errors.Is(err, ErrTooMuch) {
			t.Errorf("its request ends: %v", err)
		}
		if err := q.gaveWay(t.Context()); !errors.Is(err, ErrTooMuch) || !strings.Contains(err.Error(), "750ms while others waited") {
			t.Errorf("it gives way for the third time without an answer: %v", err)
		}
		_, end := e.turns.begin(t, "other") // so a turn would have to wait
		if _, err := q.Eval(t.Context(), f.now); !errors.Is(err, ErrTooMuch) || !strings.Contains(err.Error(), "not tried again before") {
			t.Errorf("within the two minutes: %v", err)
		}
		end()
		time.Sleep(enginePause)
		if _, err := q.Eval(t.Context(), f.now); err != nil {
			t.Errorf("after them: %v", err)
		}
	})
}
