package aggregator

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a store can be told. The zero value of a field means its default.
type Config struct {
	// Retention is how far back the rings reach (default 5m).
	Retention time.Duration
	// MaxRetention is how far a query's range may make them reach (default 1h).
	MaxRetention time.Duration
	// MaxSeries bounds the series of all pods (default 2,000,000), MaxSeriesPerPod those of one (default 20,000).
	MaxSeries, MaxSeriesPerPod int
	// CountersAsDeltas: senders set report_counters_as_deltas; a counter is the interval since the last flush.
	CountersAsDeltas bool
	// Registerer receives the store's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Now is the clock (default time.Now).
	Now func() time.Time
}

// Store holds the tables of all pods.
type Store struct{}

// New returns an empty store, or an error that names the setting that is wrong.
func New(c Config) (*Store, error) { panic("stub") }

// Run frees series and pods that have been silent for longer than the rings reach, until the context ends.
// func (s *Store) Run(ctx context.Context)

// Stream is one connection of a pod: the only writer of the pod's table until a newer connection takes over.
type Stream struct{}

// Connect opens a stream of the pod. It owns the pod's table from now on; an older stream's samples are dropped.
func (s *Store) Connect(p Pod) *Stream { panic("stub") }

// Commit takes a whole message that arrived at the given time. Samples that cannot be kept are counted and dropped one
// by one; the only error is ErrSuperseded, with which the whole message was dropped. Not safe for concurrent use.
func (st *Stream) Commit(arrival time.Time, b *Batch, d Describer) error { panic("stub") }

// Close ends the stream: its open row is closed. What it sent stays.
func (st *Stream) Close() { panic("stub") }
