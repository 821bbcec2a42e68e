package aggregator

import (
	"context"
	"math"
	"testing"
	"time"
)

// steady is a pod that flushes a counter every five seconds.
type steady struct {
	t      *testing.T
	store  *Store
	stream *Stream
	now    time.Time
	total  float64
}

func newSteady(t *testing.T) *steady {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	return &steady{t: t, store: s, stream: s.Connect(Pod{Namespace: "t", Name: "a", Workload: "w"}), now: s.started}
}

func (p *steady) flush(times int, rps float64) {
	p.t.Helper()
	for range times {
		p.now = p.now.Add(5 * time.Second)
		p.total += 5 * rps
		b := counters(p.now, 1, 2)
		b.Samples[0].Value = p.total
		if err := p.stream.Commit(p.now, b, numbered{batch: b}); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *steady) register(expr string) *Query {
	p.t.Helper()
	q, err := p.store.Register(expr)
	if err != nil {
		p.t.Fatal(err)
	}
	return q
}

// A ring that has wrapped and then grows has room for rows that were overwritten before. What they
// held is not known.
func TestAGrownRingKnowsNoMoreThanItsRows(t *testing.T) {
	const reach = 20 * time.Minute
	p := newSteady(t)
	p.flush(200, 10)
	slots := p.stream.table.ring.Slots()
	q := p.register("sum(rate(istio_requests_total[20m]))")
	first := p.store.Time(p.now.Add(-time.Duration(slots-1) * 5 * time.Second)) // of the rows that are there
	for range 4 {
		p.flush(20, 10)
		if p.stream.table.ring.Slots() == slots {
			t.Fatal("the ring has not grown")
		}
		state := p.store.Pod("t", "a", p.now, reach)
		if d := state.Oldest.Sub(first); d < 0 || d > 5*time.Second || state.Whole {
			t.Errorf("the pod's rows are told to reach back to %s, whole: %t; they begin at %s", state.Oldest, state.Whole, first)
		}
		a, err := q.Eval(context.Background(), p.now)
		if err != nil {
			t.Fatal(err)
		}
		if known := p.now.Sub(first); a.Covered > known || a.Covered < known-5*time.Second || len(a.Partial) != 1 {
			t.Errorf("%s of the window are told to be covered and %d pods partial; rows reach back %s", a.Covered, len(a.Partial), known)
		}
	}
	p.flush(240, 10)
	if a, err := q.Eval(context.Background(), p.now); err != nil || a.Covered != reach || len(a.Partial) != 0 {
		t.Errorf("%s of the window are covered after twenty minutes, %d pods partial, %v", a.Covered, len(a.Partial), err)
	}
}

// A detector that begins after the ring has grown tells surges as one of which the ring has not.
func TestASurgeIsTheSameAfterTheRingHasGrown(t *testing.T) {
	surge := func(grow bool) Surge {
		p := newSteady(t)
		p.flush(200, 10)
		if grow {
			p.register("sum(rate(istio_requests_total[20m]))")
			p.flush(1, 10)
		}
		q := p.register("sum(rate(istio_requests_total[1m]))")
		d, err := q.DetectSurges(SurgeConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if s := d.At(p.now); !s.Ready || s.Active || !s.Newest.Equal(p.store.Time(p.now)) {
			t.Errorf("grown %t: at first %+v, want ready and quiet", grow, s)
		}
		for range 60 {
			p.flush(1, 10)
			if s := d.At(p.now); s.Active {
				t.Fatalf("grown %t: a surge of steady traffic: %+v", grow, s)
			}
		}
		p.flush(4, 100)
		return d.At(p.now)
	}
	want, got := surge(false), surge(true)
	if !got.Active || math.Abs(got.Rate-want.Rate) > 1e-6 || math.Abs(got.Baseline-want.Baseline) > 0.1 {
		t.Errorf("a surge after the ring has grown: %+v, want %+v", got, want)
	}
}

// Two queries, one that looks further back than the rings and one that can surge, are all that a
// tenant needs to write.
func TestADetectorBeginsRightAfterTheRingHasGrown(t *testing.T) {
	for _, flushes := range []int{62, 63, 64, 65, 72, 128, 200} {
		p := newSteady(t)
		p.flush(flushes, 10)
		p.register("sum(rate(istio_requests_total[10m]))")
		p.flush(1, 10)
		q := p.register("sum(rate(istio_requests_total[1m]))")
		if _, err := q.DetectSurges(SurgeConfig{}); err != nil {
			t.Fatal(err)
		}
		for _, d := range p.store.detectors.all() {
			if s := d.At(p.now); !s.Ready || s.Active {
				t.Errorf("%d flushes before the ring grows: %+v, want ready and quiet", flushes, s)
			}
		}
	}
}
