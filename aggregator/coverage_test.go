package aggregator

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// podSends commits a flush without samples at each of the times since the store's start.
func podSends(s *Store, pod string, at ...time.Duration) {
	st := s.Connect(Pod{Namespace: "test", Name: pod, FlushInterval: 5 * time.Second})
	for _, d := range at {
		arrival := s.started.Add(d)
		if err := st.Commit(arrival, &Batch{Timestamp: arrival.UnixMilli()}, nil); err != nil {
			panic(err)
		}
	}
	st.Close()
}

func TestPodState(t *testing.T) {
	s, err := New(Config{Retention: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	after := func(d time.Duration) time.Time { return time.UnixMilli(s.started.UnixMilli() + d.Milliseconds()) }
	podSends(s, "a", 5*time.Second, 10*time.Second, 60*time.Second)

	p := s.Pod("test", "a", s.started.Add(65*time.Second), time.Minute)
	if !p.Reporting || !p.Whole || !p.Oldest.Equal(after(0)) || !p.Newest.Equal(after(time.Minute)) {
		t.Errorf("got %+v, want it reporting, whole, from 0s to 1m", p)
	}
	if !p.GapFrom.Equal(after(10*time.Second)) || !p.GapTo.Equal(after(time.Minute)) {
		t.Errorf("gap from %s to %s, want 10s to 1m", p.GapFrom, p.GapTo)
	}
	if p := s.Pod("test", "a", s.started.Add(3*time.Minute), time.Minute); p.Reporting || !p.GapTo.IsZero() {
		t.Errorf("got %+v, want it silent, and the gap out of the window", p)
	}

	// Freed, it is silent since its last row, not unknown; and when it is back, that was a gap.
	s.sweep(t.Context(), s.millis(s.started.Add(4*time.Minute)))
	if p := s.Pod("test", "a", s.started.Add(4*time.Minute), time.Minute); p.Reporting || !p.Newest.Equal(after(time.Minute)) {
		t.Errorf("got %+v after it was freed, want it silent since 1m", p)
	}
	podSends(s, "a", 5*time.Minute)
	if p := s.Pod("test", "a", s.started.Add(5*time.Minute), time.Minute); !p.Reporting || !p.GapFrom.Equal(after(time.Minute)) {
		t.Errorf("got %+v, want it reporting after a gap since 1m", p)
	}
	if p := s.Pod("test", "b", s.started.Add(time.Minute), time.Minute); !p.Newest.IsZero() {
		t.Errorf("got %+v of a pod that never reported", p)
	}
}

// A prepared selector keeps its pods as the log of tables grows; it has to find what one that asks
// every pod finds.
func TestPreparedSelectorsFindEveryPod(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	const expr = `sum(rate(istio_requests_total{reporter="destination",destination_workload="w-%d",destination_workload_namespace="test"}[1m]))`
	var prepared, fresh []*Query
	for i := range 3 {
		p, err := s.Register(fmt.Sprintf(expr, i))
		if err != nil {
			t.Fatal(err)
		}
		f, err := s.Query(fmt.Sprintf(expr, i))
		if err != nil {
			t.Fatal(err)
		}
		prepared, fresh = append(prepared, p), append(fresh, f)
	}
	r := rand.New(rand.NewPCG(1, 2))
	streams := map[string]*Stream{}
	for range 2000 {
		name := fmt.Sprintf("pod-%d", r.IntN(60))
		if st := streams[name]; st != nil && r.IntN(2) == 0 {
			st.Close()
			st.table.mu.Lock()
			st.table.free()
			st.table.mu.Unlock()
			s.tables.remove(st.table)
			delete(streams, name)
		} else { // comes, or comes back, and may be of another workload
			streams[name] = s.Connect(Pod{Namespace: []string{"test", "other"}[r.IntN(2)*r.IntN(2)], Name: name, Workload: fmt.Sprintf("w-%d", r.IntN(4))})
		}
		i := r.IntN(3)
		want, got := s.couldHave(fresh[i].selectors[0], nil), s.couldHave(prepared[i].selectors[0], nil)
		byNumber := func(a, b *table) int { return cmp.Compare(a.number, b.number) }
		slices.SortFunc(want, byNumber)
		slices.SortFunc(got, byNumber)
		if !slices.Equal(want, got) {
			t.Fatalf("%d pods of workload %d, want %d", len(got), i, len(want))
		}
	}
	if n, live := len(s.tables.log.Load().all()), len(s.tables.all.all()); n > 2*live+64 {
		t.Errorf("the log holds %d tables of %d", n, live)
	}
}

// More than two flushes without a row are a gap; what is known of the pod has a hole as long as
// that.
func TestMoreThanTwoFlushesWithoutARowAreAGap(t *testing.T) {
	for missing, gap := range map[time.Duration]bool{9900 * time.Millisecond: false, 10100 * time.Millisecond: true, 14 * time.Second: true} {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		st := s.Connect(Pod{Namespace: "test", Name: "pod"})
		at := s.started
		for range 4 {
			at = at.Add(5 * time.Second)
			commitEmpty(t, st, at)
		}
		before := at
		at = at.Add(missing)
		commitEmpty(t, st, at)
		st.Close()
		p := s.Pod("test", "pod", at, time.Minute)
		if gap != !p.GapTo.IsZero() {
			t.Errorf("%s without a row: the gap ends at %v", missing, p.GapTo)
		}
		if gap && (p.GapFrom.UnixMilli() != before.UnixMilli() || p.GapTo.UnixMilli() != at.UnixMilli()) {
			t.Errorf("%s without a row: the gap is %v to %v, want %v to %v", missing, p.GapFrom, p.GapTo, before, at)
		}
	}
}

// lateSettler is a sidecar that flushes every 15 s and tells nothing of it. Its first flush is
// followed by those of another connection, at 150 s and after.
func lateSettler(t *testing.T, flushes int) PodState {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "pod"})
	commitEmpty(t, st, s.started.Add(15*time.Second))
	st.Close()
	st = s.Connect(Pod{Namespace: "test", Name: "pod"})
	at := s.started.Add(135 * time.Second)
	for range flushes {
		at = at.Add(15 * time.Second)
		commitEmpty(t, st, at)
	}
	st.Close()
	return s.Pod("test", "pod", at, 5*time.Minute)
}

// What is taken for a gap before the flush interval is known, and is none, does not hide the one
// before it.
func TestAGapStaysWhereTheNextIsNone(t *testing.T) {
	for flushes := 1; flushes < 5; flushes++ {
		if p := lateSettler(t, flushes); flushes != 2 && p.GapTo.Sub(p.GapFrom) != 135*time.Second {
			t.Errorf("after %d flushes: the gap is %v to %v, want 135 s", flushes, p.GapFrom, p.GapTo)
		} else if p.GapTo.IsZero() {
			t.Errorf("after %d flushes there is no gap", flushes)
		}
	}
}

// The time between the flushes of two connections, in which others may have been lost, does not
// tell how long the first flush took.
func TestTwoStreamsDoNotMeasureTheFirstFlush(t *testing.T) {
	if p := lateSettler(t, 1); !p.Single {
		t.Errorf("got %+v, want it not to be known how long the first flush took", p)
	}
	if p := lateSettler(t, 2); p.Single || p.GapTo.Sub(p.Oldest) != 165*time.Second {
		t.Errorf("got %+v, want the first flush to have taken 15 s", p)
	}
}

func commitEmpty(t *testing.T, st *Stream, at time.Time) {
	t.Helper()
	if err := st.Commit(at, &Batch{Timestamp: at.UnixMilli()}, described(nil)); err != nil {
		t.Fatal(err)
	}
}
