package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
	"github.com/meshpulse/meshpulse/bench/load"
)

// source is where the HPA controller gets its numbers: meshpulse, or a peer beside which it is
// measured.
type source interface {
	// sink is where the sidecars push, host:port.
	sink() string
	// prepare is called once the lane's namespace is there; it applies the lane's HPA or what
	// stands for it.
	prepare(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) error
	restart(ctx context.Context) error
	// failed is an error when one of its processes has ended by itself.
	failed() error
	// processes are its process ids, by what they are; wireBytes is what the Envoys have sent it so
	// far.
	processes() map[string]int
	wireBytes(ctx context.Context) (float64, error)
	stop()
}

// lane is a lane of a scenario while it runs.
type lane struct {
	scenario.Lane
	hpa       *autoscalingv2.HorizontalPodAutoscaler
	gateway   *mesh.Gateway
	generator *load.Generator
	start     time.Time // of its load
	trace     scenario.Trace
}

// loop is one run: a control plane, a source of numbers, pods, gateways and load.
type loop struct {
	lab      *lab
	scenario scenario.Scenario
	dir      string
	cluster  *cluster.Cluster
	source   source
	agent    *mesh.Agent
	lanes    []*lane

	// askDirectly samples the metrics API itself, once a second, and not only what the HPA shows.
	askDirectly bool
	// sink is where a pod's sidecar pushes; nil: to the source.
	sink func(namespace, pod string) string

	mu       sync.Mutex
	gateways map[string]*mesh.Gateway // by namespace
}

// runAll runs scenario files one after another; a failed check fails the command, after all have
// run.
func (l *lab) runAll(ctx context.Context, paths []string) error {
	if len(paths) == 0 {
		return errors.New("no scenario: give files, such as scenarios/guide-rps.yaml")
	}
	if _, err := os.Stat(l.meshpulse); err != nil {
		return fmt.Errorf("%w: run `make build`", err)
	}
	var scenarios []scenario.Scenario
	for _, path := range paths {
		s, err := scenario.Load(path)
		if err != nil {
			return err
		}
		scenarios = append(scenarios, s)
	}
	var failed []error
	for _, s := range scenarios {
		runs, err := l.runScenario(ctx, s)
		if err != nil {
			return fmt.Errorf("scenario %s: %w", s.Name, err)
		}
		report := scenario.Report{Scenario: s, Runs: runs, Versions: l.versions(), Date: time.Now(), Command: "make lab SCENARIO=" + s.Name}
		fmt.Print(report.Markdown())
		if err := report.Write(l.results, l.seen()); err != nil {
			return err
		}
		if !report.OK() {
			failed = append(failed, fmt.Errorf("scenario %s: a check failed", s.Name))
		}
	}
	return errors.Join(failed...)
}

// runScenario runs it once with each of its sync periods.
func (l *lab) runScenario(ctx context.Context, s scenario.Scenario) ([]scenario.Run, error) {
	var runs []scenario.Run
	for _, sync := range s.HPASync {
		seen, err := l.runOnce(ctx, s, sync.Duration, l.withMeshpulse(s), true)
		if err != nil {
			return nil, err
		}
		run := scenario.Run{Scenario: s, HPASync: sync.Duration, Boot: seen.boot, Traces: seen.traces}
		run.Judge()
		runs = append(runs, run)
	}
	return runs, nil
}

// observed is what was seen in a run, and what the path has cost over so many seconds of load.
type observed struct {
	traces         []scenario.Trace
	costs          map[string]cost
	bytes, seconds float64
	boot           time.Duration // of the control plane
}

