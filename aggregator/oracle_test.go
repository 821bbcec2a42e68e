package aggregator

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// The oracle is Prometheus: the series of a random fleet, as the store shows them, go into
// Prometheus' TSDB, and random expressions have to give the same there and over the rings, through
// the engine and where compiled. That the series themselves are right is counted_test.go's; where
// they differ from a scrape's on purpose, see differences.md.

// prometheusOf loads all series of a store into a TSDB.
func prometheusOf(t *testing.T, s *Store) storage.Queryable {
	t.Helper()
	q, err := queryable{s, nil}.Querier(everSince, everAfter)
	if err != nil {
		t.Fatal(err)
	}
	return prometheusWith(t, func(app storage.Appender) error {
		set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+"))
		for set.Next() {
			ls, it := set.At().Labels(), set.At().Iterator(nil)
			for k := it.Next(); k != chunkenc.ValNone; k = it.Next() {
				var err error
				if k == chunkenc.ValFloat {
					at, v := it.At()
					_, err = app.Append(0, ls, at, v)
				} else {
					at, h := it.AtFloatHistogram(nil)
					_, err = app.AppendHistogram(0, ls, at, nil, h)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", ls, err)
				}
			}
		}
		return set.Err()
	})
}

// prometheusWith returns a TSDB that holds what load appends.
func prometheusWith(t *testing.T, load func(storage.Appender) error) storage.Queryable {
	t.Helper()
	opts := tsdb.DefaultHeadOptions()
	opts.ChunkDirRoot, opts.ChunkRange = t.TempDir(), (24 * time.Hour).Milliseconds()
	head, err := tsdb.NewHead(nil, nil, nil, nil, opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := head.Close(); err != nil {
			t.Error(err)
		}
	})
	app := head.Appender(context.Background())
	if err := load(app); err != nil {
		t.Fatal(err)
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	return storage.QueryableFunc(func(mint, maxt int64) (storage.Querier, error) {
		return tsdb.NewBlockQuerier(tsdb.NewRangeHead(head, mint, maxt), mint, maxt)
	})
}

const everSince, everAfter = math.MinInt64 / 4, math.MaxInt64 / 4

// inOrder sorts what is selected, so that sums are added up in the same order on both sides.
type inOrder struct{ storage.Queryable }

func (q inOrder) Querier(mint, maxt int64) (storage.Querier, error) {
	of, err := q.Queryable.Querier(mint, maxt)
	return inOrderQuerier{of}, err
}

type inOrderQuerier struct{ storage.Querier }

func (q inOrderQuerier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	return q.Querier.Select(ctx, true, hints, ms...)
}

// expressions makes random PromQL over the fleet's series.
type expressions struct{ r *rand.Rand }

func (g expressions) pick(s ...string) string { return s[g.r.IntN(len(s))] }

func (g expressions) selector() string {
	return g.pick("istio_requests_total", "istio_requests_total", "istio_tcp_sent_bytes_total", "istio_request_duration_milliseconds_sum",
		"istio_request_duration_milliseconds_count", "istio_request_duration_milliseconds_bucket", `{__name__=~"istio_request_.*_(sum|count)"}`) +
		g.pick("", "", "", `{code="200"}`, `{code=~"2..|404"}`, `{code!="200",destination_workload="w"}`, `{pod="pod-1"}`, `{pod!~"pod-[02]"}`,
			`{le="10"}`, `{le=~"5|100|.Inf"}`, `{le!="+Inf"}`, `{le=""}`, `{nothing=""}`, `{from="9"}`, `{namespace="test",pod=~"pod-.*"}`)
}

// plain is a selector that may follow one with a bare name matcher.
func (g expressions) plain() string {
	s := g.selector()
	if a, b, twice := strings.Cut(s, "}{"); twice {
		s = a + "," + b
	}
	return s
}

func (g expressions) when() string {
	at := func() string {
		return g.pick(" @ start()", " @ end()", fmt.Sprintf(" @ %.3f", 946684800+g.r.Float64()*120)) // a bubble's clock starts in 2000
	}
	switch g.r.IntN(8) {
	case 0:
		return g.pick(" offset 5s", " offset 17s", " offset 1m", " offset -7s")
	case 1:
		return at()
	case 2:
		return at() + " offset 3s"
	}
	return ""
}

func (g expressions) duration() string { return g.pick("3s", "5s", "10s", "15s", "30s", "1m", "2m") }

// matrix is a range vector.
func (g expressions) matrix(depth int) string {
	if depth > 0 && g.r.IntN(4) == 0 {
		return fmt.Sprintf("(%s)[%s:%s]%s", g.vector(depth-1), g.duration(), g.pick("", "1s", "5s", "7s"), g.when())
	}
	return fmt.Sprintf("%s[%s]%s", g.plain(), g.duration(), g.when())
}

