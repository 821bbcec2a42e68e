package aggregator

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// rangesFleet are pods of two namespaces that flush every 5 s.
type rangesFleet struct {
	t       *testing.T
	s       *Store
	now     time.Time
	series  uint64
	streams map[string]*Stream // by namespace/name
	flushed int
}

func newRangesFleet(t *testing.T, budget int64, pods int, series uint64) *rangesFleet {
	s, err := New(Config{MemoryBudget: budget})
	if err != nil {
		t.Fatal(err)
	}
	s.liveHeap = func() uint64 { return 0 }
	f := &rangesFleet{t: t, s: s, now: s.started, series: series, streams: map[string]*Stream{}}
	for i := range pods {
		for _, namespace := range []string{"mine", "others"} {
			f.connect(namespace, fmt.Sprint("pod-", i))
		}
	}
	return f
}

func (f *rangesFleet) connect(namespace, name string) *Stream {
	key := namespace + "/" + name
	f.streams[key] = f.s.Connect(Pod{Namespace: namespace, Name: name, Sender: key})
	return f.streams[key]
}

func (f *rangesFleet) flush(times int) {
	f.t.Helper()
	for range times {
		f.now = f.now.Add(5 * time.Second)
		f.flushed++
		for key, st := range f.streams {
			b := counters(f.now, 1, 1+f.series)
			for i := range b.Samples {
				b.Samples[i].Value = 10 * float64(f.flushed)
			}
			if err := st.Commit(f.now, b, numbered{batch: b}); err != nil {
				f.t.Fatalf("%s, flush %d: %v", key, f.flushed, err)
			}
		}
		f.s.watchMemory()
	}
}

func (f *rangesFleet) slots(key string) int64 { return f.streams[key].table.ring.Slots() }

// rate checks that a query's rate is the fleet's, and that it is known over so much of its window.
func (f *rangesFleet) rate(expr string, pods int, covered time.Duration) {
	f.t.Helper()
	q, err := f.s.Query(expr)
	if err != nil {
		f.t.Fatal(err)
	}
	a, err := q.Eval(f.t.Context(), f.now)
	if err != nil || len(a.Values) != 1 {
		f.t.Fatalf("%s: %v, %v", expr, a.Values, err)
	}
	if want := 2 * float64(f.series) * float64(pods); a.Values[0].V < want*0.999 || a.Values[0].V > want*1.001 {
		f.t.Errorf("%s: %v, want %v", expr, a.Values[0].V, want)
	}
	if a.Covered < covered {
		f.t.Errorf("%s: %s are known, want %s", expr, a.Covered, covered)
	}
}

func TestALongRangeStretchesTheRingsThatItSelectsUntilItGoes(t *testing.T) {
	for name, expr := range map[string]string{
		"by who reports":  `sum(rate(istio_requests_total{namespace="mine"}[20m]))`,
		"by what matches": `sum(rate({__name__=~"istio_requests_.*",namespace="mine"}[20m]))`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newRangesFleet(t, 0, 2, 3)
			f.flush(100) // rings have wrapped
			q, err := f.s.RegisterFor("mine", expr)
			if err != nil {
				t.Fatal(err)
			}
			f.flush(300)
			if mine, others := f.slots("mine/pod-0"), f.slots("others/pod-0"); mine != 4*others {
				t.Errorf("%d and %d slots", mine, others)
			}
			f.rate(expr, 2, 20*time.Minute)
			f.connect("mine", "pod-new")
			f.connect("others", "pod-new")
			f.flush(300)
			if mine, others := f.slots("mine/pod-new"), f.slots("others/pod-new"); mine != 4*others {
				t.Errorf("new pods have %d and %d slots", mine, others)
			}
			if f.s.ranges.memory.Taken() == 0 {
				t.Error("nothing of it is counted")
			}
			q.Close()
			f.flush(1)
			if mine, others := f.slots("mine/pod-0"), f.slots("others/pod-0"); mine != others {
				t.Errorf("after it has gone there are %d slots, not %d", mine, others)
			}
			f.rate(`sum(rate(istio_requests_total{namespace="mine"}[5m]))`, 3, 5*time.Minute)
			f.flush(100)
			f.rate(`sum(rate(istio_requests_total{namespace="mine"}[5m]))`, 3, 5*time.Minute)
			if n := f.s.ranges.memory.Taken(); n != 0 {
				t.Errorf("%d bytes are still counted", n)
			}
		})
	}
}

func TestALongRangeThatSelectsNothingTakesNothing(t *testing.T) {
	f := newRangesFleet(t, 24<<20, 30, 100)
	q, err := f.s.RegisterFor("mine", `sum(rate(istio_requests_total{namespace="nowhere",destination_workload="none"}[1h]))`)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	f.flush(200)
	after := f.s.memory.Taken() + f.s.ranges.memory.Taken()
	f.connect("others", "new")
	f.flush(1)
	if more := f.s.memory.Taken() - after; more > after/30 {
		t.Errorf("a new pod takes %d bytes, all others %d", more, after)
	}
	if n := f.slots("others/pod-0"); n != 64 {
		t.Errorf("a ring has %d slots", n)
	}
}