// withMeshpulse starts meshpulse as the scenario has it: with components, one or two of it.
func (l *lab) withMeshpulse(s scenario.Scenario) func(context.Context, *cluster.Cluster, string) (source, error) {
	return func(ctx context.Context, c *cluster.Cluster, dir string) (source, error) {
		options := meshpulseOptions{components: s.Components, oracle: s.Oracle}
		if s.Retention.Duration > 0 {
			options.flags = append(options.flags, "--retention="+s.Retention.Duration.String())
		}
		if len(s.Keep) > 0 {
			options.flags = append(options.flags, "--keep=istio_requests_total,"+strings.Join(s.Keep, ","))
		}
		if s.TwoReplicas {
			return installPair(ctx, l, c, dir, options)
		}
		return installMeshpulse(ctx, l, c, dir, options)
	}
}

// runOnce boots everything, runs the load and ends everything. With askDirectly the metrics API is
// sampled too, which costs its server a little.
func (l *lab) runOnce(ctx context.Context, s scenario.Scenario, hpaSync time.Duration,
	start func(context.Context, *cluster.Cluster, string) (source, error), askDirectly bool,
) (*observed, error) {
	dir, err := l.runDir(s.Name)
	if err != nil {
		return nil, err
	}
	c, err := cluster.Boot(ctx, cluster.Config{
		Binary: l.controlplane, Dir: dir, HPASync: hpaSync, DownscaleStabilization: s.ScaleDownStabilization.Duration,
	})
	if err != nil {
		return nil, err
	}
	defer c.Stop()
	slog.Info("control plane up", "seconds", fmt.Sprintf("%.1f", c.BootTime.Seconds()), "hpaSync", hpaSync, "logs", dir)
	src, err := start(ctx, c, dir)
	if err != nil {
		return nil, err
	}
	defer src.stop()
	slog.Info("external metrics are served")
	r := &loop{lab: l, scenario: s, dir: dir, cluster: c, source: src, askDirectly: askDirectly, gateways: map[string]*mesh.Gateway{}}
	defer r.stop()
	if err := r.setUp(ctx); err != nil {
		return nil, err
	}
	seen := &observed{boot: c.BootTime}
	before, err := src.wireBytes(ctx)
	if err != nil {
		before = 0 // nothing has been scraped yet
	}
	began := time.Now()
	metering, stop := context.WithCancel(ctx)
	meters := make(chan *meter, 1)
	go func() { meters <- r.meterUntil(metering) }()
	err = r.drive(ctx)
	stop()
	seen.costs, seen.seconds = (<-meters).costs(), time.Since(began).Seconds()
	if err != nil {
		return nil, err
	}
	after, err := src.wireBytes(ctx)
	if err != nil {
		return nil, err
	}
	seen.bytes = after - before
	for _, ln := range r.lanes {
		seen.traces = append(seen.traces, ln.trace)
	}
	return seen, nil
}

// setUp starts pods and gateways and applies the HPAs; it returns when every lane has its first
// pods ready.
func (r *loop) setUp(ctx context.Context) error {
	var err error
	if r.sink == nil {
		r.sink = func(string, string) string { return r.source.sink() }
	}
	r.agent, err = mesh.Start(ctx, mesh.Config{
		Client: r.cluster.Client, Dir: filepath.Join(r.dir, "pods"), Envoy: r.lab.envoy, Apps: r.lab.apps(),
		Sink: r.sink, FlushInterval: r.scenario.Flush.Duration, EvictionInterval: r.scenario.Eviction.Duration, ReadyChanged: r.readyChanged,
	})
	if err != nil {
		return err
	}
	for i, sl := range r.scenario.Expanded() {
		ln := &lane{Lane: sl}
		if ln.hpa, err = sl.Object(r.lab.root); err != nil {
			return err
		}
		ln.gateway, err = mesh.StartGateway(ctx, mesh.GatewayConfig{
			Dir: r.dir, Envoy: r.lab.envoy, Sink: r.sink(sl.Namespace, "gateway-"+sl.Namespace), FlushInterval: r.scenario.Flush.Duration,
			Namespace: sl.Namespace, Workload: workload, Index: i,
		})
		if err != nil {
			return err
		}
		if err := ln.gateway.Register(ctx, r.cluster.Client); err != nil {
			return err
		}
		r.lanes = append(r.lanes, ln)
		r.mu.Lock()
		r.gateways[sl.Namespace] = ln.gateway
		r.mu.Unlock()
		if err := r.createLane(ctx, ln); err != nil {
			return err
		}
	}
	return r.awaitReady(ctx)
}

