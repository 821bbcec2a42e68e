package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshpulse/meshpulse/bench/durations"
	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
)

// How long the sidecars of the quantiles' run are sent requests, and how many one of them gets as
// fast as it answers.
const (
	exactMinute = time.Minute
	exactBurst  = 40_000
)

// latency is a distribution of durations in milliseconds.
type latency struct {
	name string
	draw func(r *rand.Rand) float64
}

func latencies() []latency {
	return []latency{
		{"lognormal", func(r *rand.Rand) float64 { return 60 * math.Exp(0.6*r.NormFloat64()) }},
		{"bimodal", func(r *rand.Rand) float64 { return []float64{12, 12, 340}[r.IntN(3)] * math.Exp(0.25*r.NormFloat64()) }},
		{"exponential", func(r *rand.Rand) float64 { return 80 * r.ExpFloat64() }},
		{"long tail", func(r *rand.Rand) float64 { return min(20*math.Pow(1-r.Float64(), -1/1.3), 3e6) }},
		{"timeouts at 1 s", func(r *rand.Rand) float64 {
			if r.IntN(8) == 0 {
				return 1000
			}
			return 40 * math.Exp(0.5*r.NormFloat64())
		}},
	}
}

// Pods of the run, by number: what they are.
const (
	plainPods  = 20 // 0 to 19: Istio's own settings
	coarsePods = 2  // then two that send histograms alone
	otherPods  = 2  // and two with bounds of their own
)

func otherBounds() []float64 { return []float64{2, 20, 125, 1000, 4000, 60000} }

// spreadOver says which pods send how many requests.
type spreadOver struct {
	name      string
	from, to  int // pods
	perMinute float64
	hot       float64 // of the first of them, where it is another
	bounds    []float64
	coarse    bool // none of them sends summaries: its buckets are all that is known
}

func spreads() []spreadOver {
	all := sidecar.IstioBounds()
	return []spreadOver{
		{name: "one pod", from: 0, to: 1, perMinute: 1500, bounds: all},
		{name: "20 pods", from: 0, to: 20, perMinute: 120, bounds: all},
		{name: "20 pods of 5 requests a minute", from: 0, to: 20, perMinute: 5, bounds: all},
		{name: "one hot pod among 20", from: 0, to: 20, perMinute: 60, hot: 3000, bounds: all},
		{name: "two of four pods without summaries", from: 18, to: 22, perMinute: 600, bounds: all},
		{name: "two pods without summaries", from: 20, to: 22, perMinute: 600, bounds: all, coarse: true},
		// 125 lies within a bin; only 1000 and 60000 are bounds of all.
		{name: "two of four pods with other bounds", from: 18, to: 24, perMinute: 600, bounds: []float64{1000, 60000}},
	}
}

// cell is a distribution over pods: what was sent, and what is asked.
type cell struct {
	latency, over string
	source        string // the source_workload that tells it from the others
	bounds        []float64
	coarse        bool
	sent          durations.Recorded
}

func (c *cell) selector() string { return fmt.Sprintf("{source_workload=%q}", c.source) }

const histogramName = "istio_request_duration_milliseconds"

func quantileExpr(q float64, c *cell) string {
	return fmt.Sprintf("histogram_quantile(%v, sum(rate(%s%s[5m])))", q, histogramName, c.selector())
}

func classicExpr(q float64, c *cell) string {
	return fmt.Sprintf("histogram_quantile(%v, sum by (le) (rate(%s_bucket%s[5m])))", q, histogramName, c.selector())
}

func countExpr(c *cell) string { return fmt.Sprintf("sum(%s_count%s)", histogramName, c.selector()) }

func averageExpr(c *cell) string {
	return fmt.Sprintf("sum(%[1]s_sum%[2]s) / sum(%[1]s_count%[2]s)", histogramName, c.selector())
}

var percentiles = [...]float64{0.5, 0.9, 0.95, 0.99}

