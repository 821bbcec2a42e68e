package metricsapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// askedPods are three pods that serve 4 requests a second of 50 bytes each, and tell of the bytes
// where they are asked.
type askedPods struct {
	store   *aggregator.Store
	streams []*aggregator.Stream
	at      time.Duration
}

func (p *askedPods) flush(t *testing.T) {
	t.Helper()
	p.at += 5 * time.Second
	arrival := p.store.Started().Add(p.at)
	for _, st := range p.streams {
		b := &aggregator.Batch{Timestamp: arrival.UnixMilli(), Asked: st.Asked(), Buckets: []aggregator.Bucket{{UpperBound: 100, Count: 20}}}
		b.Samples = append(b.Samples, aggregator.Sample{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: 4 * p.at.Seconds()})
		if b.Asked.Has([]byte("istio_request_bytes")) {
			b.Samples = append(b.Samples, aggregator.Sample{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Value: 1000, Count: 20, Last: 1})
		}
		if err := st.Commit(arrival, b, requestsAndSizes{}); err != nil {
			t.Fatal(err)
		}
	}
}

type requestsAndSizes struct{}

func (requestsAndSizes) Describe(i int) (string, []aggregator.Label, error) {
	return []string{"istio_requests_total", "istio_request_bytes"}[i], []aggregator.Label{
		{Name: "reporter", Value: "destination"}, {Name: "destination_workload", Value: "podinfo"}, {Name: "destination_workload_namespace", Value: "test"},
	}, nil
}

// An HPA that asks for what no pod keeps gets no number, and above all no 0, before its window is
// covered: the replicas stay.
func TestAMetricThatIsKeptSinceAnHPAAsksIsHeldUntilItsWindowIsCovered(t *testing.T) {
	for name, inCluster := range map[string]bool{"in a cluster": true, "standalone": false} {
		t.Run(name, func(t *testing.T) {
			store, err := aggregator.New(aggregator.Config{Keep: []string{"istio_requests_total"}})
			if err != nil {
				t.Fatal(err)
			}
			sent, pods := &askedPods{store: store}, fixedPods{}
			for i := range 3 {
				identity := aggregator.Pod{Namespace: "test", Name: fmt.Sprint("podinfo-", i), Workload: "podinfo", CanonicalService: "podinfo", FlushInterval: 5 * time.Second}
				sent.streams = append(sent.streams, store.Connect(identity))
				pods = append(pods, cluster.Pod{Wired: true, Created: store.Started().Add(-time.Hour), Identity: identity})
			}
			for range 100 {
				sent.flush(t)
			}
			asker := asking("podinfo", autoscalingv2.AverageValueMetricType, "100", 3)
			p := register(store, preparedKey{namespace: "test", expr: `sum(rate(istio_request_bytes_sum{reporter="destination",destination_workload="podinfo",destination_workload_namespace="test"}[1m]))`})
			if p.err != nil {
				t.Fatal(p.err)
			}
			o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: asker, askers: []*hpas.Wants{asker}}
			r := rules{retention: 5 * time.Minute, started: store.Started()}
			if inCluster {
				r.holder = &holder{pods: pods, scales: fixedScale(3), store: store, started: store.Started(), hold: 5 * time.Minute, status: func(string, string) (int32, bool) { return 3, true }}
			}
			for flush := range 20 {
				v, _, refused := r.evaluate(t.Context(), "metric bytes", o, p, store.Started().Add(sent.at))
				switch covered := flush >= 12; {
				case covered && (refused != nil || v.held || v.sum() != 600_000):
					t.Errorf("flush %d: %s, %v; want the 600 bytes a second that there are", flush, shown(v), refused)
				case !covered && !inCluster && (refused == nil || !strings.Contains(refused.message, "istio_request_bytes is kept since")):
					t.Errorf("flush %d: %s, %v; want none", flush, shown(v), refused)
				case !covered && inCluster && (refused != nil || v.sum() < 300_000):
					t.Errorf("flush %d: %s, %v; want at least what keeps the replicas", flush, shown(v), refused)
				}
				sent.flush(t)
			}
		})
	}
}
