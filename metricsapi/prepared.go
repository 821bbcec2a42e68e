package metricsapi

import (
	"container/list"
	"sync"

	"github.com/prometheus/prometheus/promql/parser"
)

// adhocLimit bounds the queries of metrics that no HPA asks for.
const adhocLimit = 256

// prepared is an expression's query, shared by all that ask for it. It is closed when its keeper has released it and the
// last reader is done.
type prepared struct {
	expr string
	// query is nil where err says why the store refused the expression.
	query query
	err   error
	// selects: the expression selects series; a scalar does not.
	selects bool

	mu   sync.Mutex
	refs int // the keeper's and one for each reader; 0 is closed
}

func newPrepared(expr string, prepare func(string) (query, error)) *prepared {
	p := &prepared{expr: expr, refs: 1}
	p.query, p.err = prepare(expr)
	if tree, err := parser.ParseExpr(expr); err == nil {
		p.selects = selects(tree, func(string) bool { return true })
	}
	return p
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
	if last && p.query != nil {
		p.query.Close()
	}
}

// adhocQueries keeps the queries of metrics that no HPA asks for, the last used ones.
type adhocQueries struct {
	store querier
	limit int

	mu     sync.Mutex
	byExpr map[string]*list.Element
	order  list.List // of *prepared, the last used first
}

func newAdhocQueries(store querier, limit int) *adhocQueries {
	return &adhocQueries{store: store, limit: limit, byExpr: map[string]*list.Element{}}
}

// acquire returns the expression's query; the caller releases it.
func (q *adhocQueries) acquire(expr string) *prepared {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.byExpr[expr]
	if e == nil {
		e = q.order.PushFront(newPrepared(expr, q.store.Query))
		q.byExpr[expr] = e
		if q.order.Len() > q.limit {
			q.drop(q.order.Back())
		}
	}
	q.order.MoveToFront(e)
	p := e.Value.(*prepared)
	p.acquire() // it is kept, hence open
	return p
}

func (q *adhocQueries) drop(e *list.Element) {
	p := q.order.Remove(e).(*prepared)
	delete(q.byExpr, p.expr)
	p.release()
}

func (q *adhocQueries) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.order.Len() > 0 {
		q.drop(q.order.Back())
	}
}