func (g expressions) ranged(depth int) string {
	switch m := g.matrix(depth); g.r.IntN(12) {
	case 0:
		return fmt.Sprintf("quantile_over_time(%s, %s)", g.pick("0", "0.3", "0.95", "1", "2"), m)
	case 1:
		return fmt.Sprintf("predict_linear(%s, %s)", m, g.pick("10", "-30", "300"))
	case 2, 3, 4:
		return fmt.Sprintf("%s(%s)", g.pick("rate", "increase", "irate"), m)
	default:
		return fmt.Sprintf("%s(%s)", g.pick("delta", "idelta", "deriv", "changes", "resets", "avg_over_time", "min_over_time",
			"max_over_time", "sum_over_time", "count_over_time", "stddev_over_time", "stdvar_over_time", "last_over_time", "present_over_time",
			"absent_over_time"), m)
	}
}

func (g expressions) grouping() string {
	return g.pick("", "", " by (code)", " by (pod)", " by (le, pod)", " by (code, from, absent)", " without (pod)", " without (code, from, le)", " without ()")
}

func (g expressions) aggregated(of string) string {
	switch g.r.IntN(8) {
	case 0: // ties may fall either way, their sum is the same
		return fmt.Sprintf("sum(%s%s(2, %s))", g.pick("topk", "bottomk"), g.grouping(), of)
	case 1:
		return fmt.Sprintf("quantile%s(%s, %s)", g.grouping(), g.pick("0.5", "0.9"), of)
	case 2:
		return fmt.Sprintf("count_values%s(\"v\", round(%s, 0.000001))", g.grouping(), of) // its labels show the last digit
	}
	return fmt.Sprintf("%s%s(%s)", g.pick("sum", "sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"), g.grouping(), of)
}

func (g expressions) quantile() string {
	if g.r.IntN(3) == 0 { // of the native view
		native := fmt.Sprintf("sum%s (%s(istio_request_duration_milliseconds%s[%s]%s))", g.pick("", " by (pod)", " without (pod, from)"),
			g.pick("rate", "increase"), g.pick("", `{code="200"}`), g.duration(), g.when())
		// No rank of these lies just between two requests, where the order of additions decides.
		return g.pick("histogram_quantile(0.4987, ", "histogram_quantile(0.9513, ", "histogram_count(", "histogram_sum(", "histogram_avg(",
			"histogram_fraction(0, 7, ") + native + ")"
	}
	over := fmt.Sprintf("sum by (%s) (%s(istio_request_duration_milliseconds_bucket[%s]%s))", g.pick("le", "le, pod", "code, le"),
		g.pick("rate", "irate", "increase"), g.duration(), g.when())
	if g.r.IntN(4) == 0 {
		return fmt.Sprintf("histogram_fraction(%s, %s, %s)", g.pick("0", "5"), g.pick("10", "70"), over)
	}
	return fmt.Sprintf("histogram_quantile(%s, %s)", g.pick("0", "0.4987", "0.9513", "0.99", "1", "-1"), over)
}

// vector is an instant vector of up to depth nested operations.
func (g expressions) vector(depth int) string {
	if depth <= 0 {
		return g.plain() + g.when()
	}
	of := func() string { return g.vector(depth - 1 - g.r.IntN(2)) }
	switch g.r.IntN(12) {
	case 0:
		return g.quantile()
	case 1:
		return fmt.Sprintf(`label_replace(%s, "%s", "$1-x", "%s", "(.).*")`, of(), g.pick("code", "new"), g.pick("pod", "from", "le"))
	case 2:
		return fmt.Sprintf(`label_join(%s, "joined", "/", "pod", "from")`, of())
	case 3:
		return fmt.Sprintf("%s(%s)", g.pick("absent", "abs", "sqrt", "ln", "ceil", "timestamp", "sort", "sgn", "-", "vector(1) + scalar"), of())
	case 4:
		return fmt.Sprintf("clamp(%s, %s)", of(), g.pick("0, 10", "-5, 0.25"))
	case 5, 6:
		matching := g.pick("", "", "", " on (pod)", " on (code, from, pod, le)", " ignoring (le)", " on (pod) group_left ()", " ignoring (code) group_right (code)")
		op := g.pick("+", "-", "*", "/", "%", "^", "==", "!= bool", "> ", "<= bool")
		if !strings.Contains(matching, "group") {
			op = g.pick(op, op, "and", "or", "unless")
		}
		return fmt.Sprintf("(%s) %s%s (%s)", of(), op, matching, of())
	case 7:
		return fmt.Sprintf("(%s) %s %s", of(), g.pick("+", "*", "/", ">", "<= bool"), g.pick("2", "0.5", "(1000 - 1)", "time()"))
	case 8, 9:
		return g.aggregated(of())
	case 10:
		return g.aggregated(g.ranged(depth - 1))
	}
	return g.ranged(depth - 1)
}

