package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

// scaler is meshpulse as the external scaler of a KEDA, which owns the metrics API.
type scaler struct {
	*meshpulse
	keda    *keda
	address string // scalerAddress
}

const (
	// awayFor is how long meshpulse is away in the middle of the load.
	awayFor = 45 * time.Second
	// pushedLanes are those whose ScaledObjects are of type external-push: their names begin so.
	pushedLanes = "pushed"
)

// kedaScaler runs ScaledObjects that ask meshpulse.
func (l *lab) kedaScaler(ctx context.Context) error {
	s, err := scenario.Load(filepath.Join(l.root, "bench", "lab", "scenarios", "keda", "keda.yaml"))
	if err != nil {
		return err
	}
	var x *scaler
	seen, err := l.runOnce(ctx, s, 15*time.Second, func(ctx context.Context, c *cluster.Cluster, dir string) (source, error) {
		x, err = startScaler(ctx, l, c, dir)
		return x, err
	}, false)
	if err != nil {
		return err
	}
	run := scenario.Run{Scenario: s, HPASync: 15 * time.Second, Boot: seen.boot, Traces: seen.traces}
	run.Judge()
	measures := kedaMeasures(seen.traces, s)
	run.Measures = append(run.Measures, measures...)
	report := scenario.Report{Scenario: s, Runs: []scenario.Run{run}, Versions: l.versions(), Date: time.Now(), Command: "make lab-keda"}
	fmt.Print(report.Markdown())
	err = report.Write(l.results, l.seen())
	for _, m := range measures {
		fmt.Printf("%s: %g %s\n", m.Name, m.Value, m.Unit)
		if !(m.Value <= *m.Goal) {
			err = errors.Join(err, fmt.Errorf("keda: %s is %g, at most %g is good", m.Name, m.Value, *m.Goal))
		}
	}
	if !report.OK() {
		err = errors.Join(err, errors.New("keda: a check failed"))
	}
	return err
}

// startScaler starts meshpulse, whose port for KEDA is on loopback, and then KEDA.
func startScaler(ctx context.Context, l *lab, c *cluster.Cluster, dir string) (*scaler, error) {
	ports, err := cluster.FreePorts(1)
	if err != nil {
		return nil, err
	}
	x := &scaler{address: "127.0.0.1:" + strconv.Itoa(ports[0]), keda: &keda{lab: l, cluster: c, query: "http://127.0.0.1:1"}}
	x.meshpulse, err = installMeshpulse(ctx, l, c, dir, meshpulseOptions{
		components: []string{"keda"}, // its certificates are another test's
		flags:      []string{"--keda-address=" + x.address, "--keda-scaler-addresses=" + x.address, "--keda-tls-cert-file=", "--keda-tls-private-key-file=", "--keda-client-ca-file="},
	})
	if err != nil {
		return nil, err
	}
	if err := x.keda.start(ctx, filepath.Join(dir, "keda"), dir, 5*time.Second, nil); err != nil {
		x.stop()
		return nil, err
	}
	return x, nil
}

// prepare makes the ScaledObject of a lane, with the HPA's name and limits.
func (x *scaler) prepare(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) error {
	kind, polling := "external", 5
	if strings.HasPrefix(hpa.Namespace, pushedLanes) {
		kind, polling = "external-push", 30
	}
	object, err := json.Marshal(map[string]any{
		"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
		"metadata": map[string]any{"name": hpa.Name, "namespace": hpa.Namespace},
		"spec": map[string]any{
			"scaleTargetRef": map[string]any{"name": hpa.Spec.ScaleTargetRef.Name}, "pollingInterval": polling, "cooldownPeriod": 30,
			"minReplicaCount": 0, "maxReplicaCount": hpa.Spec.MaxReplicas,
			"advanced": map[string]any{"horizontalPodAutoscalerConfig": map[string]any{"name": hpa.Name}},
			"triggers": []any{map[string]any{"type": kind, "metadata": map[string]any{
				"scalerAddress": x.address, "metric": "istio-requests-per-second", "threshold": "10",
				"selector": "reporter=source,destination_service_name=" + workload + ",namespace=" + mesh.GatewayNamespace,
			}}},
		},
	})
	if err != nil {
		return err
	}
	return x.cluster.Apply(ctx, object)
}

// restart kills meshpulse, and starts it again after a while.
func (x *scaler) restart(ctx context.Context) error {
	x.kill()
	slog.Info("keda: meshpulse is away", "for", awayFor)
	if !proc.Sleep(ctx, awayFor) {
		return ctx.Err()
	}
	return x.start(ctx)
}

func (x *scaler) failed() error {
	return errors.Join(x.meshpulse.failed(), x.keda.operator.Ended(), x.keda.adapter.Ended())
}

func (x *scaler) stop() {
	x.meshpulse.stop()
	x.keda.stop()
}

// kedaMeasures judges the replicas that were asked for against the phases of the load: asleep,
// woken, stepped, asleep again.
func kedaMeasures(traces []scenario.Trace, s scenario.Scenario) (measures []scenario.Measure) {
	first, step := s.Load[0].For.Duration, s.Load[0].For.Duration+s.Load[1].For.Duration
	end := step + s.Load[2].For.Duration
	add := func(name string, value, goal float64, unit string) {
		measures = append(measures, scenario.Measure{Name: name, Value: value, Unit: unit, Goal: &goal, Better: "lower"})
	}
	for _, kind := range []string{"polled", pushedLanes} {
		var woken, stepped time.Duration
		awake, lanes := 0, 0
		for _, t := range traces {
			if !strings.HasPrefix(t.Namespace, kind) {
				continue
			}
			lanes++
			woken += askedAfter(t, first, 1) - first
			stepped += askedAfter(t, step, 2) - step
			if asked(t, first) > 0 || asked(t, end+s.Load[3].For.Duration) > 0 {
				awake++
			}
		}
		n := float64(max(1, lanes)) * float64(time.Second)
		add("from the first request to 1 replica, "+kind+", mean", float64(woken)/n, 2*s.Flush.Seconds(), "s")
		add("from the step to the first decision, "+kind+", mean", float64(stepped)/n, 20, "s")
		add(fmt.Sprintf("of %d workloads, %s, those not asleep while nobody asks", lanes, kind), float64(awake), 0, "workloads")
	}
	lowered := 0
	for _, t := range traces {
		for i, a := range t.Asked {
			if a.At > step && a.At < end && i > 0 && a.Replicas < t.Asked[i-1].Replicas {
				lowered++
			}
		}
	}
	add("times that replicas were taken away under load, meshpulse killed", float64(lowered), 0, "times")
	return measures
}

// asked is how many replicas a lane's target was to have at a time.
func asked(t scenario.Trace, at time.Duration) (n int) {
	for _, a := range t.Asked {
		if a.At <= at {
			n = a.Replicas
		}
	}
	return n
}

// askedAfter is when a lane's target was first to have so many replicas from a time on.
func askedAfter(t scenario.Trace, from time.Duration, n int) time.Duration {
	for _, a := range t.Asked {
		if a.At >= from && a.Replicas >= n {
			return a.At
		}
	}
	return time.Hour
}
