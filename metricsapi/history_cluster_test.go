package metricsapi

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
)

// simCluster is a Deployment under constant load, the sidecars of its pods, a meshpulse and its faults, in simulated time: the store,
// the catalog and the rule are the real ones. One goroutine runs what happens, in the order of time.
type simCluster struct {
	random *rand.Rand
	events simEvents
	next   int
	note   func(format string, args ...any)

	flush time.Duration
	load  float64 // requests per second, spread over the pods that serve
	spec  int32   // the scale's spec.replicas
	pods  []*simPod
	other []knownPod // pods of the workload without a sidecar, which serve nobody, and pods that are gone
	made  int
	last  time.Time // until when requests are counted

	hpa       *autoscalingv2.HorizontalPodAutoscaler
	hold      time.Duration
	meshpulse *provider // nil while it is down
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
	count        float64       // requests that the sidecar's process has counted
	told         float64       // of them at the last flush
	stream       *aggregator.Stream
	cut, stalled bool
	unreadable   bool
	delayed      []func()
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
		name: "podinfo-" + strconv.Itoa(c.made), created: time.Now().Truncate(time.Second),
		offset: time.Duration(c.random.NormFloat64() * float64(20*time.Second)), split: c.random.IntN(4) == 0,
	}
	c.pods = append(c.pods, p)
	c.after(starts, func() {
		p.running = true
		c.begin(p)
		c.after(c.between(time.Second, 10*time.Second), func() { p.ready = true })
	})
	return p
}

