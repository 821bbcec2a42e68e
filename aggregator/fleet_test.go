package aggregator

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// fleet is what pods of a mesh send, and beside it what of it has to be counted: pods come and go,
// restart, lose flushes, evict idle series, split a flush over messages, have wrong, drifting and
// stepping clocks. Requests are exact, so the store's totals are checked to the last one; what no
// receiver could tell from the wire is said in owed.
//
// It sleeps, so it belongs into a synctest bubble.
type fleet struct {
	t        *testing.T
	r        *rand.Rand
	store    *Store
	pods     []*fleetPod
	named    int
	instants []time.Time
	all      map[string]*fleetSeries // by labels, also of pods that are gone
}

// fleetPod is a pod with its sidecar.
type fleetPod struct {
	pod     Pod
	stream  *Stream
	fresh   bool // the stream has not flushed yet
	flushes int  // that were delivered, of all streams
	flush   time.Duration
	next    time.Time
	born    time.Time
	offset  time.Duration // of the sidecar's clock
	drift   float64
	batches bool
	evicts  int // flushes of an eviction period
	bounds  []float64
	series  []*fleetSeries
}

// fleetSeries is a request counter with its duration histogram, or a counter alone.
type fleetSeries struct {
	labels    labels.Labels
	key       uint64
	alone     bool
	raw       uint64 // in the sidecar
	interval  uint64 // requests since its last flush
	absent    int    // flushes for which nobody will use it, of those for which it has been left out so far
	missing   int    // flushes for which it has been left out, because it was not used for an eviction period
	idle      bool
	began     bool // has been used in this process
	fromZero  bool // restarted or was evicted since it was delivered last
	delivered bool
	last      uint64 // as delivered

	total uint64 // what the store has to show, and slack what it may show beyond
	slack uint64
	past  uint64 // and one row before the first
	known bool   // whether there is that row
	// unsure: there may be that row
	unsure bool
	count  uint64 // of the histogram
}

func newFleet(t *testing.T, seed uint64, retention time.Duration) *fleet {
	s, err := New(Config{Retention: retention})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, r: rand.New(rand.NewPCG(seed, 3)), store: s, all: map[string]*fleetSeries{}}
	for range 1 + f.r.IntN(4) {
		f.join()
	}
	return f
}

func (f *fleet) join() {
	p := &fleetPod{flush: time.Duration(1+f.r.IntN(5)) * time.Second, born: time.Now(), batches: f.r.IntN(3) == 0}
	p.pod = Pod{Namespace: "test", Name: fmt.Sprintf("pod-%d", f.named), Workload: "w", FlushInterval: p.flush}
	if p.evicts = 1 + f.named%3; f.named%2 == 0 {
		p.pod.EvictionInterval = time.Duration(p.evicts) * p.flush
	}
	f.named++
	if f.r.IntN(2) == 0 {
		p.offset = time.Duration(f.r.IntN(7200)-3600) * time.Second
		p.drift = (f.r.Float64() - 0.5) / 500
	}
	p.bounds = [][]float64{{5, 10, 100}, {5, 10, 100}, {1, 10, 50, 100}}[f.r.IntN(3)]
	for j := range 1 + f.r.IntN(4) {
		p.series = append(p.series, &fleetSeries{key: uint64(j) << 8, alone: j == 3, labels: labels.FromStrings(
			"code", []string{"200", "404", "500"}[j%3], "from", fmt.Sprint(j), "destination_workload", []string{"w", "v"}[f.r.IntN(2)])})
	}
	p.next = time.Now().Add(p.flush)
	f.connect(p)
	f.pods = append(f.pods, p)
}

func (f *fleet) connect(p *fleetPod) { p.stream, p.fresh = f.store.Connect(p.pod), true }

// run lets the fleet live, and ends with all streams closed.
func (f *fleet) run(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(time.Duration(100+f.r.IntN(900)) * time.Millisecond)
		for _, p := range f.pods {
			if !time.Now().Before(p.next) {
				p.next = time.Now().Add(p.flush + time.Duration(f.r.IntN(20))*time.Millisecond)
				f.step(p)
			}
		}
		if f.r.IntN(10) == 0 {
			f.instants = append(f.instants, time.Now())
		}
		switch n := len(f.pods); f.r.IntN(40) {
		case 0:
			f.join()
		case 1: // a pod leaves with a last flush, without histograms
			if n > 1 {
				i := f.r.IntN(n)
				f.deliver(f.pods[i], false)
				f.pods[i].stream.Close()
				f.pods = append(f.pods[:i], f.pods[i+1:]...)
			}
		}
	}
	for _, p := range f.pods {
		p.stream.Close()
	}
	f.instants = append(f.instants, time.Now(), time.Now().Add(8*time.Second))
	time.Sleep(time.Second)
	synctest.Wait()
}

