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

// Times of flushes every 5 s, as they were sent and as they arrived, in tenths of a second.
func TestRowTimes(t *testing.T) {
	type flush struct{ timestamp, arrival, want int64 }
	for name, flushes := range map[string][]flush{
		"in time":                                    {{1000, 11000, 11000}, {1050, 11050, 11050}, {1100, 11120, 11100}, {1150, 11150, 11150}},
		"held up, then all at once":                  {{1000, 11000, 11000}, {1050, 11200, 11050}, {1100, 11200, 11100}, {1150, 11200, 11150}, {1200, 11200, 11200}, {1250, 11250, 11250}},
		"the clock is set back":                      {{1000, 11000, 11000}, {750, 11050, 11050}, {800, 11100, 11100}},
		"the clock is set forward":                   {{1000, 11000, 11000}, {1650, 11050, 11050}, {1700, 11100, 11100}},
		"set back while it was away":                 {{1000, 11000, 11000}, {1300, 11600, 11300}, {1350, 11650, 11650}, {1400, 11700, 11700}},
		"set back by less than a flush":              {{1000, 11000, 11000}, {1050, 11050, 11050}, {1051, 11100, 11100}, {1101, 11150, 11150}},
		"set back by a tenth of a flush and more":    {{1000, 11000, 11000}, {1050, 11050, 11050}, {1090, 11100, 11100}, {1140, 11150, 11150}},
		"set forward by less than a flush":           {{1000, 11000, 11000}, {1050, 11050, 11050}, {1149, 11100, 11100}, {1199, 11150, 11150}},
		"late by less than a flush":                  {{1000, 11000, 11000}, {1050, 11070, 11050}, {1100, 11100, 11100}},
		"late by less than a flush, again and again": {{1000, 11000, 11000}, {1050, 11070, 11050}, {1100, 11120, 11100}, {1150, 11170, 11150}, {1200, 11200, 11200}},
		"set back by less than a flush while it was away": {
			{1000, 11000, 11000}, {1080, 11120, 11080}, {1130, 11170, 11130}, {1180, 11220, 11180}, {1230, 11270, 11230}, {1280, 11320, 11280}, {1330, 11370, 11370}, {1380, 11420, 11420},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c rowClock
			for i, f := range flushes {
				if got, _, _ := c.row(f.timestamp*100, f.arrival*100, 5000, 5000); got != f.want*100 {
					t.Errorf("flush %d: %d ms, want %d", i, got, f.want*100)
				}
			}
		})
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
		if g := st.table.gap.Load(); g == nil || g.from != s.millis(last) || g.to != s.millis(at) || st.table.ring.gen.time(st.table.ring.row-1) != s.millis(at) {
			t.Errorf("silent from %d to %d, and the gap is %+v", s.millis(last), s.millis(at), g)
		}
		at = at.Add(5 * time.Second)
		last = at
		st.Close()
	}
}
