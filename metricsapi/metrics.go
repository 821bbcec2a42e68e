package metricsapi

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	apimetrics "k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	adaptermetrics "sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver/metrics"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// metrics are the package's own.
type metrics struct {
	answers    *prometheus.CounterVec // by outcome
	duration   prometheus.Histogram
	age        prometheus.Histogram
	events     *prometheus.CounterVec // by reason
	fileErrors prometheus.Counter
	held       prometheus.Counter
	surged     prometheus.Counter
	raises     *prometheus.CounterVec // by outcome
	asked      *prometheus.CounterVec // by outcome
	passed     *prometheus.CounterVec // by outcome
	// passedDuration is how long the other adapter took.
	passedDuration prometheus.Histogram
	listFailed     prometheus.Counter
	raiseDelay     prometheus.Histogram
	hpas           prometheus.Gauge
	queries        prometheus.Gauge
	// clockBehind is how many seconds our clock is behind the API server's.
	clockBehind prometheus.Gauge

	refusedConnections prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, label, help string, values []string) *prometheus.CounterVec {
		c := f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, value := range values { // at 0, so that the first of each is an increase
			c.WithLabelValues(value)
		}
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return f.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	return &metrics{
		answers: vec("meshpulse_metricsapi_answers_total", "outcome", "Requests for an external metric, and those for /debug/hpas that were refused, by what became of them.", outcomes()),
		duration: histogram("meshpulse_metricsapi_answer_duration_seconds", "How long it took to find, evaluate and judge an answer.",
			prometheus.ExponentialBuckets(1e-5, 4, 10)...), // 10 us to 2.6 s
		age:        histogram("meshpulse_metricsapi_answer_age_seconds", "How old the newest sample of an answer was: from a flush until it was answered by.", .5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 30, 60, 300),
		events:     vec("meshpulse_metricsapi_events_total", "reason", "Warning events on HPAs, by reason.", hpas.Reasons()),
		fileErrors: counter("meshpulse_metricsapi_file_errors_total", "HPA files that could not be read (standalone)."),
		held:       counter("meshpulse_metricsapi_held_answers_total", "Answers that keep the replicas as they are, since what is known is incomplete and what is seen asks for fewer."),
		surged:     counter("meshpulse_metricsapi_surge_answers_total", "Answers that a surge has raised above what the expression gives."),
		raises:     vec("meshpulse_metricsapi_surge_raises_total", "outcome", "Raises of targets at surges, by what became of them.", raiseOutcomes()),
		asked:      vec("meshpulse_metricsapi_asked_replicas_total", "outcome", "Questions to other replicas for an answer that is not complete here, or nothing is known of here, by what became of them.", askOutcomes()),
		raiseDelay: histogram("meshpulse_metricsapi_surge_raise_delay_seconds", "Time from the newest flush that a raise stands on until the target was raised.",
			.01, .02, .05, .1, .2, .5, 1, 2, 5),
		passed: vec("meshpulse_metricsapi_passed_total", "outcome", "Requests for metrics that are not answered here but by the adapter of --fallback, by what became of them.", passedOutcomes()),
		passedDuration: histogram("meshpulse_metricsapi_passed_duration_seconds", "How long requests took that were passed on to the adapter of --fallback.",
			.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 3),
		listFailed: counter("meshpulse_metricsapi_fallback_list_errors_total", "Times that the adapter of --fallback did not tell what metrics it has: discovery lists those that it told last."),
		hpas:       gauge("meshpulse_metricsapi_hpas", "HPAs known."),
		queries:    gauge("meshpulse_metricsapi_queries", "Queries kept prepared for HPAs."),
		clockBehind: gauge("meshpulse_metricsapi_clock_behind_seconds", "Seconds by which the clock is behind the API server's, to half a second, as its newest answer tells. "+
			"Beyond 1 each deletion of a pod holds for a window."),
		refusedConnections: counter("meshpulse_metricsapi_refused_connections_total", "Connections to the HTTPS port that were closed since there were too many, those of who had the most."),
	}
}

// measureFreshness tells how long ago each of what is read from the API server was in step with it.
func measureFreshness(r prometheus.Registerer, all map[string]*cluster.Freshness) {
	for resource, f := range all {
		promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "meshpulse_metricsapi_watch_seconds_since_success",
			Help:        "Seconds since what is read from the API server was in step with it: 0 while a watch of it is open. Beyond 60 it is not believed, and replicas are not lowered.",
			ConstLabels: prometheus.Labels{"resource": resource},
		}, func() float64 { return f.Age().Seconds() })
	}
}

// measureEvents tells how many events wait to be created.
func measureEvents(r prometheus.Registerer, events *cluster.Events) {
	promauto.With(r).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshpulse_metricsapi_queued_events", Help: "Events that wait for the API server to take them.",
	}, func() float64 { return float64(events.Queued()) })
}

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
