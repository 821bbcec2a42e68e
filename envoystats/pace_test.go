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

func TestFramesTellDataFromTheRest(t *testing.T) {
	var b []byte
	frame := func(kind byte, n int) {
		b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, 0xff, 0, 0, 0, 1)
		b = append(b, make([]byte, n)...)
	}
	b = append(b, clientPreface...)
	for _, f := range []struct {
		kind byte
		n    int
	}{{4, 0}, {1, 50}, {0, 5}, {0, 70_000}, {8, 4}, {0, 0}, {6, 8}, {0, 1}} {
		frame(f.kind, f.n)
	}
	for _, step := range []int{1, 2, 7, 9, 100, 8192, len(b)} {
		f, n := frames{left: len(clientPreface)}, 0
		for i := 0; i < len(b); i += step {
			n += f.data(b[i:min(i+step, len(b))])
		}
		if n != 70_006 {
			t.Errorf("in pieces of %d: %d bytes of data, want 70006", step, n)
		}
	}
}
