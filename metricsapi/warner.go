package metricsapi

import (
	"log/slog"
	"sync"
)

// warner tells each problem of an HPA once.
type warner struct {
	deliver func(h sourceHPA, p Problem)
	metrics *metrics

	mu   sync.Mutex
	told map[string]map[Problem]bool // by identity
}

func newWarner(deliver func(sourceHPA, Problem), m *metrics) *warner {
	return &warner{deliver: deliver, metrics: m, told: map[string]map[Problem]bool{}}
}

func (w *warner) tell(h sourceHPA, p Problem) {
	id := h.identity()
	w.mu.Lock()
	known := w.told[id][p]
	if !known {
		if w.told[id] == nil {
			w.told[id] = map[Problem]bool{}
		}
		w.told[id][p] = true
	}
	w.mu.Unlock()
	if !known {
		w.metrics.events.WithLabelValues(p.Reason).Inc()
		w.deliver(h, p)
	}
}

// forget drops what is known of an HPA that is gone.
func (w *warner) forget(h sourceHPA) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.told, h.identity())
}

// logEvents delivers to the log, in standalone mode.
func logEvents(log *slog.Logger) func(sourceHPA, Problem) {
	return func(h sourceHPA, p Problem) {
		log.Warn("hpa event", "namespace", h.Namespace, "hpa", h.Name, "reason", p.Reason, "message", p.Message, "file", h.path)
	}
}
