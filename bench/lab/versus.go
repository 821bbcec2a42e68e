package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

// setting is one way to run one of the two paths.
type setting struct {
	name           string
	peer           bool          // Prometheus and KEDA, else meshpulse
	interval, sync time.Duration // flush or scrape; the HPA controller's sync period
	act            bool          // meshpulse raises the targets at surges
}

// settings of `versus`: what people run and equal freshness, both at the default sync period that
// managed clusters do not let one change. `versus -all` adds meshpulse acting at surges, and the
// best that either can do where everything may be set.
func settings(all bool) []setting {
	const sync = 15 * time.Second
	some := []setting{
		{name: "meshpulse, flush 5 s, sync 15 s", interval: 5 * time.Second, sync: sync},
		{name: "Prometheus + KEDA, scrape 15 s, sync 15 s", peer: true, interval: 15 * time.Second, sync: sync},
		{name: "Prometheus + KEDA, scrape 5 s, sync 15 s", peer: true, interval: 5 * time.Second, sync: sync},
	}
	if all {
		some = append(some,
			setting{name: "meshpulse that acts at surges, flush 5 s, sync 15 s", interval: 5 * time.Second, sync: sync, act: true},
			setting{name: "meshpulse that acts at surges, flush 1 s, sync 15 s", interval: time.Second, sync: sync, act: true},
			setting{name: "meshpulse, flush 1 s, sync 1 s", interval: time.Second, sync: time.Second},
			setting{name: "Prometheus + KEDA, scrape 1 s, sync 1 s", peer: true, interval: time.Second, sync: time.Second})
	}
	return some
}

// silentFlush is the sidecars' flush interval where nobody takes their pushes: as rare as Envoy
// allows, so that the peer's path does not pay for ours. What Prometheus reads of counters is
// always the newest.
const silentFlush = 4 * time.Minute

// outcome is what a setting has shown in one scenario, over all its runs.
type outcome struct {
	setting  setting
	scenario string
	traces   []scenario.Trace
	costs    map[string]cost // summed over the runs
	bytes    float64
	seconds  float64
	boot     time.Duration // of the control plane, the longest
}

// versus runs each scenario with every setting, alternating, so many rounds, and writes the
// comparison.
func (l *lab) versus(ctx context.Context, all bool, rounds int, paths []string) error {
	for _, path := range []string{l.peer("prometheus", prometheusVersion), l.peer("keda-operator", kedaVersion), l.peer("keda-adapter", kedaVersion)} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: `make versus` builds it", err)
		}
	}
	start := time.Now()
	var outcomes []*outcome
	for _, path := range paths {
		s, err := scenario.Load(path)
		if err != nil {
			return err
		}
		some := settings(all)
		own := make([]*outcome, len(some))
		for i, set := range some {
			own[i] = &outcome{setting: set, scenario: s.Name, costs: map[string]cost{}}
		}
		// A scenario that repeats is cut into rounds, A/B/A/B, so that what the machine does
		// meanwhile hits all alike.
		turns := min(rounds, s.Repeat)
		for turn := range turns {
			perRound := s
			perRound.Repeat = s.Repeat*(turn+1)/turns - s.Repeat*turn/turns
			for _, o := range own {
				slog.Info("versus", "scenario", s.Name, "turn", turn+1, "of", turns, "setting", o.setting.name)
				if err := l.versusOnce(ctx, perRound, o); err != nil {
					return fmt.Errorf("%s, %s: %w", s.Name, o.setting.name, err)
				}
			}
		}
		outcomes = append(outcomes, own...)
		// Written after every scenario: what was measured is not lost when a later one fails.
		if err := l.writeVersus(outcomes, start, all); err != nil {
			return err
		}
	}
	fmt.Print(l.printVersus(outcomes, start, all))
	return nil
}