// step is a flush that is due, and now and then something that goes wrong.
func (f *fleet) step(p *fleetPod) {
	f.traffic(p)
	switch f.r.IntN(16) {
	case 0: // the connection is down for a while: flushes are lost, with their intervals
		p.stream.Close()
		for range 1 + f.r.IntN(3) {
			for _, s := range p.series {
				s.interval = 0
			}
			time.Sleep(p.flush / 8) // others flush late meanwhile
			f.traffic(p)
		}
		f.connect(p)
	case 1: // the receiver ended the stream, nothing is lost; or the new stream comes before the old has ended
		if f.r.IntN(2) == 0 {
			p.stream.Close()
		}
		f.connect(p)
	case 2: // the sidecar restarts
		if f.r.IntN(2) == 0 {
			f.deliver(p, false)
		}
		p.stream.Close()
		for _, s := range p.series {
			s.fromZero, s.began, s.raw, s.interval = true, false, 0, 0
		}
		time.Sleep(p.flush / 4)
		f.connect(p)
		f.traffic(p)
	case 3: // its clock steps
		p.offset += time.Duration(f.r.IntN(7200)-3600) * time.Second
	case 4: // idle series are left out, and evicted if they are not used for another period
		for _, s := range p.series {
			if s.began && s.interval == 0 {
				s.absent, s.missing, s.began = 1+f.r.IntN(3), 0, false
			}
		}
	}
	f.deliver(p, true)
}

func (f *fleet) traffic(p *fleetPod) {
	for _, s := range p.series {
		if f.r.IntN(12) == 0 {
			s.idle = !s.idle
		}
		if s.idle || s.absent > 0 {
			continue
		}
		if !s.began && s.missing >= p.evicts {
			s.fromZero, s.raw = true, 0
		}
		n := uint64(10 + f.r.IntN(50))
		s.raw, s.interval, s.began = s.raw+n, s.interval+n, true
	}
}

// deliver sends what the sidecar has and notes what the store owes for it.
func (f *fleet) deliver(p *fleetPod, histograms bool) {
	now := time.Now()
	stamp := now.Add(p.offset + time.Duration(p.drift*float64(now.Sub(p.born)))).UnixMilli()
	counters, intervals := &Batch{Timestamp: stamp}, &Batch{Timestamp: stamp}
	var dc, di described
	for _, s := range p.series {
		if !s.began {
			s.absent, s.missing = max(0, s.absent-1), s.missing+1
			continue
		}
		name := "istio_requests_total"
		if s.alone {
			name = "istio_tcp_sent_bytes_total"
		}
		counters.Samples = append(counters.Samples, Sample{Key: s.key, Timestamp: stamp, Kind: Counter, Value: float64(s.raw)})
		dc = append(dc, named(name, s.labels))
		f.owed(p, s, name, histograms && !s.alone)
		if histograms && !s.alone {
			f.histogram(p, s, intervals)
			di = append(di, named("istio_request_duration_milliseconds", s.labels))
		}
		s.interval = 0
	}
	p.fresh = false
	p.flushes++
	if !p.batches {
		shift := uint32(len(counters.Buckets))
		for _, h := range intervals.Samples {
			h.First, h.Last = h.First+shift, h.Last+shift
			counters.Samples = append(counters.Samples, h)
		}
		counters.Buckets = append(counters.Buckets, intervals.Buckets...)
		f.commit(p, counters, append(dc, di...))
		return
	}
	f.commit(p, counters, dc)
	time.Sleep(time.Duration(f.r.IntN(100)) * time.Millisecond)
	f.commit(p, intervals, di)
}

func (f *fleet) commit(p *fleetPod, b *Batch, d described) {
	if err := p.stream.Commit(time.Now(), b, d); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) histogram(p *fleetPod, s *fleetSeries, b *Batch) {
	h := Sample{Key: s.key + 1, Timestamp: b.Timestamp, Kind: Histogram, Count: s.interval, Value: float64(s.interval) * 7.5, First: uint32(len(b.Buckets))}
	c := uint64(0)
	for _, bound := range p.bounds {
		c += f.r.Uint64N(s.interval - c + 1)
		b.Buckets = append(b.Buckets, Bucket{UpperBound: bound, Count: c})
	}
	h.Last = uint32(len(b.Buckets))
	b.Samples = append(b.Samples, h)
	s.count += s.interval
}

// owed adds to what the store has to show of a counter: the requests that were made since it was
// delivered last. Where a counter began at 0 again and this cannot be told from the wire, less is
// owed.
func (f *fleet) owed(p *fleetPod, s *fleetSeries, name string, histogram bool) {
	defer func() { s.last, s.delivered, s.fromZero = s.raw, true, false }()
	if !s.delivered {
		ls := labels.NewBuilder(named(name, s.labels))
		ls.Set(labelNamespace, p.pod.Namespace).Set(labelPod, p.pod.Name)
		f.all[ls.Labels().String()] = s
		s.total = s.raw
		switch {
		case histogram:
			s.past, s.known = s.raw-s.interval, true
		case !p.fresh && s.alone: // it was not there a flush ago
			s.known = true
		default: // a request counter in a flush without histograms: new, or of a damaged name
			s.unsure = !p.fresh
		}
		return
	}
	began := s.raw // requests since the counter began anew
	switch past := s.raw - s.interval; {
	case !s.fromZero:
		began = s.raw - s.last
	case s.raw < s.last: // it fell
	case histogram && past < s.last && (past <= 1 || s.last-past > max(1, s.interval/4)): // it fell before the interval that is told began
	case !p.fresh: // the period may tell, unless a flush came late
		began = s.raw - s.last
		s.slack += s.last
	default:
		began = s.raw - s.last
	}
	s.total += began
}
