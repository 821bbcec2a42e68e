package envoystats

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestWarningsOfAReasonAreBoundedAndTheRestIsCounted(t *testing.T) {
	now := time.Unix(0, 0)
	var log lockedBuffer
	w := &warnings{logger: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	for range warningsPerMinute + 5 {
		w.warn("one", "message of one", slog.Any("error", errors.New("x")))
	}
	w.warn("other", "message of other")
	if n := strings.Count(log.String(), "message of one"); n != warningsPerMinute {
		t.Errorf("%d lines of one reason, want %d", n, warningsPerMinute)
	}
	if n := strings.Count(log.String(), "message of other"); n != 1 {
		t.Errorf("%d lines of the other reason, want 1", n)
	}
	if strings.Contains(log.String(), "suppressed") {
		t.Errorf("suppressed too early:\n%s", &log)
	}
	now = now.Add(time.Minute)
	w.warn("one", "message of one")
	w.warn("one", "message of one")
	if n := strings.Count(log.String(), "suppressed=5"); n != 1 {
		t.Errorf("suppressed lines told %d times, want once:\n%s", n, &log)
	}
}
