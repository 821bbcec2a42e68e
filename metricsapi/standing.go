package metricsapi

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshpulse/meshpulse/aggregator"
)

// standingTroubles are gauges of what is wrong now, by namespace and no finer: how many HPAs there
// are is nothing for a label, and meshpulse top has their names.
type standingTroubles struct {
	history *history
	store   *aggregator.Store // nil: nobody proves who he is
	now     func() time.Time

	held, mute, unproven *prometheus.Desc
}

// maxNamespaces bounds the namespaces of a gauge. What is of others is added up without a name:
// those with least.
const maxNamespaces = 100

func newStandingTroubles(h *history, store *aggregator.Store, now func() time.Time) *standingTroubles {
	gauge := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"namespace"}, nil)
	}
	return &standingTroubles{
		history: h, store: store, now: now,
		held:     gauge("meshpulse_metricsapi_held_hpas", "HPAs with a metric whose newest answer, of the last minute, keeps the replicas."),
		mute:     gauge("meshpulse_metricsapi_mute_sidecars", "Sidecars that HPAs mean and that have not been heard of for longer than --hold. One that several HPAs mean counts for each."),
		unproven: gauge("meshpulse_metricsapi_unproven_pods", "Pods that report and have not shown with a certificate who they are."),
	}
}

// Describe and Collect make it a prometheus.Collector.
func (s *standingTroubles) Describe(all chan<- *prometheus.Desc) {
	all <- s.held
	all <- s.mute
	all <- s.unproven
}

// Collect sends the gauges as of now.
func (s *standingTroubles) Collect(all chan<- prometheus.Metric) {
	at := s.now()
	held, mute := s.history.standing(at)
	send(all, s.held, held)
	send(all, s.mute, mute)
	if s.store != nil {
		send(all, s.unproven, s.store.Unproven(at))
	}
}

// send sends counts, the largest by their namespaces and the rest as one without.
func send(all chan<- prometheus.Metric, of *prometheus.Desc, counts map[string]int) {
	type count struct {
		namespace string
		n         int
	}
	var sorted []count
	for namespace, n := range counts {
		sorted = append(sorted, count{namespace, n})
	}
	slices.SortFunc(sorted, func(a, b count) int { return cmp.Or(b.n-a.n, cmp.Compare(a.namespace, b.namespace)) })
	rest := 0
	for i, c := range sorted {
		if i >= maxNamespaces {
			rest += c.n
			continue
		}
		all <- prometheus.MustNewConstMetric(of, prometheus.GaugeValue, float64(c.n), c.namespace)
	}
	if rest > 0 || len(sorted) == 0 { // at 0 where there is none
		all <- prometheus.MustNewConstMetric(of, prometheus.GaugeValue, float64(rest), "")
	}
}
