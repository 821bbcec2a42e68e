package metricsapi

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// spoil lets one thing go wrong.
func (m *faultyMesh) spoil() {
	p := m.pods[m.r.IntN(len(m.pods))]
	aWhile := time.Duration(float64(time.Second) * math.Exp(m.r.Float64()*math.Log(60)))
	some := []*faultyPod{p}
	if m.r.IntN(4) == 0 {
		some = m.pods // a network, and not a sidecar
	}
	switch m.r.IntN(16) {
	case 0:
		m.note(p, fmt.Sprintf("is cut off for %s, of %d", aWhile, len(some)))
		for _, p := range some {
			p.cutTill = time.Now().Add(aWhile)
		}
	case 1:
		m.note(p, fmt.Sprintf("is held up for %s, of %d", aWhile, len(some)))
		for _, p := range some {
			p.holdTill = time.Now().Add(aWhile)
		}
	case 2:
		m.note(p, "restarts its Envoy")
		p.hangUp()
		p.series = [2]faultySeries{}
		p.next = time.Now().Add(m.flush)
	case 3:
		m.note(p, "connects anew beside the old connection")
		m.handOver(p)
	case 4:
		m.note(p, "has its clock set")
		p.offset += time.Duration(m.r.IntN(240)-120) * []time.Duration{time.Second, time.Minute}[m.r.IntN(2)]
	case 5:
		m.note(p, "loses a flush to a garbled message")
		p.flushed()
	case 6:
		m.note(p, "loses half a flush")
		f := p.flushed()
		f.messages[0].Samples = f.messages[0].Samples[:len(f.messages[0].Samples)/2]
		f.messages[0].Refused = 1
		m.deliver(p, f)
	case 7:
		m.note(p, "loses one message of a flush")
		f := p.flushed()
		lost := m.r.IntN(len(f.messages))
		f.messages = slices.Delete(f.messages, lost, lost+1)
		m.deliver(p, f)
	case 8:
		m.note(p, "evicts what is idle")
		s := &p.series[1-p.busy]
		s.absent, s.evicted, s.interval = true, true, 0
	case 9:
		m.note(p, "does not send what is idle")
		s := &p.series[1-p.busy]
		s.absent, s.evicted, s.interval = true, false, 0
	case 10:
		m.note(p, "has other callers")
		p.busy = 1 - p.busy
	case 11:
		m.note(p, "flushes late from now on")
		p.next = p.next.Add(time.Duration(m.r.Int64N(int64(m.flush))))
	case 12:
		m.note(p, "is joined by another, and the load is balanced anew")
		if n := m.join(); m.r.IntN(3) == 0 {
			n.cutTill = time.Now().Add(aWhile)
		}
		m.balance()
	case 13:
		m.note(p, "is replaced")
		if m.r.IntN(2) == 0 {
			m.goodbye(p)
		}
		m.join()
		m.leave(p)
		m.balance()
	case 14:
		m.note(p, "is rolled out anew, as are all others")
		m.rolled, m.rollout = slices.Clone(m.pods), len(m.pods)
	case 15:
		m.note(p, "hears nothing of meshpulse for "+aWhile.String())
		m.stop()
		m.live(aWhile, 0)
		m.begin()
	}
}

// goodbye is the flush that an Envoy sends when it is told to end.
func (m *faultyMesh) goodbye(p *faultyPod) { m.send(p) }

// handOver lets a pod connect anew within a flush or between two, while the old connection is still
// there and sends on.
func (m *faultyMesh) handOver(p *faultyPod) {
	old, f := p.stream, p.flushed()
	if m.store == nil || old == nil {
		return
	}
	if len(f.messages) > 1 && m.r.IntN(2) == 0 {
		if err := old.Commit(time.Now(), f.messages[0], faultyLabels{f.messages[0]}); err != nil {
			m.Fatal(err)
		}
		f.messages = f.messages[1:]
	}
	p.stream = nil
	m.deliver(p, f)
	for _, b := range f.messages { // what the old one still sends
		if err := old.Commit(time.Now(), b, faultyLabels{b}); !errors.Is(err, aggregator.ErrSuperseded) {
			m.Fatal(err)
		}
	}
}

// Whatever goes wrong under a constant load, no target is raised; a real step of the load then is.
func TestAFaultNeverLooksLikeASurge(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 14))
				m := &faultyMesh{T: t, r: r, rps: []float64{5, 20, 100}[r.IntN(3)], noisy: r.IntN(2) == 0, flush: []time.Duration{time.Second, 5 * time.Second}[r.IntN(2)]}
				m.scales = &fakeScales{spec: 1, status: 1} // far below what the load needs: any surge would raise it
				for range 1 + r.IntN(6) {
					m.join()
				}
				m.balance()
				m.begin()
				m.live(3*time.Minute, 0)
				m.live(20*time.Minute, 15*time.Second)
				if n := len(m.scales.written); n > 0 {
					t.Errorf("%d raises with flushes every %s, %g/s, noisy %v:\n%s", n, m.flush, m.rps, m.noisy, m.story())
				}
				m.scales.written = nil
				m.live(6*time.Minute, 0) // whatever it was is over
				m.rps *= 20              // a prior of the noise is what it knows after a restart of six minutes ago
				m.live(30*time.Second, 0)
				if len(m.scales.written) == 0 {
					t.Error("twenty times the load raises nothing, so this test cannot fail")
				}
				m.stop()
			})
		})
	}
}

// Two flushes that come late, as on a busy node, look like another flush interval. A step soon
// after is a surge all the same.
func TestLateFlushesHideNoSurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &faultyMesh{T: t, r: rand.New(rand.NewPCG(1, 14)), rps: 2, flush: time.Second, scales: &fakeScales{spec: 1, status: 1}}
		p := m.join()
		m.balance()
		m.begin()
		m.live(5*time.Minute, 0)
		for range 2 {
			p.next = p.next.Add(500 * time.Millisecond)
			m.live(1500*time.Millisecond, 0)
		}
		m.live(20*time.Second, 0)
		m.rps = 60
		m.live(10*time.Second, 0)
		if len(m.scales.written) == 0 {
			t.Error("from 2 to 60 requests a second raises nothing")
		}
		m.stop()
	})
}
