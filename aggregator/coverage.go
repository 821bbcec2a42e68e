package aggregator

import (
	"math"
	"slices"
	"time"
)

// Coverage is what an answer stands on.
type Coverage struct {
	// Reporting counts the pods that could have the selected series (they have some, or their node
	// says that they could) and whose newest flush is at most two flush intervals old; Silent
	// counts those whose newest is older.
	Reporting, Silent int
	// Covered is how far back from the instant the rows of the reporting pods reach: the longest of
	// them, and never more than the window. A pod that came later is complete from its first row.
	Covered time.Duration
	// Watermark is the newest time that every reporting pod has covered, zero if none reports, and
	// Flush the longest of their flush intervals: but for a tenth of them, which may flush more
	// seldom.
	Watermark time.Time
	Flush     time.Duration
	// Partial are the selected pods of which the window is not known in full: silent ones, ones
	// whose rows begin within the window, ones of which samples were refused within it, and
	// contested ones.
	Partial []PodState
	// Matched counts the series that the selectors matched (a histogram is one); Moved says whether
	// any of them changed within the rings.
	Matched int
	Moved   bool
	// Beyond is a namespace of whose series the query selects some that its author would not see
	// where authors see their own only (SetReading), the first by name; "" where there is none.
	Beyond string
	// Absent are the selectors that matched none, in the order of the expression.
	Absent []Absent
	// Bearing are pods that have series which selectors select that name no pods: one of each
	// workload that their nodes tell, and all whose nodes tell none.
	Bearing []*Pod
}

// Coverage is what an answer of this time would stand on, without the answer.
func (q *Query) Coverage(at time.Time) Coverage {
	_, c := q.coverage(q.store.millis(at))
	return c
}

// coverage looks at the pods and series behind the query at an instant, and at their newest sample
// until then.
func (q *Query) coverage(at int64) (time.Time, Coverage) {
	var cov Coverage
	newest := int64(math.MinInt64)
	from := at - q.reach.Milliseconds()
	var pods, named []*table
	var unnamed bearers
	bearing := map[*table]bool{} // of those of which samples were refused
	var proxys []*unsent
	for i, sel := range q.selectors {
		before, asked := cov.Matched, askedBound{selector: sel}
		own := newUnsent(sel)
		if own != nil {
			proxys = append(proxys, own)
		}
		for sc := newScan(q.store.index, sel, math.MinInt64, at, 1); sc.begin(); {
			moved := cov.Moved || sc.moved()
			last := sc.newest()
			bears := sc.n > 0 && sc.table.refused.Load() > from && sc.reaches(from)
			if sc.torn() {
				continue
			}
			if sc.n > 0 {
				cov.Matched += sc.n
				cov.Moved = moved
				newest = max(newest, last)
				pods = append(pods, sc.table)
				if own != nil {
					own.bears[sc.table] = true
				}
				cov.reach(q.beyond(&sc))
				asked.look(&sc)
				if !sel.namesPods() {
					unnamed.add(sc.table.pod.Load())
				}
			} else if sc.table.aside.Load() != nil && !sc.table.gone.Load() {
				pods = append(pods, sc.table)
			}
			if bears {
				bearing[sc.table] = true
			}
			sc.done()
		}
		if n := cov.Matched - before; n == 0 {
			cov.Absent = append(cov.Absent, q.absent(i, at))
		} else if missing, ok := asked.missing(); ok {
			cov.Matched = before
			cov.Absent = append(cov.Absent, Absent{Selector: i, Kin: n, Unreported: []Unreported{missing}})
		}
		named = q.store.couldHave(sel, named)
	}
	var reporting []lively
	for _, t := range q.deciders(named, pods, at) {
		if row, ok := t.newest(); ok && cov.Matched == 0 { // that nobody had a request is known from their flushes
			newest = max(newest, row)
		}
		state := q.state(t, at)
		state.Bare = !state.Refused.IsZero() && !bearing[t]
		for _, u := range proxys {
			if state.Reporting && state.Unsent == "" {
				state.Unsent = u.by(t)
			}
		}
		cov.count(state, at, q.reach)
		if state.Reporting {
			reporting = append(reporting, lively{time.Duration(t.flush.Load()) * time.Millisecond, state.Newest})
		}
	}
	cov.keepPace(reporting)
	cov.Bearing = unnamed.pods
	cov.Covered = min(cov.Covered, q.reach)
	if newest == math.MinInt64 {
		return time.Time{}, cov
	}
	return time.UnixMilli(newest), cov
}

