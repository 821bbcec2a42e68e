package metricsapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// requestsOf describes each sample as a series of its own.
type requestsOf struct{ batch *aggregator.Batch }

func (d requestsOf) Describe(i int) (string, []aggregator.Label, error) {
	return "istio_requests_total", []aggregator.Label{{Name: "code", Value: fmt.Sprint(d.batch.Samples[i].Key)}}, nil
}

// A range for which the memory does not suffice is an event on its HPA, and is tried again when the
// HPAs are read again.
func TestARangeThatDoesNotFitIsToldAndTriedAgain(t *testing.T) {
	c, told := newTestCatalog(t)
	store, err := aggregator.New(aggregator.Config{MemoryBudget: 24 << 20, Retention: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	c.store = store
	now := store.Started()
	for i := range 60 {
		name := fmt.Sprint("pod-", i)
		b := &aggregator.Batch{Timestamp: now.UnixMilli()}
		for key := range uint64(200) {
			b.Samples = append(b.Samples, aggregator.Sample{Key: key + 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: 1})
		}
		st := store.Connect(aggregator.Pod{Namespace: "test", Name: name, Sender: name})
		if err := st.Commit(now, b, requestsOf{b}); err != nil {
			t.Fatal(err)
		}
		st.Close()
	}
	wide := asks(t, "wide", "requests", "sum(rate(istio_requests_total[1h]))")
	c.Replace([]hpas.HPA{wide})
	if got := told.message(hpas.ReasonBadQuery); !strings.Contains(got, "1h0m0s back") || !strings.Contains(got, `"test"`) || !strings.Contains(got, "--memory-budget") {
		t.Errorf("the HPA is told %q", got)
	}
	key := preparedKey{namespace: "test", expr: "sum(rate(istio_requests_total[1h]))"}
	refused := c.prepared[key]
	c.Replace([]hpas.HPA{wide, asks(t, "other", "one", "vector(1)")})
	if c.prepared[key] == refused {
		t.Error("it is not tried again")
	}
}
