package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// faultyMesh is the sidecars of a workload under a constant load, and meshpulse beside them: from
// Commit to the scale's update nothing is replaced but the API server. Things go wrong with it
// (spoil) that change no request.
//
// It sleeps, so it belongs into a synctest bubble.
type faultyMesh struct {
	*testing.T
	r      *rand.Rand
	rps    float64 // of all pods together
	noisy  bool    // arrivals are Poisson's, else evenly spaced
	flush  time.Duration
	pods   []*faultyPod
	named  int
	scales *fakeScales

	mu   sync.Mutex
	told []string // what went wrong, and raises, for the message of a failure

	store *aggregator.Store // nil while meshpulse is down
	stop  func()

	rolled   []*faultyPod // those that a rollout has still to replace
	rollout  int          // how many there were when it began
	nextRoll time.Time
}

// faultyPod is a pod with its sidecar.
type faultyPod struct {
	name     string
	share    float64 // of the load
	stream   *aggregator.Stream
	next     time.Time     // its next flush
	offset   time.Duration // of its clock
	split    bool          // sends a flush in two messages
	cutTill  time.Time     // no stream until then
	holdTill time.Time     // what it sends arrives only then
	held     []*faultyFlush
	series   [2]faultySeries
	busy     int // the one of them that callers use, the other one now and then
}

type faultySeries struct {
	carry, value, interval float64
	absent                 bool // not sent until it is used again
	evicted                bool // and then from 0
}

// faultyFlush is what a sidecar sends at one time.
type faultyFlush struct{ messages []*aggregator.Batch }

// noteRaise puts a raise among what went wrong.
func (m *faultyMesh) noteRaise(p hpas.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, time.Now().Format("15:04:05")+" "+p.Reason+" "+p.Message)
}

func (m *faultyMesh) note(p *faultyPod, what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, fmt.Sprintf("%s %s %s", time.Now().Format("15:04:05"), p.name, what))
}

// story is the first raise with what came before it.
func (m *faultyMesh) story() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := slices.IndexFunc(m.told, func(s string) bool { return strings.Contains(s, hpas.ReasonSurgeScaled) })
	return strings.Join(m.told[max(0, first-8):first+1], "\n")
}

// begin starts meshpulse. Every sidecar connects at its next flush.
func (m *faultyMesh) begin() {
	var err error
	if m.store, err = aggregator.New(aggregator.Config{}); err != nil {
		m.Fatal(err)
	}
	h := hpaFrom(m.T, fixture.HPA("podinfo", `metric-config.external.prometheus-query.prometheus/rps: '`+actQuery+`', `+scaleAction,
		fixture.External("prometheus-query", "{matchLabels: {query-name: rps}}", `type: AverageValue, averageValue: "1"`)))
	h.UID, h.Spec.MaxReplicas = types.UID("1"), 10_000
	mt := newMetrics(nil)
	c := newCatalog(m.store, newWarner(func(hpas.HPA, hpas.Problem) {}, mt))
	r := &rules{retention: 5 * time.Minute, started: m.store.Started()}
	r.actor = newActor(&actor{
		settings: horizontal.Settings{Tolerance: horizontal.DefaultTolerance},
		catalog:  c, rules: r, store: m.store, targets: m.scales.client(), pods: fixedPods{}, metrics: mt, log: discardLog(),
		report: func(_ hpas.HPA, p hpas.Problem) { m.noteRaise(p) }, now: func() time.Time { return m.store.Time(time.Now()) },
		hpa: func(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool) {
			return h.HorizontalPodAutoscaler, true
		},
		fresh: func(context.Context, string, string) (*autoscalingv2.HorizontalPodAutoscaler, error) {
			return h.HorizontalPodAutoscaler, nil
		},
	})
	c.follow = r.actor.follow
	c.Replace([]hpas.HPA{h})
	ctx, cancel := context.WithCancel(m.Context())
	ended := make(chan struct{})
	go func() { r.actor.run(ctx); close(ended) }()
	m.stop = func() {
		cancel()
		<-ended
		for _, p := range m.pods {
			p.hangUp()
		}
		c.Close()
		m.store = nil
	}
}

func (m *faultyMesh) join() *faultyPod {
	p := &faultyPod{name: fmt.Sprintf("podinfo-%d", m.named), split: m.r.IntN(3) == 0, next: time.Now().Add(time.Duration(1 + m.r.Int64N(int64(m.flush))))}
	if m.r.IntN(2) == 0 {
		p.offset = time.Duration(m.r.IntN(7200)-3600) * time.Second
	}
	m.named++
	m.pods = append(m.pods, p)
	return p
}

// leave takes a pod away.
func (m *faultyMesh) leave(p *faultyPod) {
	p.hangUp()
	m.pods = slices.DeleteFunc(m.pods, func(o *faultyPod) bool { return o == p })
}

// hangUp ends the stream, and what is held up in it is lost.
func (p *faultyPod) hangUp() {
	if p.stream != nil {
		p.stream.Close()
	}
	p.stream, p.held = nil, nil
}