func (r *loop) readyChanged(namespace, _ string, addresses []string) {
	r.mu.Lock()
	gateway := r.gateways[namespace]
	r.mu.Unlock()
	if gateway == nil {
		return
	}
	if err := gateway.SetPods(addresses); err != nil {
		slog.Error("gateway cannot be told its pods", "namespace", namespace, "err", err)
	}
}

const readyTimeout = 2 * time.Minute

func (r *loop) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, ln := range r.lanes {
		for r.agent.Ready(ln.Namespace, workload) < int(ln.Replicas) {
			if err := r.cluster.Failed(); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("pods of %s are not ready: %w; see the logs in %s", ln.Namespace, context.Cause(ctx), r.dir)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// drive sends every lane's load, samples, does the actions, and returns when the last load has
// ended.
func (r *loop) drive(ctx context.Context) error {
	begin := time.Now().Add(time.Second)
	var loads, others sync.WaitGroup
	begins, kills := r.begins()
	for i, ln := range r.lanes {
		ln.start = begin.Add(begins[i])
		ln.send(ctx, ln.start)
		loads.Go(ln.generator.Wait)
		loads.Go(func() { r.runHey(ctx, ln) })
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	for i, ln := range r.lanes {
		others.Go(func() { r.sample(watching, ln, i == 0) })
		others.Go(func() { r.watchTarget(watching, ln) })
	}
	actions := make(chan error, 2)
	go func() { actions <- r.act(watching, begin) }()
	go func() { actions <- r.killAll(watching, begin, kills) }()
	ended := make(chan struct{})
	go func() { loads.Wait(); r.waitEnd(watching); close(ended) }()
	defer func() { stop(); others.Wait() }()
	for {
		select {
		case <-ended:
			stop()
			others.Wait()
			for _, ln := range r.lanes {
				var err error
				ln.trace.Requests = ln.generator.All()
				if ln.trace.Events, ln.trace.Conditions, err = r.inspect(ctx, ln); err != nil {
					return err
				}
				if ln.trace.Raises, err = r.raises(ctx, ln); err != nil {
					return err
				}
				if err = r.askOracle(ln); err != nil {
					return err
				}
			}
			return ctx.Err()
		case err := <-actions:
			if err != nil {
				return err
			}
		case <-time.After(time.Second):
			if err := errors.Join(r.cluster.Failed(), r.source.failed()); err != nil {
				return err
			}
		}
	}
}

// send begins with the lane's load.
func (ln *lane) send(ctx context.Context, begin time.Time) {
	ln.generator = load.Start(ctx, load.Options{
		Targets: []string{ln.gateway.Address()}, Profile: ln.Load, Begin: begin, Header: http.Header{"X-Source-Workload": {"lab-load"}},
	})
}

// waitEnd waits for the end of the longest profile: its last requests may have come long before.
func (r *loop) waitEnd(ctx context.Context) {
	for _, ln := range r.lanes {
		select {
		case <-time.After(time.Until(ln.start.Add(ln.Load.Duration()))):
		case <-ctx.Done():
		}
	}
}

func (r *loop) stop() {
	if r.agent != nil {
		r.agent.Stop()
	}
	for _, ln := range r.lanes {
		ln.gateway.Stop()
	}
}

// apps are the programs that stand in for images.
func (l *lab) apps() map[string]mesh.App {
	return map[string]mesh.App{
		appImage:     {Path: l.self, Args: []string{"app", "--listen=$(POD_IP):9898"}},
		podinfoImage: {Path: filepath.Join(l.cache, "bin", "podinfo"), Args: []string{"--host=$(POD_IP)", "--port=9898", "--level=error"}},
	}
}
