// Package replay sends recorded streams to a sink as the sidecars that made them would, with every
// timestamp moved to the present.
//
// It knows the format of the recordings (capture.go), when what is sent (plan.go) and Envoy's
// metrics service (send.go). It must not know what the sink makes of the messages.
package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"
)

// ErrConfig is wrapped by what Validate returns.
var ErrConfig = errors.New("replay configuration")

// Config is what to send and where to.
type Config struct {
	// Target is the sink's host:port, spoken to in plaintext HTTP/2.
	Target string
	// Files are the recordings, one stream each: varint-length-delimited StreamMetricsMessages,
	// gzipped or not. Receive times are read from the file beside it with .times in place of .pb.gz
	// (or .pb), else the messages' own timestamps stand in for them.
	Files []string
	// Speed divides all times (default 1): at 10, a minute of recording takes six seconds.
	Speed float64
	// Linger is how long the last stream of each node stays open after everything is sent (default
	// 0: no longer than its own messages take).
	Linger time.Duration
	// Wait is how long the target may take to listen (default 0: it has to already).
	Wait time.Duration
	// Progress, if set, is called after each message that was sent and at each stream's end, never
	// concurrently.
	Progress func(Progress)
}

// Validate returns an error that names the first setting that cannot be used. It wraps ErrConfig.
func (c Config) Validate() error {
	switch _, port, err := net.SplitHostPort(c.Target); {
	case err != nil || port == "":
		return fmt.Errorf("%w: target %q is not host:port", ErrConfig, c.Target)
	case len(c.Files) == 0:
		return fmt.Errorf("%w: no files to send", ErrConfig)
	case c.Speed < 0 || math.IsNaN(c.Speed) || math.IsInf(c.Speed, 0):
		return fmt.Errorf("%w: speed %v is not a number above 0", ErrConfig, c.Speed)
	case c.Linger < 0:
		return fmt.Errorf("%w: linger %s is negative", ErrConfig, c.Linger)
	case c.Wait < 0:
		return fmt.Errorf("%w: wait %s is negative", ErrConfig, c.Wait)
	}
	return nil
}

// Progress is how far one file is.
type Progress struct {
	File string
	// Node is the node's id.
	Node string
	// Sent of Messages are on their way; Bytes is their size.
	Sent, Messages int
	Bytes          int64
	// Done: the sink has read everything and the stream has ended.
	Done bool
}

// Run sends all files and returns when the sink has confirmed that it read every message, or with
// the first error, which names the file and what is wrong with it. When the context ends, so do all
// streams.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	c.Speed = cmp.Or(c.Speed, 1)
	nodes, err := plan(c.Files)
	if err != nil {
		return err
	}
	// The recordings' time begins to run when the target is there, or what it waited for would be
	// sent at once.
	if err := reach(ctx, c.Target, c.Wait); err != nil {
		return err
	}
	// The first error ends what the others do.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run{config: c, start: time.Now(), base: base(nodes), allSent: make(chan struct{})}
	r.sending.Add(len(nodes))
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := r.node(ctx, n); err != nil {
				cancel(err)
			}
		})
	}
	wg.Go(func() {
		r.sending.Wait()
		close(r.allSent)
	})
	wg.Wait()
	return context.Cause(ctx)
}
