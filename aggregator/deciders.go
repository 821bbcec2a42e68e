package aggregator

import (
	"slices"
	"time"
)

// Whom an answer stands on. A series' labels are its sender's word, and so is a name. So of the
// pods that have selected series or could have, those decide when all have flushed, and who is
// silent, that the query means by name and that the cluster knows, where it is known. Others count
// with what they send, and only where there are no such pods do they speak for themselves. And a
// few that flush seldom do not make the others wait: the flush of all is that which nine tenths
// keep.

// deciders returns the tables that decide. named could have selected series by what their nodes
// say, bearing have some.
func (q *Query) deciders(named, bearing []*table, at int64) []*table {
	named = distinctTables(named)
	n := len(named)
	all := distinctTables(append(named, bearing...)) // the first of each stays
	known := q.store.clusterPods()
	deciding := make([]*table, 0, n)
	for i, t := range all {
		switch {
		case known == nil && i < n, known != nil && i < n && t.exists(known, at):
			deciding = append(deciding, t)
		case known != nil && i >= n: // its node may not tell its workload
			p := t.pod.Load()
			if identity, _, ok := known.Known(p.Namespace, p.Name); ok && q.Selects(&identity) {
				deciding = append(deciding, t)
			}
		}
	}
	if len(deciding) == 0 {
		return all
	}
	return deciding
}

// lively is a pod that reports.
type lively struct {
	flush  time.Duration
	newest time.Time
}

// keepPace tells the flush and the watermark of the pods that report.
func (c *Coverage) keepPace(ls []lively) {
	if len(ls) == 0 {
		return
	}
	least, most := ls[0].flush, ls[0].flush
	for _, l := range ls {
		least, most = min(least, l.flush), max(most, l.flush)
	}
	if c.Flush = most; most > least+least/4 { // else timers jitter
		slices.SortFunc(ls, func(a, b lively) int { return int(a.flush - b.flush) })
		c.Flush = ls[(9*len(ls)+9)/10-1].flush
	}
	for _, l := range ls {
		if l.flush <= c.Flush+c.Flush/4 && (c.Watermark.IsZero() || l.newest.Before(c.Watermark)) {
			c.Watermark = l.newest
		}
	}
}
