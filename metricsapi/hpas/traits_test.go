package hpas

import (
	"testing"
	"time"
)

func TestRawCounter(t *testing.T) {
	tests := map[string]struct{ expr, want string }{
		"a counter":                             {`istio_requests_total`, "istio_requests_total"},
		"its sum":                               {`sum(istio_requests_total{reporter="destination"})`, "istio_requests_total"},
		"beside a rate":                         {`sum(rate(istio_requests_total[1m])) + sum(istio_request_bytes_sum)`, "istio_request_bytes_sum"},
		"a mean since the pods began":           {`sum(istio_request_duration_milliseconds_sum) / sum(istio_request_duration_milliseconds_count)`, "istio_request_duration_milliseconds_sum"},
		"a quantile since the pods began":       {`histogram_quantile(0.95, sum by (le) (istio_request_duration_milliseconds_bucket))`, "istio_request_duration_milliseconds_bucket"},
		"a histogram under its own name":        {`histogram_quantile(0.95, sum(istio_request_duration_milliseconds))`, "istio_request_duration_milliseconds"},
		"a counter that is not Istio's":         {`envoy_cluster_upstream_rq_total`, "envoy_cluster_upstream_rq_total"},
		"a name in a matcher":                   {`sum({__name__="istio_requests_total"})`, "istio_requests_total"},
		"the last or highest of a range":        {`sum(max_over_time(istio_requests_total[1m]))`, "istio_requests_total"},
		"a subquery that takes no change":       {`max_over_time(sum(istio_requests_total)[1m:5s])`, "istio_requests_total"},
		"a product with a rate":                 {`sum(rate(istio_requests_total[1m])) * sum(istio_requests_total)`, "istio_requests_total"},
		"a counter less a number":               {`sum(istio_requests_total) - 5`, "istio_requests_total"},
		"the side of a filter that is returned": {`sum(istio_requests_total) and sum(rate(istio_requests_total[1m]))`, "istio_requests_total"},

		"rate":                        {`sum(rate(istio_requests_total[1m]))`, ""},
		"a named metric's expression": {`histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds[1m])))`, ""},
		"increase, irate, delta":      {`increase(a_total[1m]) + irate(a_total[1m]) + delta(a_total[1m])`, ""},
		"a rate of a sum":             {`rate(sum(istio_requests_total)[1m:5s])`, ""},
		"the highest rate":            {`max_over_time(sum(rate(istio_requests_total[1m]))[5m:15s])`, ""},
		"a difference to the past":    {`sum(istio_requests_total) - sum(istio_requests_total offset 1m)`, ""},
		"how many series there are":   {`count(istio_requests_total)`, ""},
		"whether there is one":        {`absent(istio_requests_total) + count(group(istio_requests_total))`, ""},
		"a comparison's 0 or 1":       {`sum(istio_requests_total) > bool 0`, ""},
		"a filter by another series":  {`sum(rate(istio_requests_total[1m])) and sum(istio_requests_total)`, ""},
		"a gauge":                     {`sum(envoy_cluster_upstream_rq_active)`, ""},
		"a number":                    {`vector(1)`, ""},
		"a range, which is refused":   {`istio_requests_total[1m]`, ""},
		"what does not parse":         {`sum(istio_requests_total`, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Parse(tc.expr).traits().raw; got != tc.want {
				t.Errorf("%s: got %q, want %q", tc.expr, got, tc.want)
			}
		})
	}
}

func TestQuantilesWithoutBuckets(t *testing.T) {
	for expr, want := range map[string]bool{
		`histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket[1m])))`:                true,
		`histogram_quantile(0.95, (sum by (pod) (rate(istio_request_duration_milliseconds_bucket[1m]))))`:    true,
		`histogram_quantile(0.95, sum without (le) (rate(istio_request_duration_milliseconds_bucket[1m])))`:  true,
		`histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket[1m])) by (le))`:        false,
		`histogram_quantile(0.95, sum without (pod) (rate(istio_request_duration_milliseconds_bucket[1m])))`: false,
		`histogram_quantile(0.95, topk(10, rate(istio_request_duration_milliseconds_bucket[1m])))`:           false,
		`histogram_quantile(0.95, rate(istio_request_duration_milliseconds_bucket[1m]))`:                     false,
		`histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds[1m])))`:                       false,
		`sum(rate(istio_request_duration_milliseconds_bucket{le="100"}[1m]))`:                                false,
	} {
		if got := Parse(expr).traits().noBuckets; got != want {
			t.Errorf("%s: got %t, want %t", expr, got, want)
		}
	}
}

