package surge

import (
	"container/heap"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// mesh is a workload's pods, each with a sidecar that flushes at its own phase, in front of a real
// store. Its time is simulated: commits carry their arrival.
type mesh struct {
	store    *aggregator.Store
	detector *aggregator.SurgeDetector
	query    *aggregator.Query
	start    time.Time
	flush    time.Duration

	kind   Kind
	load   Load
	factor *intensity
	r      *rand.Rand
	pods   podQueue // by next flush
	named  int
	shared float64 // sum of the pods' shares
	now    int64   // milliseconds from the start
	config aggregator.SurgeConfig
	// pace waits for a time, where the store's own timers are to run with the simulation
	// (testing/synctest); nil: no time passes.
	pace func(time.Time)
	look func(aggregator.Surge) // while it waits
}

// pod is a pod with its sidecar.
type pod struct {
	identity aggregator.Pod
	stream   *aggregator.Stream
	samples  [2]aggregator.Sample
	index    int     // in the queue
	next     int64   // when it flushes
	last     int64   // when it flushed last
	share    float64 // of the load
	counter  float64
	interval float64 // since the last flush that was made
	rest     float64
	offset   int64 // of its clock
	deaf     int64 // flushes until then are lost
	stalled  int64 // messages until then arrive then
	backlog  []message
	evicted  bool // the counter is not sent
	mute     bool // the sidecar is down
}

// message is a flush on its way.
type message struct{ stamp, counter, interval int64 }

// podQueue is a heap by next flush.
type podQueue []*pod

func (q podQueue) Len() int           { return len(q) }
func (q podQueue) Less(i, j int) bool { return q[i].next < q[j].next }
func (q podQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *podQueue) Push(x any) {
	x.(*pod).index = len(*q)
	*q = append(*q, x.(*pod))
}

func (q *podQueue) Pop() any {
	old := *q
	p := old[len(old)-1]
	*q = old[:len(old)-1]
	return p
}

const workload = "w"

// query is a named metric's.
const queryExpr = `sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="w",reporter="destination"}[1m]))`

// newMesh returns a workload of pods at random phases whose sidecars have been running for a while.
func newMesh(kind Kind, load Load, pods int, flush time.Duration, c aggregator.SurgeConfig, r *rand.Rand) (*mesh, error) {
	m := &mesh{flush: flush, kind: kind, load: load, factor: newIntensity(kind, flush, r), r: r, config: c, start: time.Now()}
	if err := m.newStore(); err != nil {
		return nil, err
	}
	for range pods {
		p := m.join(1)
		p.next = r.Int64N(flush.Milliseconds()) + 1
		p.counter = float64(r.IntN(100_000))
	}
	heap.Init(&m.pods)
	return m, nil
}

// newStore has meshpulse start anew, and forget everything.
func (m *mesh) newStore() error {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		return err
	}
	if m.query, err = store.Register(queryExpr); err != nil {
		return err
	}
	if m.detector, err = m.query.DetectSurges(m.config); err != nil {
		return err
	}
	m.store = store
	for _, p := range m.pods {
		m.connect(p)
	}
	return nil
}

// join adds a pod that begins now.
func (m *mesh) join(share float64) *pod {
	p := &pod{share: share, rest: m.r.Float64(), last: m.now, next: m.now + m.flush.Milliseconds()}
	p.identity = aggregator.Pod{Namespace: "test", Name: fmt.Sprintf("pod-%03d", m.named), Workload: workload, FlushInterval: m.flush}
	m.named++
	m.shared += share
	p.stream = m.store.Connect(p.identity)
	heap.Push(&m.pods, p)
	return p
}

// setShare moves load to or from a pod; what it got until now stays its own.
func (m *mesh) setShare(p *pod, share float64) {
	for _, o := range m.pods { // the shares of all change with the sum
		m.receive(o)
	}
	m.shared += share - p.share
	p.share = share
}

