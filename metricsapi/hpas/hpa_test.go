package hpas

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// hpaFrom reads the one HPA of a YAML text.
func hpaFrom(t testing.TB, text string) HPA {
	t.Helper()
	c := Decode("test.yaml", []byte(text))
	if len(c.Refused) > 0 || len(c.HPAs) != 1 {
		t.Fatalf("%d HPAs, errors %v, in\n%s", len(c.HPAs), c.Refused, text)
	}
	return c.HPAs[0]
}

func TestReadHPA(t *testing.T) {
	const (
		rate   = `"sum(rate(istio_requests_total[1m]))"`
		mean   = `"sum(rate(istio_request_duration_milliseconds_sum[1m]))/sum(rate(istio_request_duration_milliseconds_count[1m]))"`
		legacy = `metric-config.external.prometheus-query.prometheus/`
		per    = `type: AverageValue, averageValue: "10"`
	)
	type metric struct{ Name, Selector, Expr string }
	tests := map[string]struct {
		annotations, metrics, behavior string
		want                           []metric
		problems                       []string
	}{
		"the legacy form": {
			annotations: legacy + `rps: ` + rate,
			metrics:     fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, per),
			want:        []metric{{"prometheus-query", "query-name = rps", "sum(rate(istio_requests_total[1m]))"}},
		},
		"no target": {
			annotations: legacy + `rps: ` + rate,
			metrics:     fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, `type: AverageValue`),
			want:        []metric{{"prometheus-query", "query-name = rps", "sum(rate(istio_requests_total[1m]))"}},
			problems:    []string{"BadMetric external metric prometheus-query (query-name: rps) has no target"},
		},
		"a target's type that there is not": {
			annotations: legacy + `rps: ` + rate,
			metrics:     fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, `type: Avg, averageValue: "10"`),
			want:        []metric{{"prometheus-query", "query-name = rps", "sum(rate(istio_requests_total[1m]))"}},
			problems:    []string{`BadMetric external metric prometheus-query (query-name: rps) has target.type "Avg", which is none of an External metric: set target.type AverageValue`},
		},
		"no type of a target": {
			annotations: legacy + `rps: ` + rate,
			metrics:     fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, `averageValue: "10"`),
			want:        []metric{{"prometheus-query", "query-name = rps", "sum(rate(istio_requests_total[1m]))"}},
			problems:    []string{`BadMetric has target.type ""`},
		},
		"a target's type of Resource metrics": {
			annotations: legacy + `rps: ` + rate,
			metrics:     fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, `type: Utilization, averageValue: "10"`),
			want:        []metric{{"prometheus-query", "query-name = rps", "sum(rate(istio_requests_total[1m]))"}},
			problems:    []string{`BadMetric has target.type "Utilization", which is none of an External metric`},
		},
		"two targets": {
			annotations: legacy + `rps: ` + rate,
			metrics:     fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, `type: Value, averageValue: "10", value: "20"`),
			want:        []metric{{"prometheus-query", "query-name = rps", "sum(rate(istio_requests_total[1m]))"}},
			problems:    []string{`BadMetric has both target.value and target.averageValue: leave out the one that is not of its target.type Value`},
		},
		"a type that there is not, and one without its field": {
			metrics:  `{type: Externl}, {type: External}, {type: Resource}`,
			problems: []string{`BadMetric there is no metric type "Externl"`, "BadMetric a metric of type External has no field external"},
		},
		"the new form": {
			annotations: `metric-config.external.my-rps.prometheus/query: ` + rate,
			metrics:     fixture.External("my-rps", `{matchLabels: {type: prometheus}}`, per),
			want:        []metric{{"my-rps", "type = prometheus", "sum(rate(istio_requests_total[1m]))"}},
		},
		"a metric without PromQL": {
			metrics: fixture.External("istio-requests-per-second", `{matchLabels: {destination_workload: podinfo}}`, per),
			want:    []metric{{"istio-requests-per-second", "destination_workload = podinfo", `sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="podinfo",reporter="destination"}[1m]))`}},
		},
		"an annotation goes before a metric without PromQL": {
			annotations: `metric-config.external.istio-requests-per-second.prometheus/query: "vector(1)"`,
			metrics:     fixture.External("istio-requests-per-second", `{matchLabels: {type: prometheus}}`, per),
			want:        []metric{{"istio-requests-per-second", "type = prometheus", "vector(1)"}},
		},
		"several metrics, others' among them": {
			annotations: legacy + `a: "vector(1)", ` + legacy + `b: "vector(2)", metric-config.external.sqs.zmon/x: "1"`,
			metrics: fixture.External("prometheus-query", `{matchLabels: {query-name: a}}`, per) + `, {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}, ` +
				fixture.External("sqs", `{matchLabels: {}}`, per) + `, ` + fixture.External("queue", `{matchLabels: {type: nakadi}}`, per) + `, ` + fixture.External("prometheus-query", `{matchLabels: {query-name: b}}`, per),
			want: []metric{{"prometheus-query", "query-name = a", "vector(1)"}, {"prometheus-query", "query-name = b", "vector(2)"}},
		},
		"no selector": {
			annotations: `metric-config.external.my-rps.prometheus/query: ` + rate,
			metrics:     `{type: External, external: {metric: {name: my-rps}, target: {` + per + `}}}`,
			want:        []metric{{"my-rps", "", "sum(rate(istio_requests_total[1m]))"}},
		},

		"nothing says how to compute it": {
			metrics: fixture.External("rps", `{}`, per), want: []metric{{"rps", "", ""}},
			problems: []string{"NoQuery metric-config.external.rps.prometheus/query"},
		},
		"an HPA that KEDA wrote": {
			metrics: fixture.External("s0-prometheus", `{matchLabels: {scaledobject.keda.sh/name: podinfo}}`, per),
		},
		"a query goes before KEDA's selector": {
			annotations: `metric-config.external.s0-prometheus.prometheus/query: ` + rate,
			metrics:     fixture.External("s0-prometheus", `{matchLabels: {scaledobject.keda.sh/name: podinfo}}`, per),
			want:        []metric{{"s0-prometheus", "scaledobject.keda.sh/name = podinfo", "sum(rate(istio_requests_total[1m]))"}},
		},
		"no query of that name": {
			annotations: legacy + `rps: ` + rate, metrics: fixture.External("prometheus-query", `{matchLabels: {query-name: rsp}}`, per),
			want:     []metric{{"prometheus-query", "query-name = rsp", ""}},
			problems: []string{"NoQuery query-name: rsp has no query", "UnusedQuery prometheus/rps is not used"},
		},
		"the legacy metric without a query name": {
			metrics: fixture.External("prometheus-query", `{}`, per), want: []metric{{"prometheus-query", "", ""}},
			problems: []string{"BadSelector needs a selector with query-name"},
		},
		"a selector that cannot be read": {
			metrics: fixture.External("rps", `{matchExpressions: [{key: a, operator: Like}]}`, per), want: []metric{{"rps", "", ""}},
			problems: []string{"BadSelector cannot be read"},
		},
		"a named metric's selector that cannot be served": {
			metrics: fixture.External("istio-error-ratio", `{matchLabels: {window: x}}`, per), want: []metric{{"istio-error-ratio", "window = x", ""}},
			problems: []string{"BadSelector window takes one duration"},
		},
		"a named metric's selector over an unknown label": {
			metrics: fixture.External("istio-requests-per-second", `{matchLabels: {workload: x}}`, per),
			want: []metric{{
				"istio-requests-per-second", "workload = x",
				`sum(rate(istio_requests_total{destination_workload_namespace="test",workload="x",reporter="destination"}[1m]))`,
			}},
			problems: []string{"UnknownLabel workload, which is not a label that Istio sets"},
		},
		"annotations without a metric": {
			annotations: legacy + `rps: ` + rate + `, metric-config.external.my-rps.prometheus/query: ` + rate,
			problems:    []string{"UnusedQuery prometheus/rps is not used", "UnusedQuery my-rps.prometheus/query is not used"},
		},

		"a latency with AverageValue": {
			annotations: legacy + `avg: ` + mean, metrics: fixture.External("prometheus-query", `{matchLabels: {query-name: avg}}`, per),
			want:     []metric{{"prometheus-query", "query-name = avg", mean[1 : len(mean)-1]}},
			problems: []string{"LatencyAverageValue Better: istio-requests-per-second"},
		},
		"a ratio with AverageValue": {
			annotations: legacy + `ratio: "sum(rate(istio_requests_total[1m])) / sum(rate(istio_request_bytes_count[1m]))"`, metrics: fixture.External("prometheus-query", `{matchLabels: {query-name: ratio}}`, per),
			want:     []metric{{"prometheus-query", "query-name = ratio", "sum(rate(istio_requests_total[1m])) / sum(rate(istio_request_bytes_count[1m]))"}},
			problems: []string{"RatioAverageValue query ratio is a ratio, and AverageValue divides it by the replicas"},
		},
		"a ratio with Value": {
			metrics: fixture.External("istio-error-ratio", `{matchLabels: {destination_workload: a}}`, `type: Value, value: 100m`),
			want: []metric{{
				"istio-error-ratio", "destination_workload = a",
				`(sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="a",reporter="destination",response_code=~"5.."}[1m])) or vector(0)) / sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="a",reporter="destination"}[1m]))`,
			}},
		},
		"a latency in milliseconds against seconds": {
			annotations: legacy + `avg: ` + mean, metrics: fixture.External("prometheus-query", `{matchLabels: {query-name: avg}}`, `type: AverageValue, averageValue: "0.005"`),
			want:     []metric{{"prometheus-query", "query-name = avg", mean[1 : len(mean)-1]}},
			problems: []string{"LatencyAverageValue ", "MillisecondsTarget its target is 5m: any traffic asks for maxReplicas. If seconds were meant, the target is 5"},
		},
		"a latency with Value, not stabilised": {
			metrics:  fixture.External("istio-request-duration-p95", `{matchLabels: {window: 2m, destination_workload: a}}`, `type: Value, value: "250"`),
			want:     []metric{{"istio-request-duration-p95", "destination_workload = a,window = 2m", `histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds{destination_workload_namespace="test",destination_workload="a",reporter="destination"}[2m])))`}},
			problems: []string{"LatencyUnstable stabilizationWindowSeconds to 120 or more"},
		},
		"a latency with Value, stabilised for its window": {
			metrics:  fixture.External("istio-request-duration-avg", `{matchLabels: {destination_workload: a}}`, `type: Value, value: "250"`),
			behavior: "  behavior: {scaleUp: {stabilizationWindowSeconds: 60}}\n",
			want: []metric{{
				"istio-request-duration-avg", "destination_workload = a",
				`sum(rate(istio_request_duration_milliseconds_sum{destination_workload_namespace="test",destination_workload="a",reporter="destination"}[1m])) / sum(rate(istio_request_duration_milliseconds_count{destination_workload_namespace="test",destination_workload="a",reporter="destination"}[1m]))`,
			}},
		},
		"irate": {
			annotations: legacy + `rps: "sum(irate(istio_requests_total[1m]))"`, metrics: fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, per),
			want:     []metric{{"prometheus-query", "query-name = rps", "sum(irate(istio_requests_total[1m]))"}},
			problems: []string{"NoisyRate irate"},
		},
		"a quantile without le": {
			annotations: legacy + `p95: "histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket[1m])))"`,
			metrics:     fixture.External("prometheus-query", `{matchLabels: {query-name: p95}}`, per),
			want:        []metric{{"prometheus-query", "query-name = p95", "histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket[1m])))"}},
			problems:    []string{"LatencyAverageValue", "NoBuckets aggregate by (le)"},
		},
		"a counter without rate": {
			annotations: legacy + `rps: "sum(istio_requests_total)"`, metrics: fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, per),
			want:     []metric{{"prometheus-query", "query-name = rps", "sum(istio_requests_total)"}},
			problems: []string{"RawCounter query rps reads the counter istio_requests_total as it stands: it only grows while its pods live, whatever the load is, and so asks for maxReplicas in the end. Take rate(istio_requests_total{…}[1m])"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			a := Vocabulary{}.Read(hpaFrom(t, fixture.HPA("podinfo", tc.annotations, tc.metrics)+tc.behavior))
			var got []metric
			for _, w := range a.Metrics {
				got = append(got, metric{w.Name, w.Canonical, w.Expr})
				if (w.Expr == "") != (w.Why != "") {
					t.Errorf("metric %s has expression %q and is missing because of %q", w.Name, w.Expr, w.Why)
				}
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("metrics (-want +got):\n%s", d)
			}
			wantProblems(t, a.Problems, tc.problems)
		})
	}
}

// The guides' own HPAs, unchanged.
func TestReadGuides(t *testing.T) {
	want := map[string][]string{
		"latency-average.yaml":       {"LatencyAverageValue query latency-average", "MillisecondsTarget the target is 5"},
		"latency-p95.yaml":           {"LatencyAverageValue query p95-latency", "NoisyRate query p95-latency"},
		"requests-per-workload.yaml": nil,
		"requests-total.yaml":        nil,
	}
	for file, problems := range want {
		t.Run(file, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			a := Vocabulary{}.Read(hpaFrom(t, string(data)))
			if len(a.Metrics) != 1 || a.Metrics[0].Expr == "" {
				t.Fatalf("metrics are %+v", a.Metrics)
			}
			wantProblems(t, a.Problems, problems)
		})
	}
}
