package aggregator

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// flood describes series with many long labels of their own.
type flood struct {
	batch *Batch
	who   string
}

func (d flood) Describe(i int) (string, []Label, error) {
	ls := make([]Label, 62)
	for l := range ls {
		ls[l] = Label{fmt.Sprint("label_", l), fmt.Sprintf("%s-%d-%d-%s", d.who, d.batch.Samples[i].Key, l, strings.Repeat("x", 2000))}
	}
	return "istio_requests_total", ls, nil
}

// Senders that fill what they may with labels leave room for others, who come later.
func TestALabelFloodFillsItsSendersShareOnly(t *testing.T) {
	const budget = 64 << 20
	s, err := New(Config{MemoryBudget: budget})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		who := fmt.Sprint("10.0.0.", i)
		st := s.Connect(Pod{Namespace: "evil", Name: who, Sender: who})
		for flush := range 3 {
			at := s.started.Add(time.Duration(5*flush+i) * time.Second)
			b := counters(at, 1, 501)
			if err := st.Commit(at, b, flood{b, who}); !errors.Is(err, ErrMemory) {
				t.Errorf("%s, flush %d: error %v", who, flush, err)
			}
		}
	}
	if taken := s.memory.Taken(); taken < budget*6/10 || taken > budget*95/100 {
		t.Errorf("the flood has %d of %d bytes", taken, budget)
	}
	for i := range 3 {
		name := fmt.Sprint("10.0.1.", i)
		b := counters(s.started, 1, 101)
		if err := s.Connect(Pod{Namespace: "good", Name: name, Sender: name}).Commit(s.started, b, numbered{batch: b}); err != nil {
			t.Errorf("newcomer %d: %v", i, err)
		}
	}
}

