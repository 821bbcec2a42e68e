package hpas

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestWhichMetricsAreWatchedForSurges(t *testing.T) {
	const (
		legacy = `metric-config.external.prometheus-query.prometheus/`
		rate   = legacy + `rps: "sum(rate(istio_requests_total{reporter='destination'}[1m]))"`
		mean   = legacy + `rps: "sum(rate(istio_request_duration_milliseconds_sum{reporter='destination'}[1m]))/sum(rate(istio_request_duration_milliseconds_count{reporter='destination'}[1m]))"`
	)
	promQL := fixture.External("prometheus-query", `{matchLabels: {query-name: rps}}`, `type: Value, value: "10"`)
	named := fixture.External("istio-requests-per-second", `{matchLabels: {destination_workload: a}}`, `type: AverageValue, averageValue: "10"`)
	inFlight := fixture.External("istio-requests-in-flight", `{matchLabels: {destination_workload: a}}`, `type: AverageValue, averageValue: "10"`)
	defaults := aggregator.SurgeConfig{Window: 10 * time.Second, Ratio: 1.5}
	tests := map[string]struct {
		annotations, metrics string
		want                 []aggregator.SurgeConfig
		problems             []string
	}{
		"requests per second, unasked":       {metrics: named, want: []aggregator.SurgeConfig{defaults}},
		"no other metric, unasked":           {annotations: rate, metrics: promQL + ", " + inFlight, want: []aggregator.SurgeConfig{{}, {}}},
		"any that can, where annotated":      {annotations: rate + `, meshpulse.io/surge-window: 20s`, metrics: promQL + ", " + inFlight, want: []aggregator.SurgeConfig{{Window: 20 * time.Second, Ratio: 1.5}, {Window: 20 * time.Second, Ratio: 1.5}}},
		"an action asks for a window":        {annotations: rate + `, meshpulse.io/surge-action: scale`, metrics: promQL, want: []aggregator.SurgeConfig{defaults}},
		"its name with a query of one's own": {annotations: `metric-config.external.istio-requests-per-second.prometheus/query: "sum(rate(istio_requests_total{reporter='destination'}[1m]))"`, metrics: named, want: []aggregator.SurgeConfig{{}}},
		"none where it is off":               {annotations: `meshpulse.io/surge-window: "off"`, metrics: named, want: []aggregator.SurgeConfig{{}}},
		"a value that cannot be read asks":   {annotations: `meshpulse.io/surge-window: "10"`, metrics: named, want: []aggregator.SurgeConfig{defaults}, problems: []string{"BadAnnotation surge-window"}},
		"a ratio":                            {annotations: `meshpulse.io/surge-ratio: "3"`, metrics: named, want: []aggregator.SurgeConfig{{Window: 10 * time.Second, Ratio: 3}}},
		"an expression without counts": {
			annotations: mean + `, meshpulse.io/surge-window: 10s`, metrics: promQL, want: []aggregator.SurgeConfig{defaults},
			problems: []string{"LatencyUnstable ", "SurgeNotServed A surge is told by counts"},
		},
		"an action without a window": {
			annotations: `meshpulse.io/surge-window: "off", meshpulse.io/surge-action: scale`, metrics: named, want: []aggregator.SurgeConfig{{}},
			problems: []string{"SurgeNotServed has no effect with meshpulse.io/surge-window: off"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			a := Vocabulary{}.Read(hpaFrom(t, fixture.HPA("podinfo", tc.annotations, tc.metrics)))
			var got []aggregator.SurgeConfig
			for _, w := range a.Metrics {
				got = append(got, w.Surge)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("settings (-want +got):\n%s", d)
			}
			wantProblems(t, a.Problems, tc.problems)
		})
	}
}
