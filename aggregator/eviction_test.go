package aggregator

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
)

// evicting is a sidecar that evicts what is not used, as Envoy does: with every so manieth flush,
// after it was sent, what has not been used since the last time is forgotten, and the rest is left
// out of flushes until it is used. Its requests are exact, so what the store has counted is held to
// what was sent.
//
// It sleeps, so it belongs into a synctest bubble.
type evicting struct {
	t      *testing.T
	r      *rand.Rand
	store  *Store
	stream *Stream
	evictionCase

	flushes int
	sets    []evictedSet
	sent    float64
	counted float64
	shown   map[string]float64 // by series: the newest total
}

type evictionCase struct {
	name string
	seed uint64
	sets int
	// every is after how many flushes there is an eviction; 0: never. It is told by the pod where
	// told is.
	every int
	told  bool
	// requests of a set in a flush.
	requests func(r *rand.Rand, set, flush int) int

	metric    string  // a counter without a partner; "" for requests with their histograms
	without   bool    // the histograms of requests are switched off
	split     bool    // a flush is many messages: the counters, later their histograms
	late      float64 // how often a flush comes 4 s late, as of an Envoy that is short of CPU
	skew      float64 // how often a request is in the counters of a flush, and in the histograms of the next
	deltas    bool
	retention time.Duration // 0: all rows stay
	collects  int           // flushes between two looks at the rows
	// least and most of the truth that may be counted; 0: 2 % off.
	least, most float64
}

type evictedSet struct {
	exists, used   bool // the counter
	value          float64
	merged         bool // its histogram was used
	interval, late uint64
}

func (e *evicting) request(i, n int) {
	if n == 0 {
		return
	}
	s := &e.sets[i]
	if !s.exists {
		s.exists, s.value = true, 0
	}
	s.used = true
	e.sent += float64(n)
	s.value += float64(n)
	for range n {
		if e.skew > 0 && e.r.Float64() < e.skew {
			s.late++
			continue
		}
		s.interval++
	}
}

// flush sends what there is, then evicts.
func (e *evicting) flush() {
	counters, intervals, dc, di := e.batches(time.Now().UnixMilli())
	if e.split {
		e.commit(counters, dc)
		time.Sleep(100 * time.Millisecond)
		e.commit(intervals, di)
	} else {
		counters.Samples = append(counters.Samples, intervals.Samples...)
		e.commit(counters, append(dc, di...))
	}
	e.evict()
}

func (e *evicting) batches(stamp int64) (counters, intervals *Batch, dc, di described) {
	counters, intervals = &Batch{Timestamp: stamp}, &Batch{Timestamp: stamp}
	for i := range e.sets {
		s := &e.sets[i]
		ls := labels.FromStrings("source_workload", fmt.Sprint(i))
		if s.used {
			name := e.metric
			if name == "" {
				name = requestsName
			}
			v := s.value
			if e.deltas {
				s.value = 0
			}
			counters.Samples = append(counters.Samples, Sample{Key: uint64(i) << 1, Timestamp: stamp, Kind: Counter, Value: v})
			dc = append(dc, named(name, ls))
		}
		if s.merged = s.merged || s.interval > 0; s.merged && e.metric == "" && !e.without {
			intervals.Samples = append(intervals.Samples, Sample{Key: uint64(i)<<1 | 1, Timestamp: stamp, Kind: Histogram, Count: s.interval, Value: 7 * float64(s.interval)})
			di = append(di, named(durationsName, ls))
		}
	}
	return counters, intervals, dc, di
}

// evict ends a flush of the sidecar, whether it was received or not.
func (e *evicting) evict() {
	e.flushes++
	for i := range e.sets {
		s := &e.sets[i]
		s.interval, s.late = s.late, 0
		if e.every > 0 && e.flushes%e.every == 0 {
			s.exists, s.used, s.merged = s.used, false, false
		}
	}
}

func (e *evicting) commit(b *Batch, d described) {
	if err := e.stream.Commit(time.Now(), b, d); err != nil {
		e.t.Fatal(err)
	}
}

func (e *evicting) pod() Pod {
	p := Pod{Namespace: "test", Name: "pod", Workload: "w"}
	if e.told {
		p.EvictionInterval = time.Duration(e.every) * 5 * time.Second
	}
	return p
}

// collect adds what the rows show beyond what they showed before.
func (e *evicting) collect() {
	synctest.Wait()
	for name, ps := range stored(e.t, e.store) {
		vs := values(ps)
		if len(vs) == 0 || strings.Contains(name, durationsName) {
			continue
		}
		last, ok := e.shown[name]
		if !ok {
			last = vs[0]
		}
		e.counted += vs[len(vs)-1] - last
		e.shown[name] = vs[len(vs)-1]
	}
}