// Names cost next to nothing, and one sender does not use up all that there may be.
func TestAPodFloodFillsItsSendersShareOnly(t *testing.T) {
	const limit = 1000
	s, err := New(Config{MaxPods: limit})
	if err != nil {
		t.Fatal(err)
	}
	empty := &Batch{Timestamp: s.started.UnixMilli()}
	for i := range 2 * limit {
		st := s.Connect(Pod{Namespace: "flood", Name: fmt.Sprint(i), Sender: "10.0.0.1"})
		err := st.Commit(s.started, empty, nil)
		if i == 0 && err != nil || i == 2*limit-1 && !errors.Is(err, ErrPods) {
			t.Errorf("pod %d: %v", i, err)
		}
		st.Close()
	}
	if n := s.tables.count(); n > limit/2 {
		t.Errorf("one sender has %d pods of %d", n, limit)
	}
	for i := range 20 {
		name := fmt.Sprint("10.0.1.", i)
		b := counters(s.started, 1, 2)
		if err := s.Connect(Pod{Namespace: "good", Name: name, Sender: name}).Commit(s.started, b, numbered{batch: b}); err != nil {
			t.Errorf("newcomer %d: %v", i, err)
		}
	}
	// One that was refused is taken at its next message, once there is room.
	st := s.Connect(Pod{Namespace: "flood", Name: "late", Sender: "10.0.0.1"})
	if err := st.Commit(s.started, empty, nil); !errors.Is(err, ErrPods) {
		t.Errorf("error %v", err)
	}
	s.sweep(t.Context(), s.millis(s.started.Add(time.Hour)))
	if err := st.Commit(s.started.Add(time.Hour), empty, nil); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A pod that has no series takes some hundred bytes, whatever flush interval it claims.
func TestAnIdlePodCostsNextToNothing(t *testing.T) {
	if !inAProcessOfItsOwn(t) {
		return
	}
	const pods = 4000
	for _, flush := range []time.Duration{time.Millisecond, 5 * time.Second, time.Hour} {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		before := liveHeap()
		for i := range pods {
			st := s.Connect(Pod{Namespace: "idle", Name: fmt.Sprint("pod-", i), FlushInterval: flush})
			if err := st.Commit(s.started, &Batch{Timestamp: s.started.UnixMilli()}, nil); err != nil {
				t.Fatal(err)
			}
			st.Close()
		}
		each := (liveHeap() - before) / pods
		t.Logf("flush %s: %d bytes a pod, %d counted", flush, each, s.memory.Taken()/pods)
		if each > tableBytes+8*firstSlots {
			t.Errorf("flush %s: a pod takes %d bytes, counted are %d", flush, each, s.memory.Taken()/pods)
		}
		runtime.KeepAlive(s)
	}
}

// What is counted is what is held: more than nothing less, and not twice as much, when rows are
// full.
func TestCountedMemoryIsWhatIsHeld(t *testing.T) {
	for name, labels := range map[string]func(*Batch) Describer{
		"labels that are shared": func(b *Batch) Describer { return numbered{batch: b} },
		"labels of its own":      func(b *Batch) Describer { return flood{b, fmt.Sprint(b.Timestamp)} },
	} {
		t.Run(name, func(t *testing.T) {
			if !inAProcessOfItsOwn(t) { // what the other one has built goes when its timers say so
				return
			}
			s, err := New(Config{Retention: 30 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			before := liveHeap()
			st := s.Connect(Pod{Namespace: "test", Name: "pod"})
			first := counters(s.started, 1, 201)
			d := labels(first)
			for flush := range 20 {
				at := s.started.Add(time.Duration(flush) * 5 * time.Second)
				b := counters(at, 1, 201)
				if err := st.Commit(at, b, d); err != nil {
					t.Fatal(err)
				}
			}
			held, counted := liveHeap()-before, s.memory.Taken()
			t.Logf("%d bytes are held, %d counted", held, counted)
			if held > counted || counted > 3*held {
				t.Errorf("%d bytes are held, %d counted", held, counted)
			}
			runtime.KeepAlive(st)
		})
	}
}

// Whatever comes, goes, is refused and changes its bounds: nothing is counted when all of it has
// gone.
func TestNothingIsCountedWhenAllHasGone(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	s, err := New(Config{Retention: 20 * time.Second, MemoryBudget: 2500 << 10, MaxSeries: 700, MaxPods: 40})
	if err != nil {
		t.Fatal(err)
	}
	s.liveHeap = func() uint64 { return 0 }
	met := map[error]int{}
	streams := map[string]*Stream{}
	at := s.started
	for range 3000 {
		at = at.Add(time.Duration(r.IntN(1000)) * time.Millisecond)
		name := fmt.Sprint("pod-", r.IntN(60))
		st := streams[name]
		if st == nil || r.IntN(20) == 0 {
			if st != nil {
				st.Close()
			}
			st = s.Connect(Pod{Namespace: "test", Name: name, Sender: fmt.Sprint(r.IntN(5) * r.IntN(2))})
			streams[name] = st
		}
		b := &Batch{Timestamp: at.UnixMilli(), Buckets: []Bucket{{UpperBound: 1}, {UpperBound: 2}}}
		from := uint64(r.IntN(300))
		for k := from; k < from+uint64(r.IntN(200)); k++ {
			sample := Sample{Key: k + 1, Timestamp: b.Timestamp, Kind: Kind(1 + k%3), Count: 1, Last: uint32(r.IntN(3))}
			if sample.Kind == Summary {
				sample.Last = 0
			}
			b.Samples = append(b.Samples, sample)
		}
		if r.IntN(200) == 0 { // what is not the store's
			s.liveHeap = func() uint64 { return uint64(r.IntN(3 << 20)) }
			s.watchMemory()
		}
		if err := st.Commit(at, b, byKey{b}); err != nil {
			met[err]++
		}
		if r.IntN(50) == 0 {
			s.sweep(t.Context(), s.millis(at))
		}
	}
	for _, err := range []error{ErrPods, ErrMemory, ErrSeriesLimit} {
		if met[err] == 0 {
			t.Errorf("no message has met: %v", err)
		}
	}
	for _, st := range streams {
		st.Close()
	}
	s.sweep(t.Context(), s.millis(at.Add(time.Hour)))
	for what, shares := range map[string]*Shares{"pods": s.podShares, "series": s.series, "bytes": s.memory} {
		if shares.Taken() != 0 || len(shares.of) != 0 {
			t.Errorf("%s: %d are still taken, by %v", what, shares.Taken(), shares.of)
		}
	}
	if len(s.classes.texts) != 0 {
		t.Errorf("%d label values are still counted", len(s.classes.texts))
	}
}

// The memory that a series was promised when it was taken is there for its rows, though others have
// taken theirs meanwhile.
func TestWhatWasPromisedToASeriesIsThere(t *testing.T) {
	s, err := New(Config{MemoryBudget: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	st := s.Connect(Pod{Namespace: "test", Name: "pod", Sender: "sender"})
	summaries := &Batch{Timestamp: s.started.UnixMilli(), Quantiles: make([]float64, len(SummaryQuantiles)), Samples: []Sample{
		{Key: 1, Timestamp: s.started.UnixMilli(), Kind: Summary, Count: 10, Last: uint32(len(SummaryQuantiles))},
	}}
	describe := described{named("istio_request_duration_milliseconds", labels.EmptyLabels())}
	if err := st.Commit(s.started, summaries, describe); err != nil {
		t.Fatal(err)
	}
	s.memory.Outside(65 << 20) // nothing is left
	histogram := &Batch{Timestamp: summaries.Timestamp, Samples: []Sample{{Key: 1, Timestamp: summaries.Timestamp, Kind: Histogram, Count: 10, Value: 100}}}
	for i := range 20 {
		histogram.Buckets = append(histogram.Buckets, Bucket{UpperBound: float64(i + 1), Count: 10})
	}
	histogram.Samples[0].Last = 20
	if err := st.Commit(s.started, histogram, describe); err != nil {
		t.Errorf("its histogram: %v", err)
	}
}
