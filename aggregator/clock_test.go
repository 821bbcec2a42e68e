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

// Where the first message of a stream turns out to have come late, the gap before it ends when that was sent, as its row does.
func TestAGapEndsWhereARowMovesTo(t *testing.T) {
	s := mustStore(t)
	at := s.started
	flush := func(st *Stream, sent, came time.Time) {
		t.Helper()
		b := counters(sent, 1, 3)
		if err := st.Commit(came, b, numbered{batch: b}); err != nil {
			t.Fatal(err)
		}
	}
	pod := Pod{Namespace: "test", Name: "pod", FlushInterval: 5 * time.Second}
	st := s.Connect(pod)
	for range 6 {
		at = at.Add(5 * time.Second)
		flush(st, at, at)
	}
	st.Close()
	last := at
	for range 2 { // two gaps, both before rows that move
		at = at.Add(time.Minute)
		st = s.Connect(pod)
		flush(st, at, at.Add(3*time.Second))
		flush(st, at.Add(5*time.Second), at.Add(5*time.Second))
		if g := st.table.gap.Load(); g == nil || g.from != s.millis(last) || g.to != s.millis(at) || st.table.ring.Rows().Time(st.table.ring.Newest()-1) != s.millis(at) {
			t.Errorf("silent from %d to %d, and the gap is %+v", s.millis(last), s.millis(at), g)
		}
		at = at.Add(5 * time.Second)
		last = at
		st.Close()
	}
}
