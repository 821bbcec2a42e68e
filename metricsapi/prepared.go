package metricsapi

import (
	"errors"
	"sync"
	"time"

	"k8s.io/utils/lru"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// adhocLimit bounds the queries of metrics that no HPA asks for.
const adhocLimit = 256

// prepared is an expression's query, shared by all of a namespace that ask for it. It is closed
// when its keeper has released it and the last reader is done.
type prepared struct {
	hpas.Expression
	// query is nil where err says why the store refused the expression.
	query *aggregator.Query
	err   error
	// surge tells surges of it, nil where it is not watched for any.
	surge surges
	// never says which of its parts no sidecar will ever report, and what to write instead. Of
	// registered ones.
	never []string
	// unread are namespaces that it names and does not read, as often as that had changed.
	unread  []string
	changes uint64
	// close gives up what was registered; nil where nothing was.
	close func()

	mu     sync.Mutex
	refs   int    // the keeper's and one for each reader; 0 is closed
	beyond string // the first namespace that is not its author's of which it was seen to read series
}

// surges is an aggregator.SurgeDetector, as far as it is asked here.
type surges interface {
	At(time.Time) aggregator.Surge
	Actable() bool
}

// preparedKey is what HPAs share a prepared query by: those of one namespace, whose turn at the
// engine, refusals and share of memory the query has (aggregator.Store.RegisterFor).
type preparedKey struct {
	namespace, expr string
	surge           aggregator.SurgeConfig // zero: not watched for surges
}

func queryKeyOf(a *hpas.Wants, w hpas.Metric) preparedKey {
	return preparedKey{a.Namespace, w.Expr, w.Surge}
}

// register keeps the query prepared in the store until it is closed. Each of its selectors has to
// name a metric: the author of one that names none would take all series of all pods for a number.
func register(store *aggregator.Store, key preparedKey) *prepared {
	p := newPrepared(key.expr, nil, nil)
	if p.err = p.NamesMetrics(); p.err != nil {
		return p
	}
	q, err := store.RegisterFor(key.namespace, key.expr)
	if err != nil {
		p.err = err
		return p
	}
	p.query, p.close = q, q.Close
	if key.surge == (aggregator.SurgeConfig{}) {
		return p
	}
	if d, err := q.DetectSurges(key.surge); err == nil { // else nothing in it can surge: Vocabulary.Read says so
		p.surge = d
		p.close = func() { d.Close(); q.Close() }
	}
	return p
}

func newPrepared(expr string, q *aggregator.Query, err error) *prepared {
	return &prepared{Expression: hpas.Parse(expr), query: q, err: err, refs: 1}
}

// namesPods says whether the expression tells which pods' series it selects.
func (p *prepared) namesPods() bool { return p.query == nil || p.query.NamesPods() }

// later says whether the store has refused the query for what there may be room for by now.
func (p *prepared) later() bool {
	var refused *aggregator.QueryError
	return errors.As(p.err, &refused) && refused.Later
}

// acquire takes part in the query; it is false if the query has been closed.
func (p *prepared) acquire() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refs == 0 {
		return false
	}
	p.refs++
	return true
}

func (p *prepared) release() {
	p.mu.Lock()
	p.refs--
	last := p.refs == 0
	p.mu.Unlock()
	if last && p.close != nil {
		p.close()
	}
}

// adhocQueries keeps the queries of metrics that no HPA asks for, the last used ones.
type adhocQueries struct {
	store *aggregator.Store
	mu    sync.Mutex // a query is made once
	kept  *lru.Cache // *prepared by namespace and expression
}

func newAdhocQueries(store *aggregator.Store, limit int) *adhocQueries {
	return &adhocQueries{store: store, kept: lru.NewWithEvictionFunc(limit, func(_ lru.Key, p any) { p.(*prepared).release() })}
}

// acquire returns the query of an expression that a namespace asks for; the caller releases it.
func (q *adhocQueries) acquire(namespace, expr string) *prepared {
	q.mu.Lock()
	defer q.mu.Unlock()
	key := preparedKey{namespace: namespace, expr: expr}
	kept, ok := q.kept.Get(key)
	if !ok {
		query, err := q.store.QueryFor(namespace, expr)
		kept = newPrepared(expr, query, err)
		q.kept.Add(key, kept)
	}
	p := kept.(*prepared)
	p.acquire() // it is kept, hence open
	return p
}

func (q *adhocQueries) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.kept.Clear()
}