// versusOnce is one run of a setting, added to its outcome.
func (l *lab) versusOnce(ctx context.Context, s scenario.Scenario, o *outcome) error {
	if o.setting.act {
		s = s.Acting()
	}
	start := l.withMeshpulse(s)
	s.Flush = metav1.Duration{Duration: o.setting.interval}
	if o.setting.peer {
		s.Flush.Duration = silentFlush
		start = func(ctx context.Context, c *cluster.Cluster, dir string) (source, error) {
			var gateways []string
			for i := range s.Expanded() {
				gateways = append(gateways, fmt.Sprintf("127.97.255.%d:15000", i+1))
			}
			return startKEDA(ctx, l, c, dir, o.setting.interval, gateways)
		}
	}
	seen, err := l.runOnce(ctx, s, o.setting.sync, start, false)
	if err != nil {
		return err
	}
	o.traces = append(o.traces, seen.traces...)
	o.seconds += seen.seconds
	o.bytes += seen.bytes
	o.boot = max(o.boot, seen.boot)
	for part, c := range seen.costs {
		sum := o.costs[part]
		sum.cpu += c.cpu
		sum.rss = max(sum.rss, c.rss)
		sum.received += c.received
		o.costs[part] = sum
	}
	return nil
}

// The parts of a path that are not its own: they carry the requests themselves.
var envoys = []string{"sidecars", "gateways"}

// extra are the parts that come on top for those who keep their Prometheus anyway.
var extra = []string{"meshpulse", "keda-operator", "keda-adapter"}

// figures are an outcome's measures and costs; wrong scale-downs and failed requests are among the
// measures.
func (o *outcome) figures() []scenario.Measure {
	all := scenario.Measures(o.traces)
	perMinute := 60 / o.seconds
	var path, marginal cost
	for _, part := range slices.Sorted(maps.Keys(o.costs)) {
		c := o.costs[part]
		all = append(all,
			scenario.Measure{Name: "CPU of " + part, Value: c.cpu * perMinute, Unit: "s/min"},
			scenario.Measure{Name: "peak RSS of " + part, Value: c.rss / (1 << 20), Unit: "MiB"})
		if slices.Contains(envoys, part) {
			continue
		}
		all = append(all, scenario.Measure{Name: "bytes read by " + part, Value: c.received / o.seconds / 1024, Unit: "KiB/s"})
		path.add(c)
		if slices.Contains(extra, part) {
			marginal.add(c)
		}
	}
	all = append(all,
		scenario.Measure{Name: "CPU of the path without the Envoys", Value: path.cpu * perMinute, Unit: "s/min"},
		scenario.Measure{Name: "peak RSS of the path without the Envoys", Value: path.rss / (1 << 20), Unit: "MiB"},
		scenario.Measure{Name: "bytes from the Envoys", Value: o.bytes / o.seconds / 1024, Unit: "KiB/s"},
		scenario.Measure{Name: "bytes read by the path", Value: path.received / o.seconds / 1024, Unit: "KiB/s"},
		scenario.Measure{Name: "CPU on top of a Prometheus that stays", Value: marginal.cpu * perMinute, Unit: "s/min"},
		scenario.Measure{Name: "peak RSS on top of a Prometheus that stays", Value: marginal.rss / (1 << 20), Unit: "MiB"},
		scenario.Measure{Name: "bytes read on top of a Prometheus that stays", Value: marginal.received / o.seconds / 1024, Unit: "KiB/s"})
	for i := range all {
		all[i].Better = better(all[i].Name)
		all[i].Goal = o.setting.goal(o.scenario, all[i].Name)
	}
	return append(all, scenario.BootTime(o.boot))
}

// better says which way a figure should go; "" for those that only describe the run.
func better(name string) string {
	switch name {
	case scenario.SentRequests, scenario.GeneratorLate:
		return ""
	case scenario.CoverageMean, scenario.HighCoverage:
		return "higher"
	default:
		return "lower"
	}
}

// goal is what meshpulse's own figures are held to; the peer has none.
func (s setting) goal(of, name string) *float64 {
	if s.peer {
		return nil
	}
	decision, raise, asked := 20.0, 4.5, 12.0
	if s.sync == time.Second {
		decision = 13
	}
	if s.interval == time.Second {
		raise, asked = 1.5, 3.5
	}
	none := 0.0
	switch {
	case name == scenario.WrongDowns:
		return &none
	case of == "step" && name == scenario.FirstDecision:
		return &decision
	case of == "step" && s.act && name == scenario.FirstRaise:
		return &raise
	case of == "step" && s.act && name == scenario.AllAsked:
		return &asked
	default:
		return nil
	}
}

