package envoystats

import (
	"log/slog"
	"sync"
	"time"
)

// warningsPerMinute is how many lines a reason may write in a minute. A fleet that does something wrong does it on every
// stream and at every flush.
const warningsPerMinute = 10

// warnings logs what goes wrong with streams, within bounds. It is safe for concurrent use.
type warnings struct {
	logger *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	reasons map[string]*warned // by reason, a closed set
}

type warned struct {
	since             time.Time
	lines, suppressed int
}

// warn logs the message, unless the reason has been logged often enough lately; how often it was not is told later.
func (w *warnings) warn(reason, message string, attrs ...any) {
	suppressed, ok := w.take(reason)
	if !ok {
		return
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	w.logger.Warn(message, append(attrs, slog.String("reason", reason))...)
}

func (w *warnings) take(reason string) (suppressed int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reasons == nil {
		w.reasons = make(map[string]*warned)
	}
	r := w.reasons[reason]
	if now := w.now(); r == nil || now.Sub(r.since) >= time.Minute {
		if r != nil {
			suppressed = r.suppressed
		}
		r = &warned{since: now}
		w.reasons[reason] = r
	}
	if r.lines == warningsPerMinute {
		r.suppressed++
		return 0, false
	}
	r.lines++
	return suppressed, true
}
