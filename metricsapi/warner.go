package metricsapi

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// warner tells each problem of an HPA for as long as it lasts: at once, again and again, so that
// its event does not vanish, and anew when it comes back after its end.
type warner struct {
	deliver func(h hpas.HPA, p hpas.Problem) // nil: nobody is told
	metrics *metrics
	now     func() time.Time

	mu   sync.Mutex
	told map[string]map[hpas.Problem]*standing // by identity
}

// standing is a problem that lasts.
type standing struct {
	told time.Time // when it was delivered last
	seen time.Time // when it was last found
}

const (
	// renewEvery is how often an event is renewed: API servers keep one for an hour after that,
	// unless they are told otherwise (--event-ttl).
	renewEvery = 10 * time.Minute
	// endsAfter is how long a problem has not been found once it has ended: twenty looks of a
	// controller.
	endsAfter = 5 * time.Minute
	// sweepEvery is how often problems are gone through: those that an HPA alone shows are found
	// anew, and those that have ended are forgotten.
	sweepEvery = time.Minute
)

func newWarner(deliver func(h hpas.HPA, p hpas.Problem), m *metrics) *warner {
	return &warner{deliver: deliver, metrics: m, now: time.Now, told: map[string]map[hpas.Problem]*standing{}}
}

// tell is called each time that a problem is found.
func (w *warner) tell(h hpas.HPA, p hpas.Problem) {
	if w.deliver == nil {
		return
	}
	id, now := h.Identity(), w.now()
	w.mu.Lock()
	s := w.told[id][p]
	begins := s == nil
	if begins {
		if w.told[id] == nil {
			w.told[id] = map[hpas.Problem]*standing{}
		}
		s = &standing{}
		w.told[id][p] = s
	}
	s.seen = now
	due := begins || now.Sub(s.told) >= renewEvery
	if due {
		s.told = now
	}
	w.mu.Unlock()
	if begins {
		w.metrics.events.WithLabelValues(p.Reason).Inc()
	}
	if due {
		w.deliver(h, p)
	}
}

// end forgets the problems that have not been found for a while.
func (w *warner) end() {
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, problems := range w.told {
		for p, s := range problems {
			if now.Sub(s.seen) >= endsAfter {
				delete(problems, p)
			}
		}
		if len(problems) == 0 {
			delete(w.told, id)
		}
	}
}

// forget drops what is known of an HPA that is gone.
func (w *warner) forget(h hpas.HPA) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.told, h.Identity())
}

// keepTelling renews what the HPAs alone show, and forgets what has ended, until the context ends.
func (c *catalog) keepTelling(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, h := range c.current.Load().hpas {
			for _, p := range h.problems {
				c.warn.tell(h.HPA, p)
			}
		}
		c.warn.end()
	}
}

// logEvents delivers to the log, in standalone mode.
func logEvents(log *slog.Logger) func(hpas.HPA, hpas.Problem) {
	return func(h hpas.HPA, p hpas.Problem) {
		log.Warn("hpa event", "namespace", h.Namespace, "hpa", h.Name, "reason", p.Reason, "message", p.Message, "file", h.Path)
	}
}
