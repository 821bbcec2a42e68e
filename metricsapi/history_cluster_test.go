package metricsapi

import (
	"container/heap"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing/synctest"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// simCluster is a Deployment under constant load, the sidecars of its pods, a meshpulse and its
// faults, in simulated time: the store, the catalog and the rule are the real ones. One goroutine
// runs what happens, in the order of time.
type simCluster struct {
	random *rand.Rand
	events simEvents
	next   int
	note   func(format string, args ...any)

	flush     time.Duration
	untold    bool    // the sidecars' nodes do not tell the flush
	eviction  int     // of counters that are not used, in flushes; 0: none
	rollouts  bool    // a Rollout of Argo's has the pods, and no Deployment
	template  int     // of its pods
	load      float64 // requests per second, spread over the pods that serve
	spec      int32   // the scale's spec.replicas
	pods      []*simPod
	beside    []string // namespace/name of pods of a workload whose sidecars never report
	elsewhere bool     // they are in another namespace
	made      int
	last      time.Time // until when requests are counted

	api       simAPI
	scaleless bool // the API server reads no scales
	hpa       *autoscalingv2.HorizontalPodAutoscaler
	hold      time.Duration
	meshpulse *provider // nil while it is down
	index     *simIndex // of the meshpulse
	hpas      *cluster.Freshness
	stop      context.CancelFunc
}

// simPod is a pod and its sidecar.
type simPod struct {
	name         string
	created      time.Time
	running      bool // it has left Pending, and its sidecar runs
	ready        bool
	leaving      bool
	gone         bool
	left         time.Time     // when its deletion began
	offset       time.Duration // of the sidecar's clock
	split        bool          // a flush is two messages
	process      int           // of the sidecar; a flush that is due belongs to one
	template     int
	count        float64 // requests that the sidecar's process has counted
	told         float64 // of them at the last flush
	flushes      int     // of the sidecar's process
	sets         [simSets]simSet
	stream       *aggregator.Stream
	second       *simSecond
	cut, stalled bool
	unreadable   bool
	delayed      []func()
}

// simSet is a label set's counter in a sidecar's process.
type simSet struct {
	count float64
	used  bool // since the last eviction: then it is sent
}

// simSets is how many label sets there are. Where there is eviction all but the first are used now
// and then.
const simSets = 4

// simSecond is another stream that reports as a pod.
type simSecond struct {
	*aggregator.Stream
	idle bool // else it has the same numbers
}

// simEvent is something that happens at a time.
type simEvent struct {
	at    time.Time
	order int
	do    func()
}

type simEvents []simEvent

func (e simEvents) Len() int { return len(e) }
func (e simEvents) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].order < e[j].order
}
func (e simEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *simEvents) Push(x any)   { *e = append(*e, x.(simEvent)) }
func (e *simEvents) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (c *simCluster) after(d time.Duration, do func()) {
	c.next++
	heap.Push(&c.events, simEvent{time.Now().Add(d), c.next, do})
}

// run lets everything happen that is due within a time.
func (c *simCluster) run(d time.Duration) {
	end := time.Now().Add(d)
	for c.events.Len() > 0 && !c.events[0].at.After(end) {
		e := heap.Pop(&c.events).(simEvent)
		time.Sleep(time.Until(e.at))
		synctest.Wait()
		c.serve()
		e.do()
	}
	time.Sleep(time.Until(end))
}

// between is a random time, uniform in its logarithm.
func (c *simCluster) between(shortest, longest time.Duration) time.Duration {
	return time.Duration(float64(shortest) * math.Pow(float64(longest)/float64(shortest), c.random.Float64())).Round(time.Millisecond)
}

// serving are the pods that take requests.
func (c *simCluster) serving() []*simPod {
	return slices.DeleteFunc(slices.Clone(c.pods), func(p *simPod) bool { return !p.ready || p.leaving || p.gone })
}

// serve spreads the requests since the last time over the pods that serve.
func (c *simCluster) serve() {
	now := time.Now()
	pods := c.serving()
	for _, p := range pods {
		p.count += c.load * now.Sub(c.last).Seconds() / float64(len(pods))
	}
	c.last = now
}

// scale makes as many pods as are meant to be there.
func (c *simCluster) scale() {
	alive := slices.DeleteFunc(slices.Clone(c.pods), func(p *simPod) bool { return p.leaving || p.gone })
	for n := len(alive); n < int(c.spec); n++ {
		c.create(c.between(time.Second, 20*time.Second))
	}
	slices.SortStableFunc(alive, func(a, b *simPod) int { // the ReplicaSet's: those that are not ready go first
		return map[bool]int{true: 1}[a.ready] - map[bool]int{true: 1}[b.ready]
	})
	for _, p := range alive[:max(0, len(alive)-int(c.spec))] {
		c.remove(p)
	}
}

