package aggregator

import (
	"math"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql"
)

func TestTheEnginesSamplesFollowTheMemoryLimit(t *testing.T) {
	for limit, want := range map[int64]int{math.MaxInt64: 50_000_000, 512 << 20: 4 << 20, 1 << 20: 1_000_000} {
		if got := engineSamples(limit); got != want {
			t.Errorf("limit of %d bytes: %d samples, want %d", limit, got, want)
		}
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
		!strings.Contains(err.Error(), "more than 100: name a metric and a namespace in each of its selectors, or take a shorter range") {
		t.Errorf("error %v", err)
	}
}
