package aggregator

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// benchParts says which families of a label set a simulated pod sends.
type benchParts struct {
	counter, duration, sizes bool // duration: HISTOGRAM and SUMMARY; sizes: two more of such
	summaries                bool
}

var benchAll = benchParts{counter: true, duration: true, sizes: true, summaries: true}

// benchBounds are Istio's 19.
var benchBounds = []float64{.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// benchPod sends the same message again and again, as a sidecar under steady traffic does, its
// counters going up.
type benchPod struct {
	stream   *Stream
	batch    Batch
	workload int
	sets     int
	each     int      // requests of a set in a flush
	names    []string // of the samples
	began    time.Time
	flush    int64
}

// newBenchPod connects a pod; ten share a workload, and so their label sets.
func newBenchPod(s *Store, number, sets int, parts benchParts) *benchPod {
	p := &benchPod{workload: number / 10, sets: sets, each: 10, began: s.started}
	name := fmt.Sprintf("svc-%04d", p.workload)
	p.stream = s.Connect(Pod{
		Namespace: "test", Name: fmt.Sprintf("%s-%06d", name, number), Workload: name, App: name, CanonicalService: name, FlushInterval: 5 * time.Second,
	})
	if parts.counter {
		p.add("istio_requests_total", Counter)
	}
	for _, metric := range []string{"istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"} {
		if metric == "istio_request_duration_milliseconds" && !parts.duration || metric != "istio_request_duration_milliseconds" && !parts.sizes {
			continue
		}
		if parts.summaries && metric == "istio_request_duration_milliseconds" { // of sizes they are not read
			p.add(metric, Summary)
		}
		p.add(metric, Histogram)
	}
	return p
}

// add appends a sample of each label set. A summary and the histogram after it share their keys.
func (p *benchPod) add(name string, kind Kind) {
	for set := range p.sets {
		key := uint64(set+1)*0x9e3779b97f4a7c15 ^ uint64(len(name))<<8 ^ uint64(name[len(name)-1]) // of counter and bytes differ by that
		s := Sample{Key: key, Kind: kind}
		if kind != Counter {
			s.Count, s.Value = 10, 800
		}
		switch kind {
		case Histogram:
			s.First = uint32(len(p.batch.Buckets))
			for _, bound := range benchBounds {
				p.batch.Buckets = append(p.batch.Buckets, Bucket{UpperBound: bound, Count: uint64(10 * (1 - math.Exp(-bound/80)))})
			}
			s.Last = uint32(len(p.batch.Buckets))
		case Summary:
			s.First = uint32(len(p.batch.Quantiles))
			for _, q := range SummaryQuantiles {
				p.batch.Quantiles = append(p.batch.Quantiles, 10+100*q)
			}
			s.Last = uint32(len(p.batch.Quantiles))
		}
		p.batch.Samples = append(p.batch.Samples, s)
		p.names = append(p.names, name)
	}
}

// Describe gives the labels as Istio has them.
func (p *benchPod) Describe(i int) (string, []Label, error) {
	caller, own := fmt.Sprintf("caller-%02d", i%p.sets), fmt.Sprintf("svc-%04d", p.workload)
	var ls []Label
	for _, side := range []struct{ prefix, workload string }{{"source", caller}, {"destination", own}} {
		ls = append(ls, Label{side.prefix + "_workload", side.workload}, Label{side.prefix + "_workload_namespace", "test"},
			Label{side.prefix + "_canonical_service", side.workload}, Label{side.prefix + "_canonical_revision", "latest"},
			Label{side.prefix + "_principal", "spiffe://cluster.local/ns/test/sa/" + side.workload},
			Label{side.prefix + "_app", side.workload}, Label{side.prefix + "_version", "v1"}, Label{side.prefix + "_cluster", "Kubernetes"})
	}
	ls = append(ls, Label{"reporter", "destination"}, Label{"destination_service", own + ".test.svc.cluster.local"},
		Label{"destination_service_name", own}, Label{"destination_service_namespace", "test"}, Label{"request_protocol", "http"},
		Label{"response_code", "200"}, Label{"response_flags", "-"}, Label{"connection_security_policy", "mutual_tls"})
	return p.names[i], ls, nil
}

// serve sets the requests of each set in a flush.
func (p *benchPod) serve(each int) {
	p.each = each
	for i := range p.batch.Samples {
		if s := &p.batch.Samples[i]; s.Kind != Counter {
			s.Count = uint64(each)
		}
	}
}

// commit sends one flush, five seconds after the one before.
func (p *benchPod) commit() error {
	p.flush++
	at := p.began.Add(time.Duration(p.flush) * 5 * time.Second)
	p.batch.Timestamp = at.UnixMilli()
	for i := range p.batch.Samples {
		s := &p.batch.Samples[i]
		s.Timestamp = p.batch.Timestamp
		if s.Kind == Counter {
			s.Value = float64(int64(p.each) * p.flush)
		}
	}
	return p.stream.Commit(at, &p.batch, p)
}

func (p *benchPod) commits(tb testing.TB, n int) {
	for range n {
		if err := p.commit(); err != nil {
			tb.Fatal(err)
		}
	}
}

// benchFleet returns a store with pods that have filled the retention, and the time of their newest
// flush.
func benchFleet(tb testing.TB, pods, sets, flushes int, parts benchParts) (*Store, []*benchPod, time.Time) {
	s, err := New(Config{})
	if err != nil {
		tb.Fatal(err)
	}
	all, at := fillStore(tb, s, pods, sets, flushes, parts)
	return s, all, at
}

func fillStore(tb testing.TB, s *Store, pods, sets, flushes int, parts benchParts) ([]*benchPod, time.Time) {
	all := make([]*benchPod, pods)
	for i := range all {
		all[i] = newBenchPod(s, i, sets, parts)
		all[i].commits(tb, flushes)
		if timer := all[i].stream.timer; timer != nil { // of the first flushes' rows; it would hold the store for longer than it is used
			timer.Stop()
		}
	}
	return all, s.started.Add(time.Duration(flushes) * 5 * time.Second)
}

// cpuPerOp reports the process' CPU time, collector included, as the kernel counts it: wall time
// says little on a busy machine.
func cpuPerOp(b *testing.B, run func()) {
	before := processCPU(b)
	for b.Loop() {
		run()
	}
	b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
}

func processCPU(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Queries over what 50 (counters) or 10 (histograms) pods of 100 label sets have sent, compiled and
// by the engine.
func BenchmarkQuery(b *testing.B) {
	for _, q := range []struct {
		shape, expr string
		pods, sets  int
		parts       benchParts
	}{
		{"sum-rate", `sum(rate(istio_requests_total{reporter="destination",destination_workload_namespace="test"}[1m]))`, 50, 100, benchParts{counter: true}},
		{"quantile-classic", `histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket{reporter="destination"}[1m])) by (le))`, 10, 100, benchParts{duration: true, summaries: true}},
		{"quantile-fine", `histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds{reporter="destination"}[1m])))`, 10, 100, benchParts{duration: true, summaries: true}},
	} {
		s, _, at := benchFleet(b, q.pods, q.sets, 70, q.parts)
		query, err := s.Register(q.expr)
		if err != nil {
			b.Fatal(err)
		}
		ctx := context.Background()
		name := fmt.Sprintf("shape=%s/series=%d", q.shape, q.pods*q.sets)
		check := func(b *testing.B, values []Value, err error) {
			if err != nil || len(values) != 1 || !(values[0].V > 0) {
				b.Fatalf("%v, error %v", values, err)
			}
		}
		b.Run(name+"/by=plan", func(b *testing.B) {
			if query.plan == nil {
				b.Fatal("not compiled")
			}
			b.ReportAllocs()
			cpuPerOp(b, func() {
				values, ok := query.plan.eval(s, s.millis(at))
				if !ok {
					b.Fatal("left to the engine")
				}
				check(b, values, nil)
			})
		})
		b.Run(name+"/by=answer", func(b *testing.B) {
			b.ReportAllocs()
			cpuPerOp(b, func() {
				a, err := query.Eval(ctx, at)
				check(b, a.Values, err)
			})
		})
		b.Run(name+"/by=engine", func(b *testing.B) {
			b.ReportAllocs()
			cpuPerOp(b, func() {
				values, err := s.engine.instant(ctx, queryable{s, nil}, q.expr, s.millis(at))
				check(b, values, err)
			})
		})
		query.Close()
	}
}

// Bytes of live heap for each series of a kind, all in: tables, labels (ten pods share them), maps.
func BenchmarkMemory(b *testing.B) {
	const pods, sets = 100, 20
	for _, kind := range []struct {
		name   string
		parts  benchParts
		series int // a label set
	}{
		{"counter", benchParts{counter: true}, 1},
		{"histogram", benchParts{sizes: true}, 2},
		{"duration", benchParts{duration: true, summaries: true}, 1},
		{"kept", benchParts{counter: true, duration: true, summaries: true}, 1},
		{"labelset", benchAll, 1},
	} {
		b.Run("kind="+kind.name, func(b *testing.B) {
			var perSeries float64
			for b.Loop() {
				s, err := New(Config{})
				if err != nil {
					b.Fatal(err)
				}
				before := liveHeap() // an empty store, with its engine, is 300 KB
				all, _ := fillStore(b, s, pods, sets, 70, kind.parts)
				streams := make([]*Stream, len(all)) // what they send is not the store's
				for i, p := range all {
					streams[i] = p.stream
				}
				clear(all)
				perSeries = float64(liveHeap()-before) / float64(pods*sets*kind.series)
				runtime.KeepAlive(s)
				runtime.KeepAlive(streams)
			}
			b.ReportMetric(perSeries, "B/series")
		})
	}
}

func liveHeap() int64 {
	for range 3 { // interned strings go in a second cycle
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A flush of 20 label sets into the store, without the wire.
func BenchmarkCommit(b *testing.B) {
	_, all, _ := benchFleet(b, 100, 20, 3, benchAll)
	i := 0
	b.ReportAllocs()
	cpuPerOp(b, func() {
		all[i%len(all)].commits(b, 1)
		i++
	})
}

// Writers under readers that ask for all series of a metric at a fixed rate, whether the store is
// locked or not: with readers in a closed loop the store that blocks them would have less to do.
// The twin takes a table's mutex while it reads the pod's columns, as readers of a locked store
// would. The two take turns, so that both see the same machine.
func BenchmarkWriters(b *testing.B) {
	for _, readers := range []int{0, 1, 4, 16} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) { benchmarkWriters(b, readers) })
	}
}

// readsPerSecond is what each reader asks for: 16 of them as often as 24,000 HPAs, and it leaves
// CPU to both stores.
const readsPerSecond = 100

// readAll reads what a query does.
func readAll(over rangeVector, s *Store, at int64, locked bool) {
	var scratch [scanValues]float64
	vs := over.values(s, at)
	for len(vs.columns)+len(vs.left) > 0 {
		t := vs.table
		if len(vs.columns) == 0 {
			t = vs.left[0].table
		}
		if locked {
			t.mu.Lock()
		}
		if vs.begin() {
			vs.read(scratch[:0])
		}
		if locked {
			t.mu.Unlock()
		}
		if !vs.torn() {
			vs.done()
		}
	}
}

// storeTurn is how long a store is measured before it is the other's turn.
const storeTurn = 20 * time.Millisecond

func benchmarkWriters(b *testing.B, readers int) {
	s, all, _ := benchFleet(b, 50, 20, 20, benchAll)
	query, err := s.Register(`sum(rate(istio_requests_total{reporter="destination"}[1m]))`)
	if err != nil {
		b.Fatal(err)
	}
	over := query.plan.(*aggregation).over
	var stop, locked atomic.Bool
	var reads atomic.Int64
	var running sync.WaitGroup
	for range readers {
		running.Go(func() {
			for next := time.Now(); !stop.Load(); next = next.Add(time.Second / readsPerSecond) {
				time.Sleep(time.Until(next))
				at, _ := all[0].stream.table.gen.Load().Newest()
				readAll(over, s, at, locked.Load())
				reads.Add(1)
			}
		})
	}
	took := map[bool][]time.Duration{false: make([]time.Duration, 0, 1<<20), true: make([]time.Duration, 0, 1<<20)}
	began := time.Now()
	mode := false
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		if turn := start.Sub(began)/storeTurn%2 == 1; turn != mode {
			mode = turn
			locked.Store(mode)
		}
		all[i%len(all)].commits(b, 1)
		took[mode] = append(took[mode], time.Since(start))
	}
	elapsed := time.Since(began).Seconds()
	stop.Store(true)
	running.Wait()
	for mode, name := range map[bool]string{false: "lockfree", true: "mutex"} {
		all := took[mode]
		if len(all) == 0 { // a first run, too short for turns
			continue
		}
		slices.Sort(all)
		total := time.Duration(0)
		for _, d := range all {
			total += d
		}
		b.ReportMetric(float64(len(all))/total.Seconds(), name+"-flushes/s")
		b.ReportMetric(float64(all[len(all)*99/100].Nanoseconds())/1000, name+"-p99-us")
		b.ReportMetric(float64(all[len(all)*999/1000].Nanoseconds())/1000, name+"-p99.9-us")
	}
	b.ReportMetric(float64(reads.Load())/elapsed, "reads/s")
}