// exactRun is sidecars that record what they are told, and the meshpulse that they report to.
type exactRun struct {
	server   *standalone.Server
	queries  *queries
	sidecars []*sidecar.Sidecar
}

// runQuantiles holds the finer view's quantiles and the averages against what real Envoys recorded.
func runQuantiles(ctx context.Context, args []string) (err error) {
	s, err := parseSettings("quantiles", args, nil)
	if err != nil {
		return err
	}
	t := newTable("make quantiles", time.Now())
	t.title = "Quantiles and averages against what Envoys recorded"
	cells, burst, synthetic := exactCells()
	steps := averageSteps()
	all := slices.Concat(cells, burst, synthetic)
	run, err := startExact(ctx, s, all, steps)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.stop()) }()
	if err := run.minute(ctx, cells, steps); err != nil {
		return err
	}
	rate, err := run.burst(ctx, burst)
	if err != nil {
		return err
	}
	if err := run.synthesize(ctx, synthetic); err != nil {
		return err
	}
	if err := run.settle(ctx, slices.Concat(all, steps)); err != nil {
		return err
	}
	t.note("Requests went to %d Envoys (`%s`), each with the duration that it records as a header; the same minute for all fleets. "+
		"Asked is sum(rate(…[5m])) over all of it. As fast as one Envoy answered is %.0f requests a second here; 50,000 a second on one pod are "+
		"messages of the same form, made up from the same distributions, since no machine at hand lets one Envoy do that.",
		len(run.sidecars), run.version(ctx), rate)
	estimates, err := run.estimates(ctx, all)
	if err != nil {
		return err
	}
	quantilesTold(t, estimates)
	averages, err := run.averages(ctx, append(slices.Clone(steps), cells...))
	if err != nil {
		return err
	}
	averagesTold(t, cells, steps, averages)
	fmt.Print(t.markdown())
	return t.write(s.results, "quantiles")
}

func exactCells() (minute, burst, synthetic []*cell) {
	slug := strings.NewReplacer(" ", "-")
	add := func(to *[]*cell, l latency, o spreadOver) {
		*to = append(*to, &cell{latency: l.name, over: o.name, source: slug.Replace(l.name + "." + o.name), bounds: o.bounds, coarse: o.coarse})
	}
	for _, l := range latencies() {
		for _, o := range spreads() {
			add(&minute, l, o)
		}
		add(&burst, l, spreadOver{name: "one pod as fast as it answers", bounds: sidecar.IstioBounds()})
		add(&synthetic, l, spreadOver{name: "50,000 a second on one pod, made up", bounds: sidecar.IstioBounds()})
	}
	return minute, burst, synthetic
}

// startExact starts meshpulse with all queries, and the sidecars.
func startExact(ctx context.Context, s settings, cells, steps []*cell) (*exactRun, error) {
	dir := filepath.Join(s.work, "quantiles")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o750)); err != nil {
		return nil, err
	}
	run := &exactRun{queries: newQueries()}
	for _, c := range cells {
		for _, q := range percentiles {
			run.queries.add(quantileExpr(q, c))
			run.queries.add(classicExpr(q, c))
		}
		run.queries.add(countExpr(c))
		run.queries.add(averageExpr(c))
	}
	for _, c := range steps {
		run.queries.add(countExpr(c))
		run.queries.add(averageExpr(c))
	}
	hpas := filepath.Join(dir, "hpas")
	if err := run.queries.write(hpas); err != nil {
		return nil, err
	}
	var err error
	run.server, err = standalone.Start(ctx, standalone.Options{Binary: s.meshpulse, Dir: dir, HPADir: hpas})
	if err != nil {
		return nil, err
	}
	for pod := range plainPods + coarsePods + otherPods + 1 { // the last one is for the averages
		o := sidecar.Options{
			Dir: dir, Pod: fmt.Sprintf("exact-%d", pod), Namespace: "test", Workload: "exact", Address: fmt.Sprintf("127.97.60.%d", pod+1),
			Sink: run.server.Ingest, Duration: "%REQ(x-duration)%", Answers: true,
			HistogramOnly: pod >= plainPods && pod < plainPods+coarsePods,
		}
		if pod >= plainPods+coarsePods && pod < plainPods+coarsePods+otherPods {
			o.Bounds = otherBounds()
		}
		sc, err := sidecar.Start(ctx, o)
		if err != nil {
			return nil, errors.Join(err, run.stop())
		}
		run.sidecars = append(run.sidecars, sc)
	}
	return run, nil
}

