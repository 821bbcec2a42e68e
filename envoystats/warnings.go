package envoystats

import (
	"log/slog"
	"sync"
	"time"
)

const (
	// warningsPerMinute is how many lines a reason may write in a minute. A fleet that does something wrong does it on every
	// stream and at every flush.
	warningsPerMinute = 10
	// tellAgain is how long the same is not told of the same subject again: what meets a limit meets it at every flush, and a
	// stream that was ended for it comes back.
	tellAgain = time.Hour
	// maxTold bounds the subjects of a reason that are remembered; they are names that peers choose.
	maxTold = 1000
)

// warnings logs what goes wrong with connections and streams, within bounds. It is safe for concurrent use.
type warnings struct {
	logger *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	reasons map[string]*warned // by reason, a closed set
}

type warned struct {
	since             time.Time
	lines, suppressed int
	told              map[string]time.Time // by subject
}

// warn logs the message, unless it has been told of the subject ("" for the whole sink) or the reason has been logged often
// enough lately; how often it was not is told later.
func (w *warnings) warn(reason, subject, message string, attrs ...any) {
	suppressed, ok := w.take(reason, subject)
	if !ok {
		return
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	w.logger.Warn(message, append(attrs, slog.String("reason", reason))...)
}

func (w *warnings) take(reason, subject string) (suppressed int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reasons == nil {
		w.reasons = make(map[string]*warned)
	}
	r, now := w.reasons[reason], w.now()
	if r == nil {
		r = &warned{since: now, told: make(map[string]time.Time)}
		w.reasons[reason] = r
	}
	if now.Sub(r.since) >= time.Minute {
		r.since, r.lines = now, 0
	}
	if at, told := r.told[subject]; told && now.Sub(at) < tellAgain || r.lines == warningsPerMinute {
		r.suppressed++
		return 0, false
	}
	if len(r.told) >= maxTold {
		clear(r.told)
	}
	r.told[subject] = now
	r.lines++
	suppressed, r.suppressed = r.suppressed, 0
	return suppressed, true
}
