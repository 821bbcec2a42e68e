package aggregator

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// history fills a store with what pods of a random fleet send: gaps, restarts, evictions,
// handed-over connections, pods that come and go, bounds that differ. It returns instants worth
// asking at. It sleeps, so it belongs into a synctest bubble.
func history(t *testing.T, seed uint64) (*Store, []time.Time) {
	r := rand.New(rand.NewPCG(seed, 1))
	s, err := New(Config{Retention: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	pods := make([]*historyPod, 1+r.IntN(4))
	for i := range pods {
		pods[i] = newHistoryPod(s, r, i)
	}
	var instants []time.Time
	for range 20 + r.IntN(60) {
		time.Sleep(time.Duration(1+r.IntN(2000)) * time.Millisecond)
		for _, p := range pods {
			p.step(r)
		}
		if r.IntN(6) == 0 {
			instants = append(instants, time.Now())
		}
	}
	for _, p := range pods {
		p.stream.Close()
	}
	time.Sleep(rowCloseDelay + time.Millisecond)
	return s, append(instants[max(0, len(instants)-3):], time.Now(), time.Now().Add(8*time.Second))
}

type historyPod struct {
	store     *Store
	pod       Pod
	stream    *Stream
	flush     time.Duration
	next      time.Time
	bounds    []float64
	series    []*historySeries
	summaries bool
}

type historySeries struct {
	labels labels.Labels
	value  uint64
	absent int
}

func newHistoryPod(s *Store, r *rand.Rand, i int) *historyPod {
	p := &historyPod{store: s, flush: time.Duration(1+r.IntN(5)) * time.Second}
	p.pod = Pod{Namespace: "test", Name: fmt.Sprintf("pod-%d", i), Workload: "w", FlushInterval: p.flush}
	p.bounds = [][]float64{{5, 10, 100}, {5, 10, 100}, {1, 10, 50, 100}}[r.IntN(3)]
	p.summaries = r.IntN(4) > 0
	for j := range 1 + r.IntN(4) {
		p.series = append(p.series, &historySeries{labels: labels.FromStrings("code", []string{"200", "404", "500"}[j%3],
			"from", fmt.Sprint(j), "destination_workload", []string{"w", "v"}[r.IntN(2)])})
	}
	p.stream = s.Connect(p.pod)
	return p
}

// step sends a flush when it is due, and lets things go wrong now and then.
func (p *historyPod) step(r *rand.Rand) {
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next = now.Add(p.flush)
	switch r.IntN(15) {
	case 0: // lost flushes
		p.next = now.Add(time.Duration(r.IntN(6)) * p.flush)
	case 1: // reconnect
		p.stream.Close()
		p.stream = p.store.Connect(p.pod)
	case 2: // restart
		p.stream = p.store.Connect(p.pod)
		for _, s := range p.series {
			s.value = 0
		}
	}
	b := &Batch{Timestamp: now.UnixMilli()}
	var d described
	for i, s := range p.series {
		if s.absent > 0 {
			s.absent--
			continue
		}
		if r.IntN(20) == 0 {
			s.absent = r.IntN(4)
		}
		n := uint64(r.IntN(50)) * uint64(r.IntN(2))
		s.value += n
		key := uint64(i) << 8
		b.Samples = append(b.Samples, Sample{Key: key, Timestamp: b.Timestamp, Kind: Counter, Value: float64(s.value)})
		d = append(d, named("istio_requests_total", s.labels))
		if r.IntN(30) == 0 {
			continue // a flush without histograms
		}
		h := Sample{Key: key + 1, Timestamp: b.Timestamp, Kind: Histogram, Count: n, Value: float64(n) * 7.5, First: uint32(len(b.Buckets))}
		requests := make([]float64, n)
		for i := range requests {
			requests[i] = float64(1 + r.IntN(150))
		}
		slices.Sort(requests)
		if p.summaries {
			sum := Sample{Key: key + 1, Timestamp: b.Timestamp, Kind: Summary, Count: n, Value: h.Value, First: uint32(len(b.Quantiles))}
			for _, q := range SummaryQuantiles {
				v := math.NaN()
				if n > 0 {
					v = requests[max(0, int(math.Ceil(q*float64(n)))-1)]
				}
				b.Quantiles = append(b.Quantiles, v)
			}
			sum.Last = uint32(len(b.Quantiles))
			b.Samples = append(b.Samples, sum)
			d = append(d, named("istio_request_duration_milliseconds", s.labels))
		}
		for _, bound := range p.bounds {
			c, _ := slices.BinarySearch(requests, bound+1)
			b.Buckets = append(b.Buckets, Bucket{UpperBound: bound, Count: uint64(c)})
		}
		h.Last = uint32(len(b.Buckets))
		b.Samples = append(b.Samples, h)
		d = append(d, named("istio_request_duration_milliseconds", s.labels))
	}
	_ = p.stream.Commit(now, b, d)
}

func named(name string, ls labels.Labels) labels.Labels {
	b := labels.NewBuilder(ls)
	b.Set(model.MetricNameLabel, name)
	return b.Labels()
}

// randomExpr is one of the shapes that are compiled, in random combination.
func randomExpr(r *rand.Rand) string {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	selector := func(name string) string {
		return name + pick("", `{code="200"}`, `{code=~"2..|404"}`, `{code!="200",destination_workload="w"}`, `{pod="pod-1"}`, `{nothing=""}`, `{from="9"}`)
	}
	aggregate := func() string {
		name := pick("istio_requests_total", "istio_request_duration_milliseconds_sum", "istio_request_duration_milliseconds_count",
			"istio_request_duration_milliseconds_bucket")
		return fmt.Sprintf("%s%s(%s(%s[%s]))", pick("sum", "sum", "avg", "min", "max", "count"), pick("", "", " by (code) ", " by (pod, code, absent) "),
			pick("rate", "irate", "increase"), selector(name), pick("5s", "10s", "30s", "1m"))
	}
	quantile := func() string {
		return fmt.Sprintf("histogram_quantile(%s, sum(%s(%s[%s])) by (%s))", pick("0", "0.5", "0.95", "0.99", "1"), pick("rate", "irate", "increase"),
			selector("istio_request_duration_milliseconds_bucket"), pick("10s", "30s", "1m"), pick("le", "le, code", "le,pod"))
	}
	finer := func() string {
		return fmt.Sprintf("histogram_quantile(%s, sum%s(%s(%s[%s])))", pick("0.5", "0.95"), pick("", " by (code) "), pick("rate", "irate", "increase"),
			selector("istio_request_duration_milliseconds"), pick("10s", "30s", "1m"))
	}
	operand := func() string {
		switch r.IntN(8) {
		case 4: // neither side has labels
			return fmt.Sprintf("(sum(rate(%s[30s])) %s %s sum(increase(%s[1m])))", selector("istio_requests_total"), pick("+", "-", "*", "/"),
				pick("on ()", "on (code)", "ignoring (code)", "on () group_left ()", "on (pod) group_right (code)"), selector("istio_requests_total"))
		case 3:
			return fmt.Sprintf("(%s or %s vector(%s))", aggregate(), pick("", "on ()", "ignoring (code)"), pick("0", "1.5"))
		case 2:
			return finer()
		case 0:
			return pick("2", "0.5", "(1000)")
		case 1:
			return quantile()
		}
		return aggregate()
	}
	expr := operand()
	for range r.IntN(3) {
		expr = fmt.Sprintf("(%s %s %s)", expr, pick("+", "-", "*", "/"), operand())
	}
	return expr
}

// compareWithEngine holds the compiled answer to the engine's on the same rings.
func compareWithEngine(t *testing.T, seed uint64, exprs int) (compiled, values int) {
	s, instants := history(t, seed)
	r := rand.New(rand.NewPCG(seed, 2))
	for range exprs {
		expr := randomExpr(r)
		q, err := s.Query(expr)
		if err != nil {
			t.Fatal(err)
		}
		if q.plan == nil {
			continue
		}
		compiled++
		for _, at := range instants {
			got, err := q.Eval(context.Background(), at)
			if err != nil {
				t.Fatal(err)
			}
			want, err := s.engine.instant(context.Background(), queryable{s, nil}, expr, s.millis(at))
			if err != nil {
				t.Fatalf("%s: %v", expr, err)
			}
			values += len(want)
			if d := difference(got.Values, want); d != "" && !aroundQuantile(t, s, expr, at, got.Values) {
				t.Fatalf("seed %d, %s at %s: %s\ncompiled %v\nengine   %v", seed, expr, at.Sub(s.started), d, got.Values, want)
			}
		}
	}
	return compiled, values
}

// aroundQuantile reports whether a compiled answer lies between the engine's at q(1±1e-9): where a
// rank falls between two requests that are apart, the last digit decides to which of them a
// quantile goes.
func aroundQuantile(t *testing.T, s *Store, expr string, at time.Time, got []Value) bool {
	quantile := regexp.MustCompile(`histogram_quantile\(([0-9.]+)`)
	engine := func(factor string) map[string]float64 {
		values, err := s.engine.instant(context.Background(), queryable{s, nil}, quantile.ReplaceAllString(expr, "histogram_quantile($1*"+factor), s.millis(at))
		if err != nil {
			t.Fatalf("%s: %v", expr, err)
		}
		byLabels := map[string]float64{}
		for _, v := range values {
			byLabels[v.Labels.String()] = v.V
		}
		return byLabels
	}
	below, above := engine("0.999999999"), engine("1.000000001")
	for _, v := range got {
		a, ok := below[v.Labels.String()]
		b, also := above[v.Labels.String()]
		slack := 1e-6 * max(math.Abs(a), math.Abs(b))
		if !ok || !also || !(math.IsNaN(v.V) && math.IsNaN(a)) && !(v.V >= min(a, b)-slack && v.V <= max(a, b)+slack) {
			return false
		}
	}
	return len(got) == len(below)
}

// difference says how two answers differ by more than 1e-9, relative, "" if they do not.
func difference(got, want []Value) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d series, want %d", len(got), len(want))
	}
	byLabels := func(a, b Value) int { return strings.Compare(a.Labels.String(), b.Labels.String()) }
	got, want = slices.Clone(got), slices.Clone(want)
	slices.SortFunc(got, byLabels)
	slices.SortFunc(want, byLabels)
	for i := range got {
		g, w := got[i].V, want[i].V
		if !labels.Equal(got[i].Labels, want[i].Labels) {
			return fmt.Sprintf("labels %s, want %s", got[i].Labels, want[i].Labels)
		}
		if g != w && !(math.IsNaN(g) && math.IsNaN(w)) && !(math.Abs(g-w) <= 1e-9*max(math.Abs(g), math.Abs(w), 1e-3)) {
			return fmt.Sprintf("%s %v, want %v", got[i].Labels, g, w)
		}
	}
	return ""
}

