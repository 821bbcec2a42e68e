package aggregator

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// A row that is open stays so for the whole delay after its newest message, whenever a timer comes.
func TestARowIsClosedADelayAfterItsNewestMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		st := s.Connect(Pod{Namespace: "t", Name: "a"})
		message := func(key uint64) {
			b := counters(s.started, key, key+1)
			if err := st.Commit(time.Now(), b, numbered{batch: b}); err != nil {
				t.Fatal(err)
			}
		}
		open := func() bool {
			st.table.mu.Lock()
			defer st.table.mu.Unlock()
			return st.table.open
		}
		message(1)
		time.Sleep(rowCloseDelay - time.Millisecond)
		message(2)
		time.Sleep(2 * time.Millisecond)
		st.table.late() // a timer that fired while the second message was being taken
		if !open() {
			t.Error("the row is closed within the delay")
		}
		time.Sleep(rowCloseDelay)
		synctest.Wait()
		if open() {
			t.Error("the row is open after the delay")
		}
		st.Close()
	})
}

// A series is carried forward for a whole retention, a pod for two flushes more.
func TestWhatIsSilentIsKeptForAWholeRetention(t *testing.T) {
	const retention, flush = 10 * time.Second, 5 * time.Second
	s, err := New(Config{Retention: retention})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "t", Name: "a", FlushInterval: flush})
	now := s.started
	commit := func(to uint64) {
		b := counters(now, 1, to)
		if err := st.Commit(now, b, numbered{batch: b}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(flush)
	}
	for range 4 {
		commit(3)
	}
	for i, want := range []int{2, 2, 1} { // the second series was last sent a flush before, two, three
		commit(2)
		if n := len(st.table.columns); n != want {
			t.Errorf("%d series are kept %s after the second was last sent, want %d", n, time.Duration(i+1)*flush, want)
		}
	}
	st.Close()
	last := s.millis(now.Add(-flush))
	s.sweep(t.Context(), last+(retention+2*flush).Milliseconds())
	if st.table.removed {
		t.Error("the pod is freed within the retention and two flushes")
	}
	s.sweep(t.Context(), last+(retention+2*flush).Milliseconds()+1)
	if !st.table.removed {
		t.Error("the pod is kept for longer")
	}
}

// What selectors remember their place in keeps no table that is gone, and does not grow with the
// pods that were.
func TestTablesThatGoAreKeptByNothing(t *testing.T) {
	const generations, pods = 20, 30
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	stays := s.Connect(Pod{Namespace: "t", Name: "stays"})
	now := s.started
	for n := range generations {
		var streams []*Stream
		for i := range pods {
			streams = append(streams, s.Connect(Pod{Namespace: "t", Name: fmt.Sprintf("%d-%d", n, i)}))
		}
		for _, st := range append(streams, stays) {
			b := counters(now, 1, 2)
			if err := st.Commit(now, b, numbered{batch: b}); err != nil {
				t.Fatal(err)
			}
		}
		for _, st := range streams {
			st.Close()
		}
		now = now.Add(time.Hour)
		b := counters(now, 1, 2)
		if err := stays.Commit(now, b, numbered{batch: b}); err != nil {
			t.Fatal(err)
		}
		s.sweep(t.Context(), s.millis(now))
		refs := s.tables.log.Load().all()
		if len(refs) > 2*(1+pods)+64+1 {
			t.Fatalf("%d places are kept after %d generations of %d pods", len(refs), n+1, pods)
		}
		live := 0
		for _, ref := range refs {
			if table := ref.table.Load(); table != nil {
				if live++; table != stays.table {
					t.Errorf("the table of %s is kept", table.pod.Load().Name)
				}
			}
		}
		if live != 1 {
			t.Errorf("%d tables are in the log, want the one that stays", live)
		}
	}
}

