package envoystats

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestWarningsOfAReasonAreBoundedAndTheRestIsCounted(t *testing.T) {
	now := time.Unix(0, 0)
	var log lockedBuffer
	w := &warnings{logger: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	lines := func(text string) int { return strings.Count(log.String(), text) }
	for i := range warningsPerMinute + 5 {
		w.warn("one", fmt.Sprint("pod-", i), "message of one")
	}
	w.warn("other", "", "message of other")
	if n := lines("message of one"); n != warningsPerMinute {
		t.Errorf("%d lines of one reason, want %d", n, warningsPerMinute)
	}
	if n := lines("message of other"); n != 1 {
		t.Errorf("%d lines of the other reason, want 1", n)
	}
	if lines("suppressed") > 0 {
		t.Errorf("suppressed too early:\n%s", &log)
	}
	now = now.Add(time.Minute)
	w.warn("one", "pod-20", "message of one")
	w.warn("one", "pod-21", "message of one")
	if n := lines("suppressed=5"); n != 1 {
		t.Errorf("suppressed lines told %d times, want once:\n%s", n, &log)
	}
}

func TestTheSameIsToldOfTheSameOnceAnHour(t *testing.T) {
	now := time.Unix(0, 0)
	var log lockedBuffer
	w := &warnings{logger: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	for range 720 { // an hour of flushes
		w.warn("limit", "test/flood", "message")
		now = now.Add(5 * time.Second)
	}
	if n := strings.Count(log.String(), "message"); n != 1 {
		t.Errorf("told %d times within an hour", n)
	}
	w.warn("limit", "test/flood", "message")
	if n := strings.Count(log.String(), "suppressed=719"); n != 1 {
		t.Errorf("after an hour:\n%s", &log)
	}
	for i := range 10 * maxTold {
		now = now.Add(10 * time.Second)
		w.warn("limit", fmt.Sprint(i), "another")
	}
	if n := len(w.reasons["limit"].told); n > maxTold {
		t.Errorf("%d subjects are remembered", n)
	}
}
