package metricsapi

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	apimetrics "k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	adaptermetrics "sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver/metrics"
)

// metricsHandler serves what the gatherer has, and behind it the API server library's metrics,
// which live in a registry of the library's own. Both have the Go runtime's: the library's copies
// are left out.
func metricsHandler(own prometheus.Gatherer) http.Handler {
	apimetrics.Register()
	// The library's freshness metric is registered once for the process: the second server's error
	// says that it is there.
	_ = adaptermetrics.RegisterMetrics(legacyregistry.Register)
	if own == nil {
		own = prometheus.NewRegistry()
	}
	both := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := own.Gather()
		if err != nil {
			return families, err
		}
		seen := make(map[string]bool, len(families))
		for _, f := range families {
			seen[f.GetName()] = true
		}
		others, err := legacyregistry.DefaultGatherer.Gather()
		for _, f := range others {
			if !seen[f.GetName()] {
				families = append(families, f)
			}
		}
		return families, err
	})
	return promhttp.HandlerFor(both, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}
