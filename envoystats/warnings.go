package envoystats

import (
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

const (
	// warningsPerMinute is how many lines a reason may write in a minute about one sender's pods of
	// one namespace. A fleet that does something wrong does it on every stream and at every flush.
	warningsPerMinute = 10
	// warningsOfAll is how many of a reason they may be together. Senders have shares of them, so
	// that none uses up another's line.
	warningsOfAll = 200
	// tellAgain is how long the same is not told of the same subject again: what meets a limit
	// meets it at every flush, and a stream that was ended for it comes back.
	tellAgain = time.Hour
	// maxTold bounds the subjects of a reason that are remembered; they are names that peers
	// choose.
	maxTold = 1000
)

// warnings logs what goes wrong with connections and streams, within bounds. It is safe for
// concurrent use.
type warnings struct {
	logger *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	reasons map[string]*warned // by reason, a closed set
}

type warned struct {
	since      time.Time
	shares     *aggregator.Shares // of warningsOfAll, by sender
	lines      map[string]int     // by sender and namespace
	suppressed int
	told       map[string]time.Time // by subject
}

// warn logs the message, unless it has been told of the subject ("" for the whole sink) or the
// reason has been logged often enough lately of its sender or in its namespace; how often it was
// not is told later.
func (w *warnings) warn(reason, sender, subject, message string, attrs ...any) {
	suppressed, ok := w.take(reason, sender, subject)
	if !ok {
		return
	}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	w.logger.Warn(message, append(attrs, slog.String("reason", reason))...)
}

func (w *warnings) take(reason, sender, subject string) (suppressed int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reasons == nil {
		w.reasons = make(map[string]*warned)
	}
	r, now := w.reasons[reason], w.now()
	if r == nil {
		r = &warned{told: make(map[string]time.Time)}
		w.reasons[reason] = r
	}
	if r.shares == nil || now.Sub(r.since) >= time.Minute {
		r.since, r.shares, r.lines = now, aggregator.NewShares(warningsOfAll, 1), map[string]int{}
	}
	whose := sender
	if namespace, _, ok := strings.Cut(subject, "/"); ok {
		whose += " " + namespace
	}
	at, told := r.told[subject]
	if told && now.Sub(at) < tellAgain || r.lines[whose] == warningsPerMinute || !r.shares.Take(sender, 1) {
		r.suppressed++
		return 0, false
	}
	if len(r.told) >= maxTold {
		clear(r.told)
	}
	r.told[subject] = now
	r.lines[whose]++
	suppressed, r.suppressed = r.suppressed, 0
	return suppressed, true
}