// run lets the sidecar live for ten minutes and compares.
func (c evictionCase) run(t *testing.T) *evicting {
	c.collects = 5
	if c.retention == 0 {
		c.retention, c.collects = 15*time.Minute, 60
	}
	s, err := New(Config{Retention: c.retention, CountersAsDeltas: c.deltas})
	if err != nil {
		t.Fatal(err)
	}
	e := &evicting{t: t, r: rand.New(rand.NewPCG(c.seed, 20)), store: s, evictionCase: c, sets: make([]evictedSet, c.sets), shown: map[string]float64{}}
	e.stream = s.Connect(e.pod())
	e.flush() // of nothing: what comes later is known to be new
	for f := range 120 {
		time.Sleep(5 * time.Second)
		if e.late > 0 && e.r.Float64() < e.late {
			time.Sleep(4 * time.Second)
		}
		for i := range e.sets {
			e.request(i, c.requests(e.r, i, f))
		}
		e.flush()
		if f%e.collects == e.collects-1 {
			time.Sleep(300 * time.Millisecond) // a row closes
			e.collect()
		}
	}
	e.stream.Close()
	e.collect()
	least, most := c.least, c.most
	if least == 0 {
		least = .98
	}
	if most == 0 {
		most = 1.02
	}
	if got := e.counted / e.sent; !(got >= least && got <= most) {
		t.Errorf("%v counted of %v requests: %.4f, want %v to %v", e.counted, e.sent, got, least, most)
	}
	return e
}

func random(mean float64) func(*rand.Rand, int, int) int {
	return func(r *rand.Rand, _, _ int) int { return poisson(r, mean) }
}

// in20s is a set's use once in 20 s, of so many requests.
func in20s(requests func(r *rand.Rand, use int) int) func(*rand.Rand, int, int) int {
	return func(r *rand.Rand, set, flush int) int {
		if (set+flush)%4 != 0 {
			return 0
		}
		return requests(r, flush/4)
	}
}

func once(*rand.Rand, int) int          { return 1 }
func burst(r *rand.Rand, _ int) int     { return 1 + r.IntN(3) }
func oneAndTwo(_ *rand.Rand, u int) int { return 1 + u%2 }

// TestEvictedCountersCountEveryRequest: label sets that are used now and then, of sidecars that
// evict them in between.
func TestEvictedCountersCountEveryRequest(t *testing.T) {
	const bytes = "istio_tcp_sent_bytes_total"
	for _, c := range []evictionCase{
		{name: "once in 20 s, evicted after 5 s", sets: 60, every: 1, requests: in20s(once)},
		{name: "once in 20 s, evicted after 10 s", sets: 60, every: 2, requests: in20s(once)},
		{name: "rarely, evicted after 10 s", sets: 200, every: 2, requests: random(.1)},
		{name: "rarely, evicted after 30 s", sets: 200, every: 6, requests: random(.1)},
		{name: "more often, evicted after 10 s", sets: 100, every: 2, requests: random(.25)},
		{name: "often, evicted after 5 s", sets: 40, every: 1, requests: random(1.25)},
		{name: "busy, evicted after 5 s", sets: 20, every: 1, requests: random(20)},
		{name: "bursts of 1 to 3", sets: 60, every: 1, requests: in20s(burst)},
		{name: "1 and 2 in turn", sets: 60, every: 1, requests: in20s(oneAndTwo)},
		{name: "1 and 2 in turn, evicted after 10 s", sets: 60, every: 2, requests: in20s(oneAndTwo)},
		{name: "split flushes", sets: 200, every: 2, split: true, requests: random(.1)},
		{name: "split flushes, bursts", sets: 60, every: 1, split: true, requests: in20s(burst)},
		{name: "counters ahead of their histograms", sets: 200, every: 2, skew: .02, requests: random(.1)},
		{name: "no eviction", sets: 60, requests: in20s(burst)},
		{name: "once in 20 s, flushes late", sets: 60, every: 1, late: .3, requests: in20s(once)},
		{name: "1 and 2 in turn, flushes late", sets: 60, every: 2, late: .3, requests: in20s(oneAndTwo)},
		{name: "TCP, once, flushes late", sets: 60, every: 1, late: .3, metric: bytes, requests: in20s(once)},
		{name: "intervals for counters", sets: 60, every: 1, deltas: true, requests: in20s(burst)},
		{name: "freed before they come back", sets: 400, every: 2, retention: 30 * time.Second, requests: random(.05)},
		{name: "freed, without histograms", sets: 400, every: 2, told: true, without: true, retention: 30 * time.Second, requests: random(.05)},
		{name: "histograms switched off, once", sets: 60, every: 1, without: true, requests: in20s(once)},
		{name: "TCP, once", sets: 60, every: 1, metric: bytes, requests: in20s(once)},
		{name: "TCP, 7 bytes", sets: 60, every: 1, metric: bytes, requests: in20s(func(*rand.Rand, int) int { return 7 })},
		{name: "TCP, bursts, told", sets: 60, every: 1, metric: bytes, told: true, requests: in20s(burst)},
		{name: "TCP, bursts, learned", sets: 60, every: 1, metric: bytes, requests: in20s(burst)},
		{name: "TCP, 1 and 2 in turn, told", sets: 60, every: 1, metric: bytes, told: true, requests: in20s(oneAndTwo)},
		{name: "TCP, rarely, told", sets: 200, every: 6, metric: bytes, told: true, requests: random(.1)},
		{name: "TCP, rarely, learned", sets: 200, every: 6, metric: bytes, requests: random(.1)},
		{name: "messages, often, learned", sets: 100, every: 2, metric: "istio_request_messages_total", requests: random(.25)},
		{name: "TCP, only ever more, not told: the period is not known", sets: 10, every: 1, metric: bytes, least: .01, most: 1, requests: in20s(func(_ *rand.Rand, use int) int { return 1 + use })},
		{name: "TCP, only ever more, told", sets: 10, every: 1, metric: bytes, told: true, requests: in20s(func(_ *rand.Rand, use int) int { return 1 + use })},
	} {
		for c.seed = range uint64(2) {
			t.Run(fmt.Sprintf("%s/%d", c.name, c.seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { c.run(t) })
			})
		}
	}
}

