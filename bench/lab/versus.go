package main

import (
	"context"
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

// settings of `versus`: what people run and equal freshness, both at the default sync period that managed clusters do not
// let one change. `versus -all` adds the best that either can do.
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
			setting{name: "meshpulse, flush 5 s, sync 1 s", interval: 5 * time.Second, sync: time.Second},
			setting{name: "Prometheus + KEDA, scrape 5 s, sync 1 s", peer: true, interval: 5 * time.Second, sync: time.Second},
			setting{name: "meshpulse, flush 1 s, sync 1 s", interval: time.Second, sync: time.Second},
			setting{name: "Prometheus + KEDA, scrape 1 s, sync 1 s", peer: true, interval: time.Second, sync: time.Second})
	}
	return some
}

// silentFlush is the sidecars' flush interval where nobody takes their pushes: as rare as Envoy allows, so that the
// peer's path does not pay for ours. What Prometheus reads of counters is always the newest.
const silentFlush = 4 * time.Minute

// outcome is what a setting has shown in one scenario, over all its runs.
type outcome struct {
	setting  setting
	scenario string
	traces   []scenario.Trace
	costs    map[string]cost // summed over the runs
	bytes    float64
	seconds  float64
}

// versus runs each scenario with every setting, alternating, so many rounds, and writes the comparison.
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
		// A scenario that repeats is cut into rounds, A/B/A/B, so that what the machine does meanwhile hits all alike.
		perRound := s
		perRound.Repeat = (s.Repeat + rounds - 1) / rounds
		turns := rounds
		if s.Repeat == 1 {
			turns = 1
		}
		for turn := range turns {
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
	return nil
}

// versusOnce is one run of a setting, added to its outcome.
func (l *lab) versusOnce(ctx context.Context, s scenario.Scenario, o *outcome) error {
	if o.setting.act {
		s = s.Acting()
	}
	start := l.withMeshpulse(s.Components)
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
	for part, c := range seen.costs {
		sum := o.costs[part]
		sum.cpu += c.cpu
		sum.rss = max(sum.rss, c.rss)
		o.costs[part] = sum
	}
	return nil
}

// figures are an outcome's measures and costs; wrong scale-downs and failed requests are among the measures.
func (o *outcome) figures() []scenario.Measure {
	all := scenario.Measures(o.traces)
	path := cost{}
	for _, part := range slices.Sorted(maps.Keys(o.costs)) {
		c := o.costs[part]
		all = append(all,
			scenario.Measure{Name: "CPU of " + part, Value: 60 * c.cpu / o.seconds, Unit: "s/min"},
			scenario.Measure{Name: "peak RSS of " + part, Value: c.rss / (1 << 20), Unit: "MiB"})
		if part != "sidecars" && part != "gateways" {
			path.cpu += c.cpu
			path.rss += c.rss
		}
	}
	return append(all,
		scenario.Measure{Name: "CPU of the path without the Envoys", Value: 60 * path.cpu / o.seconds, Unit: "s/min"},
		scenario.Measure{Name: "peak RSS of the path without the Envoys", Value: path.rss / (1 << 20), Unit: "MiB"},
		scenario.Measure{Name: "bytes from the Envoys", Value: o.bytes / o.seconds / 1024, Unit: "KiB/s"})
}

// writeVersus leaves versus.md and versus.json.
func (l *lab) writeVersus(outcomes []*outcome, start time.Time, all bool) error {
	if err := os.MkdirAll(l.results, 0o755); err != nil {
		return err
	}
	var text strings.Builder
	l.printVersus(&text, outcomes, start, all)
	if err := os.WriteFile(filepath.Join(l.results, "versus.md"), []byte(text.String()), 0o644); err != nil {
		return err
	}
	var rows []scenario.Row
	for _, o := range outcomes {
		for _, m := range o.figures() {
			rows = append(rows, scenario.RowOf(o.scenario+", "+o.setting.name+": ", m))
		}
	}
	fmt.Print(text.String())
	return scenario.WriteRows(filepath.Join(l.results, "versus.json"), rows)
}

func (l *lab) printVersus(w *strings.Builder, outcomes []*outcome, start time.Time, all bool) {
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
}

const versusNotes = `The same real Envoys, the same load, the same HPA controller, one path after the other in turn. Coverage is the mean of
min(ready, ideal)/ideal over time, waste of max(0, ready-ideal)/ideal. CPU is in seconds a minute of load, peak RSS the sum over
the processes of a part. The CPU of the sidecars holds the requests themselves, which are the same for every column, and the push
or the scrapes. Bytes are those of the pushes (as received) or of the scrapes (body, uncompressed as Envoy sends it); only
Istio's metrics are scraped. Peak RSS of the Envoys is summed over all that ran, those that have ended included. In the peer's columns the sidecars push once in 4 minutes to a port where nobody listens. For
those who keep Prometheus anyway, meshpulse's marginal cost is its own column's processes and bytes.`

// printOutcomes is a table with a column for each setting; what a setting does not have stays empty.
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
