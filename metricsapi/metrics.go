package metricsapi

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
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
	raiseDelay prometheus.Histogram
	hpas       prometheus.Gauge
	queries    prometheus.Gauge
	// clockBehind is how many seconds our clock is behind the API server's.
	clockBehind prometheus.Gauge

	refusedConnections prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	m := &metrics{
		answers: f.NewCounterVec(prometheus.CounterOpts{
			Name: "meshpulse_metricsapi_answers_total",
			Help: "Requests for an external metric, and those for /debug/hpas that were refused, by what became of them.",
		}, []string{"outcome"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "meshpulse_metricsapi_answer_duration_seconds",
			Help:    "How long it took to find, evaluate and judge an answer.",
			Buckets: prometheus.ExponentialBuckets(1e-5, 4, 10), // 10 us to 2.6 s
		}),
		age: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "meshpulse_metricsapi_answer_age_seconds",
			Help:    "How old the newest sample of an answer was.",
			Buckets: []float64{.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 30, 60, 300},
		}),
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "meshpulse_metricsapi_events_total",
			Help: "Warning events on HPAs, by reason.",
		}, []string{"reason"}),
		fileErrors: f.NewCounter(prometheus.CounterOpts{
			Name: "meshpulse_metricsapi_file_errors_total",
			Help: "HPA files that could not be read (standalone).",
		}),
		held: f.NewCounter(prometheus.CounterOpts{
			Name: "meshpulse_metricsapi_held_answers_total",
			Help: "Answers that keep the replicas as they are, since what is known is incomplete and what is seen asks for fewer.",
		}),
		surged: f.NewCounter(prometheus.CounterOpts{
			Name: "meshpulse_metricsapi_surge_answers_total",
			Help: "Answers that a surge has raised above what the expression gives.",
		}),
		raises: f.NewCounterVec(prometheus.CounterOpts{
			Name: "meshpulse_metricsapi_surge_raises_total",
			Help: "Raises of targets at surges, by what became of them.",
		}, []string{"outcome"}),
		raiseDelay: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "meshpulse_metricsapi_surge_raise_delay_seconds",
			Help:    "Time from the newest flush that a raise stands on until the target was raised.",
			Buckets: []float64{.01, .02, .05, .1, .2, .5, 1, 2, 5},
		}),
		hpas: f.NewGauge(prometheus.GaugeOpts{
			Name: "meshpulse_metricsapi_hpas",
			Help: "HPAs known.",
		}),
		queries: f.NewGauge(prometheus.GaugeOpts{
			Name: "meshpulse_metricsapi_queries",
			Help: "Queries kept prepared for HPAs.",
		}),
		clockBehind: f.NewGauge(prometheus.GaugeOpts{
			Name: "meshpulse_metricsapi_clock_behind_seconds",
			Help: "Seconds by which the clock is behind the API server's, to half a second, as its newest answer tells. Beyond 1 each deletion of a pod holds for a window.",
		}),
		refusedConnections: f.NewCounter(prometheus.CounterOpts{
			Name: "meshpulse_metricsapi_refused_connections_total",
			Help: "Connections to the HTTPS port that were closed since there were too many, those of who had the most.",
		}),
	}
	for _, outcome := range raiseOutcomes() {
		m.raises.WithLabelValues(outcome) // at 0, so that the first of each is an increase
	}
	for _, outcome := range outcomes() {
		m.answers.WithLabelValues(outcome)
	}
	return m
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
