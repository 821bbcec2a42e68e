package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/lab/chaos"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/link"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/web"
)

const (
	chaosLanes = "bench/lab/scenarios/chaos/lanes.yaml"
	// chaosHold is meshpulse's --hold in a chaos run: short, so that waiting for a sidecar ends
	// within the longest faults.
	chaosHold = 30 * time.Second
	// chaosBudget is meshpulse's limit of series in a chaos run: several times what the lanes have,
	// and less than what the flood sends.
	chaosBudget = 1500
	// chaosRetention is meshpulse's in a chaos run: what filled the budget is given up so long
	// after its sidecars have gone.
	chaosRetention = 2 * time.Minute
	// askInterval is how often the metrics API is asked for each lane, as an HPA asks.
	askInterval = time.Second
)

// chaosRun is a run under faults: the loop that every scenario has, and who does the faults.
type chaosRun struct {
	*loop
	replicas []*meshpulse
	schedule chaos.Schedule
	hands    *chaos.Hands
	begin    time.Time

	mu      sync.Mutex
	seen    chaos.Seen
	traces  []chaos.Trace
	scraped map[int]map[string]float64 // newest counters of each process, by its id, and name and labels
}

// chaosAll does a run for each seed and writes what was seen; a goal that was missed fails the
// command, after all have run.
func (l *lab) chaosAll(ctx context.Context, seeds []uint64, faults, replicas int) error {
	if len(seeds) == 0 {
		return errors.New("no seed: give --seed=1,7,42")
	}
	if replicas != 1 && replicas != 2 {
		return fmt.Errorf("--replicas %d: give 1 or 2", replicas)
	}
	name := "chaos"
	command := fmt.Sprintf("make chaos SEED=%q", strings.Trim(fmt.Sprint(seeds), "[]"))
	if faults > 0 {
		command += fmt.Sprint(" FAULTS=", faults)
	}
	if replicas > 1 {
		name, command = "chaos-replicas", command+fmt.Sprint(" REPLICAS=", replicas)
	}
	report := chaos.Report{Name: name, Command: command, Hold: chaosHold, Retention: chaosRetention, Budget: chaosBudget}
	for _, seed := range seeds {
		seen, err := l.chaosOnce(ctx, chaos.Config{Seed: seed, Faults: faults, Replicas: replicas})
		if err != nil {
			return fmt.Errorf("chaos with seed %d: %w", seed, err)
		}
		report.Date, report.Versions = time.Now(), l.versions()
		report.Runs = append(report.Runs, seen)
		fmt.Print(report.Markdown())
		if err := report.Write(l.results); err != nil {
			return err
		}
	}
	if missed := report.Missed(); len(missed) > 0 {
		return fmt.Errorf("chaos: missed: %s", strings.Join(missed, "; "))
	}
	return nil
}

// chaosOnce boots everything, lets the schedule happen and ends everything.
func (l *lab) chaosOnce(ctx context.Context, config chaos.Config) (chaos.Seen, error) {
	s, err := scenario.Load(filepath.Join(l.root, chaosLanes))
	if err != nil {
		return chaos.Seen{}, err
	}
	config.Lanes = len(s.Lanes)
	schedule, err := chaos.New(config)
	if err != nil {
		return chaos.Seen{}, err
	}
	for i := range s.Lanes {
		s.Lanes[i].Load = steady(s.Lanes[i].Load[0].RPS, schedule.Length)
	}
	dir, err := l.runDir(fmt.Sprintf("chaos-%d", config.Seed))
	if err != nil {
		return chaos.Seen{}, err
	}
	c, err := cluster.Boot(ctx, cluster.Config{Binary: l.controlplane, Dir: dir, HPASync: s.HPASync[0].Duration})
	if err != nil {
		return chaos.Seen{}, err
	}
	defer c.Stop()
	api, err := link.Open(link.Config{Upstream: strings.TrimPrefix(c.Server, "https://"), Opaque: true})
	if err != nil {
		return chaos.Seen{}, err
	}
	defer api.Close()
	ca, err := chaos.StartCA(dir, systemNamespace, "meshpulse")
	if err != nil {
		return chaos.Seen{}, err
	}
	defer ca.Stop()
	options := l.chaosOptions()
	options.apiServer = "https://" + api.Address()
	options.flags = append(options.flags, identityFlags(ca.Address, ca.RootsFile, filepath.Join(dir, "token"))...)
	system := chaos.System{Cluster: c, API: api, CA: ca, Workload: workload, Flush: s.Flush.Duration}
	r := &chaosRun{loop: &loop{lab: l, scenario: s, dir: dir, cluster: c}, schedule: schedule, scraped: map[int]map[string]float64{}}
	r.seen = chaos.Seen{
		Seed: config.Seed, Schedule: schedule, Done: map[chaos.Kind]int{}, Dropped: map[string]float64{}, HPASync: s.HPASync[0].Duration, Boot: c.BootTime,
	}
	return r.happen(ctx, options, system)
}

