package envoystats

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const rate = 10 * messageCost
	var p pace
	now := time.Unix(1000, 0)
	for i := range 50 {
		if d := p.spend(now, 0, rate); d != 0 {
			t.Fatalf("message %d waits %v within the burst", i, d)
		}
	}
	if d := p.spend(now, 0, rate); d != 100*time.Millisecond {
		t.Errorf("the message beyond waits %v, want what it costs", d)
	}
	now = now.Add(100 * time.Millisecond)
	if d := p.spend(now, 9*messageCost, rate); d != time.Second {
		t.Errorf("a large one waits %v, want 1s", d)
	}
	if d := p.spend(now.Add(-time.Hour), 0, rate); d != 1100*time.Millisecond {
		t.Errorf("after a step of the clock: %v, want 1.1s", d)
	}
	if d := p.spend(now.Add(24*time.Hour), 49*messageCost, rate); d != 0 {
		t.Errorf("after a day: %v, want no wait", d)
	}
	if d := p.spend(now.Add(24*time.Hour), 0, rate); d != 100*time.Millisecond {
		t.Errorf("credit beyond a burst was kept: %v", d)
	}
}