// begin is the start of a sidecar's process: its counters are 0, its first flush comes an interval later.
func (c *simCluster) begin(p *simPod) {
	p.process++
	p.count, p.told = 0, 0
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

// remove is a graceful deletion: requests go elsewhere, and the sidecar drains for a flush at least.
func (c *simCluster) remove(p *simPod) {
	c.leave(p)
	c.after(c.between(c.flush+time.Second, c.flush+30*time.Second), func() { c.kill(p) })
}

func (c *simCluster) leave(p *simPod) {
	if !p.leaving {
		p.leaving, p.left = true, time.Now().Truncate(time.Second)
	}
}

// kill ends a pod at once.
func (c *simCluster) kill(p *simPod) {
	if p.gone {
		return
	}
	if p.running {
		if p.left.IsZero() {
			p.left = time.Now()
		}
		c.other = append(c.other, p.known())
	}
	p.gone = true
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

// simFlush describes the series of a flush: one more than there are samples where one cannot be read.
type simFlush struct{}

func (simFlush) Describe(i int) (string, []aggregator.Label, error) {
	if i == 2 {
		return "", nil, errors.New("not UTF-8")
	}
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[i], []aggregator.Label{
		{Name: "reporter", Value: "destination"},
		{Name: "response_code", Value: "200"},
		{Name: "destination_workload", Value: "podinfo"},
		{Name: "destination_workload_namespace", Value: "test"},
		{Name: "destination_canonical_service", Value: "podinfo"},
	}, nil
}

// simLatency is what every request takes.
const simLatency = 10 // ms

// sendFlush is a flush of the sidecar: what it has counted is gone from its interval, whether it arrives or not.
func (c *simCluster) sendFlush(p *simPod) {
	count := math.Floor(p.count)
	interval := count - math.Floor(p.told)
	p.told = count
	if c.meshpulse == nil || p.cut {
		return
	}
	if p.stream == nil {
		p.stream = c.meshpulse.catalog.store.Connect(aggregator.Pod{
			Namespace: "test", Name: p.name, Workload: "podinfo", CanonicalService: "podinfo", FlushInterval: c.flush,
		})
	}
	at := time.Now().Add(p.offset).UnixMilli()
	samples := []aggregator.Sample{
		{Key: 1, Timestamp: at, Kind: aggregator.Counter, Value: count},
		{Key: 2, Timestamp: at, Kind: aggregator.Histogram, Count: uint64(interval), Value: simLatency * interval, Last: 1},
		{Key: 3, Timestamp: at, Kind: aggregator.Counter, Value: 1},
	}
	if !p.unreadable {
		samples = samples[:2]
	}
	buckets := []aggregator.Bucket{{UpperBound: 25, Count: uint64(interval)}}
	messages := [][]aggregator.Sample{samples}
	if p.split {
		messages = [][]aggregator.Sample{samples[:1], samples[1:]}
	}
	if count == 0 { // nothing is used yet
		messages = [][]aggregator.Sample{nil}
	}
	stream, first := p.stream, 0
	for i, m := range messages {
		describe := simOffset(first)
		first += len(m)
		deliver := func() {
			if p.stream == stream && stream != nil {
				_ = stream.Commit(time.Now(), &aggregator.Batch{Timestamp: at, Samples: m, Buckets: buckets}, describe) // an older stream's flush is lost
			}
		}
		if p.stalled {
			p.delayed = append(p.delayed, deliver)
			continue
		}
		c.after(time.Duration(i*20+c.random.IntN(15))*time.Millisecond, deliver)
	}
}

// simOffset is where a message's samples begin in a flush.
type simOffset int

func (o simOffset) Describe(i int) (string, []aggregator.Label, error) {
	return simFlush{}.Describe(i + int(o))
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
	catalog := newCatalog(store, newWarner(func(sourceHPA, Problem) {}, m))
	catalog.Replace([]sourceHPA{{HorizontalPodAutoscaler: c.hpa}})
	c.meshpulse = &provider{catalog: catalog, metrics: m, now: time.Now, rules: rules{
		retention: 5 * time.Minute, started: store.Started(),
		holder: &holder{pods: c, scales: c, settings: horizontal.Settings{Tolerance: horizontal.DefaultTolerance}, store: store, started: store.Started(), hold: c.hold, status: func(string, string) (int32, bool) { return c.spec, true }},
	}}
	c.stop = func() {
		for _, p := range c.pods {
			c.disconnect(p)
		}
		catalog.Close()
		stop()
	}
}

// crash ends the meshpulse.
func (c *simCluster) crash() {
	c.stop()
	c.meshpulse = nil
}

func (p *simPod) known() knownPod {
	return knownPod{
		identity: aggregator.Pod{Namespace: "test", Name: p.name, Workload: "podinfo", CanonicalService: "podinfo"},
		created:  p.created, wired: true, left: p.left,
	}
}

// known is what the index of pods has: pods that have left Pending, and those that are gone.
func (c *simCluster) known() fixedPods {
	known := slices.Clone(c.other)
	for _, p := range c.pods {
		if p.running {
			known = append(known, p.known())
		}
	}
	return known
}

func (c *simCluster) each(sets []aggregator.Meant, since time.Time, f func(*knownPod)) {
	c.known().each(sets, since, f)
}

func (c *simCluster) get(k podKey) (knownPod, bool) { return c.known().get(k) }

func (c *simCluster) synced() error { return nil }

func (c *simCluster) replicas(context.Context, string, autoscalingv2.CrossVersionObjectReference) (horizontal.Target, error) {
	return c.target(), nil
}

// fault does something to the cluster that the load does not see, for a time.
func (c *simCluster) fault() {
	pods := slices.DeleteFunc(slices.Clone(c.pods), func(p *simPod) bool { return !p.running })
	if len(pods) == 0 {
		return
	}
	c.random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	some := pods[:[]int{1, (len(pods) + 1) / 2, len(pods)}[c.random.IntN(3)]]
	lasts := c.between(time.Second, 2*time.Minute)
	spare := len(c.serving()) > 1 && some[0].ready && !some[0].leaving // somebody else serves meanwhile
	what := ""
	switch kind := c.random.IntN(9); {
	case kind == 0:
		what = fmt.Sprintf("%d sidecars cut off for %s", len(some), lasts)
		for _, p := range some {
			p.cut = true
			if c.random.IntN(2) == 0 { // the other half's connection stays, and a newer one takes over
				c.disconnect(p)
			}
			p.stream = nil
			c.after(lasts, func() { p.cut = false })
		}
	case kind == 1:
		what = fmt.Sprintf("%d streams stalled for %s", len(some), lasts)
		for _, p := range some {
			p.stalled = true
			c.after(lasts, func() {
				p.stalled = false
				for _, deliver := range p.delayed {
					deliver()
				}
				p.delayed = nil
			})
		}
	case kind == 2 && c.meshpulse != nil:
		down := c.between(100*time.Millisecond, 30*time.Second)
		what = fmt.Sprintf("meshpulse down for %s", down)
		c.crash()
		c.after(down, func() { c.boot(aggregator.Config{}) })
	case kind == 3 && spare:
		what = "sidecar restarts: " + some[0].name
		c.restart(some[0])
	case kind == 4 && spare:
		what = "pod is deleted: " + some[0].name
		c.remove(some[0])
		c.scale()
	case kind == 5 && spare:
		what = "pod is lost: " + some[0].name
		c.kill(some[0])
	case kind == 6:
		what = "rollout"
		c.rollout(slices.DeleteFunc(slices.Clone(c.pods), func(p *simPod) bool { return p.leaving || p.gone }))
	case kind == 7:
		what = fmt.Sprintf("%d clocks set", len(some))
		for _, p := range some {
			p.offset += time.Duration(c.random.NormFloat64() * float64(30*time.Second))
		}
	case kind == 8:
		what = fmt.Sprintf("a series of %d sidecars cannot be read for %s", len(some), lasts)
		for _, p := range some {
			p.unreadable = true
			c.after(lasts, func() { p.unreadable = false })
		}
	}
	if what != "" {
		c.note("%s", what)
	}
}

// rollout replaces pods one by one: a new one first, and when it is ready an old one goes.
func (c *simCluster) rollout(old []*simPod) {
	if len(old) == 0 {
		return
	}
	n := c.create(c.between(time.Second, 10*time.Second))
	var wait func()
	wait = func() {
		switch {
		case n.gone || n.leaving:
		case !n.ready:
			c.after(time.Second, wait)
		default:
			if !old[0].leaving && !old[0].gone {
				c.remove(old[0])
			}
			c.rollout(old[1:])
		}
	}
	c.after(time.Second, wait)
}