// happen starts meshpulse, pods and load, and lets the schedule happen.
func (r *chaosRun) happen(ctx context.Context, options meshpulseOptions, system chaos.System) (_ chaos.Seen, err error) {
	if r.source, r.replicas, err = r.lab.chaosSource(ctx, r.cluster, r.dir, options, r.schedule.Replicas, &system); err != nil {
		return chaos.Seen{}, err
	}
	defer r.source.stop()
	if err := writeToken(ctx, r.cluster, "meshpulse", istioAudience, filepath.Join(r.dir, "token")); err != nil {
		return chaos.Seen{}, err
	}
	slog.Info("chaos", "seed", r.seen.Seed, "faults", len(r.schedule.Faults), "length", r.schedule.Length, "logs", r.dir)
	defer r.stop()
	system.Agent = func() *mesh.Agent { return r.agent }
	for _, ln := range r.scenario.Lanes {
		system.Namespaces = append(system.Namespaces, ln.Namespace)
	}
	if r.hands, err = chaos.Open(system); err != nil {
		return chaos.Seen{}, err
	}
	defer r.hands.Close()
	r.sink, r.gateways = r.hands.Sink, map[string]*mesh.Gateway{}
	if err := r.setUp(ctx); err != nil {
		return chaos.Seen{}, err
	}
	if err := r.run(ctx); err != nil {
		return chaos.Seen{}, err
	}
	return r.seen, r.keep()
}

// steady is a constant load after a first minute of somewhat more: the HPA is to find as many
// replicas as the load needs, and while the window fills for the first time it had taken some away,
// which its tolerance of 10 % would not give back.
func steady(rps float64, length time.Duration) load.Profile {
	const more, during = 1.08, 70 * time.Second
	return load.Profile{
		{For: metav1.Duration{Duration: during}, RPS: more * rps},
		{For: metav1.Duration{Duration: length - during}, RPS: rps},
	}
}

// run sends the load, lets the faults happen, and watches.
func (r *chaosRun) run(ctx context.Context) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	r.begin = time.Now()
	var loads, others sync.WaitGroup
	r.traces = make([]chaos.Trace, len(r.lanes))
	for i, ln := range r.lanes {
		r.traces[i].Lane = chaos.Lane{
			Namespace: ln.Namespace, Load: ln.Load[1].RPS, PerReplica: ln.PerReplica,
			Target: ln.hpa.Spec.Metrics[0].External.Target.AverageValue.AsApproximateFloat64(),
			Action: ln.hpa.Annotations["meshpulse.io/"+surgeAction] == "scale" && slices.Contains(r.replicas[0].options.components, surgeAction),
		}
		ln.send(watching, r.begin)
		loads.Go(ln.generator.Wait)
		others.Go(func() { r.lookAt(watching, ln, &r.traces[i]) })
		others.Go(func() { r.ask(watching, ln, &r.traces[i]) })
	}
	others.Go(func() { r.scrape(watching) })
	others.Go(func() { r.hands.Inject(watching, r.begin, r.schedule, r.done) })
	err := r.watchUntil(ctx, r.begin.Add(r.schedule.Length))
	if err == nil {
		loads.Wait()
	}
	stop()
	others.Wait()
	loads.Wait()
	if err != nil {
		return err
	}
	return r.sumUp(ctx)
}

