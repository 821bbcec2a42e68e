package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// flushInterval is Istio's.
const flushInterval = 5 * time.Second

// part is what a run consists of.
type part struct {
	name string
	run  func(context.Context, settings, *table) error
}

// parts are those of a run, in their order.
var parts = []part{
	{"ingest", func(ctx context.Context, s settings, t *table) error { return ingestRows(ctx, s, t, ingestLoads[:1]) }},
	{"variants", func(ctx context.Context, s settings, t *table) error { return ingestRows(ctx, s, t, ingestLoads[1:]) }},
	{"fivethousand", fiveThousandRows},
	{"acting", actingRows},
	{"prometheus", busyBeside.rows},
	{"zipf", zipfBeside.rows},
	{"zipffull", zipfFullRows},
	{"gateway", gatewayRows},
	{"code", codeRows},
	{"api", apiRows},
}

// partNames are the names of a command's parts.
func partNames(command string) (names []string) {
	all := parts
	if command == mtlsName {
		all = mtlsParts()
	}
	for _, p := range all {
		names = append(names, p.name)
	}
	return names
}

// runBenchmarks runs all parts one after the other and writes one table, or prints that of some
// parts.
func runBenchmarks(ctx context.Context, args []string) error {
	s, err := parseSettings("run", args, nil)
	if err != nil {
		return err
	}
	command := "make bench"
	if len(args) > 0 {
		command += " (report run " + strings.Join(args, " ") + ")"
	}
	t := newTable(command, time.Now())
	var failed error
	for _, part := range parts {
		if !s.wants(part.name) {
			continue
		}
		if err := part.run(ctx, s, t); err != nil { // the other parts' rows still tell something
			failed = errors.Join(failed, fmt.Errorf("%s: %w", part.name, err))
			t.note("Part %s failed: %.200s", part.name, strings.Join(strings.Fields(err.Error()), " "))
		}
	}
	noteLoad(t)
	fmt.Print(t.markdown())
	if len(s.only) > 0 { // one run is one table: a part does not take the place of the whole
		return failed
	}
	return errors.Join(failed, t.write(s.results, "bench"))
}