// guides are the shapes of the queries that HPAs have.
func (g expressions) guide() string {
	d := g.duration()
	return g.pick(
		"sum(rate(istio_requests_total{destination_workload=\"w\"}["+d+"]))",
		"sum(rate(istio_request_duration_milliseconds_sum["+d+"])) /sum(rate(istio_request_duration_milliseconds_count["+d+"]))",
		"histogram_quantile(0.95,sum(irate(istio_request_duration_milliseconds_bucket{namespace=\"test\"}["+d+"]))by (le))",
		"sum(rate(istio_requests_total{code=~\"5.*\"}["+d+"])) / sum(rate(istio_requests_total["+d+"]))",
		"sum without (code, from) (rate(istio_requests_total["+d+"]))",
		"max_over_time(sum(rate(istio_requests_total["+d+"]))[30s:5s])",
	)
}

func (g expressions) next() string {
	if g.r.IntN(8) == 0 {
		return g.guide()
	}
	return g.vector(1 + g.r.IntN(4))
}

// oracle compares a store with Prometheus.
type oracle struct {
	t          *testing.T
	seed       uint64
	store      *Store
	engine     *promql.Engine
	prometheus storage.Queryable

	expressions, values, compiled, refused int // what was compared
}

// ask compares one expression at an instant and over a range of instants around it.
func (o *oracle) ask(expr string, at time.Time) {
	ctx, over := context.Background(), inOrder{queryable{o.store, nil}}
	o.expressions++
	ask := func(over storage.Queryable) (map[string]promql.Sample, error) {
		return result(o.engine.NewInstantQuery(ctx, over, nil, expr, at))
	}
	want, wantErr := ask(o.prometheus)
	o.same(expr, at, ask, over, want, wantErr)
	o.compiledAnswer(expr, at, want, wantErr)

	from, to, step := at.Add(-40*time.Second), at.Add(10*time.Second), 2500*time.Millisecond
	ask = func(over storage.Queryable) (map[string]promql.Sample, error) {
		return result(o.engine.NewRangeQuery(ctx, over, nil, expr, from, to, step))
	}
	want, wantErr = ask(o.prometheus)
	o.same(expr+" over a range", at, ask, over, want, wantErr)
}

// result executes a query and returns it as samples by series and time.
func result(q promql.Query, err error) (map[string]promql.Sample, error) {
	if err != nil {
		return nil, err
	}
	defer q.Close()
	r := q.Exec(context.Background())
	if r.Err != nil {
		return nil, r.Err
	}
	samples := map[string]promql.Sample{}
	add := func(ls labels.Labels, s promql.Sample) {
		s.Metric = ls.Copy()
		if s.H != nil {
			s.H = s.H.Copy()
		}
		samples[fmt.Sprintf("%s %d", ls, s.T)] = s
	}
	switch v := r.Value.(type) {
	case promql.Scalar:
		add(labels.EmptyLabels(), promql.Sample{T: v.T, F: v.V})
	case promql.Vector:
		for _, s := range v {
			add(s.Metric, s)
		}
	case promql.Matrix:
		for _, s := range v {
			for _, p := range s.Floats {
				add(s.Metric, promql.Sample{T: p.T, F: p.F})
			}
			for _, p := range s.Histograms {
				add(s.Metric, promql.Sample{T: p.T, H: p.H})
			}
		}
	default:
		return nil, fmt.Errorf("unexpected %s", r.Value.Type())
	}
	return samples, nil
}

// same asks over the rings and compares. The engine adds up intermediate results in the order of a
// Go map, so where two answers differ in their last digits and a comparison or a root makes more of
// it, they are asked for once more.
func (o *oracle) same(expr string, at time.Time, ask func(storage.Queryable) (map[string]promql.Sample, error), over storage.Queryable,
	want map[string]promql.Sample, wantErr error,
) {
	o.t.Helper()
	const attempts = 10
	tolerance := 1e-9
	if strings.Contains(expr, "stddev") || strings.Contains(expr, "stdvar") {
		tolerance = 1e-6 // of timestamps, say: the difference of large numbers
	}
	for i := 1; ; i++ {
		got, gotErr := ask(over)
		if (gotErr != nil) != (wantErr != nil) {
			o.t.Fatalf("seed %d, %s at %s: error %v, Prometheus says %v", o.seed, expr, at.Sub(o.store.started), gotErr, wantErr)
		}
		if wantErr != nil {
			o.refused++
			return
		}
		d := sampleDifference(got, want, tolerance)
		if d == "" {
			o.values += len(want)
			return
		}
		if i == attempts {
			o.t.Fatalf("seed %d, %s at %s: %s", o.seed, expr, at.Sub(o.store.started), d)
		}
		want, wantErr = ask(o.prometheus)
	}
}