// watchUntil looks after the processes until the end.
func (r *chaosRun) watchUntil(ctx context.Context, end time.Time) error {
	for time.Now().Before(end) {
		if !proc.Sleep(ctx, 200*time.Millisecond) {
			return ctx.Err()
		}
		if err := r.cluster.Failed(); err != nil {
			return err
		}
		for _, m := range r.replicas {
			r.watch(m)
		}
	}
	return nil
}

// watch notices when meshpulse has ended by itself, and starts it again, as a kubelet would.
func (r *chaosRun) watch(m *meshpulse) {
	p := m.current()
	if p == nil {
		return
	}
	select {
	case <-p.Exited():
	default:
		return
	}
	if m.current() != p {
		return // a fault has just killed it
	}
	what := fmt.Sprintf("ended with code %d: %s", p.ExitCode(), r.lab.withoutRoot(p.Tail(1)))
	slog.Error("meshpulse crashed", "what", what)
	r.note(func(s *chaos.Seen) {
		s.Crashes = append(s.Crashes, chaos.Moment{At: time.Since(r.begin), Lane: "meshpulse", What: what, Faults: chaos.Around(s.Schedule.Faults, time.Since(r.begin))})
	})
	time.Sleep(time.Second)
	if m.current() != p {
		return // nor is it ours to start
	}
	if err := m.launch(); err != nil {
		slog.Error("meshpulse cannot be started", "err", err)
	}
}

// done counts a fault that is over, or names one that could not be done.
func (r *chaosRun) done(f chaos.Fault, err error) {
	r.note(func(s *chaos.Seen) {
		if err != nil {
			s.Failed = append(s.Failed, r.lab.withoutRoot(f.String()+": "+err.Error()))
			return
		}
		s.Done[f.Kind]++
	})
}

// note changes what was seen, under the lock.
func (r *chaosRun) note(f func(*chaos.Seen)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.seen)
}

// lookAt records what the lane's HPA wants and what its target has.
func (r *chaosRun) lookAt(ctx context.Context, ln *lane, trace *chaos.Trace) {
	proc.Every(ctx, sampleInterval, func() {
		look, err := r.look(ctx, ln)
		if err != nil {
			return // the API server is down
		}
		if n := len(trace.Looks); n > 0 && look.Desired < trace.Lane.Need() && trace.Looks[n-1].Desired > look.Desired {
			slog.Warn("fewer replicas are desired than the load needs", "t", look.At.Round(time.Second), "namespace", ln.Namespace, "desired", look.Desired)
		}
		trace.Looks = append(trace.Looks, look)
	})
}

func (r *chaosRun) look(ctx context.Context, ln *lane) (chaos.Look, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	hpa, err := r.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(ln.Namespace).Get(ctx, ln.hpa.Name, metav1.GetOptions{})
	if err != nil {
		return chaos.Look{}, err
	}
	scale, err := r.cluster.Client.AppsV1().Deployments(ln.Namespace).GetScale(ctx, workload, metav1.GetOptions{})
	if err != nil {
		return chaos.Look{}, err
	}
	return chaos.Look{
		At: time.Since(r.begin), Desired: int(hpa.Status.DesiredReplicas), Found: int(hpa.Status.CurrentReplicas), Spec: int(scale.Spec.Replicas),
	}, nil
}

// ask asks the metrics API once a second, and says every ten seconds what it answers.
func (r *chaosRun) ask(ctx context.Context, ln *lane, trace *chaos.Trace) {
	proc.Every(ctx, askInterval, func() {
		asked := time.Since(r.begin)
		within, cancel := context.WithTimeout(ctx, 3*time.Second)
		value, held, err := answer(within, r.cluster, ln.hpa)
		cancel()
		a := chaos.Answer{At: asked, Value: value, Held: held}
		if err != nil {
			a.Err, a.Value = err.Error(), math.NaN()
		}
		trace.Answers = append(trace.Answers, a)
		if len(trace.Answers)%10 == 1 {
			slog.Info("lab", "t", asked.Round(time.Second), "namespace", ln.Namespace, "value", fmt.Sprintf("%.2f", a.Value), "held", held, "ready", r.agent.Ready(ln.Namespace, workload))
		}
	})
}

// counted are the counters of meshpulse that tell what it took and what it lost.
var counted = []string{
	"meshpulse_ingest_messages_total", "meshpulse_ingest_rejected_messages_total",
	"meshpulse_ingest_dropped_samples_total", "meshpulse_store_dropped_samples_total",
}

