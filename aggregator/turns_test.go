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
	in, end, err := t.wait(tb.Context(), namespace, paceSlow)
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
			pace      pace
		}{{"evil", paceSlow}, {"evil", paceSlow}, {"evil", paceQuick}, {"evil", paceSlow}, {"mine", paceSlow}, {"other", paceSlow}, {"quick", paceQuick}, {"mine", paceSlow}} {
			all.Go(func() {
				_, end, err := turns.wait(t.Context(), w.namespace, w.pace)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, w.namespace)
				time.Sleep(time.Millisecond)
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

// Quick queries of others come without end: one that is not known to be quick has its turn all the
// same, after one of them at most.
func TestAQueryThatIsNotQuickHasItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		quick, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range 50 {
			running.Go(func() {
				for {
					_, end, err := turns.wait(quick, fmt.Sprint("quick-", i), paceQuick)
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
		_, end, err := turns.wait(ctx, "mine", paceSlow)
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

// And the others have two thirds of the time: one of them waits for one of the slow at most.
func TestAQueryThatIsNotKnownToBeSlowGoesFirst(t *testing.T) {
	for name, p := range map[string]pace{"quick": paceQuick, "not known": paceUnknown} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				turns := newTurns(1)
				slow, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				for i := range 50 {
					running.Go(func() {
						for {
							in, end, err := turns.wait(slow, fmt.Sprint("slow-", i), paceSlow)
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
					_, end, err := turns.wait(t.Context(), "mine", p)
					if took := time.Since(began); err != nil || took > leastTurn {
						t.Errorf("it waits for %s: %v", took, err)
					}
					end()
				}
				cancel()
				running.Wait()
			})
		})
	}
}

// runs is a query that takes so long, as the engine runs it, and how long its answer took, 0 if it
// has none.
func (t *turns) runs(ctx context.Context, namespace string, takes time.Duration) (answered time.Duration) {
	began := time.Now()
	for p := paceUnknown; ; p = paceSlow {
		in, end, err := t.wait(ctx, namespace, p)
		if err != nil {
			return 0
		}
		select {
		case <-in.Done():
			end()
			if p == paceSlow {
				return 0
			}
		case <-time.After(takes):
			end()
			return time.Since(began)
		}
	}
}

// crowd are so many namespaces that ask all the time for what takes all that it may.
func (t *turns) crowd(tt *testing.T, n int) (leave func()) {
	ctx, cancel := context.WithCancel(tt.Context())
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			for ctx.Err() == nil {
				t.runs(ctx, fmt.Sprint("evil-", i), time.Hour)
			}
		})
	}
	synctest.Wait()
	return func() {
		cancel()
		all.Wait()
	}
}

// However many ask at once for what takes all that it may, a new query of another namespace is
// answered in the four seconds of a request.
func TestANewQueryIsAnsweredBesideManyThatTakeLong(t *testing.T) {
	for _, others := range []int{1, 4, 19, 99} {
		synctest.Test(t, func(t *testing.T) {
			turns := newTurns(1)
			leave := turns.crowd(t, others)
			for n := range 5 {
				ctx, done := context.WithTimeout(t.Context(), 4*time.Second)
				took := turns.runs(ctx, "mine", leastTrial-time.Millisecond)
				done()
				if took == 0 {
					t.Errorf("beside %d others no answer to the query's ask number %d", others, n+1)
				}
				time.Sleep(time.Second)
			}
			leave()
		})
	}
}

// Beside so many that its turn does not come in the time of a request, a query that is slow has it
// at the next look of its HPA.
func TestANamespaceThatLeavesKeepsItsPlace(t *testing.T) {
	for _, others := range []int{1, 9, 19, 29} {
		synctest.Test(t, func(t *testing.T) {
			turns := newTurns(1)
			leave := turns.crowd(t, others)
			missed := 0
			for range 20 {
				ctx, done := context.WithTimeout(t.Context(), 4*time.Second)
				if turns.runs(ctx, "mine", 110*time.Millisecond) > 0 {
					missed = 0
				} else if missed++; missed > 1 {
					t.Errorf("beside %d others no answer %d times in a row", others, missed)
				}
				done()
				time.Sleep(11 * time.Second)
			}
			leave()
			if n := len(turns.left); n > 2*(others+1) {
				t.Errorf("%d places are kept", n)
			}
		})
	}
}

// A namespace that has had its turn stands behind those of its kind that wait, whichever of its
// queries left meanwhile.
func TestAPlaceThatIsKeptEndsWithATurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		_, end := turns.begin(t, "many")
		ctx, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { _, _, _ = turns.wait(ctx, "many", paceSlow) })
		synctest.Wait()
		leave()
		all.Wait()
		end()
		_, end = turns.begin(t, "other")
		var order []string // in turn, so one at a time
		for _, namespace := range []string{"mine", "many"} {
			all.Go(func() {
				_, end := turns.begin(t, namespace)
				order = append(order, namespace)
				end()
			})
			synctest.Wait()
		}
		end()
		all.Wait()
		if got := strings.Join(order, " "); got != "mine many" {
			t.Errorf("in the order %s", got)
		}
	})
}

// Two queries that need more than a second each are both answered, whoever comes first.
func TestTwoSlowQueriesAreBothAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		ctx, done := context.WithTimeout(t.Context(), 4*time.Second)
		defer done()
		var all sync.WaitGroup
		for _, namespace := range []string{"mine", "yours"} {
			all.Go(func() {
				if turns.runs(ctx, namespace, 1400*time.Millisecond) == 0 {
					t.Errorf("%s has no answer", namespace)
				}
			})
		}
		all.Wait()
	})
}

