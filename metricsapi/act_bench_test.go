package metricsapi

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// actFleet is 5,000 pods of 1,000 workloads in one namespace, with an HPA for each workload that
// acts, or without.
type actFleet struct {
	store   *aggregator.Store
	x       *actor
	streams []*aggregator.Stream
	queries []*aggregator.Query // of the workloads, nil without HPAs
	now     time.Time
	batch   aggregator.Batch
	flushes []float64
}

const (
	actFleetWorkloads = 1000
	actFleetPods      = 5 * actFleetWorkloads
)

type actFleetLabels int

func (w actFleetLabels) Describe(i int) (string, []aggregator.Label, error) {
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[i], []aggregator.Label{
		{Name: "reporter", Value: "destination"}, {Name: "destination_workload", Value: fmt.Sprintf("w-%d", w)}, {Name: "destination_workload_namespace", Value: "test"},
	}, nil
}

func newActFleet(b *testing.B, acting bool) *actFleet {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		b.Fatal(err)
	}
	f := &actFleet{store: store, now: store.Started(), flushes: make([]float64, actFleetPods)}
	m := newMetrics(nil)
	c := newCatalog(store, newWarner(func(hpas.HPA, hpas.Problem) {}, m))
	r := &rules{retention: 5 * time.Minute, started: store.Started()}
	f.x = newActor(&actor{
		settings: horizontal.Settings{Tolerance: horizontal.DefaultTolerance},
		catalog:  c, rules: r, store: store, metrics: m, log: discardLog(), report: func(hpas.HPA, hpas.Problem) {},
		now: func() time.Time { return f.now },
		hpa: func(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool) { return nil, false },
	})
	c.follow = f.x.follow
	var list []hpas.HPA
	if acting {
		list = make([]hpas.HPA, actFleetWorkloads)
	}
	for i := range list {
		list[i] = hpaFrom(b, fixture.HPA(fmt.Sprintf("w-%d", i), scaleAction,
			fixture.External("istio-requests-per-second", fmt.Sprintf("{matchLabels: {destination_workload: w-%d}}", i), `type: AverageValue, averageValue: "10"`)))
		list[i].UID = types.UID(fmt.Sprint(i))
	}
	c.Replace(list)
	b.Cleanup(c.Close)
	f.queries = make([]*aggregator.Query, len(list))
	for q, hpas := range c.current.Load().acting {
		var i int
		if _, err := fmt.Sscanf(hpas[0].Name, "w-%d", &i); err != nil {
			b.Fatal(err)
		}
		f.queries[i] = q
	}
	for i := range actFleetPods {
		w := fmt.Sprintf("w-%d", i/5)
		f.streams = append(f.streams, store.Connect(aggregator.Pod{Namespace: "test", Name: fmt.Sprintf("%s-%d", w, i), Workload: w, FlushInterval: 5 * time.Second}))
	}
	for range 20 * actFleetPods { // a minute and more of history
		f.flush(b)
	}
	return f
}

// flush is the next flush of the fleet, a millisecond after the one before it, and returns whose it
// was. The pods of a workload are far apart.
func (f *actFleet) flush(b *testing.B) (pod int) {
	pod = int(f.now.Sub(f.store.Started())/time.Millisecond) * 1237 % actFleetPods
	f.now = f.now.Add(time.Millisecond)
	f.flushes[pod]++
	f.batch.Reset()
	f.batch.Timestamp = f.now.UnixMilli()
	f.batch.Samples = append(f.batch.Samples,
		aggregator.Sample{Key: 1, Timestamp: f.batch.Timestamp, Kind: aggregator.Counter, Value: 50 * f.flushes[pod]},
		aggregator.Sample{Key: 2, Timestamp: f.batch.Timestamp, Kind: aggregator.Histogram, Count: 50, Value: 500})
	if err := f.streams[pod].Commit(f.now, &f.batch, actFleetLabels(pod/5)); err != nil {
		b.Fatal(err)
	}
	return pod
}

// What acting costs a flush: every one of them marks the query of its workload and leads to a look,
// which with pods at random phases is what coalescing leaves of it at most. make bench shows it
// beside the ingest of a flush, in one process.
func BenchmarkAct(b *testing.B) {
	ctx := context.Background()
	for _, acting := range []bool{false, true} {
		b.Run(fmt.Sprintf("streams=%d/hpas=%d/acting=%v", actFleetPods, actFleetWorkloads, acting), func(b *testing.B) {
			f := newActFleet(b, acting)
			before := benchCPU(b)
			for b.Loop() {
				pod := f.flush(b)
				if acting {
					f.x.evaluate(ctx, f.queries[pod/5])
				}
			}
			b.ReportMetric(float64(benchCPU(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

func benchCPU(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