// Only what adds up over pods may have its missing pods counted as the mean of the others.
func TestWhatAddsUpOverPods(t *testing.T) {
	for expr, want := range map[string]bool{
		`sum(rate(a[1m]))`: true, `(sum by (x) (rate(a[1m])))`: true, `2 * sum(a)`: true, `sum(a) * 2`: true, `sum(a) / 2`: true, `sum(a) + sum(b)`: true,
		`sum(a) or vector(0)`: true, `sum(sum(a) by (x)) / (60)`: true,
		`avg(a)`: false, `max(a)`: false, `count(a)`: false, `rate(a[1m])`: false, `2 / sum(a)`: false, `sum(a) / sum(b)`: false, `sum(a) * sum(b)`: false, `sum(a) + 1`: false,
		`1 + sum(a)`: false, `sum(a) - sum(b)`: false, `sum(a) > 1`: false, `vector(0) or sum(a)`: false, `avg(a) or sum(b)`: false, `sum(a) or avg(b)`: true, `-sum(a)`: false, `clamp_min(sum(a), 1)`: false, `vector(1)`: false,
	} {
		if got := Parse(expr).Additive(); got != want {
			t.Errorf("%s: got %t, want %t", expr, got, want)
		}
	}
}

// What is no latency, and one thing by another, does not add up over pods.
func TestRatios(t *testing.T) {
	const errors, requests = `sum(rate(istio_requests_total{response_code=~"5.."}[1m]))`, `sum(rate(istio_requests_total[1m]))`
	for expr, want := range map[string]bool{
		errors + " / " + requests: true, "(" + errors + " or vector(0)) / " + requests: true, "100 * " + errors + " / " + requests: true, "(" + errors + " / " + requests + ") * 100": true,
		"100 * (" + errors + " / " + requests + ")": true, errors + " / " + requests + " or vector(0)": true, "1 / (" + errors + " / " + requests + ")": true,
		"clamp_max(" + errors + " / " + requests + ", 1)": true, requests + " / count(count by (pod) (istio_requests_total))": true, requests + " / scalar(" + requests + ")": true,
		requests: false, requests + " / 60": false, "1 / " + requests: false, errors + " + " + requests: false, errors + " * " + requests: false, "vector(1) / 2": false, "sum(": false,
		`sum(rate(istio_request_duration_milliseconds_sum[1m])) / sum(rate(istio_request_duration_milliseconds_count[1m]))`: false, // a latency
		"sum(rate(a[1m]) / rate(b[1m]))": false,
		// Loads times a mean, which add up.
		requests + " * sum(rate(istio_response_bytes_sum[1m])) / sum(rate(istio_response_bytes_count[1m]))":        false,
		"(" + requests + " * sum(rate(istio_response_bytes_sum[1m]))) / sum(rate(istio_response_bytes_count[1m]))": false,
		"8 * (a * b) / c": false, "a * b / 1000 / c": false, "a * (b / c)": false, "(b / c) * a": false, "a / (b / c)": false, "a / (100 * b / c)": false,
		"a / (b * c)": false, "a / (b * 8)": true, "a * 8 / b": true, "a / (b + c)": true, "(a + b) / c": true,
	} {
		if got := Parse(expr).traits().ratio; got != want {
			t.Errorf("%s: got %t, want %t", expr, got, want)
		}
	}
}

func TestLongestRange(t *testing.T) {
	for expr, want := range map[string]time.Duration{
		`rate(a[1m]) + rate(b[5m])`: 5 * time.Minute, `rate(a[5m]) + rate(b[1m])`: 5 * time.Minute, `max_over_time(rate(a[1m])[10m:1m])`: 10 * time.Minute,
		`max_over_time(rate(a[10m])[1m:10s])`: 10 * time.Minute, `a`: 0, `sum(`: 0,
	} {
		if got := Parse(expr).longestRange(); got != want {
			t.Errorf("%s: got %s, want %s", expr, got, want)
		}
	}
}

