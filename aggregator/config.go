package aggregator

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a store can be told. The zero value of a field means its default.
type Config struct {
	// Retention is how far back the rings reach (default 5m).
	Retention time.Duration
	// MaxRetention is how far a query's range may make them reach (default 1h).
	MaxRetention time.Duration
	// Keep are prefixes of the names of metrics of which every pod keeps rows. Of Istio's others
	// one keeps rows while a registered query names them and it may have the series (Stream.Asked);
	// a query that is not registered gets an error. Nil: there are no others.
	Keep []string
	// MaxSeries bounds the series of all pods (default 2,000,000), MaxSeriesPerPod those of one
	// (default 20,000).
	MaxSeries, MaxSeriesPerPod int
	// MaxPods bounds the pods of which something is known (default 50,000).
	MaxPods int
	// MemoryBudget is how many bytes what is kept may take, with what the collector last found
	// beside it, before new series are refused and rings stop growing (default 0: no budget). What
	// is known goes on being updated. Of pods, series and bytes a sender has a share (Shares).
	MemoryBudget int64
	// CountForeign: pods count that the cluster does not know, as those of virtual machines and of
	// other clusters. Without a cluster (SetPods) all do.
	CountForeign bool
	// CountersAsDeltas: senders set report_counters_as_deltas; a counter is the interval since the
	// last flush.
	CountersAsDeltas bool
	// Logger takes faults that were contained (default slog.Default).
	Logger *slog.Logger
	// Registerer receives the store's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
}

// withDefaults returns the settings in full, or an error that names the one that is wrong.
func (c Config) withDefaults() (Config, error) {
	c.Retention = cmp.Or(c.Retention, 5*time.Minute)
	c.MaxRetention = cmp.Or(c.MaxRetention, max(time.Hour, c.Retention))
	c.MaxSeries = cmp.Or(c.MaxSeries, 2_000_000)
	c.MaxPods = cmp.Or(c.MaxPods, 50_000)
	c.MaxSeriesPerPod = cmp.Or(c.MaxSeriesPerPod, 20_000)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	switch {
	case c.Retention < 10*time.Second:
		return c, fmt.Errorf("--retention %s is too short: at least 10s, two flushes of a sidecar", c.Retention)
	case c.MaxRetention < c.Retention:
		return c, fmt.Errorf("--retention %s is longer than --max-retention %s: shorten the one or raise the other", c.Retention, c.MaxRetention)
	case c.MaxSeries < 0 || c.MaxSeriesPerPod < 0 || c.MaxPods < 0:
		return c, errors.New("limits of series and pods must not be negative")
	case c.MemoryBudget < 0:
		return c, errors.New("the memory budget must not be negative")
	}
	return c, nil
}
