package surge

import (
	"container/heap"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// fault is something that goes wrong, or is only unusual, while the load of all pods together stays
// as it is.
type fault struct {
	name string
	do   func(m *mesh) error
}

// faults are those that must not look like a surge.
func faults() []fault {
	return []fault{
		{"reconnect", (*mesh).reconnect},
		{"hand-over", (*mesh).handOver},
		{"gap", (*mesh).gap},
		{"all pods lose flushes", (*mesh).outage},
		{"network held up", (*mesh).stall},
		{"clock step", (*mesh).clockStep},
		{"sidecar restart", (*mesh).restartSidecar},
		{"eviction and return", (*mesh).evict},
		{"load moves between pods", (*mesh).moveLoad},
		{"a pod joins", (*mesh).scaleUp},
		{"a pod leaves", (*mesh).scaleDown},
		{"rollout", (*mesh).rollout},
		{"meshpulse restart", (*mesh).newStore},
	}
}

func (m *mesh) anyPod() *pod { return m.pods[m.r.IntN(len(m.pods))] }

// within is a random time of up to so many flushes.
func (m *mesh) within(flushes int64) int64 { return 1 + m.r.Int64N(flushes*m.flush.Milliseconds()) }

// wait lets the mesh live on for a while; what is told meanwhile goes to look.
func (m *mesh) wait(ms int64) error {
	return m.run(time.Duration(m.now+ms)*time.Millisecond, m.flush, m.look)
}

// connect opens a new stream. What the old one had not delivered is lost: Envoy keeps nothing.
func (m *mesh) connect(p *pod) {
	p.stream = m.store.Connect(p.identity)
	p.backlog = p.backlog[:0]
}

// unload moves a pod's load to the others.
func (m *mesh) unload(p *pod) {
	m.setShare(p, 0)
	if m.shared < 0.5 {
		m.setShare(m.pods[(p.index+1)%len(m.pods)], 1)
	}
}

// reconnect ends a stream and opens the next one. Nothing is lost.
func (m *mesh) reconnect() error {
	p := m.anyPod()
	p.stream.Close()
	m.connect(p)
	return nil
}

// handOver opens the next stream before the old one has ended, whose last messages come too late.
func (m *mesh) handOver() error {
	p := m.anyPod()
	old := p.stream
	m.connect(p)
	late := *p
	late.stream = old
	m.receive(p)
	message := message{stamp: m.now + p.offset, counter: int64(p.counter), interval: int64(p.interval)}
	if err := m.flushed(p); err != nil {
		return err
	}
	err := m.commit(&late, message)
	old.Close()
	return err
}

// gap loses a few flushes of a pod.
func (m *mesh) gap() error {
	p := m.anyPod()
	p.stream.Close()
	p.deaf = m.now + m.within(8)
	m.connect(p)
	return nil
}

// outage loses the flushes of all pods for a while; each comes back by itself.
func (m *mesh) outage() error {
	for _, p := range m.pods {
		p.deaf = m.now + m.within(6)
		p.stream.Close()
		m.connect(p)
	}
	return nil
}

// stall holds messages up; they arrive at once.
func (m *mesh) stall() error {
	until := m.now + m.within(3)
	for _, p := range m.pods {
		if m.r.IntN(2) == 0 {
			p.stalled = until
		}
	}
	return nil
}

// clockStep sets a sidecar's clock.
func (m *mesh) clockStep() error {
	step := 2*m.flush.Milliseconds() - m.r.Int64N(4*m.flush.Milliseconds())
	if m.r.IntN(3) == 0 {
		step *= 1000
	}
	m.anyPod().offset += step
	return nil
}

// restartSidecar ends a sidecar, with its last flush or without; others get its load until the next
// one is up.
func (m *mesh) restartSidecar() error {
	if len(m.pods) < 2 {
		return nil
	}
	p := m.anyPod()
	share := p.share
	m.unload(p)
	if m.r.IntN(2) == 0 {
		if err := m.send(p, false); err != nil {
			return err
		}
	}
	p.stream.Close()
	p.counter, p.interval, p.mute = 0, 0, true
	if err := m.wait(m.within(3)); err != nil {
		return err
	}
	p.mute = false
	m.connect(p)
	m.setShare(p, share)
	return nil
}

// evict has a pod without load drop its counter, which comes back from 0 or from where it was.
func (m *mesh) evict() error {
	if len(m.pods) < 2 {
		return nil
	}
	p := m.anyPod()
	share := p.share
	m.unload(p)
	if err := m.wait(m.within(2)); err != nil {
		return err
	}
	p.evicted = true
	if m.r.IntN(2) == 0 {
		p.counter = 0
	}
	if err := m.wait(m.within(8)); err != nil {
		return err
	}
	p.evicted = false
	m.setShare(p, share)
	return nil
}

func (m *mesh) moveLoad() error {
	for _, p := range m.pods {
		m.setShare(p, float64(m.r.IntN(4)))
	}
	if m.shared < 0.5 {
		m.setShare(m.anyPod(), 1)
	}
	return nil
}

func (m *mesh) scaleUp() error {
	if len(m.pods) > 30 {
		return nil
	}
	for range 1 + m.r.IntN(3) {
		p := m.join(0)
		m.setShare(p, 1)
	}
	return nil
}

func (m *mesh) scaleDown() error {
	if len(m.pods) < 2 {
		return nil
	}
	return m.leave(m.anyPod())
}

// leave ends a pod: its sidecar sends a last flush without histograms, or none.
func (m *mesh) leave(p *pod) error {
	m.unload(p)
	heap.Remove(&m.pods, p.index)
	var err error
	if m.r.IntN(3) > 0 {
		err = m.send(p, false)
	}
	p.stream.Close()
	return err
}

// rollout replaces all pods, one after the other.
func (m *mesh) rollout() error {
	old := append([]*pod(nil), m.pods...)
	for _, p := range old {
		n := m.join(0)
		m.setShare(n, max(p.share, 0.5))
		if err := m.wait(m.within(1)); err != nil {
			return err
		}
		if err := m.leave(p); err != nil {
			return err
		}
	}
	return nil
}

// faults runs random faults, one after the other, under a constant, evenly spaced load, and returns
// how many there were of each and which of them a surge followed.
func (m *mesh) faults(count int) (done, told map[string]int, err error) {
	done, told = map[string]int{}, map[string]int{}
	var last time.Time
	current := ""
	m.look = func(s aggregator.Surge) {
		if s.Active && !s.Triggered.Equal(last) {
			last = s.Triggered
			told[current]++
		}
	}
	if err = m.wait(2 * minute); err != nil {
		return done, told, err
	}
	all := faults()
	for range count {
		f := all[m.r.IntN(len(all))]
		current = f.name
		done[f.name]++
		if err = f.do(m); err != nil {
			return done, told, err
		}
		if err = m.wait(m.within(20)); err != nil {
			return done, told, err
		}
	}
	return done, told, nil
}

// Faults runs random faults under a constant, evenly spaced load, and returns how many there were
// and the names of those that a surge followed.
func Faults(flush time.Duration, count int, seed uint64) (done int, told []string, err error) {
	r := rand.New(rand.NewPCG(seed, 5))
	m, err := newMesh(Smooth, Load{{0, []float64{20, 200, 2000}[r.IntN(3)]}}, 1+r.IntN(12), flush, aggregator.SurgeConfig{}, r)
	if err != nil {
		return 0, nil, err
	}
	all, after, err := m.faults(count)
	for _, n := range all {
		done += n
	}
	return done, slices.Sorted(maps.Keys(after)), err
}