func (run *exactRun) stop() error {
	var errs []error
	for _, sc := range run.sidecars {
		errs = append(errs, sc.Stop())
	}
	return errors.Join(append(errs, run.server.Stop())...)
}

func (run *exactRun) version(ctx context.Context) string {
	b, err := web.Get(ctx, http.DefaultClient, run.sidecars[0].AdminURL()+"/server_info")
	if err != nil {
		return err.Error()
	}
	_, after, _ := strings.Cut(string(b), `"version": "`)
	version, _, _ := strings.Cut(after, `"`)
	if parts := strings.Split(version, "/"); len(parts) > 1 {
		return "Envoy " + parts[1]
	}
	return version
}

// minute sends all pods theirs, and the averages' steps to the last one. A pod's first request of a
// series comes at once, so that all series have the same window.
func (run *exactRun) minute(ctx context.Context, cells, steps []*cell) error {
	perPod := make([][]request, len(run.sidecars))
	i := 0
	for _, l := range latencies() {
		for _, o := range spreads() {
			c := cells[i]
			i++
			r := rand.New(rand.NewPCG(uint64(i), 60))
			for pod := o.from; pod < o.to; pod++ {
				n := o.perMinute
				if pod == o.from && o.hot > 0 {
					n = o.hot
				}
				for k := range int(n) {
					at := time.Duration(r.Float64() * float64(exactMinute))
					if k == 0 {
						at = 0
					}
					d := l.draw(r)
					c.sent.Record(d)
					perPod[pod] = append(perPod[pod], request{at, c.source, d})
				}
			}
		}
	}
	last := len(perPod) - 1
	for i, c := range steps {
		d := averageStep(i)
		c.sent.Record(d)
		perPod[last] = append(perPod[last], request{0, c.source, d})
	}
	g, ctx := errgroup.WithContext(ctx)
	for pod, requests := range perPod {
		g.Go(func() error { return send(ctx, run.sidecars[pod].Address(), requests) })
	}
	return g.Wait()
}

