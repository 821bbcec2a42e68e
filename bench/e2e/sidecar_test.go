package e2e

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

const total = "sum(max_over_time(istio_requests_total[5m]))"

func TestEveryRequestIsCountedOnceInBothNamingModes(t *testing.T) {
	hpas := t.TempDir()
	query(t, hpas, "total", total)
	query(t, hpas, "observed", "sum(max_over_time(istio_request_duration_milliseconds_count[5m]))")
	query(t, hpas, "web", `sum(max_over_time(istio_requests_total{source_workload="web",response_code="200",reporter="destination"}[5m]))`)
	query(t, hpas, "pod", `sum(max_over_time(istio_requests_total{namespace="test",pod="podinfo-1"}[5m]))`)
	query(t, hpas, "below50", `sum(max_over_time(istio_request_duration_milliseconds_bucket{le="50"}[5m]))`)
	s := serve(t, standalone.Options{HPADir: hpas})
	first, second := envoy(t, s, "podinfo-0", joined), envoy(t, s, "podinfo-1", labelled)
	send(t, first, "web", 40, 30)
	send(t, first, "a.dotted.name", 70, 12)
	send(t, second, "web", 40, 21)
	send(t, second, "jobs", 70, 5)
	for name, want := range map[string]float64{"total": 68, "observed": 68, "web": 51, "pod": 26, "below50": 51} {
		awaitValue(t, s, name, want)
	}
	send(t, first, "web", 40, 4)
	awaitValue(t, s, "total", 72)
	if err := first.Stop(); err != nil { // a last flush, without histograms, may go out now
		t.Error(err)
	}
	awaitValue(t, s, "total", 72)
}

func TestKilledEnvoyCountsOnFromWhereItWas(t *testing.T) {
	hpas := t.TempDir()
	query(t, hpas, "total", total)
	s := serve(t, standalone.Options{HPADir: hpas})
	before := envoy(t, s, "podinfo-0", joined)
	send(t, before, "web", 40, 20)
	awaitValue(t, s, "total", 20)
	before.Kill()
	after := envoy(t, s, "podinfo-0", joined)
	send(t, after, "web", 40, 35) // more than before: no value goes down, and yet it is a new counter
	awaitValue(t, s, "total", 55)
}

func TestMeshpulseThatStartsAgainKnowsTheCountersItNeverSaw(t *testing.T) {
	hpas := t.TempDir()
	query(t, hpas, "total", total)
	s := serve(t, standalone.Options{HPADir: hpas})
	e := envoy(t, s, "podinfo-0", joined)
	send(t, e, "web", 40, 25)
	awaitValue(t, s, "total", 25)
	stop(t, s)
	again := serve(t, standalone.Options{HPADir: hpas, Ingest: s.Ingest})
	send(t, e, "web", 40, 5)
	want, err := e.RequestsTotal(t.Context())
	if err != nil || want != 30 {
		t.Fatalf("the sidecar's own count: got %d, %v, want 30", want, err)
	}
	awaitValue(t, again, "total", 30)
}

func TestStandingStillIsZeroAndNobodyIsAnError(t *testing.T) {
	hpas := t.TempDir()
	query(t, hpas, "podinfo", `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test"}[5s]))`)
	query(t, hpas, "nobody", `sum(rate(istio_requests_total{destination_workload="nobody",destination_workload_namespace="test"}[5s]))`)
	s := serve(t, standalone.Options{HPADir: hpas})
	if v, err := value(t.Context(), s, "podinfo"); err == nil {
		t.Errorf("before any sidecar: got %v, want an error", v)
	}
	e := envoy(t, s, "podinfo-0", nil)
	awaitValue(t, s, "podinfo", 0) // it reports and never had a request
	send(t, e, "web", 0, 50)
	await(t, "requests show", func() error {
		v, err := value(t.Context(), s, "podinfo")
		if err == nil && v <= 0 {
			err = fmt.Errorf("got %v, want more than 0", v)
		}
		return err
	})
	awaitValue(t, s, "podinfo", 0) // it reports and stands still

	v, err := value(t.Context(), s, "nobody")
	var answer *standalone.APIError
	if !errors.As(err, &answer) {
		t.Fatalf("nobody: got %v, %v, want an answer that is an error", v, err)
	}
	if answer.Code < 400 || answer.Code == http.StatusForbidden || !strings.Contains(answer.Message, "nobody") {
		t.Errorf("nobody: got %v, want an error that names the query", answer)
	}
}

func TestRateAverageAndQuantileAgreeWithTheLoad(t *testing.T) {
	hpas := t.TempDir()
	const window = 10
	query(t, hpas, "rate", `sum(rate(istio_requests_total{destination_workload="podinfo"}[10s]))`)
	query(t, hpas, "average", `sum(rate(istio_request_duration_milliseconds_sum[10s])) / sum(rate(istio_request_duration_milliseconds_count[10s]))`)
	query(t, hpas, "p95", `histogram_quantile(0.95, sum by (le) (rate(istio_request_duration_milliseconds_bucket[10s])))`)
	s := serve(t, standalone.Options{HPADir: hpas})
	first, second := envoy(t, s, "podinfo-0", joined), envoy(t, s, "podinfo-1", labelled)
	g := load.Start(t.Context(), load.Options{
		Targets: []string{first.Address(), second.Address()}, Profile: load.Steady(50, load.Endless), Header: http.Header{"X-Duration": {"40"}},
	})
	t.Cleanup(g.Stop)
	await(t, "the windows fill", func() error {
		status, err := s.Status(t.Context())
		if err != nil {
			return err
		}
		if len(status.Metrics) != 3 {
			return fmt.Errorf("got %d metrics, want 3", len(status.Metrics))
		}
		for _, m := range status.Metrics {
			if m.WindowSeconds != window || m.CoveredSeconds != window || m.Reporting != 2 {
				return fmt.Errorf("%s: %v of %v s are covered by %d sidecars", m.Selector, m.CoveredSeconds, m.WindowSeconds, m.Reporting)
			}
		}
		return nil
	})
	// On a busy machine a request or a flush may be late by as much as the tolerance, at one
	// instant but not at each.
	await(t, "the rate agrees with the load", func() error {
		items, err := s.Values(t.Context(), "test", "prometheus-query", "query-name=rate")
		if err != nil || len(items) != 1 {
			return fmt.Errorf("rate: got %v, %v, want one item", items, err)
		}
		got := items[0].Value.AsApproximateFloat64()
		newest := items[0].Timestamp
		if now := time.Now(); newest.After(now) || newest.Before(now.Add(-waitLimit)) {
			return fmt.Errorf("timestamp of the newest sample: got %v at %v", newest, now)
		}
		if seen := g.Between(newest.Add(-window*time.Second), newest); math.Abs(got/seen.Rate-1) > 0.05 {
			return fmt.Errorf("rate: got %v, the load saw %v", got, seen.Rate)
		}
		return nil
	})
	// Each request lasts 40 ms by its header. Envoy adds the harmonic mean of the value's bin [40,
	// 41) to the sum, and the classic quantile lies at 95 % of the bucket (25, 50].
	for name, want := range map[string]float64{"average": 2 * 40 * 41 / (40.0 + 41), "p95": 48.75} {
		if v, err := value(t.Context(), s, name); err != nil || math.Abs(v-want) > 0.001 {
			t.Errorf("%s: got %v, %v, want %v", name, v, err, want)
		}
	}
}
