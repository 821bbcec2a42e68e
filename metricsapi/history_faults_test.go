package metricsapi

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

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
	switch kind := c.random.IntN(14); {
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
		c.template++
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
	case kind == 9:
		lasts = c.between(100*time.Millisecond, 4*time.Minute)
		what = fmt.Sprintf("the API server tells nothing of pods for %s", lasts)
		c.deafen(lasts)
	case kind == 10 && c.meshpulse != nil:
		hpas := c.hpas
		hpas.Done(nil)
		hpas.Done(errors.New("no route to host"))
		what = fmt.Sprintf("the API server tells nothing of HPAs for %s", lasts)
		c.after(lasts, func() { hpas.Done(nil) })
	case kind == 11:
		what = fmt.Sprintf("the API server reads no scale for %s", lasts)
		c.scaleless = true
		c.after(lasts, func() { c.scaleless = false })
	case kind == 12 && c.meshpulse != nil:
		lasts = []time.Duration{c.flush, c.between(c.flush, 5*time.Minute)}[c.random.IntN(2)]
		idle := c.random.IntN(2) == 0
		what = fmt.Sprintf("a second stream of %d pods for %s, idle: %v", len(some), lasts, idle)
		for _, p := range some {
			c.double(p, idle, lasts)
		}
	case kind == 13 && len(c.beside) > 0:
		what = "a pod beside is replaced"
		c.untell(c.beside[0])
		c.beside = c.beside[1:]
		c.besides(c.between(time.Second, time.Minute))
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
				c.scale() // others may have gone meanwhile
			}
			c.rollout(old[1:])
		}
	}
	c.after(time.Second, wait)
}

// double lets a second stream report as a pod for a time, from another address. It ends, or goes
// silent.
func (c *simCluster) double(p *simPod, idle bool, lasts time.Duration) {
	c.endSecond(p)
	second := &simSecond{c.connect(p, "10.0.0.2:15000"), idle}
	p.second = second
	silently := c.random.IntN(2) == 0
	c.after(lasts, func() {
		switch {
		case p.second != second:
		case silently:
			p.second = nil
		default:
			c.endSecond(p)
		}
	})
}