// burst sends one pod requests as fast as it answers, one distribution after the other, and returns
// how many a second that were.
func (run *exactRun) burst(ctx context.Context, cells []*cell) (rate float64, err error) {
	began, n := time.Now(), 0
	for i, l := range latencies() {
		r := rand.New(rand.NewPCG(uint64(i), 61))
		requests := make([]request, exactBurst)
		for k := range requests {
			d := l.draw(r)
			cells[i].sent.Record(d)
			requests[k] = request{0, cells[i].source, d}
		}
		n += len(requests)
		if err := send(ctx, run.sidecars[0].Address(), requests); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// settle waits until meshpulse has counted all that was sent: a flush or two.
func (run *exactRun) settle(ctx context.Context, cells []*cell) error {
	for _, c := range cells {
		err := until(ctx, time.Minute, func() error {
			got, err := run.queries.ask(ctx, run.server, countExpr(c))
			if err == nil && got != c.sent.Count {
				err = fmt.Errorf("%s: %v requests counted of %v", c.source, got, c.sent.Count)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// estimate is a quantile as both ways of it answer.
type estimate struct {
	cell          *cell
	q             float64
	fine, classic float64 // milliseconds
}

// estimates asks for all quantiles.
func (run *exactRun) estimates(ctx context.Context, cells []*cell) (all []estimate, err error) {
	for _, c := range cells {
		for _, q := range percentiles {
			e := estimate{cell: c, q: q}
			if e.fine, err = run.queries.ask(ctx, run.server, quantileExpr(q, c)); err != nil {
				return nil, err
			}
			if e.classic, err = run.queries.ask(ctx, run.server, classicExpr(q, c)); err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	return all, nil
}

// misses are by how much an estimate lies outside of what was recorded, as shares: of where the
// quantile has to be, whether that is known at all, and of the bin of the nearest rank.
type misses struct {
	bounded                   bool
	from, to                  float64
	fine, classic             float64
	fineOfRank, classicOfRank float64
}

func (e estimate) misses() misses {
	m := misses{bounded: !e.cell.coarse && e.cell.sent.Bounded(e.q, e.cell.bounds)}
	m.from, m.to = e.cell.sent.Within(e.q)
	m.fine, m.classic = off(e.fine, m.from, m.to), off(e.classic, m.from, m.to)
	bin, _ := e.cell.sent.At(e.q)
	a, b := durations.Edges(bin)
	m.fineOfRank, m.classicOfRank = off(e.fine, a, b), off(e.classic, a, b)
	return m
}

// quantilesTold holds the estimates of both ways against what was recorded.
func quantilesTold(t *table, all []estimate) {
	fmt.Fprintf(&t.body, "Held is what lies within 5 %% or 1 ms of [Q(q-0.01), Q(q+0.01)] (P99: within 10 %% of [Q(0.985), Q(0.995)]) of what was recorded. "+
		"No bound: too few requests, a gap beside the quantile about which nothing is on the wire, or no summaries at all.\n\n"+
		"| latencies | sent to | requests | quantile | to be within | finer view | | classic buckets | |\n|---|---|--:|---|---|--:|---|--:|---|\n")
	held, missed, classicMissed, worst, lost := 0, 0, 0, 0.0, []string{}
	for _, e := range all {
		c, m := e.cell, e.misses()
		verdict, classicVerdict := "no bound", "no bound"
		if m.bounded {
			held++
			if verdict = "held"; m.fine != 0 {
				verdict = fmt.Sprintf("**%+.1f %%**", 100*m.fine)
				missed++
				worst = max(worst, math.Abs(m.fine))
			}
			if classicVerdict = "held"; m.classic != 0 {
				classicVerdict = fmt.Sprintf("%+.1f %%", 100*m.classic)
				classicMissed++
			}
			t.atMost(fmt.Sprintf("P%g, %s, %s: outside of its bounds", 100*e.q, c.latency, c.over), 100*math.Abs(m.fine), "%", 0)
		}
		if math.Abs(m.fineOfRank) > math.Abs(m.classicOfRank)+0.01 {
			lost = append(lost, fmt.Sprintf("P%g of %s, %s: %+.1f %% beside the bin of the nearest rank, classic %+.1f %%",
				100*e.q, c.latency, c.over, 100*m.fineOfRank, 100*m.classicOfRank))
		}
		fmt.Fprintf(&t.body, "| %s | %s | %.0f | P%g | %.4g to %.4g | %.4g | %s | %.4g | %s |\n",
			c.latency, c.over, c.sent.Count, 100*e.q, m.from, m.to, e.fine, verdict, e.classic, classicVerdict)
	}
	t.add("quantiles with a bound", float64(held), "", "higher")
	t.atMost("of them outside of it: finer view", float64(missed), "", 0)
	t.add("of them outside of it: classic buckets", float64(classicMissed), "", "lower")
	t.atMost("finer view, worst", 100*worst, "%", 0)
	fmt.Fprintf(&t.body, "\n%d quantiles have a bound: the finer view misses %d, classic buckets %d.\n\n", held, missed, classicMissed)
	if len(lost) > 0 {
		fmt.Fprintf(&t.body, "Where the finer view is farther from the truth than classic buckets, by more than 1 %%:\n\n- %s\n\n", strings.Join(lost, "\n- "))
	}
}

// off is how far an answer lies outside of an interval, as a share of the edge that it missed; 0
// inside.
func off(v, from, to float64) float64 {
	switch {
	case v < from:
		return v/from - 1
	case v > to:
		return v/to - 1
	}
	return 0
}
