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
	// actingMeasure holds as many of the store's sweeps for each state of the HPAs: they come every
	// 30 s.
	actingMeasure = 30 * time.Second
)

// actingRows say what it adds to ingest that the targets of HPAs are raised at surges: what rows
// mark is evaluated as they are committed. One process and one fleet, with HPAs that come and go.
// The states are gone through forth and back, so that each has the same of what changes meanwhile:
// rings fill, the machine's other guests come and go.
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
	f, err := startSelf(ctx, s, "fleet", fleetArgs(own.Ingest, l, "--pods-per-workload", strconv.Itoa(actingPods))...)
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
	s.measure = actingMeasure
	states := []actingState{{0, "", &without}, {actingHPAs, "{}", &asking}, {actingHPAs, "{meshpulse.io/surge-action: scale}", &acting}}
	for _, i := range []int{0, 1, 2, 2, 1, 0} {
		state := states[i]
		if err := writeActing(ctx, own, hpas, state); err != nil {
			return err
		}
		costs, err := count(ctx, s, []loaded{{receiver: own, sender: f}})
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%d HPAs %s: %v\n", state.hpas, state.annotations, costs[0])
		*state.cpu += costs[0].receiver / 2
	}
	actingTold(t, without, asking, acting)
	return nil
}

// actingTold tells the CPU of a flush without HPAs, with those that do not act, and with those that
// do.
func actingTold(t *table, without, asking, acting time.Duration) {
	what := fmt.Sprintf("acting at surges, 5,000 streams of 20 label sets, 1,000 HPAs of %d pods: CPU ", actingPods)
	t.add(what+"of ingest without HPAs", micros(without), "us/flush", "lower")
	t.add(what+"with HPAs of which none acts", micros(asking), "us/flush", "lower")
	t.add(what+"with HPAs that all act", micros(acting), "us/flush", "lower")
	t.note("Acting: one process and one fleet, half a minute for each state of the HPAs, forth and back.")
	share := func(d time.Duration) float64 { return 100 * float64(d-without) / float64(without) }
	t.add(what+"that HPAs add of which none acts, of ingest's", share(asking), "%", "lower")
	t.atMost(what+"that marking and evaluating add, of ingest's", share(acting), "%", 10)
}

// actingState is what HPAs there are, and what is measured with them.
type actingState struct {
	hpas        int
	annotations string
	cpu         *time.Duration
}

// writeActing gives meshpulse the HPAs, and waits until they are a matter of course.
func writeActing(ctx context.Context, own *child, dir string, state actingState) error {
	var b strings.Builder
	for i := range state.hpas {
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
`, "0000"[len(digits):]+digits, state.annotations)
	}
	if err := os.WriteFile(filepath.Join(dir, "hpas.yaml"), []byte(b.String()), 0o600); err != nil {
		return err
	}
	err := until(ctx, time.Minute, func() error {
		known, err := own.gauge(ctx, "meshpulse_metricsapi_hpas")
		if err == nil && int(known) != state.hpas {
			err = fmt.Errorf("%v HPAs of %d are known", known, state.hpas)
		}
		return err
	})
	if err != nil {
		return err
	}
	return wait(ctx, 2*flushInterval) // the detectors read what the rings have once
}
