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
		w.warn("one", "10.0.0.1", fmt.Sprint("pod-", i), "message of one")
	}
	w.warn("other", "10.0.0.1", "", "message of other")
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
	w.warn("one", "10.0.0.1", "pod-20", "message of one")
	w.warn("one", "10.0.0.1", "pod-21", "message of one")
	if n := lines("suppressed=5"); n != 1 {
		t.Errorf("suppressed lines told %d times, want once:\n%s", n, &log)
	}
}

func TestTheSameIsToldOfTheSameOnceAnHour(t *testing.T) {
	now := time.Unix(0, 0)
	var log lockedBuffer
	w := &warnings{logger: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	for range 720 { // an hour of flushes
		w.warn("limit", "10.0.0.1", "test/flood", "message")
		now = now.Add(5 * time.Second)
	}
	if n := strings.Count(log.String(), "message"); n != 1 {
		t.Errorf("told %d times within an hour", n)
	}
	w.warn("limit", "10.0.0.1", "test/flood", "message")
	if n := strings.Count(log.String(), "suppressed=719"); n != 1 {
		t.Errorf("after an hour:\n%s", &log)
	}
	for i := range 10 * maxTold {
		now = now.Add(10 * time.Second)
		w.warn("limit", "10.0.0.1", fmt.Sprint(i), "another")
	}
	if n := len(w.reasons["limit"].told); n > maxTold {
		t.Errorf("%d subjects are remembered", n)
	}
}

// Whoever writes most lines does not take the line of somebody else's trouble.
func TestAFloodOfWarningsLeavesALineForOthers(t *testing.T) {
	for name, flood := range map[string]func(i int) (sender, subject string){
		"names of one namespace":   func(i int) (string, string) { return "10.0.0.66", fmt.Sprint("evil/pod-", i) },
		"names of many":            func(i int) (string, string) { return "10.0.0.66", fmt.Sprintf("evil-%d/pod", i) },
		"many addresses":           func(i int) (string, string) { return fmt.Sprint("10.0.1.", i%40), fmt.Sprint("evil/pod-", i) },
		"the same address":         func(i int) (string, string) { return "10.0.0.1", fmt.Sprint("evil/pod-", i) },
		"streams that name nobody": func(i int) (string, string) { return "10.0.0.66", "10.0.0.66" },
	} {
		var log lockedBuffer
		w := &warnings{logger: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return time.Unix(0, 0) }}
		for i := range 1000 {
			sender, subject := flood(i)
			w.warn("limit", sender, subject, "flood")
		}
		w.warn("limit", "10.0.0.1", "shop/cart-0", "victim")
		if !strings.Contains(log.String(), "victim") {
			t.Errorf("%s: the victim's line is missing", name)
		}
		if n := strings.Count(log.String(), "flood"); n > warningsOfAll {
			t.Errorf("%s: %d lines", name, n)
		}
	}
}