func TestALongRangeThatDoesNotFitIsRefusedAndTakesNothing(t *testing.T) {
	const budget = 24 << 20
	f := newRangesFleet(t, budget, 30, 100)
	f.flush(100)
	taken := f.s.memory.Taken()
	_, err := f.s.RegisterFor("mine", `sum(rate(istio_requests_total[1h]))`)
	var refused *QueryError
	if !errors.As(err, &refused) || !refused.Later {
		t.Fatalf("error %v", err)
	}
	f.flush(1)
	for key := range f.streams {
		if n := f.slots(key); n != 64 {
			t.Errorf("%s has %d slots", key, n)
		}
	}
	if n := f.s.ranges.memory.Taken(); n != 0 || f.s.memory.Taken() != taken {
		t.Errorf("%d bytes are counted for it, %d for the pods that had %d", n, f.s.memory.Taken(), taken)
	}
	f.rate(`sum(rate(istio_requests_total[5m]))`, 60, 5*time.Minute)
	q, err := f.s.RegisterFor("others", `sum(rate(istio_requests_total{pod="pod-0"}[1h]))`)
	if err != nil {
		t.Fatalf("a range that fits, of another namespace: %v", err)
	}
	q.Close()
}

// Rows beyond the retention make way for the pods and series of everybody.
func TestLongRangesGiveWayToNewPods(t *testing.T) {
	const budget = 8 << 20
	fill := func(f *rangesFleet) (pods int) {
		for ; pods < 1000; pods++ {
			st := f.s.Connect(Pod{Namespace: "new", Name: fmt.Sprint(pods), Sender: fmt.Sprint(pods)})
			b := counters(f.now, 1, 101)
			if st.Commit(f.now, b, numbered{batch: b}) != nil {
				return pods
			}
		}
		return pods
	}
	without := newRangesFleet(t, budget, 5, 20)
	without.flush(100)
	want := fill(without)

	f := newRangesFleet(t, budget, 5, 20)
	f.flush(100)
	q, err := f.s.RegisterFor("mine", `sum(rate(istio_requests_total{namespace="mine"}[20m]))`)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	f.flush(10)
	if n := f.slots("mine/pod-0"); n != 256 {
		t.Fatalf("a ring has %d slots", n)
	}
	if got := fill(f); got != want {
		t.Errorf("%d new pods are taken, without the range %d", got, want)
	}
	f.s.watchMemory()
	f.flush(1)
	if n := f.slots("mine/pod-0"); n != 64 || testutil.ToFloat64(f.s.metrics.shrunk) == 0 {
		t.Errorf("a ring keeps %d slots while there is no room for others", n)
	}
	f.rate(`sum(rate(istio_requests_total{namespace="mine"}[5m]))`, 5, 5*time.Minute)
}

// The rings of a table that was set aside are left as they are when a long range goes.
func TestAStretchedTableThatWasSetAsideStaysAside(t *testing.T) {
	f := newRangesFleet(t, 0, 1, 3)
	f.flush(10)
	q, err := f.s.RegisterFor("mine", `sum(rate(istio_requests_total{namespace="mine"}[20m]))`)
	if err != nil {
		t.Fatal(err)
	}
	tab := f.streams["mine/pod-0"].table
	tab.setAside()
	q.Close()
	f.s.refit(q.author)
	if at, ok := tab.gen.Load().Newest(); ok {
		t.Errorf("a row is there, of %d", at)
	}
}

// Where rows beyond the retention give way to what a pod adds, that is counted in full.
func TestWhatAPodAddsCountsWhereALongRangeGivesWay(t *testing.T) {
	for name, add := range map[string]func(f *rangesFleet, st *Stream){
		"series": func(f *rangesFleet, st *Stream) {
			b := counters(f.now.Add(time.Second), 1, 51)
			if err := st.Commit(f.now.Add(time.Second), b, numbered{batch: b}); err != nil {
				t.Fatal(err)
			}
		},
		"rows": func(f *rangesFleet, st *Stream) {
			for i := range 300 {
				at := f.now.Add(time.Duration(i+1) * time.Second)
				b := counters(at, 1, 4)
				if err := st.Commit(at, b, numbered{batch: b}); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newRangesFleet(t, 64<<20, 1, 3)
			f.flush(100)
			q, err := f.s.RegisterFor("mine", `sum(rate(istio_requests_total{namespace="mine"}[20m]))`)
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			r, st := f.s.ranges.memory, f.streams["mine/pod-0"]
			r.Outside(64<<20/rangesPart - r.Taken())
			add(f, st)
			st.Close()
			if st.table.stretch != 1 {
				t.Fatal("the rows have not given way")
			}
			if taken, held := st.table.taken, st.table.bytes(); taken != held {
				t.Errorf("%d bytes are counted, %d held", taken, held)
			}
		})
	}
}

// What one namespace has been lent it keeps when another one borrows, in whichever order the rings
// are looked at again.
func TestALongRangeKeepsItsRowsWhenAnotherNamespaceBorrows(t *testing.T) {
	f := newRangesFleet(t, 40<<20, 30, 100)
	f.flush(10)
	q, err := f.s.RegisterFor("mine", `sum(rate(istio_requests_total{namespace="mine"}[20m]))`)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	f.connect("mine", "pod-new")
	f.flush(1)
	taken := f.s.ranges.memory.Taken()
	if !f.s.ranges.memory.Take("others", 2<<20) {
		t.Fatal("the other namespace may have nothing")
	}
	f.s.sweep(t.Context(), f.s.millis(f.now))
	f.flush(1)
	for i := range 30 {
		if n := f.slots(fmt.Sprint("mine/pod-", i)); n != 256 {
			t.Errorf("pod %d has %d slots", i, n)
		}
	}
	if now := f.s.ranges.memory.Taken() - 2<<20; now != taken {
		t.Errorf("%d bytes are lent, before %d", now, taken)
	}
}
