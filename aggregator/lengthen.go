package aggregator

import "fmt"

// ask has the pods that the query means keep what it asks for beyond what they keep by themselves:
// metrics that are not kept for whoever asks, and rows, for which the rings are stretched. Where
// those do not fit, all is as before and the error says so.
func (q *Query) ask() error {
	s := q.store
	long := q.reach > s.config.Retention
	if !long && len(q.unkept) == 0 {
		return nil
	}
	q.demand = &demand{author: q.author, means: q.means}
	if long {
		s.giveWay()
		q.demand.reach = q.reach.Milliseconds()
	}
	if len(q.unkept) > 0 {
		q.demand.asks = q.asks
	}
	s.ranges.add(q.demand)
	for _, t := range s.tables.all.all() {
		t.mu.Lock()
		means := long && q.means(t)
		if !t.removed && t.aside.Load() == nil && (means || q.unheard(t)) {
			t.try(t.fit)
		}
		short := means && !t.removed && t.aside.Load() == nil && t.keep < q.reach.Milliseconds()
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
