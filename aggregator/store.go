package aggregator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
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
	// MaxPods bounds the pods of which something is known (default 50,000).
	MaxPods int
	// MemoryBudget is how many bytes what is kept may take, with what the collector last found beside it, before new series are
	// refused and rings stop growing (default 0: no budget). What is known goes on being updated. Of pods, series and bytes a
	// sender has a share (Shares).
	MemoryBudget int64
	// CountForeign: pods count that the cluster does not know, as those of virtual machines and of other clusters. Without a cluster
	// (SetPods) all do.
	CountForeign bool
	// CountersAsDeltas: senders set report_counters_as_deltas; a counter is the interval since the last flush.
	CountersAsDeltas bool
	// Logger takes faults that were contained (default slog.Default).
	Logger *slog.Logger
	// Registerer receives the store's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
}

// withDefaults returns the settings in full, or an error that names the one that is wrong.
func (c Config) withDefaults() (Config, error) {
	if c.Retention == 0 {
		c.Retention = 5 * time.Minute
	}
	if c.MaxRetention == 0 {
		c.MaxRetention = max(time.Hour, c.Retention)
	}
	if c.MaxSeries == 0 {
		c.MaxSeries = 2_000_000
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.MaxPods == 0 {
		c.MaxPods = 50_000
	}
	if c.MaxSeriesPerPod == 0 {
		c.MaxSeriesPerPod = 20_000
	}
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

// Store holds the tables of all pods.
type Store struct {
	config    Config
	metrics   *metrics
	started   time.Time // with its monotonic reading: a step of the wall clock moves nothing
	retention int64     // milliseconds
	ranges    ranges
	streams   atomic.Uint64 // that have connected so far
	tables    tables
	classes   *classes
	layouts   layouts
	cells     *fine.Tables
	engine    *engine
	watches   watches
	detectors list[*SurgeDetector]
	faults    faults
	foreign   foreign
	pods      atomic.Pointer[Pods] // nil where nobody knows them
	hook      ring.Hook            // nil but in tests

	// What senders have of the limits.
	podShares, series, memory *Shares
	liveHeap                  func() uint64 // bytes
	live                      uint64        // as watchMemory last saw it
}

// New returns an empty store, or an error that names the setting that is wrong.
func New(c Config) (*Store, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{config: c, started: time.Now(), engine: newEngine(), cells: fine.NewTables(), liveHeap: heapInUse}
	s.podShares, s.series, s.memory = c.newShares()
	s.classes = newClasses(s.memory)
	s.watches.wake = make(chan struct{}, 1)
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
func (s *Store) Started() time.Time { return s.started.Round(0) }

// Time returns a time on the store's clock: wall time at the start, monotonic from then on. Times of answers are on it, so what
// is compared with them has to be.
func (s *Store) Time(t time.Time) time.Time { return time.UnixMilli(s.millis(t)) }

// millis returns a time on the store's clock: wall time at the start, monotonic from then on.
func (s *Store) millis(t time.Time) int64 {
	return s.started.UnixMilli() + t.Sub(s.started).Milliseconds()
}

// Run frees pods that have been silent for longer than the rings reach or that the cluster does not know, and watches the memory, until the context ends.
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

// sweep frees the tables whose newest row is out of the retention, unless the context ends.
func (s *Store) sweep(ctx context.Context, now int64) {
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

// tables are the pods' tables, by identity and by namespace. The mutex is taken when a pod connects or is freed.
type tables struct {
	mu          sync.Mutex
	byPod       map[podKey]*table
	made        uint64       // tables so far
	all         list[*table] // with some that are gone
	byNamespace sync.Map     // string -> *list[*table]
	// log are the tables in the order in which they came, those that are gone included, until it is begun anew: selectors keep
	// their place in it.
	log atomic.Pointer[list[*tableRef]]
	// gone are the newest rows of pods whose tables were freed: they may still exist, and come back. The oldest are given up.
	gone bounded[podKey, int64]
	// flushes are the longest flush intervals that were observed, by workload.
	flushes bounded[workloadKey, int64]
}

// tableRef is a table's place in the log: nil once the table is gone, so that the log does not keep its rings.
type tableRef struct{ table atomic.Pointer[table] }

// enter comes into a log, for readers that have its place by then.
func (t *table) enter(log *list[*tableRef]) {
	log.add(t.ref)
	t.store.hook.After(stepLogged)
}

// maxGone bounds what is remembered of pods whose tables were freed.
const maxGone = 50_000

type podKey struct{ namespace, name string }

// get returns the pod's table, made if it is new; else the error is ErrForeignPod, ErrPods or ErrMemory.
func (ts *tables) get(s *Store, p *Pod) (*table, error) {
	k := podKey{p.Namespace, p.Name}
	ts.mu.Lock()
	t := ts.byPod[k]
	ts.mu.Unlock()
	if t != nil {
		return t, nil
	}
	if s.refuses(p, s.millis(time.Now())) { // asks for the cluster's pods, whose readers ask for tables: not with the mutex held
		return nil, ErrForeignPod
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.byPod[k]; t != nil {
		return t, nil
	}
	if !s.podShares.Take(p.Sender, 1) {
		return nil, ErrPods
	}
	t = newTable(s, p)
	if err := t.afford(t.bytes()); err != nil {
		s.podShares.Give(p.Sender, 1)
		return nil, err
	}
	ts.made++
	t.number = ts.made
	if ts.byPod == nil {
		ts.byPod = map[podKey]*table{}
	}
	ts.byPod[k] = t
	ts.all.add(t)
	if ts.log.Load() == nil {
		ts.log.Store(&list[*tableRef]{})
	}
	t.ref = &tableRef{}
	t.ref.table.Store(t)
	t.enter(ts.log.Load())
	l, _ := ts.byNamespace.LoadOrStore(p.Namespace, &list[*table]{})
	l.(*list[*table]).add(t)
	return t, nil
}

// find returns the pod's table, or nil and the newest row of the one that was freed, 0 if there was none.
func (ts *tables) find(namespace, name string) (*table, int64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	k := podKey{namespace, name}
	last, _ := ts.gone.get(k)
	return ts.byPod[k], last
}

// count returns how many pods have a table.
func (ts *tables) count() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.byPod)
}

// recall returns the newest row of the pod's table that was freed, and forgets it; 0 if there was none.
func (ts *tables) recall(p *Pod) int64 {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	k := podKey{p.Namespace, p.Name}
	last, _ := ts.gone.get(k)
	ts.gone.forget(k)
	return last
}

func (ts *tables) remove(t *table) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.ref.table.Load() == nil {
		return // by a sweep, between a fault and the pod's next flush
	}
	p := t.pod.Load()
	k := podKey{p.Namespace, p.Name}
	delete(ts.byPod, k)
	if newest, ok := t.newest(); ok {
		ts.gone.keep(k, newest, maxGone)
	}
	t.ref.table.Store(nil)
	gone := func(o *table) bool { return o.gone.Load() }
	ts.all.leave(gone)
	if len(ts.log.Load().all()) > 2*len(ts.byPod)+64 {
		ts.relog()
	}
	l, ok := ts.byNamespace.Load(p.Namespace) // not there: the table has left it with another that was gone
	if ok && l.(*list[*table]).leave(gone) == 0 {
		ts.byNamespace.Delete(p.Namespace)
	}
}

// relog begins a new log, without the tables that are gone. The mutex is held.
func (ts *tables) relog() {
	l := &list[*tableRef]{}
	for _, t := range ts.all.all() {
		if t.ref.table.Load() != nil {
			l.add(t.ref)
		}
	}
	ts.log.Store(l)
}

// renamed is called when a pod of a known name says that it is another workload's.
func (ts *tables) renamed() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.relog()
}

// in returns the tables of a namespace, with some that are gone.
func (ts *tables) in(namespace string) []*table {
	if l, ok := ts.byNamespace.Load(namespace); ok {
		return l.(*list[*table]).all()
	}
	return nil
}