func TestCommitAllocatesNothingInTheSteadyState(t *testing.T) {
	for name, c := range map[string]struct {
		parts   benchParts
		watched bool
		busy    bool
	}{
		"histograms and summaries":          {parts: benchAll},
		"histograms only":                   {parts: benchParts{counter: true, duration: true, sizes: true}},
		"counters only":                     {parts: benchParts{counter: true}},
		"of busy series":                    {parts: benchAll, busy: true},
		"of series that an HPA acts on too": {parts: benchAll, watched: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(Config{})
			if err != nil {
				t.Fatal(err)
			}
			if c.watched {
				q, err := s.Register(`sum(rate(istio_requests_total{destination_workload="svc-0000"}[1m]))`)
				if err != nil {
					t.Fatal(err)
				}
				q.Watch(true)
				go s.Watch(t.Context(), func(*Query) time.Duration { return 0 })
			}
			p := newBenchPod(s, 0, 20, c.parts)
			if c.busy {
				p.serve(2_000)
			}
			p.commits(t, 200) // past the ring's first turn
			if n := testing.AllocsPerRun(200, func() { p.commits(t, 1) }); n != 0 {
				t.Errorf("%v allocations a flush, want none", n)
			}
		})
	}
}

// A hundred generations of pods come and go, each with label sets of its own; what they took is
// given back.
func TestPodsThatGoLeaveTheHeapWhereItWas(t *testing.T) {
	if !inAProcessOfItsOwn(t) {
		return
	}
	const pods, sets = 10, 20
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	query, err := s.Register(`sum(rate(istio_requests_total{reporter="destination"}[1m]))`)
	if err != nil {
		t.Fatal(err)
	}
	generation := func(n int) {
		for i := range pods {
			p := newBenchPod(s, n*pods+i, sets, benchAll)
			p.commits(t, 3)
			p.stream.Close()
		}
		s.sweep(t.Context(), s.millis(s.started.Add(time.Hour)))
	}
	generation(0)
	before := liveHeap()
	for n := range 100 {
		generation(n + 1)
	}
	after := liveHeap()
	// One generation takes 4 MB; of a hundred nothing may stay. Go's maps keep their size, hence
	// not 0.
	if grown := after - before; grown > 512<<10 {
		t.Errorf("heap grew by %d KiB over 100 generations of pods", grown>>10)
	}
	if n := s.series.Taken(); n != 0 {
		t.Errorf("%d series are left", n)
	}
	if sel := query.selectors[0]; len(sel.selections.all())+len(sel.selections.byTable)+len(sel.classes) != 0 {
		t.Errorf("a registered query still has %d pods and %d label sets", len(sel.selections.all()), len(sel.classes))
	}
	if n := len(s.classes.byHash) + len(s.classes.byWire); n != 0 {
		t.Errorf("%d label sets are left", n)
	}
}

