package main

import (
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/metricsapi"
)

func TestViewShowsValuesReplicasAndHowFarTheWindowIs(t *testing.T) {
	age := 1.24
	v := view{
		running: 23 * time.Second,
		status: metricsapi.Status{Metrics: []metricsapi.MetricStatus{
			{
				HPA: "podinfo-total", Metric: "prometheus-query", Selector: "query-name=rps", Value: "30168m", Displayed: "10056m/10 (avg)",
				DesiredReplicas: 4, AgeSeconds: &age, Reporting: 3, Expected: 3, CoveredSeconds: 22.6, WindowSeconds: 60,
			},
			{HPA: "podinfo-p95", Metric: "istio-request-duration-p95", Displayed: "<unknown>/250", Error: "no requests yet", WindowSeconds: 60},
		}},
		seen: &load.Seen{Requests: 690, Failed: 2, Rate: 30, Average: 80.04, P95: 201.4},
		hint: "curl",
	}
	for name, text := range map[string]string{"line": v.line(), "table": v.table()} {
		for _, want := range []string{
			"23s", "rps", "30168m", "10056m/10 (avg)", "4", "1.2s", "3/3", "23s/60s",
			"istio-request-duration-p95", "no requests yet", "0s/60s", "30.00/s, average 80.0 ms, P95 201 ms, 2 of 690 failed",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the %s does not hold %q:\n%s", name, want, text)
			}
		}
	}
	v.seen = nil
	if text := v.line(); strings.Contains(text, "drives") {
		t.Errorf("a load is shown where recordings are fed: %s", text)
	}
}

func TestDurationEndsTheDemo(t *testing.T) {
	ctx, cancel, err := bounded(t.Context(), "1ms")
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	<-ctx.Done()
	if _, _, err := bounded(t.Context(), "60"); err == nil || !strings.Contains(err.Error(), "60s") {
		t.Errorf("without a unit: got %v, want an error with an example", err)
	}
	if ctx, _, err := bounded(t.Context(), ""); err != nil || ctx.Done() != t.Context().Done() {
		t.Errorf("without a duration: %v", err)
	}
}
