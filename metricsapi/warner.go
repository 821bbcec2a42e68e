package metricsapi

import (
	"log/slog"
	"sync"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// warner tells each problem of an HPA once.
type warner struct {
	deliver func(h hpas.HPA, p hpas.Problem)
	metrics *metrics

	mu   sync.Mutex
	told map[string]map[hpas.Problem]bool // by identity
}

func newWarner(deliver func(hpas.HPA, hpas.Problem), m *metrics) *warner {
	return &warner{deliver: deliver, metrics: m, told: map[string]map[hpas.Problem]bool{}}
}

func (w *warner) tell(h hpas.HPA, p hpas.Problem) {
	id := h.Identity()
	w.mu.Lock()
	known := w.told[id][p]
	if !known {
		if w.told[id] == nil {
			w.told[id] = map[hpas.Problem]bool{}
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
func (w *warner) forget(h hpas.HPA) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.told, h.Identity())
}

// logEvents delivers to the log, in standalone mode.
func logEvents(log *slog.Logger) func(hpas.HPA, hpas.Problem) {
	return func(h hpas.HPA, p hpas.Problem) {
		log.Warn("hpa event", "namespace", h.Namespace, "hpa", h.Name, "reason", p.Reason, "message", p.Message, "file", h.Path)
	}
}