// receive brings a pod's counter to now.
func (m *mesh) receive(p *pod) {
	if m.now <= p.last {
		return
	}
	expected := 0.0
	m.load.parts(p.last, m.now, func(from, to int64, rate float64) { expected += rate * m.factor.over(from, to) })
	n := m.kind.requests(expected*p.share/m.shared, &p.rest, m.r)
	p.counter, p.interval, p.last = p.counter+n, p.interval+n, m.now
}

// run lets the mesh live until a time, and asks the detector at an interval.
func (m *mesh) run(until, every time.Duration, look func(aggregator.Surge)) error {
	ask := m.now + every.Milliseconds()
	for m.now < until.Milliseconds() {
		var p *pod
		next := ask
		if len(m.pods) > 0 && m.pods[0].next < next {
			p, next = m.pods[0], m.pods[0].next
		}
		m.now = next
		if m.pace != nil {
			m.pace(m.time(m.now))
		}
		if p == nil {
			look(m.detector.At(m.time(m.now)))
			ask += every.Milliseconds()
			continue
		}
		if err := m.flushed(p); err != nil {
			return err
		}
	}
	return nil
}

func (m *mesh) time(ms int64) time.Time { return m.start.Add(time.Duration(ms) * time.Millisecond) }

// flushed has a pod's sidecar flush now. Envoy's timer is armed again after a flush, so its period
// drifts.
func (m *mesh) flushed(p *pod) error {
	m.receive(p)
	p.next = m.now + m.flush.Milliseconds() + m.r.Int64N(10)
	heap.Fix(&m.pods, p.index)
	return m.send(p, true)
}

// send makes a flush of what the sidecar has. What cannot be delivered is lost, with its interval.
func (m *mesh) send(p *pod, histogram bool) error {
	f := message{stamp: m.now + p.offset, counter: int64(p.counter), interval: int64(p.interval)}
	if !histogram {
		f.interval = -1
	}
	p.interval = 0
	if m.now < p.deaf || p.mute {
		return nil
	}
	p.backlog = append(p.backlog, f)
	if m.now < p.stalled {
		return nil
	}
	for _, f := range p.backlog {
		if err := m.commit(p, f); err != nil {
			return err
		}
	}
	p.backlog = p.backlog[:0]
	return nil
}

// commit delivers a flush: the counter with the count of its duration histogram, once there was a
// request.
func (m *mesh) commit(p *pod, f message) error {
	stamp := m.time(f.stamp).UnixMilli()
	b := aggregator.Batch{Timestamp: stamp, Samples: p.samples[:0]}
	if f.counter > 0 && !p.evicted {
		b.Samples = append(b.Samples, aggregator.Sample{Key: 1, Timestamp: stamp, Kind: aggregator.Counter, Value: float64(f.counter)})
		if f.interval >= 0 {
			b.Samples = append(b.Samples, aggregator.Sample{Key: 2, Timestamp: stamp, Kind: aggregator.Histogram, Count: uint64(f.interval), Value: 10 * float64(f.interval)})
		}
	}
	err := p.stream.Commit(m.time(m.now), &b, described{})
	if errors.Is(err, aggregator.ErrSuperseded) {
		return nil
	}
	return err
}

// described names the two series of a pod.
type described struct{}

func (described) Describe(i int) (string, []aggregator.Label, error) {
	name := "istio_requests_total"
	if i == 1 {
		name = "istio_request_duration_milliseconds"
	}
	return name, []aggregator.Label{
		{Name: "reporter", Value: "destination"},
		{Name: "destination_workload", Value: workload},
		{Name: "destination_workload_namespace", Value: "test"},
	}, nil
}

// trueRate is the mean rate over (from, to], as far as it is no noise.
func (m *mesh) trueRate(from, to int64) float64 {
	total := 0.0
	m.load.parts(from, to, func(from, to int64, rate float64) {
		if m.factor.varies() {
			total += rate * m.factor.over(from, to)
		} else {
			total += rate * float64(to-from) / 1000
		}
	})
	return total * 1000 / math.Max(1, float64(to-from))
}
