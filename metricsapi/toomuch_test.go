package metricsapi

import (
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// A query that takes more than it may is an event on its HPA.
func TestAQueryThatIsTooMuchIsTold(t *testing.T) {
	c, told := newTestCatalog(t)
	limit := debug.SetMemoryLimit(64 << 20) // the store's queries follow it
	store, err := aggregator.New(aggregator.Config{})
	debug.SetMemoryLimit(limit)
	if err != nil {
		t.Fatal(err)
	}
	c.store = store
	c.Replace([]sourceHPA{asks(t, "greedy", "greedy", "sum_over_time(vector(1)[20m:1ms])")})
	p := &provider{catalog: c, metrics: newMetrics(nil), now: time.Now}
	for range 2 {
		if _, refused := p.get(t.Context(), "test", "prometheus-query", mustSelector(t, "query-name=greedy")); refused == nil || refused.outcome != outcomeFailed {
			t.Fatalf("refused: %+v", refused)
		}
	}
	if got := told.message(ReasonTooMuch); !strings.Contains(got, "refused for two minutes") || !strings.Contains(got, "name a metric and a namespace") {
		t.Errorf("the HPA is told %q", got)
	}
}