// scrape adds up meshpulse's counters over its restarts, and the flushes that are due.
func (r *chaosRun) scrape(ctx context.Context) {
	client := r.cluster.AdminClient()
	client.Timeout = 2 * time.Second
	last := time.Now()
	proc.Every(ctx, time.Second, func() {
		now := time.Now() // a reading that takes long drops ticks, and just when flushes are lost
		due := float64(len(r.agent.Sidecars())+len(r.lanes)) * now.Sub(last).Seconds() / r.scenario.Flush.Seconds()
		last = now
		r.note(func(s *chaos.Seen) { s.FlushesDue += due })
		var all sync.WaitGroup
		for _, m := range r.replicas {
			if p := m.current(); p != nil {
				all.Go(func() {
					if body, err := web.Get(ctx, client, m.metricsURL()); err == nil {
						r.count(p.PID(), string(body))
					}
				})
			}
		}
		all.Wait()
	})
}

// count takes one reading. Counters of another process begin at 0.
func (r *chaosRun) count(pid int, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.scraped[pid] == nil {
		r.scraped[pid] = map[string]float64{}
	}
	for line := range strings.Lines(text) {
		name, number, ok := strings.Cut(strings.TrimSpace(line), " ")
		base, _, _ := strings.Cut(name, "{")
		value, err := strconv.ParseFloat(number, 64)
		if !ok || err != nil || !slices.Contains(counted, base) {
			continue
		}
		r.seen.Dropped[name] += value - r.scraped[pid][name]
		r.scraped[pid][name] = value
	}
}

// sumUp asks for what is known only in the end.
func (r *chaosRun) sumUp(ctx context.Context) error {
	var log []byte
	for _, m := range r.replicas {
		one, err := os.ReadFile(filepath.Join(m.dir, "meshpulse.log"))
		if err != nil {
			return err
		}
		log = append(log, one...)
	}
	told := 0
	for i, ln := range r.lanes {
		seen := ln.generator.All()
		r.traces[i].Sent, r.traces[i].Failed = seen.Requests, seen.Failed
		events, err := r.cluster.Client.CoreV1().Events(ln.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=SurgeScaled"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			r.traces[i].Raises = append(r.traces[i].Raises, raised(e, r.begin))
			told += max(1, int(e.Count))
		}
	}
	// A process that is killed may not have sent its events.
	if n := strings.Count(string(log), `msg="surge scaled"`); n > told {
		r.traces[0].Raises = append(r.traces[0].Raises, fmt.Sprintf("and %d more somewhere, of which only the log tells", n-told))
	}
	r.note(func(s *chaos.Seen) {
		s.FlushesTaken = s.Dropped[counted[0]] - float64(r.hands.Flooded())
		delete(s.Dropped, counted[0])
		s.Judge(r.traces)
	})
	for _, sign := range []string{"panic:", "fatal error:", "DATA RACE"} {
		if n := strings.Count(string(log), sign); n > 0 {
			r.note(func(s *chaos.Seen) {
				s.Crashes = append(s.Crashes, chaos.Moment{Lane: "meshpulse", What: fmt.Sprintf("its log has %q %d times", sign, n)})
			})
		}
	}
	return nil
}

func raised(e corev1.Event, begin time.Time) string {
	at := e.EventTime.Time
	if at.IsZero() {
		at = e.LastTimestamp.Time
	}
	return fmt.Sprintf("%.0fs: %s", at.Sub(begin).Seconds(), e.Message)
}

// keep leaves everything that was seen in the run's folder.
func (r *chaosRun) keep() error {
	type answer struct {
		At, Value float64
		Held, Err string
	}
	type trace struct {
		Namespace string
		Looks     []chaos.Look
		Answers   []answer
	}
	var all []trace
	for _, t := range r.traces {
		kept := trace{Namespace: t.Lane.Namespace, Looks: t.Looks}
		for _, a := range t.Answers {
			if math.IsNaN(a.Value) {
				a.Value = -1 // JSON has no NaN
			}
			kept.Answers = append(kept.Answers, answer{a.At.Seconds(), a.Value, a.Held, a.Err})
		}
		all = append(all, kept)
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "seen.json"), data, 0o644)
}
