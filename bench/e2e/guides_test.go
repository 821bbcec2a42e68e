package e2e

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

// The guides' HPAs, applied one at a time, unchanged.
func TestGuidesHPAsWorkUnchanged(t *testing.T) {
	const rate = 40
	hpas := t.TempDir()
	s := serve(t, standalone.Options{HPADir: hpas})
	first, second := envoy(t, s, "podinfo-0", joined), envoy(t, s, "podinfo-1", labelled)
	g := load.Start(t.Context(), load.Options{
		Targets: []string{first.Address(), second.Address()}, Profile: load.Steady(rate, load.Endless), Header: http.Header{"X-Duration": {"40"}},
	})
	t.Cleanup(g.Stop)

	// The window of a minute fills while the test runs: a rate is anything up to the load's.
	requests := func(v float64) bool { return v > 0 && v < 1.1*rate }
	exactly := func(want float64) func(float64) bool {
		return func(v float64) bool { return math.Abs(v-want) < 0.001 }
	}
	for _, guide := range []struct {
		file, query string
		window      int64
		right       func(float64) bool
	}{
		{"requests-total.yaml", "processed-requests-per-second", 60, requests},
		{"requests-per-workload.yaml", "processed-requests-per-second", 60, requests},
		{"latency-average.yaml", "latency-average", 60, exactly(2 * 40 * 41 / 81.0)},
		{"latency-p95.yaml", "p95-latency", 300, exactly(48.75)},
	} {
		t.Run(guide.file, func(t *testing.T) {
			awaitResources(t, s, []standalone.Resource{})
			hpa, err := os.ReadFile(filepath.Join(root, "manifests/examples", guide.file))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(hpas, guide.file)
			writeFile(t, path, string(hpa))
			t.Cleanup(func() { _ = os.Remove(path) }) // where the test fails, the next one shall not suffer
			awaitResources(t, s, []standalone.Resource{
				{Name: "prometheus-query", Namespaced: true, Kind: "ExternalMetricValueList", Verbs: []string{"get"}},
			})
			await(t, guide.query, func() error {
				items, err := s.Values(t.Context(), "test", "prometheus-query", "query-name="+guide.query)
				if err != nil {
					return err
				}
				if len(items) != 1 || items[0].MetricName != "prometheus-query" || items[0].WindowSeconds != guide.window {
					return fmt.Errorf("got %+v, want one item of prometheus-query over %d s", items, guide.window)
				}
				if v := items[0].Value.AsApproximateFloat64(); !guide.right(v) {
					return fmt.Errorf("got %v", v)
				}
				return nil
			})
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			awaitResources(t, s, []standalone.Resource{})
			if v, err := value(t.Context(), s, guide.query); err == nil {
				t.Errorf("without its HPA: got %v, want an error", v)
			}
		})
	}
}

func awaitResources(t *testing.T, s *standalone.Server, want []standalone.Resource) {
	t.Helper()
	await(t, "discovery", func() error {
		got, err := s.Resources(t.Context())
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("resources (-want +got):\n%s", diff)
		}
		return nil
	})
}
