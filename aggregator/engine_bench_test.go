package aggregator

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"
)

// evilExprs are queries that the engine reads all series of a metric for.
var evilExprs = []string{
	`sort_desc(istio_request_duration_milliseconds_bucket)`,
	`count(count_over_time(istio_requests_total[50m:1s]))`,
	`count(label_replace(istio_request_duration_milliseconds_bucket, "x", "$1", "pod", "(.*)"))`,
	`max(max_over_time((sum by (pod) (rate(istio_request_duration_milliseconds_bucket[5m])))[50m:1s]))`,
	`histogram_quantile(0.9, sum by (pod) (rate(istio_request_duration_milliseconds[5m] offset 1m)))`,
}

// askEvil has so many ask in turn for a hundred queries of a hundred namespaces, as long as a
// request of the metrics API may take, until the benchmark ends.
func askEvil(b *testing.B, s *Store, askers int, at time.Time) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	next := make(chan *Query)
	for range askers {
		all.Go(func() {
			for q := range next {
				ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
				_, _ = q.Eval(ctx, at)
				cancel()
			}
		})
	}
	queries := make([]*Query, 0, 100)
	for i := range 100 {
		q, err := s.RegisterFor(fmt.Sprint("evil-", i), evilExprs[i%len(evilExprs)])
		if err != nil {
			b.Fatal(err)
		}
		queries = append(queries, q)
	}
	all.Go(func() {
		defer close(next)
		for i := 0; ; i = (i + 1) % len(queries) {
			select {
			case next <- queries[i]:
			case <-ctx.Done():
				return
			}
		}
	})
	b.Cleanup(func() { cancel(); all.Wait() })
}

// How long answers take beside a hundred namespaces whose HPAs ask the engine for all series of a
// fleet of 300: asked for by nobody, by the five workers of an HPA controller, and all at once. A
// compiled answer does not wait for them; one that needs the engine has its turn.
func BenchmarkBesideEvilQueries(b *testing.B) {
	limit := debug.SetMemoryLimit(900 << 20) // as installed
	defer debug.SetMemoryLimit(limit)
	s, _, at := benchFleet(b, 300, 20, 70, benchParts{counter: true, duration: true, summaries: true})
	for name, expr := range map[string]string{
		"compiled": `sum(rate(istio_requests_total{reporter="destination",destination_workload="svc-0003",destination_workload_namespace="test"}[1m]))`,
		"engine":   `sum(rate(istio_requests_total{reporter="destination",destination_workload="svc-0003",destination_workload_namespace="test"}[1m] offset 10s))`,
	} {
		q, err := s.RegisterFor("benign", expr)
		if err != nil {
			b.Fatal(err)
		}
		for _, askers := range []int{0, 5, 100} {
			b.Run(fmt.Sprintf("answer=%s/askers=%d", name, askers), func(b *testing.B) {
				s.engine = newEngine()
				q.pace.Store(int32(paceUnknown))
				askEvil(b, s, askers, at)
				var took []float64
				failed := 0
				for b.Loop() {
					time.Sleep(10 * time.Millisecond)
					ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
					began := time.Now()
					if _, err := q.Eval(ctx, at); err != nil {
						failed++
					}
					cancel()
					took = append(took, float64(time.Since(began))/1e6)
				}
				slices.Sort(took)
				b.ReportMetric(took[len(took)/2], "ms-p50")
				b.ReportMetric(took[len(took)*99/100], "ms-p99")
				b.ReportMetric(took[len(took)-1], "ms-most")
				b.ReportMetric(float64(failed), "failed")
			})
		}
	}
}
