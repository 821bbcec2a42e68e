package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	actingHPAs = 1000
	actingPods = 5 // of each
	// actingMeasure holds as many of the store's sweeps for each state of the HPAs: they come every 30 s.
	actingMeasure = 30 * time.Second
)

// actingRows say what it adds to ingest that the targets of HPAs are raised at surges: what rows mark is evaluated as they are
// committed. One process and one fleet, with HPAs that come and go; what is seen twice in turns is added up.
func actingRows(ctx context.Context, s settings, t *table) error {
	hpas := filepath.Join(s.work, "acting")
	if err := errors.Join(os.RemoveAll(hpas), os.MkdirAll(hpas, 0o750)); err != nil {
		return err
	}
	l := load{pods: actingHPAs * actingPods, labelSets: 20, interval: flushInterval}
	own, err := startMeshpulse(ctx, s, hpas)
	if err != nil {
		return err
	}
	defer own.Kill()
	f, err := startSelf(ctx, s, "fleet", "--target", own.Ingest, "--pods", strconv.Itoa(l.pods), "--pods-per-workload", strconv.Itoa(actingPods),
		"--label-sets", strconv.Itoa(l.labelSets), "--interval", l.interval.String())
	if err != nil {
		return err
	}
	defer f.Kill()
	if err := steady(ctx, f, l, 3); err != nil {
		return err
	}
	if err := caughtUp(ctx, own, f); err != nil {
		return err
	}
	var without, asking, acting time.Duration
	for range 2 {
		for _, state := range []struct {
			hpas        int
			annotations string
			cpu         *time.Duration
		}{{0, "", &without}, {actingHPAs, "{}", &asking}, {actingHPAs, "{meshpulse.io/surge-action: scale}", &acting}} {
			if err := writeActing(ctx, own, hpas, state.hpas, state.annotations); err != nil {
				return err
			}
			s.measure = actingMeasure
			costs, err := count(ctx, s, []loaded{{receiver: own, sender: f}})
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%d HPAs %s: %v\n", state.hpas, state.annotations, costs[0])
			*state.cpu += costs[0].receiver / 2
		}
	}
	what := fmt.Sprintf("acting at surges, 5,000 streams of 20 label sets, 1,000 HPAs of %d pods: CPU ", actingPods)
	t.add(what+"of ingest without HPAs", micros(without), "us/flush", "lower")
	t.add(what+"with HPAs of which none acts", micros(asking), "us/flush", "lower")
	t.add(what+"with HPAs that all act", micros(acting), "us/flush", "lower")
	share := func(d time.Duration) float64 { return 100 * float64(d-without) / float64(without) }
	t.add(what+"that HPAs add of which none acts, of ingest's", share(asking), "%", "lower")
	t.atMost(what+"that marking and evaluating add, of ingest's", share(acting), "%", 10)
	return nil
}

// writeActing gives meshpulse so many HPAs with the annotations, and waits until they are a matter of course.
func writeActing(ctx context.Context, own *child, dir string, n int, annotations string) error {
	var b strings.Builder
	for i := range n {
		digits := strconv.FormatInt(int64(i), 36)
		fmt.Fprintf(&b, `---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: hpa-%[1]s, namespace: test, annotations: %[2]s}
spec:
  maxReplicas: 50
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: svc-%[1]s}
  metrics:
    - type: External
      external:
        metric: {name: istio-requests-per-second, selector: {matchLabels: {destination_workload: svc-%[1]s}}}
        target: {type: AverageValue, averageValue: "10"}
`, "0000"[len(digits):]+digits, annotations)
	}
	if err := os.WriteFile(filepath.Join(dir, "hpas.yaml"), []byte(b.String()), 0o600); err != nil {
		return err
	}
	w := watch{meshpulse: own, client: insecureClient()}
	defer w.client.CloseIdleConnections()
	for deadline := time.Now().Add(time.Minute); ; {
		known, err := w.gauge(ctx, "meshpulse_metricsapi_hpas")
		if err != nil {
			return err
		}
		if int(known) == n {
			return wait(ctx, 2*flushInterval) // the detectors read what the rings have once
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%v HPAs of %d are known", known, n)
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