// lossy is a pod that sends two counters, one with a histogram and one without, both idle at a
// million.
type lossy struct {
	t      *testing.T
	store  *Store
	stream *Stream
	number int
}

func (l *lossy) connect() {
	l.stream = l.store.Connect(Pod{Namespace: "test", Name: "pod", EvictionInterval: 5 * time.Second})
}

// message is a part of a flush: the counters that it holds have so many requests beyond a million,
// of which the histograms tell.
func (l *lossy) message(requests float64, counters, histograms bool) (*Batch, described) {
	b := &Batch{Timestamp: l.store.started.Add(time.Duration(l.number) * 5 * time.Second).UnixMilli()}
	var d described
	for i, name := range []string{requestsName, "istio_tcp_sent_bytes_total"} {
		if counters {
			b.Samples = append(b.Samples, Sample{Key: uint64(i), Timestamp: b.Timestamp, Kind: Counter, Value: 1e6 + requests})
			d = append(d, named(name, labels.EmptyLabels()))
		}
	}
	if histograms {
		b.Samples = append(b.Samples, Sample{Key: 9, Timestamp: b.Timestamp, Kind: Histogram, Count: uint64(requests)})
		d = append(d, named(durationsName, labels.EmptyLabels()))
	}
	return b, d
}

func (l *lossy) commit(b *Batch, d described) {
	l.t.Helper()
	if err := l.stream.Commit(l.arrival(), b, d); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lossy) arrival() time.Time {
	at := l.store.started.Add(time.Duration(l.number) * 5 * time.Second)
	time.Sleep(time.Until(at))
	return at
}

func (l *lossy) flush(requests float64, counters, histograms bool) {
	l.t.Helper()
	l.number++
	l.commit(l.message(requests, counters, histograms))
}

