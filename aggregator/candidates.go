package aggregator

import "slices"

// couldHave appends every table whose pod could have the selected series by what its node says.
// Istio's labels of a series name the pod that reports it: the destination's where reporter is
// destination, else the source's. A selector that asks for neither side's identity could be any
// pod's.
func (x *index) couldHave(sel *selector, to []*table) []*table {
	if sel.prepared {
		for _, ref := range sel.candidates(&x.store.tables) {
			if t := ref.table.Load(); t != nil && !t.gone.Load() && sel.couldBe(t.pod.Load()) {
				to = append(to, t)
			}
		}
		return to
	}
	pods := x.store.tables.all.all()
	if ns, ok := sel.namespace(); ok {
		pods = x.store.tables.in(ns)
	}
	for _, t := range pods {
		if !t.gone.Load() && sel.couldBe(t.pod.Load()) {
			to = append(to, t)
		}
	}
	return to
}

// candidates are the tables of a log whose pods could have what a selector selects. They are never
// changed once published: readers that find them behind the log make new ones, and whose are kept
// does not matter.
type candidates struct {
	log    *list[*tableRef]
	seen   int // so many of the log
	tables []*tableRef
}

// candidates returns the tables, with some that are gone. Asking every pod of a namespace who it is
// would cost more than everything else about a small workload.
func (s *selector) candidates(ts *tables) []*tableRef {
	c, log := s.could.Load(), ts.log.Load()
	if log == nil {
		return nil
	}
	all := log.all()
	switch {
	case c == nil || c.log != log:
		c = &candidates{log: log}
	case c.seen == len(all):
		return c.tables
	}
	now := &candidates{log: log, seen: len(all), tables: slices.Clip(c.tables)}
	for _, ref := range all[min(c.seen, len(all)):] {
		if t := ref.table.Load(); t != nil && s.couldBe(t.pod.Load()) {
			now.tables = append(now.tables, ref)
		}
	}
	s.could.Store(now)
	return now.tables
}