// A turn that has had its share ends once another namespace waits, and not for its own.
func TestALongTurnGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		in, end := turns.begin(t, "evil")
		wait := func(namespace string) (done chan struct{}) {
			done = make(chan struct{})
			go func() {
				_, end, err := turns.wait(t.Context(), namespace, paceSlow)
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
		time.Sleep(2 * fullTurn)
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

		for _, others := range []int{1, 2, 20} {
			in, end = turns.begin(t, "evil")
			var all []chan struct{}
			for n := range others {
				all = append(all, wait(fmt.Sprint("mine-", n)), wait(fmt.Sprint("mine-", n)))
			}
			share := max(fullTurn/time.Duration(others+1), leastTurn) // of a namespace, however many queries it has
			time.Sleep(share - time.Millisecond)
			synctest.Wait()
			if in.Err() != nil {
				t.Errorf("beside %d others it gives way before it has had its share", others)
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if !errors.Is(context.Cause(in), errGaveWay) {
				t.Errorf("it has had its share while %d others waited, and its context says %v", others, context.Cause(in))
			}
			end()
			for _, done := range all {
				<-done
			}
		}
		if len(turns.running)+len(turns.waiting) != 0 || turns.free != 1 {
			t.Errorf("left are %d that run, %d that wait, %d places", len(turns.running), len(turns.waiting), turns.free)
		}
	})
}

// gaveWay notes that others have ended the query's turn while it ran.
func (q *Query) gaveWay() error { return q.ran(true, context.Canceled, leastTurn) }

// A query that has given way to others is none that takes too much: their load may have made it
// slow.
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
				if err := q.gaveWay(); !errors.Is(err, errGaveWay) || errors.Is(err, ErrTooMuch) ||
					!strings.Contains(err.Error(), "while others waited: name a metric and a namespace") {
					t.Fatalf("it gives way: %v", err)
				}
			}
			if pace(q.pace.Load()) != paceSlow || q.TooMuch() {
				t.Fatalf("pace: %d, too much: %t", q.pace.Load(), q.TooMuch())
			}
			if _, err := q.Eval(t.Context(), f.now); err != nil || pace(q.pace.Load()) != paceQuick {
				t.Fatalf("alone: %v, pace: %d", err, q.pace.Load())
			}
		}
	})
}

// A query that was quick is so until it needs a turn of the slow: others' load makes it take longer
// at times.
func TestAQuickQueryStaysSoWhereItTakesLongerNowAndThen(t *testing.T) {
	q := &Query{}
	for _, step := range []struct {
		took time.Duration
		want pace
	}{{engineQuick, paceSlow}, {engineQuick - 1, paceQuick}, {leastTurn - 1, paceQuick}, {engineQuick, paceQuick}, {leastTurn, paceSlow}, {leastTurn - 1, paceSlow}} {
		if err := q.ran(false, nil, step.took); err != nil || pace(q.pace.Load()) != step.want {
			t.Errorf("after %s: pace %d, want %d; %v", step.took, q.pace.Load(), step.want, err)
		}
	}
}

// Those that were quick once, and are not any more, leave others the time that a request has:
// twenty namespaces whose queries take nearly all of a quick one's turn, again and again, beside
// one that really is quick and one that nobody knows yet.
func TestQueriesThatWereQuickOnceStarveNoOther(t *testing.T) {
	for _, mine := range []struct {
		pace  pace
		takes time.Duration
	}{{paceQuick, time.Millisecond}, {paceUnknown, 10 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			turns := newTurns(1)
			evil, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for i := range 20 {
				all.Go(func() {
					q := &Query{}
					q.pace.Store(int32(paceQuick))
					for evil.Err() == nil {
						q.played(evil, turns, fmt.Sprint("evil-", i), leastTurn-50*time.Millisecond)
					}
				})
			}
			time.Sleep(time.Minute)
			q := &Query{}
			q.pace.Store(int32(mine.pace))
			for n := range 20 {
				ctx, done := context.WithTimeout(t.Context(), 4*time.Second)
				if !q.played(ctx, turns, "mine", mine.takes) {
					t.Errorf("a query of %s, asked for the %d. time, is not answered in 4 s", mine.takes, n+1)
				}
				done()
				time.Sleep(11 * time.Second)
			}
			cancel()
			all.Wait()
		})
	}
}

// played has the query take its turns as byEngine does; it takes so long. It returns whether it is
// answered.
func (q *Query) played(ctx context.Context, turns *turns, namespace string, takes time.Duration) bool {
	for p := pace(q.pace.Load()); ; p = paceSlow {
		in, end, err := turns.wait(ctx, namespace, p)
		if err != nil {
			return false
		}
		select {
		case <-time.After(takes):
			end()
			_ = q.ran(false, nil, takes)
			return true
		case <-in.Done():
			gaveWay := errors.Is(context.Cause(in), errGaveWay)
			end()
			if !gaveWay || p == paceSlow {
				q.pace.Store(int32(paceSlow))
				return false
			}
		}
	}
}

// One that never ends before it gives way is refused for a while, as one that is too much, and asks
// for no turn meanwhile.
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
			if err := q.gaveWay(); errors.Is(err, ErrTooMuch) {
				t.Errorf("it gives way: %v", err)
			}
		}
		if err := q.ran(false, context.Canceled, time.Second); errors.Is(err, ErrTooMuch) {
			t.Errorf("its request ends: %v", err)
		}
		if err := q.gaveWay(); !errors.Is(err, ErrTooMuch) || !strings.Contains(err.Error(), "while others waited") {
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