// writeVersus leaves versus.md and versus.json, and draws the step.
func (l *lab) writeVersus(outcomes []*outcome, start time.Time, all bool) error {
	if err := os.MkdirAll(l.results, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.results, "versus.md"), []byte(l.printVersus(outcomes, start, all)), 0o644); err != nil {
		return err
	}
	var rows []scenario.Row
	for _, o := range outcomes {
		for _, m := range o.figures() {
			rows = append(rows, scenario.RowOf(o.scenario+", "+o.setting.name+": ", m))
		}
	}
	if err := scenario.WriteRows(filepath.Join(l.results, "versus.json"), rows); err != nil {
		return err
	}
	if slices.ContainsFunc(outcomes, func(o *outcome) bool { return o.scenario == "step" }) {
		return l.plot()
	}
	return nil
}

// plot draws versus.svg from versus.json.
func (l *lab) plot() error {
	step, err := scenario.Load(filepath.Join(l.root, "bench", "lab", "scenarios", "step.yaml"))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(l.results, "versus.json"))
	if err != nil {
		return err
	}
	var rows []scenario.Row
	if err := json.Unmarshal(data, &rows); err != nil {
		return err
	}
	svg, err := scenario.StepPlot(step, rows)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.results, "versus.svg"), []byte(svg), 0o644)
}

func (l *lab) printVersus(outcomes []*outcome, start time.Time, all bool) string {
	w := &strings.Builder{}
	command := "make versus"
	if all {
		command = "make versus-all"
	}
	fmt.Fprintf(w, "# Side by side: meshpulse, and Prometheus %s with KEDA %s\n\n`%s`, %s, %.0f minutes so far; %s\n\n%s\n", prometheusVersion, kedaVersion,
		command, start.UTC().Format("2006-01-02 15:04 MST"), time.Since(start).Minutes(), strings.Join(l.versions(), ", "), versusNotes)
	byScenario := map[string][]*outcome{}
	var order []string
	for _, o := range outcomes {
		if byScenario[o.scenario] == nil {
			order = append(order, o.scenario)
		}
		byScenario[o.scenario] = append(byScenario[o.scenario], o)
	}
	for _, name := range order {
		fmt.Fprintf(w, "\n## %s\n\n", name)
		printOutcomes(w, byScenario[name])
	}
	return w.String()
}

const versusNotes = `The same real Envoys, the same load, the same HPA controller, one path after the other in turn. Coverage is the mean of
min(ready, ideal)/ideal over time, waste of max(0, ready-ideal)/ideal. CPU is in seconds a minute of load, peak RSS the sum over
the processes of a part. The CPU of the sidecars holds the requests themselves, which are the same for every column, and the push
or the scrapes. Bytes from the Envoys are those of the pushes (as received) or of the scrapes (body, uncompressed as Envoy sends it);
only Istio's metrics are scraped. Bytes read are what the read calls of a path's processes returned: each byte between two of them,
from an Envoy or from the API server once, and the few files they read. Peak RSS of the Envoys is summed over all that ran, those
that have ended included. In the peer's columns the sidecars push once in 4 minutes to a port where nobody listens.

Where meshpulse acts, the first rate is held for five minutes before the first step, since the baseline needs them. "On top of a
Prometheus that stays" leaves Prometheus itself out of the peer's columns: what remains is KEDA's two processes, or meshpulse with all it
receives. The push's share of the sidecars' CPU is on top too, and lies within the difference of that row between columns.`

// printOutcomes is a table with a column for each setting; what a setting does not have stays
// empty.
func printOutcomes(w *strings.Builder, outcomes []*outcome) {
	var names []string
	values := map[string]map[int]scenario.Measure{}
	for i, o := range outcomes {
		for _, m := range o.figures() {
			if values[m.Name] == nil {
				names = append(names, m.Name)
				values[m.Name] = map[int]scenario.Measure{}
			}
			values[m.Name][i] = m
		}
	}
	fmt.Fprint(w, "| |")
	for _, o := range outcomes {
		fmt.Fprintf(w, " %s |", o.setting.name)
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---|", len(outcomes)))
	for _, name := range names {
		fmt.Fprintf(w, "| %s |", name)
		for i := range outcomes {
			text := ""
			if m, ok := values[name][i]; ok {
				text = m.Text()
			}
			fmt.Fprintf(w, " %s |", text)
		}
		fmt.Fprintln(w)
	}
}