// steadyRun commits from several streams at a time, while a query is asked, and returns the stacks
// of commits for which another goroutine had to wait. Wrapped around each commit is what a broken
// twin adds.
func steadyRun(t *testing.T, around func(commit func())) string {
	s, all, at := benchFleet(t, 8, 20, 20, benchAll)
	query, err := s.Register(`sum(rate(istio_requests_total{reporter="destination"}[1m]))`)
	if err != nil {
		t.Fatal(err)
	}
	before := contended()
	old := runtime.SetMutexProfileFraction(1)
	defer runtime.SetMutexProfileFraction(old)
	var running sync.WaitGroup
	for _, p := range all {
		running.Go(func() {
			for range 300 {
				around(func() {
					if err := p.commit(); err != nil {
						t.Error(err)
					}
				})
				runtime.Gosched()
			}
		})
	}
	running.Go(func() {
		for range 100 {
			if _, err := query.Eval(context.Background(), at); err != nil {
				t.Error(err)
			}
		}
	})
	running.Wait()
	var b strings.Builder
	for stack, n := range contended() {
		if n > before[stack] {
			fmt.Fprintf(&b, "%d times: %s\n", n-before[stack], stack)
		}
	}
	return b.String()
}

// contended returns the mutex profile's stacks of commits, and how often each was waited for. The
// runtime's own locks, which a collection takes whatever a commit does, are in that profile too:
// what unlocks a mutex of package sync is meant.
func contended() map[string]int64 {
	records := make([]runtime.BlockProfileRecord, 10_000)
	n, _ := runtime.MutexProfile(records)
	found := map[string]int64{}
	for _, r := range records[:n] {
		frames := runtime.CallersFrames(r.Stack())
		var stack []string
		own, mutex := false, false
		for {
			f, more := frames.Next()
			if len(stack) == 0 {
				mutex = strings.HasPrefix(f.Function, "sync.") || strings.HasPrefix(f.Function, "internal/sync.")
			}
			stack = append(stack, f.Function)
			own = own || strings.HasSuffix(f.Function, ".(*Stream).Commit") || strings.HasSuffix(f.Function, ".(*sharedLock).around")
			if !more {
				break
			}
		}
		if own && mutex {
			found[strings.Join(stack, " < ")] += r.Count
		}
	}
	return found
}

// sharedLock is the broken twin: one lock around the commits of all streams.
type sharedLock struct{ mu sync.Mutex }

func (l *sharedLock) around(commit func()) {
	l.mu.Lock()
	commit()
	runtime.Gosched() // on one CPU, too, others come to wait
	l.mu.Unlock()
}

func TestStreamsShareNoLock(t *testing.T) {
	if stacks := steadyRun(t, func(commit func()) { commit() }); stacks != "" {
		t.Errorf("streams waited for each other:\n%s", stacks)
	}
	if stacks := steadyRun(t, new(sharedLock).around); stacks == "" {
		t.Error("a lock around all commits was not noticed")
	}
}
