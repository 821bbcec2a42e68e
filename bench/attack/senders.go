package attack

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync/atomic"
	"time"
)

// Flush is the interval of whoever flushes.
const Flush = time.Second

// Sidecars are honest ones; what happens to them is counted.
type Sidecars struct {
	Target string
	// Authorities of the ingest port's certificate; nil: plaintext.
	Authorities *x509.CertPool
	// Series is how many series each reports, By the label by which they differ (default
	// destination_service_name, which callers choose).
	Series int
	By     string
	// PerSecond is the requests of all of them together: however many there are, they share it.
	PerSecond float64
	running   atomic.Int64
	closed    atomic.Int64
	late      atomic.Int64 // ns
}

// Closed counts the connections that they lost.
func (s *Sidecars) Closed() int64 { return s.closed.Load() }

// Late is by how much the latest of their flushes missed its time, since Late was called: whether
// the machine lets them keep up. A rate over irregular flushes is lower at times, whoever computes
// it.
func (s *Sidecars) Late() time.Duration { return time.Duration(s.late.Swap(0)) }

func (s *Sidecars) security() *tls.Config {
	if s.Authorities == nil {
		return nil
	}
	return &tls.Config{RootCAs: s.Authorities, ServerName: "127.0.0.1", NextProtos: []string{"h2"}}
}

// Run lets one pod flush until the context ends, and connect again when its connection was closed.
func (s *Sidecars) Run(ctx context.Context, p Pod) {
	start := time.Now()
	p.Flush = Flush.String()
	s.running.Add(1)
	defer s.running.Add(-1)
	last, requested := start, 0.0
	for ctx.Err() == nil {
		c, err := dial(ctx, p, s.Target, s.security())
		if err != nil {
			sleep(ctx, Flush)
			continue
		}
		c.open(1, endHeaders)
		for who := &p; ctx.Err() == nil && c.err == nil && !c.ended.Load(); who = nil {
			now := time.Now()
			requested += s.PerSecond / float64(s.running.Load()) * now.Sub(last).Seconds()
			last = now
			b := message(who)
			for i := range s.Series {
				labels := received(p.Namespace, p.Workload, cmp.Or(s.By, "destination_service_name"), numbered("s", i))
				b = append(b, message(nil, requests(now, requested/float64(s.Series), labels...))...)
			}
			c.message(1, b, false)
			wait := Flush - time.Since(start)%Flush // a late one is not followed by late ones
			due := time.Now().Add(wait)
			sleep(ctx, wait)
			if late := int64(time.Since(due)); late > s.late.Load() {
				s.late.Store(late)
			}
		}
		if ctx.Err() == nil {
			s.closed.Add(1)
		}
		_ = c.Close()
	}
}

// oneMessage opens a connection of the pod, sends one message, and goes.
func oneMessage(ctx context.Context, target string, p, as Pod, b []byte) {
	c, err := dial(ctx, p, target, nil)
	if err != nil {
		return
	}
	c.open(1, endHeaders)
	c.message(1, append(message(&as), b...), false)
	sleep(ctx, 40*time.Millisecond)
	_ = c.Close()
}

// reporting lets a pod flush every second, and connect again, until the context ends.
func reporting(ctx context.Context, target string, p, as Pod, flush func(elapsed float64) []byte) {
	for start := time.Now(); ctx.Err() == nil; sleep(ctx, Flush) {
		c, err := dial(ctx, p, target, nil)
		if err != nil {
			continue
		}
		c.open(1, endHeaders)
		for who := &as; ctx.Err() == nil && c.err == nil && !c.ended.Load(); who = nil {
			c.message(1, append(message(who), flush(time.Since(start).Seconds())...), false)
			sleep(ctx, Flush)
		}
		_ = c.Close()
	}
}

func slowone(ctx context.Context, t Target) {
	p, victim := own("slow"), t.Victims[0]
	p.Flush = "1h"
	oneMessage(ctx, t.Ingest, p, p, message(nil, requests(time.Now(), 1, received(victim.Namespace, victim.Workload)...)))
	<-ctx.Done()
}

func newnames(ctx context.Context, t Target) {
	for i := 0; ctx.Err() == nil; i++ {
		v := t.Victims[0]
		v.Name, v.Flush = numbered("new", i), "1h"
		p := own("nobody")
		oneMessage(ctx, t.Ingest, p, p.as(v), message(nil, requests(time.Now(), 1, received(v.Namespace, v.Workload)...)))
		sleep(ctx, time.Second)
	}
}

func phantom(ctx context.Context, t Target) {
	p, v := own("phantom"), t.Victims[0]
	p.Flush = Flush.String()
	reporting(ctx, t.Ingest, p, p, func(elapsed float64) []byte {
		return message(nil, requests(time.Now(), 1000*elapsed, received(v.Namespace, v.Workload)...))
	})
}