// The row that the writer overwrites next is not taken: what is read of a row is looked up after
// its time.
func TestTheSurgesReaderLosesNoRowToTheNextFlush(t *testing.T) {
	s, err := New(Config{Retention: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p := &steady{t: t, store: s, stream: s.Connect(Pod{Namespace: "t", Name: "a", FlushInterval: 5 * time.Second}), now: s.started}
	q := p.register("sum(rate(istio_requests_total[10s]))")
	p.flush(20, 10)
	rows := newSurgeRows(s, q.surge)
	rows.pass++
	st := rows.enter(p.stream.table, func(int, int64) {})
	p.flush(1, 10)
	column := p.stream.table.columns[0]
	got := rows.increases(st, column, viewCounter, false)
	if len(got) < 2 {
		t.Fatalf("%d rows", len(got))
	}
	for i, n := range got {
		if n != 50 {
			t.Errorf("row %d of %d rose by %v, want 50", i+1, len(got), n)
		}
	}
}

// A flush of chance is taken for a surge once in 3e8 tests of five seconds, whatever is tested:
// half of that for each of two lengths.
func TestASurgeIsToldOnceChanceIsRuledOut(t *testing.T) {
	told := func(requests float64) Surge {
		p := newSteady(t)
		q := p.register("sum(rate(istio_requests_total[1m]))")
		d, err := q.DetectSurges(SurgeConfig{})
		if err != nil {
			t.Fatal(err)
		}
		p.flush(240, 2)
		d.At(p.now)
		p.flush(1, requests/5)
		return d.At(p.now)
	}
	requests := 15.0
	for !told(requests).Active {
		if requests++; requests > 200 {
			t.Fatal("nothing is a surge")
		}
	}
	const limit = 3e-9 / 2
	if s := told(requests); s.Tail >= limit || s.Tail < limit/10 {
		t.Errorf("the first surge is %v requests in a flush where 10 are usual, of probability %.2g; want just below %.2g", requests, s.Tail, limit)
	}
}

// Whoever is asked for a query's pods at the moment at which one comes finds it, then or the next
// time.
func TestAPodIsThereBeforeSelectorsHaveItsPlace(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.Register(`sum(rate(istio_requests_total{destination_workload="w"}[1m]))`)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	could := func() int { return len(s.couldHave(q.selectors[0], nil)) }
	s.hook = func(at ring.Step) {
		if at == stepLogged {
			asked++
			could()
		}
	}
	for i := range 3 {
		s.Connect(Pod{Namespace: "t", Name: fmt.Sprint(i), Workload: "w"})
		if n := could(); n != i+1 || asked != i+1 {
			t.Errorf("%d pods are found, asked %d times as they came; want %d", n, asked, i+1)
		}
	}
}

// Two of a namespace may be freed before either is removed: one by the sweep, one by its own stream
// after a fault.
func TestTheLastTablesOfANamespaceMayGoTogether(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	var gone []*table
	for i := range 2 {
		tab := s.Connect(Pod{Namespace: "test", Name: fmt.Sprint(i)}).table
		tab.free()
		gone = append(gone, tab)
	}
	for _, tab := range gone {
		s.tables.remove(tab)
	}
	if n := len(s.tables.in("test")); n != 0 || s.tables.count() != 0 {
		t.Errorf("%d tables are left", n)
	}
}

// Rows of a first flush that comes in many messages overwrite its beginning where the ring may not
// grow. Times of rows grow all the same.
func TestAFirstFlushMayOverwriteItsBeginning(t *testing.T) {
	for rows := range 2 * firstSlots {
		s, err := New(Config{MemoryBudget: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		st := s.Connect(Pod{Namespace: "test", Name: "pod"})
		s.memory.Outside(1 << 20)
		began := s.started.Add(20 * time.Second)
		for i := range rows + 1 {
			_ = st.Commit(began.Add(time.Duration(i)*10*time.Millisecond), &Batch{Timestamp: began.UnixMilli()}, nil)
			st.table.closeRow()
		}
		_ = st.Commit(began.Add(time.Second), &Batch{Timestamp: began.Add(5 * time.Second).UnixMilli()}, nil)
		g := st.table.ring.Rows()
		for row := g.First() + 1; row <= st.table.ring.Newest(); row++ {
			if g.Time(row) <= g.Time(row-1) {
				t.Errorf("%d rows: row %d at %d, the one before at %d", rows, row, g.Time(row), g.Time(row-1))
			}
		}
	}
}