// balance gives every pod its share of the load: the same, or weights that differ.
func (m *faultyMesh) balance() {
	sum := 0.0
	for _, p := range m.pods {
		p.share = 1
		if m.r.IntN(2) == 0 {
			p.share = 0.2 + m.r.Float64()
		}
		sum += p.share
	}
	for _, p := range m.pods {
		p.share /= sum
	}
}

// serve lets requests come for a while.
func (m *faultyMesh) serve(d time.Duration) {
	for _, p := range m.pods {
		n := m.rps * p.share * d.Seconds()
		if m.noisy {
			n = m.poisson(n)
		}
		s := &p.series[p.busy]
		if m.r.IntN(40) == 0 {
			s = &p.series[1-p.busy]
		}
		whole := math.Floor(s.carry + n)
		s.carry += n - whole
		if whole > 0 && s.absent {
			if s.absent = false; s.evicted {
				s.value = 0
			}
		}
		s.value, s.interval = s.value+whole, s.interval+whole
	}
}

func (m *faultyMesh) poisson(mean float64) float64 {
	n, p := 0.0, m.r.Float64()
	for limit := math.Exp(-mean); p > limit; n++ {
		p *= m.r.Float64()
	}
	return n
}

// flushed makes what the sidecar sends now.
func (p *faultyPod) flushed() *faultyFlush {
	f := &faultyFlush{}
	at := time.Now().Add(p.offset).UnixMilli()
	counters, histograms := &aggregator.Batch{Timestamp: at}, &aggregator.Batch{Timestamp: at}
	for i := range p.series {
		s := &p.series[i]
		if s.absent || s.value == 0 {
			continue
		}
		key := uint64(2*i + 1)
		counters.Samples = append(counters.Samples, aggregator.Sample{Key: key, Timestamp: at, Kind: aggregator.Counter, Value: s.value})
		histograms.Samples = append(histograms.Samples, aggregator.Sample{Key: key + 1, Timestamp: at, Kind: aggregator.Histogram, Count: uint64(s.interval), Value: s.interval})
		s.interval = 0
	}
	if p.split {
		f.messages = []*aggregator.Batch{counters, histograms}
		return f
	}
	counters.Samples = append(counters.Samples, histograms.Samples...)
	f.messages = []*aggregator.Batch{counters}
	return f
}

// faultyLabels describes the samples of a batch.
type faultyLabels struct{ batch *aggregator.Batch }

func (d faultyLabels) Describe(i int) (string, []aggregator.Label, error) {
	key := d.batch.Samples[i].Key
	name := "istio_requests_total"
	if key%2 == 0 {
		name = "istio_request_duration_milliseconds"
	}
	return name, []aggregator.Label{
		{Name: "reporter", Value: "destination"},
		{Name: "destination_workload", Value: "podinfo"},
		{Name: "destination_workload_namespace", Value: "test"},
		{Name: "response_code", Value: fmt.Sprint(200 + (key-1)/2)},
	}, nil
}

// send delivers a pod's flush, or does to it what is wrong at the moment.
func (m *faultyMesh) send(p *faultyPod) {
	p.next = p.next.Add(m.flush)
	f := p.flushed()
	now := time.Now()
	switch {
	case m.store == nil, now.Before(p.cutTill):
		p.hangUp()
		return // an Envoy without a stream drops what it flushes
	case now.Before(p.holdTill):
		p.held = append(p.held, f)
		return
	}
	m.deliver(p, f)
}

// deliver sends a flush, after those that were held up: a stream keeps its order.
func (m *faultyMesh) deliver(p *faultyPod, f *faultyFlush) {
	late := p.held
	p.held = nil
	for _, l := range late {
		m.deliver(p, l)
	}
	if m.store == nil {
		return
	}
	if p.stream == nil {
		p.stream = m.store.Connect(aggregator.Pod{Namespace: "test", Name: p.name, Workload: "podinfo", FlushInterval: m.flush})
	}
	for _, b := range f.messages {
		if err := p.stream.Commit(time.Now(), b, faultyLabels{b}); err != nil && !errors.Is(err, aggregator.ErrSuperseded) {
			m.Fatal(err)
		}
	}
}

// roll replaces the next pod of a rollout: another joins, and some seconds later this one leaves.
func (m *faultyMesh) roll() {
	if len(m.rolled) == 0 || time.Now().Before(m.nextRoll) {
		return
	}
	old := m.rolled[0]
	m.nextRoll = time.Now().Add(time.Duration(1+m.r.IntN(8)) * time.Second)
	if len(m.pods) <= m.rollout { // one more than there were: nobody has come for it yet
		m.join()
	} else {
		m.rolled = m.rolled[1:]
		m.goodbye(old)
		m.leave(old)
	}
	m.balance()
}

// live lets the mesh live for a while, with something going wrong every so often; 0: nothing does.
func (m *faultyMesh) live(d, every time.Duration) {
	const step = 100 * time.Millisecond
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(step)
		m.serve(step)
		for _, p := range m.pods {
			if !time.Now().Before(p.next) {
				m.send(p)
			}
		}
		m.roll()
		if every > 0 && m.r.Int64N(int64(every)) < int64(step) {
			m.spoil()
		}
		synctest.Wait()
	}
}
