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

// Times of flushes every 5 s, as they were sent and as they arrived.
func TestRowTimes(t *testing.T) {
	type flush struct{ timestamp, arrival, want int64 } // seconds
	for name, flushes := range map[string][]flush{
		"in time":                    {{100, 1100, 1100}, {105, 1105, 1105}, {110, 1112, 1110}, {115, 1115, 1115}},
		"held up, then all at once":  {{100, 1100, 1100}, {105, 1120, 1105}, {110, 1120, 1110}, {115, 1120, 1115}, {120, 1120, 1120}, {125, 1125, 1125}},
		"the clock is set back":      {{100, 1100, 1100}, {75, 1105, 1105}, {80, 1110, 1110}},
		"the clock is set forward":   {{100, 1100, 1100}, {165, 1105, 1105}, {170, 1110, 1110}},
		"set back while it was away": {{100, 1100, 1100}, {130, 1160, 1130}, {135, 1165, 1165}, {140, 1170, 1170}},
	} {
		t.Run(name, func(t *testing.T) {
			var c rowClock
			for i, f := range flushes {
				if got := c.row(f.timestamp*1000, f.arrival*1000, 5000); got != f.want*1000 {
					t.Errorf("flush %d: %d ms, want %d", i, got, f.want*1000)
				}
			}
		})
	}
}
