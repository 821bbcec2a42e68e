package main

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	victims = 10
	pace    = 50.0 // requests a second of each: the truth is not a sample
	flush   = time.Second
	query   = `sum(rate(istio_requests_total{reporter="destination",destination_workload="web",destination_workload_namespace="shop"}[10s]))`
)

func victim(i int) pod {
	return pod{namespace: "shop", name: numbered("web", i), workload: "web", flush: "1s"}
}

// fleet are the victims; closed counts the connections that they lost.
type fleet struct{ closed atomic.Int64 }

// run lets one victim flush until the context ends, and connect again when its connection was closed.
func (f *fleet) run(ctx context.Context, target string, i int, start time.Time) {
	p := victim(i)
	for ctx.Err() == nil {
		c, err := dial(ctx, "127.0.0.1", target)
		if err != nil {
			sleep(ctx, flush)
			continue
		}
		c.open(1, endHeaders)
		for first := true; ctx.Err() == nil && c.err == nil; first = false {
			now := time.Now()
			who := &p
			if !first {
				who = nil
			}
			c.message(1, message(who, requests(now, pace*now.Sub(start).Seconds(), received("shop", "web")...)), false)
			sleep(ctx, flush)
		}
		if ctx.Err() == nil {
			f.closed.Add(1)
		}
		_ = c.Close()
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
