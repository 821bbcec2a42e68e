package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/proc"
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

// meter watches the processes of a path: pods come and go, so what each has used is read every second and kept.
type meter struct {
	before, last map[int]proc.Usage
	part         map[int]string
}

// read takes one reading of the processes, by part. What a process had used before its first reading counts only if it
// started under the meter's eyes.
func (m *meter) read(processes map[int]string, first bool) {
	for pid, part := range processes {
		usage, err := proc.UsageOf(pid)
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
		c.cpu += usage.CPU - m.before[pid].CPU
		c.rss += usage.PeakRSS
		c.received += usage.Received - m.before[pid].Received
		sums[m.part[pid]] = c
	}
	return sums
}

// meterUntil reads every second until ctx ends.
func (r *loop) meterUntil(ctx context.Context) *meter {
	m := &meter{before: map[int]proc.Usage{}, last: map[int]proc.Usage{}, part: map[int]string{}}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for first := true; ; first = false {
		m.read(r.processes(), first)
		select {
		case <-ctx.Done():
			return m
		case <-tick.C:
		}
	}
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

// fetch is the body of a GET that must answer 200.
func fetch(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %.300s", url, response.Status, body)
	}
	return body, nil
}