// noteLoad says so where the machine did other things: its load in the last five minutes, of which
// a run of ours makes one or two.
func noteLoad(t *table) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return // not Linux
	}
	var one, five float64
	if _, err := fmt.Sscan(string(b), &one, &five); err == nil && five > 2*float64(runtime.NumCPU()) {
		t.note("The machine was too busy for the rows of 5,000 streams and for tails (p99): load %.0f on %d CPUs. They are an upper bound.", five, runtime.NumCPU())
	}
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func mebi(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func ratio[T ~int64](a, b T) float64 { return float64(a) / float64(b) }

// ingestLoad is a load of 1,000 streams. Goal is the ratio to the null sink, 0 where none is set.
type ingestLoad struct {
	name string
	load load
	goal float64
}

var ingestLoads = [...]ingestLoad{
	{"stock naming, plaintext", load{pods: 1000, labelSets: 20, interval: flushInterval}, 1.5},
	{"stock naming, TLS", load{pods: 1000, labelSets: 20, interval: flushInterval, tls: true}, 0},
	{"tags as labels, plaintext", load{pods: 1000, labelSets: 20, interval: flushInterval, labels: true}, 0},
}

// ingestRuns is how often a load with a goal is counted: one run after the other differs by a
// tenth.
const ingestRuns = 5

// ingestRows compare meshpulse with the null sink, both under their load at the same time.
func ingestRows(ctx context.Context, s settings, t *table, loads []ingestLoad) error {
	for _, l := range loads {
		times := 1
		if l.goal > 0 {
			times = ingestRuns
		}
		runs, err := measureRuns(ctx, s, l.load, times, subject{name: "null sink, " + l.name, start: nullSink}, subject{name: "meshpulse, " + l.name, start: meshpulse})
		if err != nil {
			return err
		}
		ingestTold(t, l, runs)
	}
	return nil
}

// ingestTold holds meshpulse's cost against the null sink's, of the run whose ratio is the median.
func ingestTold(t *table, l ingestLoad, runs [][]cost) {
	median := byRatio(runs)
	floor, own := median[0], median[1]
	what := "ingest CPU, 1,000 streams of 20 label sets, " + l.name
	t.add(what+": null sink", micros(floor.receiver), "us/flush", "lower")
	t.add(what+": meshpulse", micros(own.receiver), "us/flush", "lower")
	if l.goal > 0 {
		t.atMost(what+": ratio", secondOverFirst(median), "x", l.goal)
		t.note("The ratio of %s is the median of %d runs of %v, which were %.2f to %.2f; the CPU beside it is of that run.", l.name, len(runs), roundSeconds(own.measured), secondOverFirst(runs[0]), secondOverFirst(runs[len(runs)-1]))
		t.add("memory, 1,000 streams of 20 label sets, half a minute old: RSS of meshpulse", mebi(own.resident), "MiB", "lower")
		t.note("A flush is %d KB. The sender used %v of CPU a flush. Null sink and meshpulse are measured at the same time, each with 1,000 streams of its own, "+
			"so that the ratio does not tell what else the machine did.", own.flushBytes>>10, own.sender)
	} else {
		t.add(what+": ratio", secondOverFirst(median), "x", "lower")
	}
	last := runs[0] // what was lost is counted from the beginning on
	for _, run := range runs {
		if run[0].failed+run[1].failed > last[0].failed+last[1].failed {
			last = run
		}
	}
	failedTold(t, l.name, last[0], last[1])
}

// secondOverFirst is the CPU a flush of a run's second receiver over that of the first.
func secondOverFirst(run []cost) float64 { return ratio(run[1].receiver, run[0].receiver) }

// byRatio sorts runs of two receivers by their ratio, and returns the one in the middle.
func byRatio(runs [][]cost) (median []cost) {
	slices.SortFunc(runs, func(a, b []cost) int { return cmp.Compare(secondOverFirst(a), secondOverFirst(b)) })
	return runs[len(runs)/2]
}

func roundSeconds(s float64) time.Duration { return time.Duration(math.Round(s)) * time.Second }

func failedTold(t *table, what string, floor, own cost) {
	if n := own.failed + floor.failed; n > 0 {
		t.note("%s: %d flushes could not be sent.", what, n)
	}
}

// fiveThousandRows are the same at 5,000 streams, one after the other: both at once are more than
// two cores have.
func fiveThousandRows(ctx context.Context, s settings, t *table) error {
	l := load{pods: 5000, labelSets: 20, interval: flushInterval}
	var costs []cost
	for _, sub := range []subject{{name: "null sink, 5,000", start: nullSink}, {name: "meshpulse, 5,000", start: meshpulse}} {
		c, err := measure(ctx, s, l, sub)
		if err != nil {
			return err
		}
		costs = append(costs, c...)
	}
	fiveThousandTold(t, costs[0], costs[1])
	return nil
}

func fiveThousandTold(t *table, floor, own cost) {
	const what = "ingest CPU, 5,000 streams of 20 label sets, stock naming, plaintext"
	t.add(what+": null sink", micros(floor.receiver), "us/flush", "lower")
	t.atMost(what+": meshpulse", micros(own.receiver), "us/flush", 250)
	t.add(what+": ratio", ratio(own.receiver, floor.receiver), "x", "lower")
	t.note("1,000 and 5,000 streams are measured from each one's third flush on, when rings begin to fill; results/soak.md has 5,000 with full ones.")
	t.add("memory, 5,000 streams of 20 label sets, half a minute old: RSS of meshpulse", mebi(own.resident), "MiB", "lower")
	failedTold(t, "5,000 streams", floor, own)
}

// zipfFullRows are 5,000 streams of which few label sets are busy, when rings are full.
func zipfFullRows(ctx context.Context, s settings, t *table) error {
	l := load{pods: 5000, labelSets: 20, busiest: zipfBusiest, interval: flushInterval, warm: prometheusWarm}
	costs, err := measure(ctx, s, l, subject{name: "meshpulse, 5,000, few busy", start: meshpulse})
	if err != nil {
		return err
	}
	zipfFullTold(t, l, costs[0])
	return nil
}

func zipfFullTold(t *table, l load, own cost) {
	const what = "5,000 streams of 20 label sets of which 8 move in a flush, rings full: "
	t.add(what+"CPU of meshpulse", micros(own.receiver), "us/flush", "lower")
	t.atMost(what+"RSS of meshpulse", mebi(own.resident), "MiB", 570)
	t.add(what+"what a label set takes of meshpulse, its part of the sidecar's connection included", own.perLabelSet(l), "KiB", "lower")
	failedTold(t, "5,000 streams, few busy", cost{}, own)
}

// gatewayRows are one gateway of 2,000 label sets of which 50 move in a flush, when rings are full.
func gatewayRows(ctx context.Context, s settings, t *table) error {
	l := load{pods: 1, labelSets: 2000, busiest: 50_000, interval: flushInterval, warm: prometheusWarm}
	s.measure *= prometheusMeasures
	costs, err := measure(ctx, s, l, subject{name: "meshpulse, a gateway", start: meshpulse}, subject{name: "null sink, a gateway", start: nullSink})
	if err != nil {
		return err
	}
	gatewayTold(t, l, costs[0], costs[1])
	return nil
}

func gatewayTold(t *table, l load, own, floor cost) {
	const what = "a gateway of 2,000 label sets of which 50 move in a flush, rings full: "
	t.add(what+"CPU of the null sink", micros(floor.receiver), "us/flush", "lower")
	t.add(what+"CPU of meshpulse", micros(own.receiver), "us/flush", "lower")
	t.add(what+"what a label set takes of meshpulse, its part of the sidecar's connection included", own.perLabelSet(l), "KiB", "lower")
	failedTold(t, "a gateway", floor, own)
}
