package metricsapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

// newLargeIndex has workloads of ten pods each, 100 in a namespace, two of the same name in a
// canonical service of its own.
func newLargeIndex(t testing.TB, pods int) *cluster.Pods {
	x, err := cluster.NewPods(nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range pods {
		namespace, workload := i/1000, i/10%100
		kept, err := x.Transform(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("ns-%d", namespace), Name: fmt.Sprintf("w-%d-%d", workload, i), CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour)),
			Labels: map[string]string{
				meshpod.WorkloadNameLabel: fmt.Sprintf("w-%d-%d", workload, namespace/2), "service.istio.io/canonical-name": fmt.Sprintf("c-%d", i/10),
			},
			Annotations: map[string]string{meshpod.StatusAnnotation: "{}"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		x.OnAdd(kept, true)
	}
	return x
}

// countingPods counts what is looked at.
type countingPods struct {
	*cluster.Pods
	looked int
}

func (c *countingPods) Synced() error { return nil } // no informer runs

func (c *countingPods) Each(sets []aggregator.Meant, since time.Time, f func(*cluster.Pod)) {
	c.Pods.Each(sets, since, func(p *cluster.Pod) { c.looked++; f(p) })
}

// lookup is a look at a query's pods in a cluster of 50,000.
type lookup struct {
	expr   string
	looked int
}

func lookups() map[string]lookup {
	return map[string]lookup{
		"a workload, no namespace":           {`sum(rate(istio_requests_total{destination_workload="w-7-7",reporter="destination"}[1m]))`, 20},
		"a workload of a namespace":          {`sum(rate(istio_requests_total{destination_workload="w-7-7",destination_workload_namespace="ns-14",reporter="destination"}[1m]))`, 10},
		"a workload of another":              {`sum(rate(istio_requests_total{destination_workload="w-7-7",destination_workload_namespace="ns-3",reporter="destination"}[1m]))`, 0},
		"a canonical service":                {`sum(rate(istio_requests_total{destination_canonical_service="c-77"}[1m]))`, 10},
		"a canonical service of a namespace": {`sum(rate(istio_requests_total{destination_canonical_service="c-77",destination_workload_namespace="ns-0"}[1m]))`, 10},
		"two workloads":                      {`sum(rate(istio_requests_total{destination_workload=~"w-7-7|w-8-8"}[1m]))`, 40},
		"a ratio over one":                   {`sum(rate(istio_request_duration_milliseconds_sum{destination_workload="w-7-7"}[1m])) / sum(rate(istio_request_duration_milliseconds_count{destination_workload="w-7-7"}[1m]))`, 20},
		"a caller":                           {`sum(rate(istio_requests_total{source_workload="w-7-7",reporter="source"}[1m]))`, 20},
		"a namespace":                        {`sum(rate(istio_requests_total{destination_workload_namespace="ns-14",reporter="destination"}[1m]))`, 1000},
		"a pod's namespace":                  {`sum(rate(istio_requests_total{destination_app="x",namespace="ns-14"}[1m]))`, 1000},
		"all":                                {`sum(rate(istio_requests_total{destination_workload=~".+",reporter="destination"}[1m]))`, 50000},
		"a pattern":                          {`sum(rate(istio_requests_total{destination_workload=~"w-7-.*",reporter="destination"}[1m]))`, 50000},
		"nobody named":                       {`sum(rate(istio_requests_total[1m]))`, 50000}, // as long as it is waited for those of before our start
	}
}

func TestALookCostsThePodsThatTheQueryCanMean(t *testing.T) {
	store := newTestStore(t)
	x := &countingPods{Pods: newLargeIndex(t, 50_000)}
	h := &holder{pods: x, store: store, started: store.Started(), hold: 5 * time.Minute}
	for name, l := range lookups() {
		p := register(store, preparedKey{namespace: "test", expr: l.expr})
		a := aggregator.Answer{Window: time.Minute}
		at := store.Started().Add(time.Minute)
		x.looked = 0
		h.look(p, "test", a, at)
		if x.looked != l.looked {
			t.Errorf("%s: %d pods looked at, want %d", name, x.looked, l.looked)
		}
		h.hold = time.Second // nothing is held: the texts of what is are not counted
		if n := testing.AllocsPerRun(2, func() { h.look(p, "test", a, at) }); n > 10 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if x.looked = 0; !p.query.NamesPods() {
			if h.look(p, "test", a, at); x.looked != 0 {
				t.Errorf("%s: %d pods looked at when nobody is waited for any more", name, x.looked)
			}
		}
		h.hold = 5 * time.Minute
		x.looked = 0
		(&actor{pods: x, store: store}).newPods(p.query, agreement{}, 1, at)
		if want := map[bool]int{true: l.looked}[p.query.NamesPods()]; x.looked != want {
			t.Errorf("%s: %d pods looked at for new ones, want %d", name, x.looked, want)
		}
		p.close()
	}
}

func BenchmarkLook(b *testing.B) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		b.Fatal(err)
	}
	h := &holder{pods: &countingPods{Pods: newLargeIndex(b, 50_000)}, store: store, started: store.Started(), hold: 5 * time.Minute}
	for name, l := range lookups() {
		p := register(store, preparedKey{namespace: "test", expr: l.expr})
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			b.ReportAllocs()
			before, n := benchCPU(b), 0
			for b.Loop() {
				n++
				h.look(p, "test", aggregator.Answer{Window: time.Minute}, store.Started().Add(time.Minute))
			}
			b.ReportMetric(float64((benchCPU(b)-before).Microseconds())/float64(n), "µs-of-CPU/op")
		})
		p.close()
	}
}
