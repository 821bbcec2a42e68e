package metricsapi

import (
	"errors"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// newTightCatalog is a catalog over a store whose queries may take the samples of 64 MiB, which
// greedy exceeds.
func newTightCatalog(t *testing.T) (*catalog, *told) {
	t.Helper()
	c, told := newTestCatalog(t)
	limit := debug.SetMemoryLimit(64 << 20) // the store's queries follow it
	store, err := aggregator.New(aggregator.Config{})
	debug.SetMemoryLimit(limit)
	if err != nil {
		t.Fatal(err)
	}
	c.store = store
	return c, told
}

const greedy = "sum_over_time(vector(1)[20m:1ms])"

// A query that takes more than it may is an event on its HPA.
func TestAQueryThatIsTooMuchIsTold(t *testing.T) {
	c, told := newTightCatalog(t)
	c.Replace([]hpas.HPA{asks(t, "greedy", "greedy", greedy)})
	p := &provider{catalog: c, metrics: newMetrics(nil), now: time.Now}
	for range 2 {
		if _, refused := p.get(t.Context(), "test", "prometheus-query", fixture.Selector(t, "query-name=greedy")); refused == nil || refused.outcome != outcomeFailed {
			t.Fatalf("refused: %+v", refused)
		}
	}
	if got := told.message(hpas.ReasonTooMuch); !strings.Contains(got, "refused for two minutes") || !strings.Contains(got, "name a metric and a namespace") {
		t.Errorf("the HPA is told %q", got)
	}
}

// Of an expression that HPAs of two namespaces have, each namespace has a query of its own: what
// the one has run into refuses the other nothing, and each has its own turn and its own share of
// memory.
func TestNamespacesShareNoQuery(t *testing.T) {
	c, _ := newTightCatalog(t)
	evil, mine, also := asks(t, "evil", "same", greedy), asks(t, "mine", "same", greedy), asks(t, "also", "other", greedy)
	evil.Namespace, mine.Namespace, also.Namespace = "evil", "mine", "mine"
	c.Replace([]hpas.HPA{evil, mine, also})
	find := func(namespace, query string) *prepared {
		p, _, refused := c.find(namespace, "prometheus-query", fixture.Selector(t, "query-name="+query))
		if refused != nil {
			t.Fatal(refused.message)
		}
		t.Cleanup(p.release)
		return p
	}
	theirs, ours, again := find("evil", "same"), find("mine", "same"), find("mine", "other")
	if ours != again {
		t.Error("two HPAs of a namespace do not share the query of their expression")
	}
	if _, err := theirs.query.Eval(t.Context(), time.Now()); !errors.Is(err, aggregator.ErrTooMuch) {
		t.Fatalf("the one that is asked first: %v", err)
	}
	if !theirs.query.TooMuch() || ours.query.TooMuch() {
		t.Errorf("refused: the one's %t, the other's %t", theirs.query.TooMuch(), ours.query.TooMuch())
	}
	c.Replace([]hpas.HPA{evil, also})
	if len(c.prepared) != 2 || c.prepared[preparedKey{namespace: "mine", expr: greedy}] != ours {
		t.Errorf("%d queries are kept", len(c.prepared))
	}
}