// target is what the controller reads of the Deployment.
func (c *simCluster) target() horizontal.Target {
	target := horizontal.Target{Spec: c.spec, Pods: int32(len(c.pods))}
	for _, p := range c.pods {
		if !p.leaving {
			target.Status++
		}
		if p.ready {
			target.Ready++
		}
	}
	return target
}

// create makes a pod that begins after a time.
func (c *simCluster) create(starts time.Duration) *simPod {
	c.made++
	p := &simPod{
		name: "podinfo-" + strconv.Itoa(c.made), template: c.template, created: time.Now().Truncate(time.Second),
		offset: time.Duration(c.random.NormFloat64() * float64(20*time.Second)), split: c.random.IntN(4) == 0,
	}
	c.pods = append(c.pods, p)
	c.after(starts, func() {
		if p.gone {
			return
		}
		p.running = true
		c.tell(p.object(c.rollouts))
		c.begin(p)
		c.after(c.between(time.Second, 10*time.Second), func() { p.ready = true })
	})
	return p
}

// begin is the start of a sidecar's process: its counters are 0, its first flush comes an interval
// later.
func (c *simCluster) begin(p *simPod) {
	p.process++
	p.count, p.told, p.flushes, p.sets = 0, 0, 0, [simSets]simSet{}
	process := p.process
	var tick func()
	tick = func() {
		if p.gone || p.process != process {
			return
		}
		c.sendFlush(p)
		c.after(c.flush, tick)
	}
	c.after(c.flush, tick)
}

// remove is a graceful deletion: requests go elsewhere, and the sidecar drains for a flush at
// least.
func (c *simCluster) remove(p *simPod) {
	c.leave(p)
	c.after(c.between(c.flush+time.Second, c.flush+30*time.Second), func() { c.kill(p) })
}

func (c *simCluster) leave(p *simPod) {
	if !p.leaving {
		p.leaving, p.left = true, time.Now().Truncate(time.Second)
		if p.running {
			c.tell(p.object(c.rollouts))
		}
	}
}

// kill ends a pod at once.
func (c *simCluster) kill(p *simPod) {
	if p.gone {
		return
	}
	p.gone = true
	c.endSecond(p)
	if p.running {
		c.untell("test/" + p.name)
	}
	c.disconnect(p)
	c.pods = slices.DeleteFunc(c.pods, func(o *simPod) bool { return o == p })
	c.scale()
}

// restart ends the sidecar's process. Its counters begin anew, and requests go elsewhere meanwhile.
func (c *simCluster) restart(p *simPod) {
	p.ready = false
	p.process++
	c.disconnect(p)
	c.after(c.between(time.Second, 10*time.Second), func() {
		if p.gone {
			return
		}
		c.begin(p)
		c.after(time.Second, func() { p.ready = true })
	})
}

func (c *simCluster) disconnect(p *simPod) {
	if p.stream != nil {
		p.stream.Close()
		p.stream = nil
	}
	p.delayed = nil
}

func (c *simCluster) endSecond(p *simPod) {
	if p.second != nil {
		p.second.Close()
		p.second = nil
	}
}

// simMessage describes what a message's samples are of: a counter and a histogram of each label
// set, and one that cannot be read.
type simMessage []aggregator.Sample

const unreadableKey = 99

func (m simMessage) Describe(i int) (string, []aggregator.Label, error) {
	key := int(m[i].Key)
	if key == unreadableKey {
		return "", nil, errors.New("not UTF-8")
	}
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[key%2], []aggregator.Label{
		{Name: "reporter", Value: "destination"},
		{Name: "response_code", Value: strconv.Itoa(200 + key/2)},
		{Name: "destination_workload", Value: "podinfo"},
		{Name: "destination_workload_namespace", Value: "test"},
		{Name: "destination_canonical_service", Value: "podinfo"},
	}, nil
}

// simLatency is what every request takes.
const simLatency = 10 // ms

