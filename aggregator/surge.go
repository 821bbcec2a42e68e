package aggregator

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
)

// SurgeConfig is what a surge detector can be told. The zero value of a field means its default.
type SurgeConfig struct {
	// Window is how much of the newest past is tested: intervals of one flush, two flushes, … up to it, at least one flush
	// (default 10s).
	Window time.Duration
	// Ratio is how far above its baseline a rate must be to be a surge (default 1.5).
	Ratio float64
}

// Defaults of SurgeConfig.
const (
	defaultSurgeWindow = 10 * time.Second
	defaultSurgeRatio  = 1.5
)

// maxSurgeWindow keeps the tested interval well below the minute that it is compared with.
const maxSurgeWindow = 30 * time.Second

// WithDefaults returns the settings in full.
func (c SurgeConfig) WithDefaults() SurgeConfig {
	if c.Window == 0 {
		c.Window = defaultSurgeWindow
	}
	if c.Ratio == 0 {
		c.Ratio = defaultSurgeRatio
	}
	return c
}

// Validate says which setting is wrong, and what it may be.
func (c SurgeConfig) Validate() error {
	c = c.WithDefaults()
	switch {
	case c.Window < time.Second || c.Window > maxSurgeWindow:
		return fmt.Errorf("surge window %s: it has to be from 1s to %s", c.Window, maxSurgeWindow)
	case !(c.Ratio > 1) || math.IsInf(c.Ratio, 0):
		return fmt.Errorf("surge ratio %g: it has to be a number above 1", c.Ratio)
	}
	return nil
}

// ErrNoSurge is an expression in which nothing can surge: it is no sum of rates of requests, messages or a histogram's _count,
// and no ratio with such a numerator. Latencies never surge: a numerator of now over a denominator of a minute would be
// traffic, not latency.
var ErrNoSurge = errors.New("a surge is told by counts: take sum(rate(…)) of requests, messages or a _count, " +
	"without by (…), or a ratio of two such sums")

// CanSurge reports whether a surge of the expression can be told.
func CanSurge(expr string) bool {
	parsed, err := parser.ParseExpr(expr)
	if err != nil {
		return false
	}
	selectors := compiler{}
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if vs, ok := node.(*parser.VectorSelector); ok {
			selectors[vs] = newSelector(vs.LabelMatchers)
		}
		return nil
	})
	return selectors.surges(parsed) != nil
}

// Surge is what a [SurgeDetector] says at an instant. It depends on the rows that the store has and on the instant alone, not
// on who asks or how often.
type Surge struct {
	// Active: the newest flushes hold so many more requests than the minute before that chance does not explain it, and the
	// expression's own window does not lie within the surge yet.
	Active bool
	// Value is the expression over (From, To], the surge alone: never to be served where the expression itself gives more.
	// To is the newest time that every reporting pod has covered. Zero if not active.
	Value    float64
	From, To time.Time
	// Rate is the counts per second over (From, To]: Value where the expression is a plain sum. Baseline is what they were
	// before the surge, and Tail the probability of at least as many counts by chance at the trigger (as small as 1e-300).
	Rate, Baseline float64
	Tail           float64
	// Since is the surge's change point, the start of the interval that gave it away; Triggered is the time of the row that did.
	Since, Triggered time.Time
	// Newest is the newest row that went in, of any pod, zero without one; Flush the longest flush interval of the selected
	// pods. Both are set whether or not a surge is active.
	Newest time.Time
	Flush  time.Duration
	// Ready: the rows reach back over what the baseline needs, a complete minute. Until then nothing can trigger.
	Ready bool
}

// SurgeDetector looks for surges of one query: a fold over the rows of the selected pods. It costs ingest nothing, and what it
// keeps is between its askers; it is safe for concurrent use.
type SurgeDetector struct {
	query  *Query
	config SurgeConfig
	plan   *surgePlan
	closed atomic.Bool

	mu   sync.Mutex // between askers; no writer of a table takes it
	rows *surgeRows
	// settled is the fold over the rows before which no other can come any more, latest that over all rows, and waiting are those
	// between them, in order.
	settled, latest *surgeFold
	waiting         []surgeRow
	triggers        uint64 // of settled, as counted in the store's metrics
}

