package aggregator

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the store's own: meshpulse_store_* and meshpulse_query_*.
type metrics struct {
	shrunk                                                              prometheus.Counter
	rows, shared, resets, grown, rebounded, unpaired, surges, contested prometheus.Counter
	ambiguous, contradicted                                             prometheus.Counter
	dropped                                                             map[error]prometheus.Counter
	addresses                                                           *prometheus.CounterVec
	evaluations, faults                                                 *prometheus.CounterVec
	seconds                                                             prometheus.Histogram
	driven, foreign                                                     prometheus.Counter
}

// dropReasons are the label values of meshpulse_store_dropped_samples_total.
var dropReasons = map[error]string{
	ErrSuperseded:  "superseded",
	ErrDuplicate:   "duplicate",
	ErrPods:        "pods",
	ErrSeriesLimit: "series_limit",
	ErrPodLimit:    "pod_series_limit",
	ErrMemory:      "memory_budget",
	ErrBadSeries:   "bad_series",
	ErrSetAside:    "set_aside",
	ErrOtherFlush:  "other_flush",
	ErrAddress:     "address",
	ErrIdentity:    "identity",
	ErrDowngrade:   "downgrade",
	ErrForeignPod:  "foreign_pod",
}

func newMetrics(reg prometheus.Registerer, s *store) (*metrics, error) {
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		all = append(all, c)
		return c
	}
	vec := func(name, label, help string, values ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, value := range values { // at 0, so that the first of each is an increase
			c.WithLabelValues(value)
		}
		all = append(all, c)
		return c
	}
	gauge := func(name, help string, f func() float64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	m := &metrics{
		rows:      counter("meshpulse_store_rows_total", "Flushes that became a row of a pod's table."),
		shared:    counter("meshpulse_store_shared_rows_total", "Flushes that shared a row with the next one: they came faster than rows are kept."),
		shrunk:    counter("meshpulse_store_rings_shrunk_total", "Rings that gave up rows beyond the retention, which HPAs' share of the memory did not suffice for."),
		resets:    counter("meshpulse_store_counter_resets_total", "Counters that fell: restarts and evictions of sidecars."),
		grown:     counter("meshpulse_store_rings_grown_total", "Rings that were doubled because rows came faster or a query reaches further back."),
		rebounded: counter("meshpulse_store_histograms_rebounded_total", "Histograms whose bounds changed; what they held before is given up."),
		unpaired:  counter("meshpulse_store_pairs_given_up_total", "Request counters whose duration histogram does not count the same."),
		contested: counter("meshpulse_store_contested_messages_total", "Messages that came while two streams of no different proof sent as one pod, whose rows may be of either."),
		ambiguous: counter("meshpulse_store_ambiguous_returns_total", "Counters without a histogram that came back above their last value when their sidecar's eviction "+
			"interval was not known: counted as if they had gone on, the smaller of two readings."),
		contradicted: counter("meshpulse_store_contradicted_counters_total", "Steps of request counters that their duration histograms contradict: the histogram's count was taken."),
		foreign:      counter("meshpulse_store_foreign_pods_total", "Pods of which nothing is taken, or what they had sent was given up, since the cluster does not know them."),
		surges:       counter("meshpulse_query_surges_total", "Surges that were told, of all queries that are watched for them."),
		evaluations:  vec("meshpulse_query_evaluations_total", "outcome", "Evaluated expressions by outcome.", "ok", "error"),
		faults:       vec("meshpulse_faults_total", "part", "Panics that were contained, by the part that they were in.", faultParts...),
		addresses: vec("meshpulse_store_stream_addresses_total", "whose", "Streams by whose their address was found to be: the pod's own, another pod's, with which they are refused, "+
			"or nobody's that is known. One is counted again when that changes.", addressOwn, addressOther, addressNobodys),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meshpulse_query_duration_seconds", Help: "Time to evaluate an expression.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
		}),
		driven:  counter("meshpulse_query_driven_evaluations_total", "Evaluations that committed rows have asked for: of queries that an HPA acts on."),
		dropped: map[error]prometheus.Counter{},
	}
	dropped := vec("meshpulse_store_dropped_samples_total", "reason", "Samples that the store did not keep, by reason.")
	for err, reason := range dropReasons {
		m.dropped[err] = dropped.WithLabelValues(reason)
	}
	gauge("meshpulse_store_pods", "Pods with a table.", func() float64 { return float64(s.tables.count()) })
	gauge("meshpulse_store_series", "Series in memory; a histogram is one.", func() float64 { return float64(s.series.Taken()) })
	gauge("meshpulse_store_memory_budget_bytes", "Bytes past which new series are refused; 0 without a budget.", func() float64 { return float64(s.config.MemoryBudget) })
	gauge("meshpulse_store_memory_bytes", "What pods, series and their rows may take, rows that are yet to come included.", func() float64 { return float64(s.memory.Taken()) })
	gauge("meshpulse_store_retention_seconds", "How far back the rings reach, but where a query looks further.", func() float64 { return float64(s.retention) / 1000 })
	all = append(all, m.seconds)
	for _, c := range all {
		if reg == nil {
			break
		}
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("the store's own metrics cannot be registered: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) drop(err error, samples int) {
	if c := m.dropped[err]; c != nil { // a flood of refused series comes here for each sample
		c.Add(float64(samples))
		return
	}
	for reason, c := range m.dropped {
		if errors.Is(err, reason) {
			c.Add(float64(samples))
			return
		}
	}
}