func unknown(ctx context.Context, t Target) {
	p, v := own("nobody"), t.Victims[0]
	v.Name, v.Flush = "nobody", Flush.String()
	reporting(ctx, t.Ingest, p, p.as(v), func(elapsed float64) []byte {
		return message(nil, requests(time.Now(), 1000*elapsed, received(v.Namespace, v.Workload)...))
	})
}

func steal(ctx context.Context, t Target) {
	for _, v := range t.Victims {
		p := own("thief")
		oneMessage(ctx, t.Ingest, p, p.as(v), nil)
	}
	<-ctx.Done()
}

func zero(ctx context.Context, t Target) { zeroed(ctx, t, own("thief")) }

func posed(ctx context.Context, t Target) { zeroed(ctx, t, own("flood")) }

// waypoint says what only a waypoint can: which workload is called is not its own there.
func waypoint(ctx context.Context, t Target) {
	p, v := own("phantom"), t.Victims[0]
	p.Flush = Flush.String()
	reporting(ctx, t.Ingest, p, p, func(elapsed float64) []byte {
		labels := received(v.Namespace, v.Workload)
		labels[1] = "waypoint"
		return message(nil, requests(time.Now(), 1000*elapsed, labels...))
	})
}

// zeroed flushes in the victims' names, from the address of a pod.
func zeroed(ctx context.Context, t Target, p Pod) {
	parallel(len(t.Victims), func(i int) {
		reporting(ctx, t.Ingest, p, p.as(t.Victims[i]), func(float64) []byte {
			return message(nil, requests(time.Now(), 0, "reporter", "source"))
		})
	})
}

// hostflood is a pod whose callers make up Host headers: its sidecar is honest.
func hostflood(ctx context.Context, t Target) {
	p := own("hosty")
	p.Flush = Flush.String()
	k := 0
	reporting(ctx, t.Ingest, p, p, func(float64) (b []byte) {
		if k < 10 {
			k++
		}
		for i := range 6000 {
			b = append(b, message(nil, requests(time.Now(), 1, received(p.Namespace, p.Workload, "destination_service", numbered("host", k*6000+i))...))...)
		}
		return b
	})
}

func labelflood(ctx context.Context, t Target) {
	value := strings.Repeat("v", 2000)
	parallel(4, func(pods int) {
		p, k := own(numbered("labels", pods)), 0
		p.Flush = Flush.String()
		reporting(ctx, t.Ingest, p, p, func(float64) (b []byte) {
			if k++; k > 10 {
				return nil
			}
			for i := range 250 { // 25 MB
				labels := received(p.Namespace, p.Workload, "own", numbered("x", k*250+i))
				for l := range 50 {
					labels = append(labels, numbered("label", l), value)
				}
				b = append(b, message(nil, requests(time.Now(), 1, labels...))...)
			}
			return b
		})
	})
}

func podflood(ctx context.Context, t Target) {
	named(ctx, t, 100_000, func(n, i int) string { return numbered(numbered("flood", n), i) })
}

func oddnames(ctx context.Context, t Target) {
	odd := []string{"a\nb", "a\x00b", "a\x1b[31mb", "a\u202eb", "..", "a/b", "A", "-a", "a level=ERROR msg=forged"}
	named(ctx, t, 10_000, func(n, i int) string { return odd[i%len(odd)] + numbered(numbered("", n), i) })
}

// warnings are told of other pods' names from the attacker's address, and of one from the witness',
// once.
func warnings(ctx context.Context, t Target) {
	parallel(2, func(i int) {
		if i == 0 {
			named(ctx, t, 10_000, func(n, i int) string { return numbered(numbered("warned", n), i) })
			return
		}
		sleep(ctx, 2*time.Second) // by then the attacker has had all the lines that he gets
		other := t.Witness
		other.Name += "-too"
		oneMessage(ctx, t.Ingest, t.Witness, other, message(nil, requests(time.Now(), 1)))
	})
}

// named sends a message in each of so many names, over 8 connections at a time.
func named(ctx context.Context, t Target, count int, name func(connection, i int) string) {
	parallel(8, func(n int) {
		for i := 0; ctx.Err() == nil && i < count/8; {
			p := own("flood")
			c, err := dial(ctx, p, t.Ingest, nil)
			if err != nil {
				return
			}
			for s := uint32(1); s < 200 && c.err == nil && ctx.Err() == nil; s, i = s+2, i+1 {
				p.Name = name(n, i)
				c.open(s, endHeaders)
				c.message(s, message(&p, requests(time.Now(), 1)), false)
			}
			_ = c.Close()
		}
	})
	<-ctx.Done()
}