// A counter that is missing because a part was lost has not begun anew when it is there again,
// whatever its sidecar evicts.
func TestIdleCountersWhosePartWasLostAddNothing(t *testing.T) {
	for name, lose := range map[string]func(l *lossy){
		"a sample refused": func(l *lossy) {
			l.number++
			b, d := l.message(0, false, true)
			b.Refused = 1
			l.commit(b, d)
		},
		"a sample of another flush": func(l *lossy) {
			l.number++
			b, d := l.message(0, true, true)
			for i := range b.Samples[:2] {
				b.Samples[i].Timestamp--
			}
			if err := l.stream.Commit(l.arrival(), b, d); err == nil {
				l.t.Error("no error for a message of two flushes")
			}
		},
		"the last message of a flush rejected": func(l *lossy) {
			l.flush(0, false, true)
			l.stream.Missed(l.arrival())
		},
		"the first message of a flush rejected": func(l *lossy) {
			l.number++
			l.stream.Missed(l.arrival())
			l.commit(l.message(0, false, true))
		},
		"a flush without them after a rejected message": func(l *lossy) {
			l.stream.Missed(l.arrival())
			l.flush(0, false, true)
			l.flush(0, false, true)
		},
		"none: a flush comes in two messages, unlike those before it": func(l *lossy) {
			l.flush(0, false, true)
			l.commit(l.message(0, true, false))
		},
		"two flushes, then none for a while": func(l *lossy) {
			l.flush(0, false, true)
			l.number += 4
			l.flush(0, false, false)
		},
		"none for a while, then a flush": func(l *lossy) {
			l.number += 4
			l.flush(0, false, false)
		},
		"the connection": func(l *lossy) {
			l.stream.Close()
			l.connect()
			l.flush(0, false, true)
		},
		"a second stream takes over": func(l *lossy) {
			first := l.stream
			l.connect()
			l.flush(0, false, true)
			l.stream.Close()
			l.stream = first // which takes over again
		},
	} {
		for _, split := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, split %v", name, split), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s, err := New(Config{})
					if err != nil {
						t.Fatal(err)
					}
					l := &lossy{t: t, store: s}
					l.connect()
					for range 3 {
						l.flush(0, true, true)
					}
					lose(l)
					l.number++
					if split {
						l.commit(l.message(0, true, false))
						time.Sleep(50 * time.Millisecond)
						l.commit(l.message(0, false, true))
					} else {
						l.commit(l.message(0, true, true))
					}
					l.flush(3, true, true)
					l.stream.Close()
					synctest.Wait()
					for series, ps := range stored(t, s) {
						if vs := values(ps); strings.Contains(series, "_total") && vs[len(vs)-1]-vs[0] != 3 {
							t.Errorf("%s: %v, want 3 more than at first", series, vs)
						}
					}
				})
			})
		}
	}
}

// An idle sidecar's flush is one message. The first request may make it two, and its histogram is
// in the second.
func TestTheFirstRequestOfASidecarThatWasIdleCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		l := &lossy{t: t, store: s}
		l.connect()
		stamp := func() int64 { return s.started.Add(time.Duration(l.number) * 5 * time.Second).UnixMilli() }
		part := func(key uint64, name, code string, kind Kind) {
			l.commit(&Batch{Timestamp: stamp(), Samples: []Sample{{Key: key, Timestamp: stamp(), Kind: kind, Value: 2, Count: 2}}}, described{named(name, labels.FromStrings("response_code", code))})
			time.Sleep(20 * time.Millisecond)
		}
		part(1, requestsName, "200", Counter)
		part(2, durationsName, "200", Histogram)
		for range 4 {
			l.number++
			l.commit(&Batch{Timestamp: stamp()}, nil)
		}
		l.number++
		part(3, requestsName, "201", Counter)
		part(4, durationsName, "201", Histogram)
		l.stream.Close()
		synctest.Wait()
		for series, ps := range stored(t, s) {
			if got := values(ps); strings.Contains(series, "_total") && !cmp.Equal(got[len(got)-2:], []float64{0, 2}) && strings.Contains(series, "201") {
				t.Errorf("%s: %v, want 0 and 2", series, got)
			}
		}
	})
}

// What a counter counted while nothing came belongs to that time, and not to a request that brings
// it back minutes later.
func TestWhatWasCountedInAGapIsNotCountedLater(t *testing.T) {
	for name, tc := range map[string]struct {
		absent   int     // flushes after the gap in which it is left out
		other    bool    // that is of another stream, and it comes in a third's, at once
		value    float64 // when it is back, with an interval of 3
		want     float64 // more than before the gap
		interval uint64
	}{
		"in the first flush after it, it fills the gap": {value: 1100, want: 100, interval: 3},
		"a flush later":                             {absent: 1, value: 1100, want: 3, interval: 3},
		"many flushes later":                        {absent: 9, value: 1100, want: 3, interval: 3},
		"many flushes later, idle":                  {absent: 9, value: 1100, want: 0},
		"many flushes later, nothing in the gap":    {absent: 9, value: 1003, want: 3, interval: 3},
		"many flushes later, begun anew":            {absent: 9, value: 3, want: 3, interval: 3},
		"many flushes later, begun anew in the gap": {absent: 9, value: 53, want: 3, interval: 3},
		"after another stream's idle flush":         {absent: 1, other: true, value: 1100, want: 3, interval: 3},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			st, early := s.Connect(Pod{Namespace: "test", Name: "pod"}), time.Duration(0)
			flush := func(number int, value float64, interval uint64) {
				t.Helper()
				at := s.started.Add(time.Duration(number)*5*time.Second - early)
				b, d := &Batch{Timestamp: at.UnixMilli()}, described(nil)
				if value > 0 {
					b.Samples = []Sample{{Key: 1, Timestamp: b.Timestamp, Kind: Counter, Value: value}, {Key: 2, Timestamp: b.Timestamp, Kind: Histogram, Count: interval}}
					d = described{named(requestsName, labels.EmptyLabels()), named(durationsName, labels.EmptyLabels())}
				}
				if err := st.Commit(at, b, d); err != nil {
					t.Fatal(err)
				}
			}
			for number := range 3 {
				flush(number, 1000, 0)
			}
			for number := 23; number < 23+tc.absent; number++ {
				if tc.other {
					st = s.Connect(Pod{Namespace: "test", Name: "pod"})
				}
				flush(number, 0, 0)
			}
			if tc.other {
				st.Close()
				st, early = s.Connect(Pod{Namespace: "test", Name: "pod"}), 4980*time.Millisecond
			}
			flush(23+tc.absent, tc.value, tc.interval)
			st.Close()
			for series, ps := range stored(t, s) {
				if vs := values(ps); strings.Contains(series, "_total") && vs[len(vs)-1]-vs[0] != tc.want {
					t.Errorf("%s: %v, want %v more than at first", series, vs, tc.want)
				}
			}
		})
	}
}

