// Command replicas looks whether two replicas of meshpulse answer as one that never ends.
//
// A front plays the Service: sidecars' connections go to the replicas that live, in turn, and what
// comes over them is copied to one process by itself, the oracle. Under constant load one of the
// two is killed, at random, and begun anew once it has been away for a while; the next is killed
// when both are ready again. All the while an answer is asked for at the ready ones and held
// against the oracle's.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

// settings are what is run.
type settings struct {
	binary, out string
	before      string
	pods        int
	labelSets   int
	kills       int
	interval    time.Duration
	retention   time.Duration
	gently      bool
	seed        uint64
}

func main() {
	var s settings
	flag.StringVar(&s.binary, "binary", "bin/meshpulse", "the meshpulse to run")
	flag.StringVar(&s.before, "before", "", "the meshpulse that both replicas are at first, of another version: then they end in turn, and begin as -binary")
	flag.StringVar(&s.out, "out", "", "file to write the rows to, JSON; its table goes beside it, .md")
	flag.IntVar(&s.pods, "pods", 500, "sidecars")
	flag.IntVar(&s.labelSets, "label-sets", 20, "of each sidecar")
	flag.IntVar(&s.kills, "kills", 10, "how often a replica is killed")
	flag.DurationVar(&s.interval, "interval", 5*time.Second, "between two flushes of a sidecar")
	flag.DurationVar(&s.retention, "retention", 75*time.Second, "how far back replicas keep, and how long one warms up")
	flag.BoolVar(&s.gently, "gently", false, "replicas are told to end, as in a rolling update, and not killed")
	flag.Uint64Var(&s.seed, "seed", 1, "which replica is killed, and when")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "replicas:", err)
		os.Exit(1)
	}
}

// Addresses of the replicas, at which they talk to each other and sidecars reach them.
var (
	peers  = []string{"127.0.2.1:15091", "127.0.2.2:15091"}
	ingest = []string{"127.0.2.1:15090", "127.0.2.2:15090"}
)

// oracleName is what the process by itself is called.
const oracleName = "oracle"

const hpa = `apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: all
  namespace: test
  annotations:
    metric-config.external.prometheus-query.prometheus/all: |
      sum(rate(istio_requests_total{reporter="destination",destination_workload_namespace="test"}[1m]))
    meshpulse.io/surge-window: 10s
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: all}
  maxReplicas: 10
  metrics:
    - type: External
      external:
        metric: {name: prometheus-query, selector: {matchLabels: {query-name: all}}}
        target: {type: AverageValue, averageValue: "10"}
`

// run is one run, from the start of the processes to the rows.
func run(ctx context.Context, s settings) (err error) {
	dir, err := os.MkdirTemp("", "meshpulse-replicas-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		}
	}()
	if err := os.WriteFile(filepath.Join(dir, "hpa.yaml"), []byte(hpa), 0o600); err != nil {
		return err
	}
	b := &bench{settings: s, now: cmp.Or(s.before, s.binary), dir: dir, random: rand.New(rand.NewPCG(s.seed, 0)), replicas: make([]*standalone.Server, len(peers))}
	defer b.stop()
	if b.oracle, err = b.start(ctx, oracleName, "127.0.2.9:15090"); err != nil {
		return err
	}
	for i := range peers {
		if err := b.begin(ctx, i); err != nil {
			return err
		}
	}
	if b.front, err = newFront("127.0.2.10:15090", b.oracle.Ingest, ingest); err != nil {
		return err
	}
	f, err := fleet.New(fleet.Config{Target: b.front.address(), Pods: s.pods, LabelSets: s.labelSets, Interval: s.interval})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	if err := b.kill(ctx); err != nil {
		return err
	}
	stats := f.Stats()
	cancel()
	<-done
	return b.report(stats)
}

// bench is a run.
type bench struct {
	settings
	dir      string
	random   *rand.Rand
	oracle   *standalone.Server
	replicas []*standalone.Server // nil: it is dead
	front    *front

	asked, refused, wrong, surgeless, other int
	worst                                   float64
	worstLost                               int64
	now                                     string // the binary that a replica begins as
	took                                    []time.Duration
	cpu                                     []float64 // seconds while all live: of each replica, and the oracle's at the end
}

func (b *bench) start(ctx context.Context, name, address string, args ...string) (*standalone.Server, error) {
	dir, binary := filepath.Join(b.dir, name), b.now
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if name == oracleName {
		binary = b.binary
	}
	return standalone.Start(ctx, standalone.Options{
		Binary: binary, Dir: dir, HPADir: b.dir, Ingest: address, Args: append(args, "--retention", b.retention.String()),
	})
}

