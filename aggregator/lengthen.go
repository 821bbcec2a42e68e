package aggregator

import "fmt"

// lengthen stretches the rings of the pods that the query means. Where they do not fit, all is as
// before and the error says so.
func (q *Query) lengthen() error {
	s := q.store
	if q.reach <= s.config.Retention {
		return nil
	}
	s.giveWay()
	q.demand = &demand{q.reach.Milliseconds(), q.author, q.means}
	s.ranges.add(q.demand)
	for _, t := range s.tables.all.all() {
		t.mu.Lock()
		short := false
		if !t.removed && t.aside.Load() == nil && q.means(t) {
			t.try(t.fit)
			short = t.keep < q.reach.Milliseconds()
		}
		t.mu.Unlock()
		if short {
			q.Close()
			s.refit(q.author)
			return &QueryError{Expr: q.expr, Later: true, Reason: fmt.Sprintf("it reaches %s back, for which the memory that the HPAs of namespace %q may have does not suffice: "+
				"shorten its range to %s, name a workload, or raise --memory-budget (GOMEMLIMIT)", q.reach, q.author, s.config.Retention)}
		}
	}
	return nil
}

// means reports whether the table's rows are what the query looks at: its pod is asked for by who
// it is, or has a series that is selected.
func (q *Query) means(t *table) bool {
	p := t.pod.Load()
	for _, sel := range q.selectors {
		named := sel.sides.destination.asked() || sel.sides.source.asked() || sel.asksForPod()
		if (named || sel.name == "") && sel.couldBe(p) || q.store.selects(sel, t) {
			return true
		}
	}
	return false
}
