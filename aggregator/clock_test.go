package aggregator

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// stepped returns a time as the runtime gives it when the wall clock has been set forward by whole
// seconds (or back) since the process started: the wall seconds lie above bit 30 of a time's first
// word, the monotonic reading stays as it is.
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

// Where the first message of a stream turns out to have come late, the gap before it ends when that
// was sent, as its row does.
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

// Flushes are held up on their way, and meanwhile the sidecar's clock is set. Once they have come,
// rows are as far apart as the flushes were sent, and no rate is more than what was sent.
func TestAClockIsSetWhileFlushesAreHeldUp(t *testing.T) {
	for _, flush := range []time.Duration{time.Second, 5 * time.Second} {
		for _, before := range []int{0, 10, 100} { // flushes of the stream that came in time
			for _, set := range []time.Duration{-3 * time.Minute, -25 * time.Second, -7 * time.Second, 7 * time.Second, 10 * time.Second, 23 * time.Second, 31 * time.Second, 3 * time.Minute} {
				for _, at := range []int{0, 1, 2, 5, 9} { // so many flushes later
					for _, again := range []time.Duration{0, 40 * time.Second, -40 * time.Second} {
						t.Run(fmt.Sprint(flush, " ", before, " ", set, " ", at, " ", again), func(t *testing.T) { setWhileHeldUp(t, flush, before, set, again, at) })
					}
				}
			}
		}
	}
}

func setWhileHeldUp(t *testing.T, flush time.Duration, before int, set, again time.Duration, setAt int) {
	const held, after, each = 10, 30, 100 // flushes, and requests in each
	s := mustStore(t)
	q, err := s.Query("sum(rate(istio_requests_total[1m]))")
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "pod", FlushInterval: flush})
	began := s.started.Add(10 * time.Minute)
	end := began.Add(time.Duration(before+held) * flush)
	for i := range before + held + after {
		sent := began.Add(time.Duration(i+1) * flush)
		came, stamp := sent, sent
		if i >= before && came.Before(end) {
			came = end
		}
		if i >= before+setAt {
			stamp = stamp.Add(set)
		}
		if i >= before+setAt+3 && setAt+3 < held {
			stamp = stamp.Add(again)
		}
		b := &Batch{Timestamp: stamp.UnixMilli()}
		b.Samples = []Sample{{Key: 1, Timestamp: b.Timestamp, Kind: Counter, Value: float64(each * (i + 1))}}
		if err := st.Commit(came, b, described{named(requestsName, labels.EmptyLabels())}); err != nil {
			t.Fatal(err)
		}
		if i < before+held-1 {
			continue
		}
		a, err := q.Eval(t.Context(), came)
		if err != nil {
			t.Fatal(err)
		}
		truth := each / flush.Seconds()
		if len(a.Values) == 1 && a.Values[0].V > 1.1*truth {
			t.Errorf("flush %d: %.1f/s, and %.1f/s were sent", i, a.Values[0].V, truth)
		}
	}
	g, newest := st.table.gen.Load(), st.table.ring.Newest()
	for i := range held + after - 1 { // of the first row of all nothing tells when the one before it was sent
		row, sent := newest-ring.Row(i), s.millis(began.Add(time.Duration(before+held+after-i)*flush))
		if off := g.Time(row) - sent; max(off, -off) > flush.Milliseconds() {
			t.Errorf("row %d is %d ms after it was sent", row, off)
		}
	}
}