// sampleDifference says how two answers differ by more than the relative tolerance, "" if they do
// not.
func sampleDifference(got, want map[string]promql.Sample, tolerance float64) string {
	for k, w := range want {
		g, ok := got[k]
		switch {
		case !ok:
			return fmt.Sprintf("%s is missing, want %v", k, w)
		case (g.H == nil) != (w.H == nil), g.H != nil && !g.H.Equals(w.H),
			g.F != w.F && !(math.IsNaN(g.F) && math.IsNaN(w.F)) && !(math.Abs(g.F-w.F) <= tolerance*max(math.Abs(g.F), math.Abs(w.F))):
			return fmt.Sprintf("%s is %v, want %v", k, g, w)
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			return fmt.Sprintf("%s is %v, Prometheus has none", k, g)
		}
	}
	return ""
}

// compiledAnswer holds what an autoscaler would be told to Prometheus' answer.
func (o *oracle) compiledAnswer(expr string, at time.Time, want map[string]promql.Sample, wantErr error) {
	o.t.Helper()
	q, err := o.store.Query(expr)
	if err != nil || q.plan == nil {
		return
	}
	o.compiled++
	a, err := q.Eval(context.Background(), at)
	if (err != nil) != (wantErr != nil) {
		o.t.Fatalf("seed %d, compiled %s: error %v, Prometheus says %v", o.seed, expr, err, wantErr)
	}
	var values []Value
	for _, s := range want {
		values = append(values, Value{s.Metric, s.F})
	}
	if d := difference(a.Values, values); d != "" {
		o.t.Fatalf("seed %d, compiled %s at %s: %s\ngot  %v\nwant %v", o.seed, expr, at.Sub(o.store.started), d, a.Values, values)
	}
}

// newOracle lets a fleet live for a while and gives its series to Prometheus.
func newOracle(t *testing.T, seed uint64) (*oracle, []time.Time) {
	var s *Store
	var instants []time.Time
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, seed, time.Minute)
		f.run(time.Duration(20+f.r.IntN(160)) * time.Second)
		s, instants = f.store, f.instants
	})
	for _, t := range s.tables.all.all() { // first flushes alone are meant to differ: differences.md
		t.ring.BoundFirst(0)
	}
	e := newEngine().promql
	instants = append(instants[max(0, len(instants)-5):], edges(t, s, seed)...)
	return &oracle{t: t, seed: seed, store: s, engine: e, prometheus: inOrder{prometheusOf(t, s)}}, instants
}

// edges are instants at which a sample lies right at the edge of a window, or a millisecond beside
// it.
func edges(t *testing.T, s *Store, seed uint64) []time.Time {
	r := rand.New(rand.NewPCG(seed, 5))
	var at []time.Time
	series := stored(t, s)
	for _, name := range slices.Sorted(maps.Keys(series)) {
		ps := series[name]
		p := ps[seed%uint64(len(ps))]
		at = append(at, time.UnixMilli(p.t+[]int64{0, 5_000, 10_000, 30_000, 60_000}[r.IntN(5)]+int64(r.IntN(3)-1)))
	}
	return at
}

func (o *oracle) run(instants []time.Time, expressionsEach int) {
	g := expressions{rand.New(rand.NewPCG(o.seed, 4))}
	for range expressionsEach {
		expr := g.next()
		o.ask(expr, instants[g.r.IntN(len(instants))])
	}
}

// TestRingsAnswerAsPrometheusDoes compares random expressions over random fleets.
func TestRingsAnswerAsPrometheusDoes(t *testing.T) {
	var sum oracle
	for seed := range uint64(15) {
		o, instants := newOracle(t, seed)
		o.run(instants, 60)
		sum.expressions, sum.values = sum.expressions+o.expressions, sum.values+o.values
		sum.compiled, sum.refused = sum.compiled+o.compiled, sum.refused+o.refused
	}
	t.Logf("%d expressions, %d values, %d compiled, %d refused by both", sum.expressions, sum.values, sum.compiled, sum.refused)
	if sum.values < 30_000 || sum.compiled < 50 || sum.refused > sum.expressions/2 {
		t.Errorf("too little was compared: %d values, %d compiled, %d refused", sum.values, sum.compiled, sum.refused)
	}
}

func FuzzRingsAnswerAsPrometheusDoes(f *testing.F) {
	f.Add(uint64(1000))
	f.Fuzz(func(t *testing.T, seed uint64) {
		o, instants := newOracle(t, seed)
		o.run(instants, 20)
	})
}
