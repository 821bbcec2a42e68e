package aggregator

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/promql"
)

func TestTheEnginesSamplesFollowTheMemoryLimit(t *testing.T) {
	for limit, want := range map[int64]int{math.MaxInt64: 50_000_000, 512 << 20: 4 << 20, 1 << 20: 1_000_000} {
		if got := engineSamples(limit, 1); got != want {
			t.Errorf("limit of %d bytes: %d samples, want %d", limit, got, want)
		}
	}
	if got := engineSamples(512<<20, 4); got != 1<<20 {
		t.Errorf("four at a time: %d samples each, want %d", got, 1<<20)
	}
}

// hungry is an expression of the engine that reads all series.
const hungry = `count({__name__=~".+"})`

func TestAQueryOfTooManySamplesIsToldWhatToDo(t *testing.T) {
	f := newRangesFleet(t, 0, 2, 10)
	f.flush(12)
	q, err := f.s.RegisterFor("evil", hungry)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := q.Eval(t.Context(), f.now); err != nil || len(a.Values) != 1 {
		t.Fatalf("without a limit: %v, %v", a.Values, err)
	}
	// What Select copies counts, though the engine has counted none of it yet.
	f.s.engine.maxSamples = 100
	_, err = q.Eval(t.Context(), f.now)
	if many := promql.ErrTooManySamples(""); err == nil || !strings.Contains(err.Error(), many.Error()) ||
		!errors.Is(err, ErrTooMuch) || !strings.Contains(err.Error(), "more than 100: too much: name a metric and a namespace in each of its selectors, or take a shorter range") {
		t.Errorf("error %v", err)
	}
}

// evilWait starts five queries of a namespace whose turn it is until end, and returns once they
// wait. They end with the context.
func evilWait(ctx context.Context, t *testing.T, f *rangesFleet) (end func(), all *sync.WaitGroup) {
	t.Helper()
	_, end, err := f.s.engine.turns.wait(ctx, "evil", paceSlow)
	if err != nil {
		t.Fatal(err)
	}
	all = &sync.WaitGroup{}
	for range 5 {
		q, err := f.s.RegisterFor("evil", hungry)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if _, err := q.Eval(ctx, f.now); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "it waited") {
				t.Errorf("a query that waited: %v", err)
			}
		})
	}
	synctest.Wait()
	return end, all
}

func TestANamespacesQueriesWaitForEachOtherOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRangesFleet(t, 0, 2, 10)
		f.flush(12)
		f.s.engine.turns = newTurns(2)
		ctx, cancel := context.WithCancel(t.Context())
		end, evil := evilWait(ctx, t, f)
		benign, err := f.s.RegisterFor("mine", hungry)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := benign.Eval(t.Context(), f.now); err != nil || len(a.Values) != 1 {
			t.Errorf("a query of another namespace: %v, %v", a.Values, err)
		}
		compiled, err := f.s.RegisterFor("evil", `sum(rate(istio_requests_total[1m]))`)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := compiled.Eval(t.Context(), f.now); err != nil {
			t.Errorf("a compiled query of the namespace that waits: %v", err)
		}
		cancel()
		evil.Wait()
		end()
		if n := len(f.s.engine.turns.running) + len(f.s.engine.turns.waiting); n != 0 {
			t.Errorf("%d turns are kept of queries that neither run nor wait", n)
		}
	})
}

func TestWaitingForATurnEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRangesFleet(t, 0, 1, 1)
		f.s.engine.turns = newTurns(1)
		_, end, err := f.s.engine.turns.wait(t.Context(), "evil", paceSlow)
		if err != nil {
			t.Fatal(err)
		}
		q, err := f.s.RegisterFor("mine", hungry)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		began := time.Now()
		if _, err := q.Eval(ctx, f.now); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 4*time.Second {
			t.Errorf("waited %s: %v", time.Since(began), err)
		}
		end()
		if _, err := q.Eval(t.Context(), f.now); err != nil {
			t.Errorf("once it is its turn: %v", err)
		}
	})
}

func TestAQueryThatIsTooMuchIsRefusedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newRangesFleet(t, 0, 2, 10)
		f.flush(12)
		q, err := f.s.RegisterFor("evil", hungry)
		if err != nil {
			t.Fatal(err)
		}
		room := f.s.engine.maxSamples
		f.s.engine.maxSamples = 100
		if _, err := q.Eval(t.Context(), f.now); !errors.Is(err, ErrTooMuch) || !q.TooMuch() {
			t.Fatalf("beyond the limit: %v", err)
		}
		f.s.engine.maxSamples = room // it would answer, if it were run
		time.Sleep(enginePause - time.Millisecond)
		if _, err := q.Eval(t.Context(), f.now); !errors.Is(err, ErrTooMuch) || !strings.Contains(err.Error(), "not tried again before") {
			t.Errorf("within the two minutes: %v", err)
		}
		time.Sleep(time.Millisecond)
		if a, err := q.Eval(t.Context(), f.now); err != nil || len(a.Values) != 1 || q.TooMuch() {
			t.Errorf("after them: %v, %v", a.Values, err)
		}
	})
}

func TestOnlyAQuerysOwnTimeIsTooMuch(t *testing.T) {
	e := newEngine()
	timeout := error(promql.ErrQueryTimeout("expression evaluation"))
	if !e.tooMuch(timeout, engineTimeout) || !e.tooMuch(context.DeadlineExceeded, engineTimeout) {
		t.Error("a query that ran for as long as it may")
	}
	if e.tooMuch(timeout, time.Second) || e.tooMuch(context.Canceled, engineTimeout) {
		t.Error("a request that ended sooner")
	}
}