// sendFlush is a flush of the sidecar: what it has counted is gone from its interval, whether it
// arrives or not.
func (c *simCluster) sendFlush(p *simPod) {
	at := time.Now().Add(p.offset).UnixMilli()
	batch := c.take(p, at)
	if c.meshpulse == nil || p.cut {
		return
	}
	if p.stream == nil {
		p.stream = c.connect(p, "10.0.0.1:15000")
	}
	samples := batch.Samples
	messages := [][]aggregator.Sample{samples}
	if p.split && len(samples) > 0 {
		messages = [][]aggregator.Sample{samples[:1], samples[1:]}
	}
	stream := p.stream
	for i, m := range messages {
		part := batch
		part.Samples = m
		deliver := func() {
			if p.stream == stream && stream != nil {
				_ = stream.Commit(time.Now(), &part, simMessage(m)) // an older stream's flush is lost
			}
		}
		if p.stalled {
			p.delayed = append(p.delayed, deliver)
			continue
		}
		c.after(time.Duration(i*20+c.random.IntN(15))*time.Millisecond, deliver)
	}
	if second := p.second; second != nil {
		if second.idle {
			batch.Samples = nil
		}
		deliver := func() {
			if p.second == second {
				_ = second.Commit(time.Now(), &batch, simMessage(batch.Samples))
			}
		}
		if p.stalled { // the network is the pod's: who alone sends is the pod, for all that can be known
			p.delayed = append(p.delayed, deliver)
		} else {
			c.after(time.Duration(c.random.IntN(50))*time.Millisecond, deliver)
		}
	}
}

// take is what the sidecar's process has counted since its last flush.
func (c *simCluster) take(p *simPod, at int64) aggregator.Batch {
	count := math.Floor(p.count)
	left := count - math.Floor(p.told)
	p.told = count
	p.flushes++
	b := aggregator.Batch{Timestamp: at}
	for i := range p.sets {
		set, interval := &p.sets[i], 0.0
		switch last := i == len(p.sets)-1; {
		case last, c.eviction == 0:
			interval = left
		case c.random.IntN(4) == 0:
			interval = min(left, float64(1+c.random.IntN(3)))
		}
		left -= interval
		set.count += interval
		if set.used = set.used || interval > 0; set.used {
			n := uint32(len(b.Buckets))
			b.Buckets = append(b.Buckets, aggregator.Bucket{UpperBound: 25, Count: uint64(interval)})
			b.Samples = append(b.Samples, aggregator.Sample{Key: uint64(2 * i), Timestamp: at, Kind: aggregator.Counter, Value: set.count},
				aggregator.Sample{Key: uint64(2*i + 1), Timestamp: at, Kind: aggregator.Histogram, Count: uint64(interval), Value: simLatency * interval, First: n, Last: n + 1})
		}
	}
	if p.unreadable && len(b.Samples) > 0 {
		b.Samples = append(b.Samples, aggregator.Sample{Key: unreadableKey, Timestamp: at, Kind: aggregator.Counter, Value: 1})
	}
	if c.eviction > 0 && p.flushes%c.eviction == 0 { // what has not been used since the last time goes
		for i := range p.sets {
			if !p.sets[i].used {
				p.sets[i].count = 0
			}
			p.sets[i].used = false
		}
	}
	return b
}

func (c *simCluster) connect(p *simPod, address string) *aggregator.Stream {
	pod := aggregator.Pod{Namespace: "test", Name: p.name, Workload: "podinfo", CanonicalService: "podinfo", FlushInterval: c.flush, Address: address}
	if c.untold {
		pod.FlushInterval = 0
	}
	return c.meshpulse.catalog.store.Connect(pod)
}

// boot starts a meshpulse that knows nothing.
func (c *simCluster) boot(config aggregator.Config) {
	store, err := aggregator.New(config)
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	go store.Run(ctx)
	m := newMetrics(nil)
	catalog := newCatalog(store, newWarner(func(hpas.HPA, hpas.Problem) {}, m))
	c.index = newSimIndex(&c.api)
	store.SetPods(c.index)
	c.hpas = cluster.NewAskedFreshness("hpas", time.Now)
	scales := cluster.NewAskedFreshness("scales", time.Now)
	catalog.Replace([]hpas.HPA{{HorizontalPodAutoscaler: c.hpa}})
	c.meshpulse = &provider{catalog: catalog, metrics: m, now: time.Now, rules: rules{
		retention: 5 * time.Minute, started: store.Started(),
		holder: &holder{pods: c.index, scales: c, hpasFresh: c.hpas, scalesFresh: scales, settings: horizontal.Settings{Tolerance: horizontal.DefaultTolerance}, store: store, started: store.Started(), hold: c.hold, status: func(string, string) (int32, bool) { return c.spec, true }},
	}}
	if !c.index.listed.Load() {
		c.relist(time.Second)
	}
	c.stop = func() {
		for _, p := range c.pods {
			c.disconnect(p)
			c.endSecond(p)
		}
		c.index.close()
		catalog.Close()
		stop()
	}
}

// crash ends the meshpulse.
func (c *simCluster) crash() {
	c.stop()
	c.meshpulse = nil
}

func (c *simCluster) Recent(context.Context, string, autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	if c.scaleless {
		return nil, errors.New("no route to host")
	}
	return scaleOf(c.target()), nil
}
