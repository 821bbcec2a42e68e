package aggregator

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/surge"
)

// SurgeConfig is what a surge detector can be told. The zero value of a field means its default.
type SurgeConfig = surge.Config

// ErrNoSurge is an expression in which nothing can surge: it is no sum of rates of requests,
// messages or a histogram's _count, and no ratio with such a numerator. Latencies never surge: a
// numerator of now over a denominator of a minute would be traffic, not latency.
var ErrNoSurge = errors.New("a surge is told by counts: take sum(rate(…)) of requests, messages or a _count, " +
	"without by (…), or a ratio of two such sums")

// CanSurge reports whether a surge of the expression can be told.
func CanSurge(expr string) bool {
	q := &Query{expr: expr}
	return q.parse() == nil && q.surge != nil
}

// Surge is what a [SurgeDetector] says at an instant. It depends on the rows that the store has and
// on the instant alone, not on who asks or how often.
type Surge struct {
	// Active: the newest flushes hold so many more requests than the minute before that chance does
	// not explain it, and the expression's own window does not lie within the surge yet.
	Active bool
	// Value is the expression over (From, To], the surge alone: never to be served where the
	// expression itself gives more. To is the newest time that every reporting pod has covered.
	// Zero if not active.
	Value    float64
	From, To time.Time
	// Rate is the counts per second over (From, To]: Value where the expression is a plain sum.
	// Baseline is what they were before the surge, and Tail the probability of at least as many
	// counts by chance at the trigger (as small as 1e-300).
	Rate, Baseline float64
	Tail           float64
	// Since is the surge's change point, the start of the interval that gave it away; Triggered is
	// the time of the row that did.
	Since, Triggered time.Time
	// Newest is the newest row that went in, of any pod, zero without one; Flush the longest flush
	// interval of the selected pods. Both are set whether or not a surge is active.
	Newest time.Time
	Flush  time.Duration
	// Ready: the rows reach back over what the baseline needs, a complete minute. Until then
	// nothing can trigger.
	Ready bool
}

// SurgeDetector looks for surges of one query: a fold over the rows of the selected pods. It costs
// ingest nothing, and what it keeps is between its askers; it is safe for concurrent use.
type SurgeDetector struct {
	query  *Query
	config SurgeConfig
	plan   *surgePlan
	closed atomic.Bool

	mu       sync.Mutex // between askers; no writer of a table takes it
	rows     *surgeRows
	rules    *surge.Detector
	triggers uint64 // of rules, as counted in the store's metrics
}

// DetectSurges begins to look for surges of a registered query. The error is ErrNoSurge, or says
// which setting is wrong. Close ends it; the query has to outlive it.
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
	d.rows, d.triggers = newSurgeRows(d.query.store, d.plan), 0
	d.rules = surge.New(d.config, d.query.reach.Milliseconds(), d.plan.series(), defaultFlushMs)
}

// Actable reports whether a surge may be acted on before the HPA looks. In-flight may not: it is
// triggered by requests, but one long stream that ends is not load.
func (d *SurgeDetector) Actable() bool { return !d.plan.inFlight }

// At returns what is known now, at a time on the store's clock or the process's. While the query is
// set aside after a fault (faults.go) that is nothing, and the query answers errors; the detector
// begins anew then.
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
	if rows := d.rows.collect(d.rules.AddPod); len(rows) > 0 {
		d.rules.Take(rows, d.rows.settled(now), d.rows.byName())
		d.rows.forget(now-d.rules.Reach(), d.rules.ForgetPod)
		if fired := d.rules.Triggers(); fired > d.triggers {
			d.query.store.metrics.surges.Add(float64(fired - d.triggers))
			d.triggers = fired
		}
	}
	d.rules.Idle(now)
}

func (d *SurgeDetector) answer(now int64) Surge {
	is := d.rules.At(now)
	s := Surge{Flush: time.Duration(is.Flush) * time.Millisecond, Ready: is.Ready}
	if is.Newest > 0 {
		s.Newest = time.UnixMilli(is.Newest)
	}
	if !is.Active {
		return s
	}
	s.Active, s.Baseline, s.Tail = true, is.Baseline, is.Tail
	s.From, s.To = time.UnixMilli(is.From), time.UnixMilli(is.To)
	s.Value, s.Rate = d.plan.over(d.rules, is.From, is.To)
	s.Since, s.Triggered = time.UnixMilli(is.Since), time.UnixMilli(is.Triggered)
	return s
}

// Close gives up what the detector keeps.
func (d *SurgeDetector) Close() {
	if d.closed.CompareAndSwap(false, true) {
		d.query.store.detectors.leave(func(o *SurgeDetector) bool { return o.closed.Load() })
	}
}
