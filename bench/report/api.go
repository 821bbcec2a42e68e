package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	traffic "github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
)

const (
	queryMetric = "prometheus-query"
	apiHPAs     = 1000
	apiRate     = 100         // requests a second, of each server
	apiWarm     = time.Second // not counted: the first connections, handshakes and caches
	apiTime     = 20 * time.Second
)

// apiRows compare answers of meshpulse, with 1,000 HPAs and sidecars that report, with a constant
// answer of the same library. Both are up and asked at the same time, so that both see the same
// machine.
func apiRows(ctx context.Context, s settings, t *table) error {
	l := load{pods: 200, labelSets: 20, interval: flushInterval}
	hpas := filepath.Join(s.work, "hpas")
	if err := writeHPAs(hpas, l.pods/10); err != nil {
		return err
	}
	own, err := startMeshpulse(ctx, s, hpas)
	if err != nil {
		return err
	}
	defer own.Kill()
	fixed, err := startSelf(ctx, s, "constant")
	if err != nil {
		return err
	}
	defer fixed.Kill()
	f, err := startSelf(ctx, s, "fleet", fleetArgs(own.Ingest, l)...)
	if err != nil {
		return err
	}
	defer f.Kill()
	if err := steady(ctx, f, l, 3); err != nil {
		return err
	}
	answers, constants, err := ask(ctx, own, fixed)
	if err != nil {
		return err
	}
	apiTold(t, answers, constants)
	return nil
}

// apiTold holds the latencies of answers, in order, against those of a constant answer.
func apiTold(t *table, answers, constants []time.Duration) {
	const what = "external metrics GET, 1,000 HPAs, 100 requests/s"
	t.add(what+": p50 of a constant answer", millis(quantile(constants, .5)), "ms", "lower")
	t.add(what+": p50 of meshpulse", millis(quantile(answers, .5)), "ms", "lower")
	t.add(what+": p99 of a constant answer", millis(quantile(constants, .99)), "ms", "lower")
	t.add(what+": p99 of meshpulse", millis(quantile(answers, .99)), "ms", "lower")
	t.atMost(what+": ratio of p99", ratio(quantile(answers, .99), quantile(constants, .99)), "x", 1.5)
	t.note("Both servers were asked at the same time, each at 100 requests/s, while 200 sidecars of 20 label sets reported to meshpulse; each answer of meshpulse sums over 200 series.")
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// writeHPAs writes the HPAs' files, a thousand over so many workloads.
func writeHPAs(dir string, workloads int) error {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o750)); err != nil {
		return err
	}
	var b strings.Builder
	for i := range apiHPAs {
		fmt.Fprintf(&b, `---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: hpa-%[1]d
  namespace: test
  annotations:
    metric-config.external.prometheus-query.prometheus/query-%[1]d: |
      sum(rate(istio_requests_total{destination_workload="svc-%04[2]d",destination_workload_namespace="test",reporter="destination"}[1m]))
spec:
  maxReplicas: 5
  minReplicas: 1
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: svc-%04[2]d}
  metrics:
    - type: External
      external:
        metric: {name: prometheus-query, selector: {matchLabels: {query-name: query-%[1]d}}}
        target: {type: AverageValue, averageValue: "10"}
`, i, i%min(workloads, 10)) // digits of workloads are base 36: below ten they are the same
	}
	return os.WriteFile(filepath.Join(dir, "hpas.yaml"), []byte(b.String()), 0o600)
}

// ask sends requests to both servers at a steady rate, whatever their answers take, and returns the
// latencies in order.
func ask(ctx context.Context, own, fixed *child) (answers, constants []time.Duration, err error) {
	client := web.Insecure()
	client.Transport.(*http.Transport).ForceAttemptHTTP2 = true // as the API server asks
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var failed error
	send := func(server *child, into *[]time.Duration, scheduled time.Time) {
		path := standalone.MetricPath("test", queryMetric, fmt.Sprintf("query-name=query-%d", rand.IntN(apiHPAs)))
		_, err := web.Get(ctx, client, "https://"+server.HTTPS+path)
		took := time.Since(scheduled)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
		}
		*into = append(*into, took)
	}
	traffic.Loop(ctx, time.Now(), traffic.Steady(apiRate, apiWarm+apiTime), func(i int, _ time.Time) {
		a, c := &answers, &constants
		if i < apiRate*int(apiWarm.Seconds()) {
			a, c = new([]time.Duration), new([]time.Duration)
		}
		if i%2 == 0 { // neither is always the first
			send(own, a, time.Now())
			send(fixed, c, time.Now())
		} else {
			send(fixed, c, time.Now())
			send(own, a, time.Now())
		}
	})
	slices.Sort(answers)
	slices.Sort(constants)
	return answers, constants, cmp.Or(failed, ctx.Err())
}
