package aggregator

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// store holds the tables of all pods: what is kept, whoever asks.
type store struct {
	config    Config
	metrics   *metrics
	started   time.Time // with its monotonic reading: a step of the wall clock moves nothing
	retention int64     // milliseconds
	ranges    ranges
	streams   atomic.Uint64 // that have connected so far
	tables    tables
	classes   *classes
	layouts   layouts
	watches   watches
	faults    faults
	foreign   foreign
	refused   namedPods            // for what they prove, or do not
	pods      atomic.Pointer[Pods] // nil where nobody knows them
	reading   atomic.Pointer[Reading]
	hook      ring.Hook // nil but in tests

	// What senders have of the limits.
	podShares, series, memory *Shares
	liveHeap                  func() uint64 // bytes
	live                      uint64        // as watchMemory last saw it
}

func newStore(c Config) (*store, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &store{config: c, started: time.Now(), liveHeap: heapInUse}
	s.podShares, s.series, s.memory = c.newShares()
	s.classes = newClasses(s.memory)
	s.watches.wake = make(chan struct{}, 1)
	s.foreign.asking = make(chan struct{}, maxAsking)
	s.retention = c.Retention.Milliseconds()
	s.ranges.memory = NewShares(unlimited, leastBytes)
	if c.MemoryBudget > 0 {
		s.ranges.memory = NewShares(c.MemoryBudget/rangesPart, leastBytes)
	}
	s.faults.log = c.Logger
	if s.metrics, err = newMetrics(c.Registerer, s); err != nil {
		return nil, err
	}
	return s, nil
}

// Started is when the store began to listen, on its own clock; nothing is known from before.
func (s *store) Started() time.Time { return s.started.Round(0) }

// Time returns a time on the store's clock: wall time at the start, monotonic from then on. Times
// of answers are on it, so what is compared with them has to be.
func (s *store) Time(t time.Time) time.Time { return time.UnixMilli(s.millis(t)) }

// millis returns a time on the store's clock: wall time at the start, monotonic from then on.
func (s *store) millis(t time.Time) int64 {
	return s.started.UnixMilli() + t.Sub(s.started).Milliseconds()
}

// sweep frees the tables whose newest row is out of the retention, unless the context ends.
func (s *store) sweep(ctx context.Context, now int64) {
	for _, t := range s.tables.all.all() {
		if ctx.Err() != nil {
			return
		}
		t.mu.Lock()
		if !t.removed && t.aside.Load() == nil && s.ranges.epoch.Load() > 0 {
			t.try(t.fit)
		}
		expired := !t.removed && t.expired(now)
		if expired {
			t.try(t.free)
		}
		t.mu.Unlock()
		if expired {
			s.tables.remove(t)
		}
	}
}