func TestTraits(t *testing.T) {
	tests := map[string]struct {
		expr string
		want traits
	}{
		"a rate of requests": {`sum(rate(istio_requests_total{reporter="destination"}[1m]))`, traits{}},
		"a mean duration": {
			`sum(rate(istio_request_duration_milliseconds_sum[1m]))/sum(rate(istio_request_duration_milliseconds_count[1m]))`,
			traits{latency: true, milliseconds: true},
		},
		"a mean in seconds": {
			`sum(rate(istio_request_duration_milliseconds_sum[1m]))/sum(rate(istio_request_duration_milliseconds_count[1m])) / 1000`,
			traits{latency: true},
		},
		"a quantile with irate": {
			`histogram_quantile(0.95,sum(irate(istio_request_duration_milliseconds_bucket[5m]))by (le))`,
			traits{latency: true, milliseconds: true, irate: true},
		},
		"a quantile of sizes":                  {`histogram_quantile(0.95,sum(rate(istio_request_bytes_bucket[5m]))by (le))`, traits{}},
		"the last two samples' difference":     {`sum(idelta(istio_requests_total[1m]))`, traits{irate: true}},
		"a native histogram's mean":            {`histogram_avg(sum(rate(istio_request_duration_milliseconds[1m])))`, traits{latency: true, milliseconds: true}},
		"a mean scaled behind":                 {`histogram_avg(sum(rate(istio_request_duration_milliseconds[1m]))) * 0.001`, traits{latency: true}},
		"a mean scaled by something else":      {`histogram_avg(sum(rate(istio_request_duration_milliseconds[1m]))) / 60`, traits{latency: true, milliseconds: true}},
		"a sum over another's count":           {`sum(rate(istio_request_duration_milliseconds_sum[1m])) / sum(rate(istio_request_bytes_count[1m]))`, traits{ratio: true}},
		"requests in flight add up":            {`sum(rate(istio_request_duration_milliseconds_sum[1m])) / 1000`, traits{}},
		"a scaled quantile":                    {`0.001 * histogram_quantile(0.5, sum by (le) (rate(istio_request_duration_milliseconds_bucket[1m])))`, traits{latency: true}},
		"a misspelt metric":                    {`sum(rate(istio_request_total[1m]))`, traits{}},
		"a label of a Telemetry resource":      {`sum(rate(istio_requests_total{tenant="a"}[1m]))`, traits{}},
		"a label that is asked to be empty":    {`sum(rate(istio_requests_total{tenant!="a"}[1m]))`, traits{}},
		"a name in braces":                     {`sum(rate({__name__=~"istio_requests_total|x"}[1m]))`, traits{}},
		"a name in braces that is not Istio's": {`sum(rate({__name__=~"http_total|http_sum"}[1m]))`, traits{}},
		"not PromQL":                           {`sum(`, traits{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Parse(tc.expr).traits(); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestOfNamespace(t *testing.T) {
	for expr, want := range map[string]bool{
		`sum(rate(x{namespace="a"}[1m]))`:                                                       true,
		`sum(rate(x{destination_workload_namespace="a"}[1m]))`:                                  true,
		`sum(rate(x{namespace="a"}[1m])) / sum(rate(y[1m]))`:                                    false,
		`sum(rate(x{namespace=~"a"}[1m]))`:                                                      true,
		`sum(rate(x{namespace=~"a|b"}[1m]))`:                                                    false,
		`sum(rate(x{namespace!="a"}[1m]))`:                                                      false,
		`sum(rate(x{namespace="b"}[1m]))`:                                                       false,
		`sum(rate(x{source_workload_namespace="a"}[1m]))`:                                       false,
		`sum(rate(x{namespace="a"}[1m])) / sum(rate(y{destination_service_namespace="a"}[1m]))`: true,
		`1`: false,
	} {
		if got := Parse(expr).OfNamespace("a"); got != want {
			t.Errorf("%s: %v", expr, got)
		}
	}
}

func TestOneReporter(t *testing.T) {
	for expr, want := range map[string]bool{
		`sum(x)`:                                 false,
		`sum(x{reporter="destination"})`:         true,
		`sum(x{reporter=~"source|waypoint"})`:    true,
		`sum(x{reporter=~"source|destination"})`: false,
		`sum(x) + sum(x{reporter!="source"})`:    true,
	} {
		if got := Parse(expr).OneReporter(); got != want {
			t.Errorf("%s: %t", expr, got)
		}
	}
}
