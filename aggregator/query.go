package aggregator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// QueryError is an expression that is refused: it does not parse, is neither instant vector nor
// scalar, or reaches further back than Config.MaxRetention; or a query that was closed, or set
// aside after a fault.
type QueryError struct {
	Expr   string
	Reason string
	// Later: it is refused for what there is no room for now, and may be registered later.
	Later bool
	// Unkept: it is refused for a metric of which rows are kept only where registered queries ask.
	Unkept bool
}

func (e *QueryError) Error() string {
	return fmt.Sprintf("query %q: %s", strings.Join(strings.Fields(e.Expr), " "), e.Reason)
}

// Query is a checked PromQL expression over a store. It is safe for concurrent use.
type Query struct {
	store     *Store
	expr      string
	reach     time.Duration
	selectors []*selector
	kin       []*kin // of each selector, nil where it has none
	meant     []Meant
	unkept    []unkept   // what it names of metrics that are not kept for whoever asks
	plan      plan       // nil: the engine evaluates it
	surge     *surgePlan // nil: nothing in it can surge

	author     string // who has registered it, or asks for it: a namespace, "" where nobody in particular does
	reads      *readLimit
	registered bool
	closed     atomic.Bool
	asideUntil atomic.Pointer[time.Time] // when a query that was set aside after a fault is tried again
	// When one that took too much of the engine is (engine.go).
	tooMuchUntil atomic.Pointer[time.Time]
	pace         atomic.Int32 // a pace, of the engine (turns.go)
	yields       atomic.Int32 // how often it has given way since it was answered last

	mark
	demand *demand // nil: it looks no further back than the retention, and at what is kept for whoever asks
	// Of the goroutine of Store.Watch: whether the query waits for its time, and when that is.
	waiting bool
	due     time.Time
}

// Register is RegisterFor nobody in particular.
func (s *Store) Register(expr string) (*Query, error) { return s.RegisterFor("", expr) }

// RegisterFor checks the expression and keeps it prepared (its series are tracked as they come and
// go; the rings of the pods that it means grow to its range) until Query.Close. It is for the
// expressions of HPAs, and author is their namespace. The error is a *QueryError; one of a range
// for which the author may not have the memory may be tried again later.
func (s *Store) RegisterFor(author, expr string) (_ *Query, err error) {
	q, err := s.queryFor(author, expr)
	if err != nil {
		return nil, err
	}
	defer q.contain(&err)
	q.registered = true
	for i, sel := range q.selectors {
		s.prepare(sel)
		if k := q.kin[i]; k != nil {
			s.prepare(k.selector)
		}
	}
	if err := q.ask(); err != nil {
		return nil, err
	}
	return q, nil
}

// Query is QueryFor nobody in particular.
func (s *Store) Query(expr string) (*Query, error) { return s.QueryFor("", expr) }

// QueryFor checks the expression for a single use or a few, by an author. The error is a
// *QueryError, one for a metric of which rows are kept only for registered queries too.
func (s *Store) QueryFor(author, expr string) (*Query, error) {
	q, err := s.queryFor(author, expr)
	if err != nil {
		return nil, err
	}
	return q, q.onlyKept()
}

func (s *Store) queryFor(author, expr string) (_ *Query, err error) {
	q := &Query{store: s, expr: expr, author: author, reads: s.limitOf(author)}
	q.query = q
	defer q.contain(&err)
	if err := q.parse(); err != nil {
		return nil, err
	}
	if q.reach > s.config.MaxRetention {
		return nil, &QueryError{Expr: expr, Reason: fmt.Sprintf("it reaches %s back, but rings reach %s at most: shorten its range or raise --max-retention",
			q.reach, s.config.MaxRetention)}
	}
	return q, nil
}

// parse fills in what the expression alone says.
func (q *Query) parse() error {
	parsed, err := ParseExpr(q.expr)
	switch {
	case errors.Is(err, errTooLarge):
		return &QueryError{Expr: strings.ToValidUTF8(q.expr[:min(len(q.expr), 100)], "") + "…", Reason: err.Error()}
	case err != nil:
		return &QueryError{Expr: q.expr, Reason: "it is not valid PromQL: " + err.Error()}
	}
	if t := parsed.Type(); t != parser.ValueTypeVector && t != parser.ValueTypeScalar {
		return &QueryError{Expr: q.expr, Reason: fmt.Sprintf("it gives a %s; an autoscaler needs an instant vector or a scalar", parser.DocumentedType(t))}
	}
	selectors := compiler{}
	parser.Inspect(parsed, func(node parser.Node, path []parser.Node) error {
		if vs, ok := node.(*parser.VectorSelector); ok {
			sel := newSelector(vs.LabelMatchers)
			sel.reads = q.reads
			selectors[vs] = sel
			q.selectors, q.kin = append(q.selectors, sel), append(q.kin, newKin(sel))
			q.reach = max(q.reach, reachOf(vs, path))
		}
		return nil
	})
	q.meant, q.unkept = meantBy(q.selectors), q.unkeptBy(q.selectors)
	q.plan = selectors.compile(parsed)
	if q.surge = surgeOf(q.plan); q.surge != nil {
		q.surge.unkept = q.unkept
	}
	return nil
}

