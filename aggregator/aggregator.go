package aggregator

import (
	"context"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
)

// Store holds the tables of all pods, and answers queries over them.
type Store struct {
	*store
	*index
	cells     *fine.Tables
	engine    *engine
	detectors list[*SurgeDetector]
}

// New returns an empty store, or an error that names the setting that is wrong.
func New(c Config) (*Store, error) {
	kept, err := newStore(c)
	if err != nil {
		return nil, err
	}
	return &Store{store: kept, index: newIndex(kept), cells: fine.NewTables(), engine: newEngine()}, nil
}

// Run frees pods that have been silent for longer than the rings reach or that the cluster does not
// know, and watches the memory, until the context ends.
func (s *Store) Run(ctx context.Context) {
	sweep := time.NewTicker(max(s.config.Retention/10, time.Second))
	defer sweep.Stop()
	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-sweep.C:
			s.Contain("store", "sweep", func() { s.sweep(ctx, s.millis(now)) })
			for _, d := range s.detectors.all() { // no row leaves the rings before it is read
				if !d.closed.Load() {
					d.At(now)
				}
			}
		case now := <-watch.C:
			s.Contain("store", "memory", s.watchMemory)
			s.Contain("store", "foreign pods", func() { s.watchForeign(s.millis(now)) })
		}
	}
}