// begin starts a replica.
func (b *bench) begin(ctx context.Context, i int) (err error) {
	b.replicas[i], err = b.start(ctx, fmt.Sprintf("replica-%d", i), ingest[i], "--peers", peers[0]+","+peers[1], "--peers-address", peers[i])
	return err
}

func (b *bench) stop() {
	for _, r := range append(slices.Clone(b.replicas), b.oracle) {
		if r != nil {
			r.Kill()
		}
	}
	if b.front != nil {
		b.front.close()
	}
}

// kill kills replicas, asking all the while.
func (b *bench) kill(ctx context.Context) error {
	if err := b.ask(ctx, b.retention, false); err != nil { // until every series is known
		return err
	}
	before, err := b.usage()
	if err != nil {
		return err
	}
	if err := b.ask(ctx, time.Minute, false); err != nil { // and all have the history
		return err
	}
	if b.cpu, err = b.usage(); err != nil {
		return err
	}
	for i := range b.cpu {
		b.cpu[i] -= before[i]
	}
	b.now = b.binary
	for n := range b.kills {
		if err := b.ask(ctx, time.Duration(1+b.random.IntN(9_000))*time.Millisecond, true); err != nil {
			return err
		}
		i := b.random.IntN(len(b.replicas))
		if b.before != "" {
			i = n % len(b.replicas)
		}
		end := b.replicas[i].Kill
		if b.gently {
			b.front.leave(i)
			end = func() { err = b.replicas[i].Stop() }
		}
		lost := b.front.kill(i, end)
		if err != nil {
			return err
		}
		b.replicas[i] = nil
		b.worstLost = max(b.worstLost, lost)
		if err := b.ask(ctx, 20*time.Second, true); err != nil {
			return err
		}
		if err := b.begin(ctx, i); err != nil {
			return err
		}
		b.front.back(i)
		if err := b.ask(ctx, b.retention+5*time.Second, true); err != nil {
			return err
		}
		for r := range b.replicas {
			if !b.ready(ctx, r) {
				return fmt.Errorf("replica %d is not ready after its retention", r)
			}
		}
	}
	return nil
}

// usage is the CPU time that each replica and the oracle have taken.
func (b *bench) usage() (seconds []float64, err error) {
	for _, r := range append(slices.Clone(b.replicas), b.oracle) {
		u, err := process.UsageOf(r.PID())
		if err != nil {
			return nil, err
		}
		seconds = append(seconds, u.CPU.Seconds())
	}
	return seconds, nil
}

func (b *bench) ready(ctx context.Context, i int) bool {
	var none struct{}
	err := errors.New("dead")
	if b.replicas[i] != nil {
		err = b.replicas[i].Get(ctx, "/readyz", &none)
	}
	var refused *standalone.APIError
	return err != nil && !errors.As(err, &refused) && b.replicas[i] != nil // "ok" is no JSON
}

// ask asks for a time, four times a second, and holds the answers against the oracle's.
func (b *bench) ask(ctx context.Context, span time.Duration, counted bool) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(span); time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if counted {
			if err := b.compare(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare asks each replica that is ready.
func (b *bench) compare(ctx context.Context) error {
	for i, r := range b.replicas {
		if r == nil || !b.ready(ctx, i) {
			continue
		}
		want, err := b.oracle.Values(ctx, "test", "prometheus-query", "query-name=all")
		if err != nil || len(want) != 1 {
			return fmt.Errorf("the oracle says %v, %w", want, err)
		}
		begun := time.Now()
		got, err := r.Values(ctx, "test", "prometheus-query", "query-name=all")
		b.took = append(b.took, time.Since(begun))
		b.asked++
		if err != nil || len(got) != 1 {
			b.refused++
			continue
		}
		off := math.Abs(got[0].Value.AsApproximateFloat64()/want[0].Value.AsApproximateFloat64() - 1)
		b.worst = max(b.worst, off)
		if off > 0.01 {
			b.wrong++
		}
		if got[0].MetricLabels["meshpulse_replica"] != peers[i] {
			b.other++
		}
		if status, err := r.Status(ctx); err == nil && len(status.Metrics) == 1 && (status.Metrics[0].Surge == nil || !status.Metrics[0].Surge.Ready) {
			b.surgeless++
		}
	}
	return nil
}