// DetectSurges begins to look for surges of a registered query. The error is ErrNoSurge, or says which setting is wrong.
// Close ends it; the query has to outlive it.
func (q *Query) DetectSurges(c SurgeConfig) (*SurgeDetector, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if q.surge == nil {
		return nil, fmt.Errorf("query %q: %w", q.expr, ErrNoSurge)
	}
	c = c.WithDefaults()
	d := &SurgeDetector{query: q, config: c, plan: q.surge}
	d.begin()
	q.store.detectors.add(d)
	return d, nil
}

// begin has the detector know nothing: the rows that the rings have are to be read.
func (d *SurgeDetector) begin() {
	fold := func() *surgeFold {
		return newSurgeFold(d.config, d.query.reach.Milliseconds(), d.plan.series(), defaultFlushMs)
	}
	d.rows, d.settled, d.latest, d.waiting, d.triggers = newSurgeRows(d.query.store, d.plan), fold(), fold(), nil, 0
}

// Actable reports whether a surge may be acted on before the HPA looks. In-flight may not: it is triggered by requests, but
// one long stream that ends is not load.
func (d *SurgeDetector) Actable() bool { return !d.plan.inFlight }

// At returns what is known now, at a time on the store's clock or the process's. While the query is set aside after a fault
// (faults.go) that is nothing, and the query answers errors; the detector begins anew then.
func (d *SurgeDetector) At(at time.Time) Surge {
	if d.query.aside() != nil {
		return Surge{}
	}
	now := d.query.store.millis(at)
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.contain()
	d.catchUp(now)
	return d.answer(now)
}

// catchUp takes the rows that have been closed since the last time.
func (d *SurgeDetector) catchUp(now int64) {
	had := len(d.waiting)
	d.waiting = d.rows.collect(d.waiting, func(place int, flush int64) {
		d.settled.addPod(place, flush)
		d.latest.addPod(place, flush)
	})
	if len(d.waiting) > had {
		d.rows.inOrder(d.waiting)
		d.settle(now)
		d.latest.copyFrom(d.settled)
		for i := range d.waiting {
			d.latest.row(&d.waiting[i])
		}
		d.rows.forget(now-surgeReach(d.settled.window, d.settled.flush), func(place int) {
			d.settled.forgetPod(place)
			d.latest.forgetPod(place)
		})
	}
	d.latest.idle(now)
}

// settle takes the rows before which no other can come any more off the waiting ones.
func (d *SurgeDetector) settle(now int64) {
	until, n := d.rows.settled(now), 0
	for n < len(d.waiting) && d.waiting[n].at <= until {
		d.settled.row(&d.waiting[n])
		n++
	}
	d.waiting = slices.Delete(d.waiting, 0, n)
	if fired := d.settled.triggers; fired > d.triggers {
		d.query.store.metrics.surges.Add(float64(fired - d.triggers))
		d.triggers = fired
	}
}

func (d *SurgeDetector) answer(now int64) Surge {
	f := d.latest
	s := Surge{Flush: time.Duration(f.flush) * time.Millisecond, Ready: f.ready()}
	if f.now > 0 {
		s.Newest = time.UnixMilli(f.now)
	}
	from, to, on := f.served(now)
	if !on {
		return s
	}
	s.Active = true
	s.From, s.To = time.UnixMilli(from), time.UnixMilli(to)
	s.Value, s.Rate = d.plan.over(f.counts, from, to)
	s.Baseline, s.Tail = f.surge.baseline, f.surge.tail
	s.Since, s.Triggered = time.UnixMilli(f.surge.from), time.UnixMilli(f.surge.triggered)
	return s
}

// Close gives up what the detector keeps.
func (d *SurgeDetector) Close() {
	if d.closed.CompareAndSwap(false, true) {
		d.query.store.detectors.leave(func(o *SurgeDetector) bool { return o.closed.Load() })
	}
}
