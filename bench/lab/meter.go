package main

import (
	"context"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/process"
)

// cost is what one part of a path has used.
type cost struct {
	cpu, rss, received float64 // seconds, bytes, bytes; for several processes the sums
}

func (c *cost) add(other cost) {
	c.cpu += other.cpu
	c.rss += other.rss
	c.received += other.received
}

// meter watches the processes of a path: pods come and go, so what each has used is read every
// second and kept.
type meter struct {
	before, last map[int]process.Usage
	part         map[int]string
}

// read takes one reading of the processes, by part. What a process had used before its first
// reading counts only if it started under the meter's eyes.
func (m *meter) read(processes map[int]string, first bool) {
	for pid, part := range processes {
		usage, err := process.UsageOf(pid)
		if err != nil {
			continue // it has ended; its last reading stands
		}
		m.part[pid] = part
		m.last[pid] = usage
		if first {
			m.before[pid] = usage
		}
	}
}

// costs sums up by part.
func (m *meter) costs() map[string]cost {
	sums := map[string]cost{}
	for pid, usage := range m.last {
		c := sums[m.part[pid]]
		c.cpu += (usage.CPU - m.before[pid].CPU).Seconds()
		c.rss += float64(usage.Peak)
		c.received += float64(usage.Received - m.before[pid].Received)
		sums[m.part[pid]] = c
	}
	return sums
}

// meterUntil reads every second until ctx ends.
func (r *loop) meterUntil(ctx context.Context) *meter {
	m := &meter{before: map[int]process.Usage{}, last: map[int]process.Usage{}, part: map[int]string{}}
	m.read(r.processes(), true)
	proc.Every(ctx, time.Second, func() { m.read(r.processes(), false) })
	return m
}

// processes are those of the path, by id.
func (r *loop) processes() map[int]string {
	all := map[int]string{}
	for _, s := range r.agent.Sidecars() {
		all[s.PID] = "sidecars"
	}
	for _, ln := range r.lanes {
		all[ln.gateway.PID()] = "gateways"
	}
	for part, pid := range r.source.processes() {
		all[pid] = part
	}
	return all
}
