package envoystats

import (
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/meshpulse/meshpulse/aggregator"
)

// maxPooledMessage is the largest message whose scratch is used again; a rare larger one must not
// keep its memory.
const maxPooledMessage = 4 << 20

// scans lends out scratch, each for the time of one message.
type scans struct {
	rules *scanRules
	pool  sync.Pool
}

func newScans(rules *scanRules) *scans {
	return &scans{rules, sync.Pool{New: func() any { return newScratch(rules) }}}
}

func newScratch(rules *scanRules) *scan {
	return &scan{rules: rules, batch: aggregator.Batch{Stopped: rules.stopped}}
}

func (p *scans) get() *scan { return p.pool.Get().(*scan) }

func (p *scans) put(s *scan) {
	if cap(s.buf) > maxPooledMessage {
		return
	}
	s.msg, s.seen, s.own, s.identifier, s.groups = nil, nil, nil, nil, nil
	p.pool.Put(s)
}

// incoming is what a stream receives a message into: scratch that holds the message's bytes in buf.
// The receiver gives it back.
type incoming struct{ scan *scan }

// reply is the only message that the sink sends: an empty StreamMetricsResponse at the end of a
// stream.
type reply struct{}

// codec hands over messages as they are on the wire, in one piece. (gRPC has them in pieces of 16
// KiB, and its own pool would clear a whole MiB for each message that is put together.)
type codec struct{ scans *scans }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return fmt.Errorf("cannot receive into %T", v)
	}
	in.scan = c.scans.get()
	n := data.Len()
	in.scan.buf = slices.Grow(in.scan.buf[:0], n)[:n]
	data.CopyTo(in.scan.buf)
	return nil
}

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if _, ok := v.(*reply); !ok {
		return nil, fmt.Errorf("cannot send %T", v)
	}
	return nil, nil
}

func (codec) Name() string { return "proto" }
