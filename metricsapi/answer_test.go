package metricsapi

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestJudge(t *testing.T) {
	const (
		rate     = `sum(rate(istio_requests_total{destination_workload="podinfo"}[1m]))`
		custom   = `sum(rate(istio_requests_total{tenant="a"}[1m]))`
		dest     = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="dest"}[1m]))`
		waypoint = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="waypoint"}[1m]))`
		scalar   = `vector(5)`
		ratio    = `sum(rate(istio_request_duration_milliseconds_sum[1m]))/sum(rate(istio_request_duration_milliseconds_count[1m]))`
		minute   = time.Minute
		whole    = 5 * time.Minute
		justNow  = 30 * time.Second
	)
	three := aggregator.Coverage{Reporting: 3, Covered: minute, Matched: 12, Moved: true}
	values := func(vs ...float64) []aggregator.Value {
		out := make([]aggregator.Value, len(vs))
		for i, v := range vs {
			out[i].V = v
		}
		return out
	}
	with := func(c aggregator.Coverage, change func(*aggregator.Coverage)) aggregator.Coverage {
		change(&c)
		return c
	}
	idle := with(three, func(c *aggregator.Coverage) { c.Moved = false })

	tests := map[string]struct {
		expr       string
		values     []aggregator.Value
		coverage   aggregator.Coverage
		listening  time.Duration // since the store began to
		standalone bool
		query      bool    // with a query over an empty store
		want       []int64 // milli
		reason     string
		outcome    string // "" is an answer
		message    string
	}{
		"a value is rounded to the nearest thousandth": {expr: rate, values: values(10.05567), coverage: three, listening: whole, want: []int64{10056}},
		"half a thousandth goes up":                    {expr: rate, values: values(0.0005), coverage: three, listening: whole, want: []int64{1}},
		"less than half goes down":                     {expr: rate, values: values(0.00049), coverage: three, listening: whole, want: []int64{0}},
		"counters that stand still are 0":              {expr: rate, values: values(0), coverage: idle, listening: whole, want: []int64{0}},
		"several series are all returned":              {expr: rate, values: values(1, 2.5), coverage: three, listening: whole, want: []int64{1000, 2500}},
		"a constant needs no sidecar":                  {expr: scalar, values: values(5), listening: whole, want: []int64{5000}},

		"no sidecar that could have the series": {expr: rate, listening: whole, outcome: outcomeNoSidecar, message: "no sidecar that could have one reports. Check"},
		"no sidecar, standalone":                {expr: rate, listening: whole, standalone: true, outcome: outcomeNoSidecar, message: "no sidecar"},
		"no sidecar and a made-up 0":            {expr: rate + " or vector(0)", values: values(0), listening: whole, outcome: outcomeNoSidecar},
		"no sidecar before the window is covered": {
			expr: rate, listening: justNow, outcome: outcomeNoSidecar,
		},
		"all sidecars have gone silent": {
			expr: rate, values: values(3), coverage: aggregator.Coverage{Silent: 2, Matched: 4, Covered: minute, Moved: true}, listening: whole,
			outcome: outcomeNoSidecar, message: "none of the 2 sidecars",
		},
		"all have gone silent, standalone: what they sent counts": {
			expr: rate, values: values(3), coverage: aggregator.Coverage{Silent: 2, Matched: 4, Moved: true}, listening: whole, standalone: true, want: []int64{3000},
		},
		"sidecars report and never had a request": {expr: rate, coverage: aggregator.Coverage{Reporting: 2}, listening: whole, want: []int64{0}, reason: "no request yet"},
		"so is a latency of theirs":               {expr: ratio, coverage: aggregator.Coverage{Reporting: 2}, listening: whole, want: []int64{0}, reason: "no request yet"},
		"a label that Istio does not set is not known to be 0": {
			expr: custom, coverage: aggregator.Coverage{Reporting: 2}, listening: whole, outcome: outcomeNoValue, message: "label tenant",
		},
		"series without a value": {expr: rate + " > 100", coverage: three, listening: whole, outcome: outcomeNoValue, message: "12 series match"},

		"0/0 with requests a while ago":       {expr: ratio, values: values(math.NaN()), coverage: three, listening: whole, outcome: outcomeNaN, message: "0/0"},
		"0/0 after the whole retention":       {expr: ratio, values: values(math.NaN()), coverage: idle, listening: whole, want: []int64{0}, reason: "no request for 5m0s"},
		"0/0 before the whole retention":      {expr: ratio, values: values(math.NaN()), coverage: idle, listening: whole - 1, outcome: outcomeNaN},
		"0/0 while a sidecar is silent":       {expr: ratio, values: values(math.NaN()), coverage: with(idle, func(c *aggregator.Coverage) { c.Silent = 1 }), listening: whole, outcome: outcomeNaN},
		"0/0 while the window is not covered": {expr: ratio, values: values(math.NaN()), coverage: with(idle, func(c *aggregator.Coverage) { c.Covered = justNow }), listening: whole, outcome: outcomeNaN},
		"0/0 with no sidecar left, standalone": {
			expr: ratio, values: values(math.NaN()), coverage: with(idle, func(c *aggregator.Coverage) { c.Reporting, c.Silent = 0, 3 }), listening: whole, standalone: true,
			outcome: outcomeNoSidecar, message: "none of the 3 sidecars",
		},
		"0 with no sidecar left, standalone: what they sent has left the window": {
			expr: rate, values: values(0), coverage: with(idle, func(c *aggregator.Coverage) { c.Reporting, c.Silent = 0, 3 }), listening: whole, standalone: true,
			outcome: outcomeNoSidecar, message: "none of the 3 sidecars",
		},
		"0/0 of an irate": {expr: strings.ReplaceAll(ratio, "rate", "irate"), values: values(math.NaN()), coverage: three, listening: whole, outcome: outcomeNaN, message: "between the last two flushes"},
		"flushes too far apart for the window": {
			expr: rate, values: values(3), coverage: with(three, func(c *aggregator.Coverage) { c.Flush = 45 * time.Second }), listening: whole, outcome: outcomeNoValue, message: "statsFlushInterval",
		},
		"no series of a query that names no pods": {
			expr: `sum(rate(istio_requests_total{destination_service_name="podinfo"}[1m]))`, coverage: aggregator.Coverage{Reporting: 2}, listening: whole, query: true, outcome: outcomeNoSidecar, message: "does not say which pods",
		},
		"a reporter that there is not": {
			expr: dest, coverage: aggregator.Coverage{Reporting: 2}, listening: whole, query: true, outcome: outcomeNoValue, message: "none of destination, source and waypoint",
		},
		"a reporter that there is not, and no sidecar": {expr: dest, listening: whole, query: true, outcome: outcomeNoSidecar, message: "none of destination, source and waypoint"},
		"no series of a waypoint": {
			expr: waypoint, coverage: aggregator.Coverage{Reporting: 2}, listening: whole, query: true, outcome: outcomeNoSidecar, message: "no waypoint reports one",
		},
		"a metric that may be misspelt, and no sidecar": {
			expr: `sum(rate(istio_request_total[1m]))`, listening: whole, outcome: outcomeNoSidecar, message: "Istio does not set the metric istio_request_total by itself: check the spelling",
		},
		"one of several series is not a number": {expr: ratio, values: values(1, math.NaN()), coverage: idle, listening: whole, outcome: outcomeNaN},

		"infinite":          {expr: ratio, values: values(math.Inf(1)), coverage: three, listening: whole, outcome: outcomeInfinite},
		"minus infinite":    {expr: ratio, values: values(math.Inf(-1)), coverage: three, listening: whole, outcome: outcomeInfinite},
		"negative":          {expr: rate, values: values(-0.001), coverage: three, listening: whole, outcome: outcomeNegative, message: "maxReplicas"},
		"a hair below 0":    {expr: rate, values: values(-1e-12), coverage: three, listening: whole, want: []int64{0}},
		"beyond int64":      {expr: rate, values: values(9.3e15), coverage: three, listening: whole, outcome: outcomeOverflow},
		"just below int64":  {expr: rate, values: values(9.2e15), coverage: three, listening: whole, want: []int64{9.2e18}},
		"one beyond int64":  {expr: rate, values: values(9223372036854775.808), coverage: three, listening: whole, outcome: outcomeOverflow},
		"a sum beyond it":   {expr: rate, values: values(9e15, 9e15), coverage: three, listening: whole, outcome: outcomeOverflow},
		"the largest float": {expr: rate, values: values(math.MaxFloat64), coverage: three, listening: whole, outcome: outcomeOverflow},
	}
	started := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := rules{retention: whole, started: started}
			if !tc.standalone {
				r.holder = &holder{}
			}
			a := aggregator.Answer{Values: tc.values, Window: minute, Coverage: tc.coverage}
			p := newPrepared(tc.expr, nil, nil)
			if tc.query {
				p = newPrepared(tc.expr, mustQuery(t, tc.expr), nil)
			}
			if tc.coverage.Matched == 0 {
				a.Absent = absentFrom(t, tc.expr)
			}
			got, refused := r.judge("metric x in namespace test", p, a, started.Add(tc.listening))
			if tc.outcome != "" {
				wantRefusal(t, refused, tc.outcome, tc.message)
				if p.Selects() && !strings.Contains(refused.message, tc.expr) {
					t.Errorf("the message does not show the query: %s", refused.message)
				}
				return
			}
			if refused != nil {
				t.Fatalf("refused: %s", refused.message)
			}
			var milli []int64
			for _, it := range got.items {
				milli = append(milli, it.milli)
			}
			if d := cmp.Diff(tc.want, milli); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if got.reason != tc.reason {
				t.Errorf("the reason is %q, want %q", got.reason, tc.reason)
			}
		})
	}
}