func TestCompiledEqualsEngine(t *testing.T) {
	compiled, values := 0, 0
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			c, v := compareWithEngine(t, seed, 25)
			compiled, values = compiled+c, values+v
		})
	}
	if compiled < 500 || values < 2000 {
		t.Errorf("only %d expressions were compiled, %d values compared", compiled, values)
	}
}

func FuzzCompiledEqualsEngine(f *testing.F) {
	f.Add(uint64(1000))
	f.Fuzz(func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { compareWithEngine(t, seed, 10) })
	})
}

func TestGuideQueriesAreCompiled(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	const sel = `{destination_workload_namespace="test",reporter="destination"}`
	for _, expr := range []string{
		`sum(rate(istio_requests_total` + sel + `[1m]))`,
		`sum(rate(istio_request_duration_milliseconds_sum` + sel + `[1m])) /sum(rate(istio_request_duration_milliseconds_count` + sel + `[1m]))`,
		`histogram_quantile(0.95,sum(irate(istio_request_duration_milliseconds_bucket` + sel + `[5m]))by (le))`,
		`(sum(rate(istio_requests_total{response_code=~"5.."}[1m])) or vector(0)) / sum(rate(istio_requests_total` + sel + `[1m]))`,
		`sum(rate(a[1m])) / on () sum(rate(b[1m]))`,
		"sum(\n rate(\n istio_requests_total{\n destination_workload=\"podinfo\"\n }[1m]\n )\n)",
	} {
		if q, err := s.Query(expr); err != nil || q.plan == nil {
			t.Errorf("%s: not compiled (%v)", expr, err)
		}
	}
	for _, expr := range []string{
		`sum(rate(istio_requests_total[1m] offset 1m))`, `sum(rate(istio_requests_total[1m] @ 10))`, `sum without (code) (rate(istio_requests_total[1m]))`,
		`max_over_time(istio_requests_total[1m])`, `sum(rate(b_bucket{le="5"}[1m]))`, `sum(rate({job="x"}[1m]))`, `sum by (x) (rate(a[1m])) / on (x) sum by (x) (rate(b[1m]))`,
		`sum(rate(a[1m])) or sum(rate(b[1m]))`, `sum by (x) (rate(a[1m])) or vector(0)`, `sum(rate(a[1m])) or vector(time())`,
	} {
		if q, err := s.Query(expr); err != nil || q.plan != nil {
			t.Errorf("%s: compiled, but that shape is the engine's (%v)", expr, err)
		}
	}
}