// A counter that comes for the first time in a stream's later flush began at 0, unless it may have
// been in what was refused.
func TestANewCounterAfterARefusedSampleIsNotKnownToBeNew(t *testing.T) {
	for refused, want := range map[int][]float64{0: {0, 2000}, 1: {2000}} {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		st := s.Connect(Pod{Namespace: "test", Name: "pod"})
		for flush := range 3 {
			at := s.started.Add(time.Duration(flush) * 5 * time.Second)
			b, d := &Batch{Timestamp: at.UnixMilli()}, described(nil)
			switch flush {
			case 1:
				b.Refused = refused
			case 2:
				b.Samples = []Sample{{Key: 1, Timestamp: b.Timestamp, Kind: Counter, Value: 2000}}
				d = described{named("istio_tcp_sent_bytes_total", labels.EmptyLabels())}
			}
			if err := st.Commit(at, b, d); err != nil {
				t.Fatal(err)
			}
		}
		st.Close()
		for name, ps := range stored(t, s) {
			if got := values(ps); !cmp.Equal(got, want) {
				t.Errorf("%d refused before: %s shows %v, want %v", refused, name, got, want)
			}
		}
	}
}

// Envoy evicts with every so manieth flush: what has been missing for as many or more is gone, what
// was missing for fewer is not.
func TestWhatAnEvictionPeriodTells(t *testing.T) {
	var e eviction
	check := func(told, absent uint32, anew, certain bool) {
		t.Helper()
		if a, c := e.tells(absent, told); a != anew || c != certain {
			t.Errorf("told %d, %+v: %d flushes without it tell anew %v, certain %v, want %v, %v", told, e, absent, a, c, anew, certain)
		}
	}
	check(0, 100, false, false)
	check(6, 5, false, true)
	check(6, 6, true, true)
	e.wentOn(3)
	check(0, 3, false, true)
	check(0, 4, false, false)
	e.restarted(9)
	check(0, 9, true, true)
	check(0, 8, false, false)
	e.restarted(6)
	check(0, 6, true, true)
	e.wentOn(7) // so 6 was no eviction
	check(0, 7, false, true)
	check(0, 8, false, false)
	e.restarted(4) // and 7 none of a period that still holds
	check(0, 4, true, true)
	check(0, 3, false, true)
}

func TestAToldEvictionPeriodIsCountedInFlushes(t *testing.T) {
	for _, c := range []struct {
		eviction, flush, observed time.Duration
		want                      uint32
	}{
		{0, 0, 5 * time.Second, 0},
		{30 * time.Second, 0, 5 * time.Second, 6},
		{30 * time.Second, 0, 5010 * time.Millisecond, 6},
		{30 * time.Second, 0, 10020 * time.Millisecond, 3}, // another interval than Istio's, which nothing tells
		{10 * time.Second, time.Second, 1500 * time.Millisecond, 10},
		{time.Hour, 5 * time.Second, 5010 * time.Millisecond, 720},
		{time.Second, 5 * time.Second, 5 * time.Second, 1},
	} {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		table := s.Connect(Pod{Namespace: "test", Name: "pod", EvictionInterval: c.eviction, FlushInterval: c.flush}).table
		table.flush.Store(c.observed.Milliseconds())
		if got := table.toldEviction(); got != c.want {
			t.Errorf("%+v: %d flushes", c, got)
		}
	}
}