// absentFrom is what a store says in which there is nothing.
func absentFrom(t *testing.T, expr string) []aggregator.Absent {
	t.Helper()
	a, err := mustQuery(t, expr).Eval(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a.Absent
}

func mustQuery(t *testing.T, expr string) *aggregator.Query {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	q, err := store.Query(expr)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func wantRefusal(t *testing.T, got *refusal, outcome, part string) {
	t.Helper()
	if got == nil {
		t.Fatalf("there is an answer, want %s", outcome)
	}
	if got.outcome != outcome || !strings.Contains(got.message, part) {
		t.Errorf("got %s: %s, want %s with %q", got.outcome, got.message, outcome, part)
	}
}

func TestToValue(t *testing.T) {
	newest := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	it := item{milli: 10056, labels: labels.FromStrings("pod", "a", "meshpulse_coverage", "forged", "query-name", "series wins").Map()}
	selector := fixture.Selector(t, "query-name=rps,type in (prometheus),a notin (b)")
	a := aggregator.Answer{Newest: newest, Window: 90 * time.Second, Coverage: aggregator.Coverage{Reporting: 2, Covered: 23400 * time.Millisecond}}

	got := toValue("prometheus-query", selector, it, verdict{reason: "because", expected: 3}, a)
	want := map[string]string{
		"pod": "a", "query-name": "series wins", "type": "prometheus",
		"meshpulse_coverage": "2/3", "meshpulse_window": "23s/1m30s", "meshpulse_reason": "because",
	}
	if d := cmp.Diff(want, got.MetricLabels); d != "" {
		t.Errorf("labels (-want +got):\n%s", d)
	}
	if got.MetricName != "prometheus-query" || got.Value.String() != "10056m" || !got.Timestamp.Time.Equal(newest) || *got.WindowSeconds != 90 {
		t.Errorf("got %+v", got)
	}

	got = toValue("x", fixture.Selector(t, ""), item{}, verdict{}, aggregator.Answer{})
	if !got.Timestamp.IsZero() || got.WindowSeconds != nil || got.Value.String() != "0" {
		t.Errorf("an answer from nothing has a time or a window: %+v", got)
	}
	if d := cmp.Diff(map[string]string{"meshpulse_coverage": "0/0"}, got.MetricLabels); d != "" {
		t.Errorf("labels (-want +got):\n%s", d)
	}
}

// What ingest drops is missing, not 0.
func TestAMetricThatIsNotKeptIsNotZero(t *testing.T) {
	r := rules{words: hpas.Vocabulary{Keeps: func(metric string) bool { return strings.HasPrefix(metric, "istio_request_duration") }}}
	idle := aggregator.Answer{Coverage: aggregator.Coverage{Reporting: 2}}
	const (
		requests = `sum(rate(istio_requests_total{destination_workload="podinfo"}[1m]))`
		count    = `sum(rate(istio_request_duration_milliseconds_count{destination_workload="podinfo"}[1m]))`
		notKept  = "istio_requests_total is not kept"
	)
	for expr, want := range map[string]string{requests: notKept, count + " / " + requests: notKept, count: ""} {
		idle.Absent = absentFrom(t, expr)
		_, refused := r.judge("metric x in namespace test", newPrepared(expr, nil, nil), idle, time.Now())
		if want != "" {
			wantRefusal(t, refused, outcomeNoValue, want)
		} else if refused != nil {
			t.Errorf("%s: refused: %s", expr, refused.message)
		}
	}
}

// A sidecar's silence pulls a rate down before it counts as silent: until then the answer is what
// it was when all had told.
func TestALateFlushDoesNotPullARateDown(t *testing.T) {
	const expr = `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination"}[1m]))`
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	requests{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}.send(store)
	requests{pod: "b", from: 5 * time.Second, to: 115 * time.Second}.send(store)
	r := rules{retention: 5 * time.Minute, started: store.Started()}
	p := register(store, preparedKey{namespace: "test", expr: expr})
	for after, want := range map[time.Duration]struct {
		milli  int64
		reason string
	}{
		5250 * time.Millisecond: {10000, ""}, // a flush that is on its way: b's newest row is within the window's last step
		5750 * time.Millisecond: {10000, "as of the newest time that every sidecar has covered"},
		9 * time.Second:         {10000, "as of the newest time that every sidecar has covered"},
	} {
		v, _, refused := r.see(t.Context(), "x", p, store.Started().Add(115*time.Second+after))
		if refused != nil || v.reason != want.reason || v.reason != "" && v.sum() != want.milli || v.sum() > want.milli || v.sum() < 9000 {
			t.Errorf("%s after its last flush: %d %q %v, want %d %q", after, v.sum(), v.reason, refused, want.milli, want.reason)
		}
	}
}
