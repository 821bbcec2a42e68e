package main

import (
	"context"
	"crypto/tls"
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

	"github.com/meshpulse/meshpulse/bench/standalone"
)

const (
	queryMetric = "prometheus-query"
	apiHPAs     = 1000
	apiRate     = 100 // requests a second, of each server
	apiTime     = 20 * time.Second
)

// apiRows compare answers of meshpulse, with 1,000 HPAs and sidecars that report, with a constant answer of the same library.
// Both are up and asked at the same time, so that both see the same machine.
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
	f, err := startSelf(ctx, s, "fleet", "--target", own.Ingest, "--pods", fmt.Sprint(l.pods), "--label-sets", fmt.Sprint(l.labelSets))
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
	const what = "external metrics GET, 1,000 HPAs, 100 requests/s"
	t.add(what+": p50 of a constant answer", millis(quantile(constants, .5)), "ms", "lower")
	t.add(what+": p50 of meshpulse", millis(quantile(answers, .5)), "ms", "lower")
	t.add(what+": p99 of a constant answer", millis(quantile(constants, .99)), "ms", "lower")
	t.add(what+": p99 of meshpulse", millis(quantile(answers, .99)), "ms", "lower")
	t.atMost(what+": ratio of p99", float64(quantile(answers, .99))/float64(quantile(constants, .99)), "x", 1.5)
	t.note("Both servers were asked at the same time, each at 100 requests/s, while 200 sidecars of 20 label sets reported to meshpulse; each answer of meshpulse sums over 200 series.")
	return nil
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

// ask sends requests to both servers at a steady rate, whatever their answers take, and returns the latencies in order.
func ask(ctx context.Context, own, fixed *child) (answers, constants []time.Duration, err error) {
	// The certificates are self-made and in memory; the addresses are this machine's own.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var pending sync.WaitGroup
	var failed error
	send := func(server *child, into *[]time.Duration, scheduled time.Time) {
		path := standalone.MetricPath("test", queryMetric, fmt.Sprintf("query-name=query-%d", rand.IntN(apiHPAs)))
		_, err := get(ctx, client, "https://"+server.HTTPS+path)
		took := time.Since(scheduled)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
		}
		*into = append(*into, took)
	}
	warm := apiRate // the first connections, handshakes and caches
	tick := time.NewTicker(time.Second / apiRate)
	defer tick.Stop()
	for i := range warm + int(apiTime.Seconds()*apiRate) {
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-tick.C:
		}
		a, c := &answers, &constants
		if i < warm {
			a, c = new([]time.Duration), new([]time.Duration)
		}
		pending.Go(func() {
			if i%2 == 0 { // neither is always the first
				send(own, a, time.Now())
				send(fixed, c, time.Now())
			} else {
				send(fixed, c, time.Now())
				send(own, a, time.Now())
			}
		})
	}
	pending.Wait()
	slices.Sort(answers)
	slices.Sort(constants)
	return answers, constants, failed
}