// Like checks another expression for a single use, by whoever has registered this one, of which it
// is a part. The error is a *QueryError.
func (q *Query) Like(expr string) (*Query, error) {
	other, err := q.store.queryFor(q.author, expr)
	if err != nil {
		return nil, err
	}
	other.pace.Store(q.pace.Load())
	return other, nil
}

// reachOf is how far back a selector looks: its range and offset and those of the subqueries around
// it.
func reachOf(vs *parser.VectorSelector, path []parser.Node) time.Duration {
	reach := vs.OriginalOffset
	for _, n := range path {
		switch n := n.(type) {
		case *parser.MatrixSelector:
			reach += n.Range
		case *parser.SubqueryExpr:
			reach += n.Range + n.OriginalOffset
		}
	}
	return max(reach, 0)
}

// Close gives up what Register prepared: the query answers errors from then on. On a query from
// Store.Query it does nothing.
func (q *Query) Close() {
	q.closed.Store(q.registered)
	q.store.ranges.remove(q.demand)
	for i, sel := range q.selectors {
		q.store.forget(sel)
		if k := q.kin[i]; k != nil {
			q.store.forget(k.selector)
		}
	}
}

// Range is how far back the expression looks: the longest range or subquery with its offset; 0
// without any.
func (q *Query) Range() time.Duration { return q.reach }

// Value is one series of an answer.
type Value struct {
	Labels labels.Labels
	V      float64 // may be NaN or infinite: what that means to an autoscaler is the caller's to say
}

// Answer is what an expression says at an instant, and what it stands on.
type Answer struct {
	// Values is the result's series; a scalar is one without labels.
	Values []Value
	// Newest is the time of the newest sample that went in, of the pods' newest flush where no
	// series matched, zero if there was neither.
	Newest time.Time
	// Window is the expression's longest range (Query.Range).
	Window time.Duration
	Coverage
}

// ended says why the query does not answer, nil if it does.
func (q *Query) ended() error {
	if q.closed.Load() {
		return &QueryError{Expr: q.expr, Reason: "it was closed"}
	}
	return q.aside()
}

// Eval answers the expression at the given time from the rings. The error names the expression. A
// query that was closed, or set aside after a fault (faults.go), answers an error.
func (q *Query) Eval(ctx context.Context, at time.Time) (_ Answer, err error) {
	if err := q.ended(); err != nil {
		q.store.metrics.evaluations.WithLabelValues("error").Inc()
		return Answer{}, err
	}
	defer q.contain(&err)
	began := time.Now()
	a := Answer{Window: q.reach}
	compiled := false
	if q.plan != nil {
		a.Values, compiled = q.plan.eval(q.store, q.store.millis(at))
	}
	if !compiled {
		a.Values, err = q.byEngine(ctx, q.store.millis(at))
	}
	q.store.metrics.seconds.Observe(time.Since(began).Seconds())
	if err != nil {
		q.store.metrics.evaluations.WithLabelValues("error").Inc()
		return Answer{}, fmt.Errorf("query %q: %w", strings.Join(strings.Fields(q.expr), " "), err)
	}
	q.store.metrics.evaluations.WithLabelValues("ok").Inc()
	a.Newest, a.Coverage = q.coverage(q.store.millis(at))
	return a, nil
}

// contain is deferred by what evaluates the query. A panic sets it aside, and err is set.
func (q *Query) contain(err *error) {
	if q.store.faults.through {
		return
	}
	if p := recover(); p != nil {
		q.setAside(p)
		*err = q.aside()
	}
}

// contain is deferred by what reads rows for the detector, with the mutex held. A panic sets its
// query aside.
func (d *SurgeDetector) contain() {
	if d.query.store.faults.through {
		return
	}
	if p := recover(); p != nil {
		d.begin()
		d.query.setAside(p)
	}
}

// setAside has the query answer errors for a while. It is called while a panic is recovered.
func (q *Query) setAside(panicked any) {
	until := time.Now().Add(faultPause)
	q.asideUntil.Store(&until)
	q.store.fault("query", q.expr, panicked)
}

// aside says why the query does not answer, nil if it does.
func (q *Query) aside() error {
	until := q.asideUntil.Load()
	if until == nil || !time.Now().Before(*until) {
		return nil
	}
	return &QueryError{Expr: q.expr, Reason: fmt.Sprintf("set aside after a fault of meshpulse, which its log tells (please report it); not tried again before %s UTC",
		until.UTC().Format(time.TimeOnly))}
}

// faultPause is how long a query is set aside.
const faultPause = time.Minute
