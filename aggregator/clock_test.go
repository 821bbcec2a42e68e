package aggregator

import (
	"testing"
	"time"
	"unsafe"
)

// stepped returns a time as the runtime gives it when the wall clock has been set forward by whole seconds (or back) since
// the process started: the wall seconds lie above bit 30 of a time's first word, the monotonic reading stays as it is.
func stepped(t time.Time, seconds int64) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(seconds) << 30
	return t
}

func TestOwnClockMayStep(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	at := s.started.Add(10 * time.Second)
	if d := stepped(at, 3600).Sub(at); d != 0 { // the monotonic readings are equal
		t.Fatalf("the test does not step the wall clock: %s", d)
	}
	if d := stepped(at, 3600).Round(0).Sub(at.Round(0)); d != time.Hour {
		t.Fatalf("the wall clock stepped by %s", d)
	}
	for _, step := range []int64{0, 3600, -3600} {
		if got, want := s.millis(stepped(at, step)), s.started.UnixMilli()+10_000; got != want {
			t.Errorf("after a step of %d s a message that arrived 10 s after the start is at %d ms", step, got-s.started.UnixMilli())
		}
	}
}