// distinctTables returns each table once, in place.
func distinctTables(ts []*table) []*table {
	if len(ts) < 2 {
		return ts
	}
	lowest, highest := ts[0].number, ts[0].number
	for _, t := range ts {
		lowest, highest = min(lowest, t.number), max(highest, t.number)
	}
	seen := make([]uint64, (highest-lowest)/64+1)
	return slices.DeleteFunc(ts, func(t *table) bool {
		word, bit := &seen[(t.number-lowest)/64], uint64(1)<<((t.number-lowest)%64)
		again := *word&bit != 0
		*word |= bit
		return again
	})
}

// beyond returns the namespace of a series of the batch that the query's author would not see where
// authors see their own only, "" if there is none: that of who is called, else that of who reports.
func (q *Query) beyond(sc *scan) string {
	of := sc.table.pod.Load().Namespace
	if q.reads != nil || q.author == "" || of == q.author {
		return ""
	}
	for i := range sc.batch[:sc.n] {
		switch called := sc.batch[i].column.class.labels.get(labelDestinationNamespace); called {
		case "", unknownNamespace:
			return of
		case q.author:
		default:
			return called
		}
	}
	return ""
}

// reach notes a namespace that is not the author's, "" if there is none.
func (c *Coverage) reach(namespace string) {
	if namespace != "" && (c.Beyond == "" || namespace < c.Beyond) {
		c.Beyond = namespace
	}
}

// count takes a selected pod into account.
func (c *Coverage) count(p PodState, at int64, reach time.Duration) {
	if p.Reporting {
		c.Reporting++
		c.Covered = max(c.Covered, time.Duration(at-p.Oldest.UnixMilli())*time.Millisecond)
	} else {
		c.Silent++
	}
	if !p.Reporting || p.Rivals != nil || p.Unsent != "" || !p.Refused.IsZero() || !p.GapTo.IsZero() || p.Oldest.UnixMilli() > at-reach.Milliseconds() {
		c.Partial = append(c.Partial, p)
	}
}

// NamesPods reports whether the query asks for the identity of the pods whose series it selects.
// Where it does not, any pod could have them, and which ones should report cannot be told.
func (q *Query) NamesPods() bool {
	unnamed := func(sel *selector) bool { return !sel.namesPods() }
	return len(q.selectors) > 0 && !slices.ContainsFunc(q.selectors, unnamed)
}

// Names reports whether the pod could have series of a selector that asks for the identity of its
// pods, by what it says of itself.
func (q *Query) Names(p *Pod) bool {
	return slices.ContainsFunc(q.selectors, func(sel *selector) bool { return sel.namesPods() && sel.couldBe(p) })
}

// Open reports whether the query has a selector of series that any pod could have: it asks for no
// pod's identity, and for what ends of calls report, not waypoints.
func (q *Query) Open() bool {
	return slices.ContainsFunc(q.selectors, func(sel *selector) bool {
		return !sel.namesPods() && (sel.sides.destination.reports || sel.sides.source.reports)
	})
}

// bearers are pods that have selected series.
type bearers struct {
	pods      []*Pod
	workloads map[workloadKey]bool
}

// add adds a pod whose workload is not there yet.
func (b *bearers) add(p *Pod) {
	if key := (workloadKey{p.Namespace, p.Workload}); p.Workload != "" && b.workloads[key] {
		return
	} else if b.workloads == nil {
		b.workloads = map[workloadKey]bool{key: true}
	} else {
		b.workloads[key] = true
	}
	b.pods = append(b.pods, p)
}

// Namespace is the one namespace whose pods the query selects, "" if it can be several.
func (q *Query) Namespace() string {
	found := ""
	for _, sel := range q.selectors {
		ns, ok := sel.namespace()
		if !ok || found != "" && found != ns {
			return ""
		}
		found = ns
	}
	return found
}

// Selects reports whether the pod could have series that the query selects, by what it says of
// itself: for pods that have not reported yet.
func (q *Query) Selects(p *Pod) bool {
	return slices.ContainsFunc(q.selectors, func(sel *selector) bool { return sel.couldBe(p) })
}

// fits is Selects of a pod that has reported some of it, whatever its namespace.
func (q *Query) fits(p *Pod) bool {
	return slices.ContainsFunc(q.selectors, func(sel *selector) bool { return sel.fits(p) })
}

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
		p := t.pod.Load()
		// One that calls the author's namespace, from one that it does not see, is seen by that.
		meant := i < n || q.reads != nil && q.fits(p)
		switch {
		case meant && (known == nil || t.exists(known, at)):
			deciding = append(deciding, t)
		case known != nil && !meant: // its node may not tell its workload
			if identity, _, ok := known.Known(p.Namespace, p.Name); ok && q.fits(&identity) {
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
