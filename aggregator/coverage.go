package aggregator

import (
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// Coverage is what an answer stands on.
type Coverage struct {
	// Reporting counts the pods that could have the selected series (they have some, or their node says that they
	// could) and whose newest flush is at most two flush intervals old; Silent counts those whose newest is older.
	Reporting, Silent int
	// Covered is how far back from the instant the rows of the reporting pods reach: the longest of them, and never
	// more than the window. A pod that came later is complete from its first row.
	Covered time.Duration
	// Watermark is the newest time that every reporting pod has covered, zero if none reports, and Flush the longest of their flush intervals: but for
	// a tenth of them, which may flush more seldom.
	Watermark time.Time
	Flush     time.Duration
	// Partial are the selected pods of which the window is not known in full: silent ones, ones whose rows begin within
	// the window, ones of which samples were refused within it, and contested ones.
	Partial []PodState
	// Matched counts the series that the selectors matched (a histogram is one); Moved says whether any of them
	// changed within the rings.
	Matched int
	Moved   bool
	// Absent are the selectors that matched none, in the order of the expression.
	Absent []Absent
	// Bearing are pods that have series which selectors select that name no pods: one of each workload that their nodes tell, and all
	// whose nodes tell none.
	Bearing []*Pod
}

// PodState is what the store knows of a pod.
type PodState struct {
	Namespace, Name string
	Reporting       bool      // its newest row is at most two flush intervals old
	Oldest, Newest  time.Time // its rows reach from here to there; Oldest is one flush before its first
	// Whole: the rows begin with the pod's first, none has been overwritten, and its sidecar had no requests before.
	Whole bool
	// Single: one flush has come so far, and how long it took is not known: nothing is, beyond it.
	Single bool
	// Bare: samples of it were refused, and none of the series that the query selects reaches back over the window, or to
	// its first row. Known of a query's partial pods only.
	Bare bool
	// GapFrom and GapTo are a time within the window from which the pod has told nothing though it reported before and
	// after, zero if there is none.
	GapFrom, GapTo time.Time
	// Refused is when one of its samples was last refused or dropped, zero if not within the window; RefusedSince is
	// since when that has happened again and again.
	Refused, RefusedSince time.Time
	// OtherForm: what was refused are Istio's metrics under names that are not read (Batch.OtherForm).
	OtherForm bool
	// Rivals are two streams that report as the pod, so that what its rows tell of the window may be of either; nil if there are not.
	Rivals *Rivals
}

// coverage looks at the pods and series behind the query at an instant, and at their newest sample until then.
func (q *Query) coverage(at int64) (time.Time, Coverage) {
	var cov Coverage
	newest := int64(math.MinInt64)
	from := at - q.reach.Milliseconds()
	var pods, named []*table
	var unnamed bearers
	bearing := map[*table]bool{} // of those of which samples were refused
	for i, sel := range q.selectors {
		before, asked := cov.Matched, askedBound{selector: sel}
		for sc := newScan(q.store, sel, math.MinInt64, at, 1); sc.begin(); {
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
		state := t.state(at, q.reach)
		state.Bare = !state.Refused.IsZero() && !bearing[t]
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

// count takes a selected pod into account.
func (c *Coverage) count(p PodState, at int64, reach time.Duration) {
	if p.Reporting {
		c.Reporting++
		c.Covered = max(c.Covered, time.Duration(at-p.Oldest.UnixMilli())*time.Millisecond)
	} else {
		c.Silent++
	}
	if !p.Reporting || p.Rivals != nil || !p.Refused.IsZero() || !p.GapTo.IsZero() || p.Oldest.UnixMilli() > at-reach.Milliseconds() {
		c.Partial = append(c.Partial, p)
	}
}

// state returns what is known of the pod at an instant, for a window.
func (t *table) state(at int64, reach time.Duration) PodState {
	p := t.pod.Load()
	s := PodState{Namespace: p.Namespace, Name: p.Name}
	g := t.gen.Load()
	newest, ok := g.Newest()
	if aside := t.aside.Load(); aside != nil { // a pod that fell silent then
		s.Oldest, s.Newest = time.UnixMilli(*aside), time.UnixMilli(*aside)
		return s
	}
	if !ok {
		return s
	}
	oldest, whole, _ := g.Oldest()
	s.Single = g.Unmeasured()
	s.Rivals = t.rivals(at, reach.Milliseconds())
	s.Reporting = at-newest <= 2*t.flush.Load()
	s.Oldest, s.Newest, s.Whole = time.UnixMilli(oldest), time.UnixMilli(newest), whole && !t.begun.Load()
	if refused := t.refused.Load(); refused > at-reach.Milliseconds() {
		s.Refused, s.RefusedSince = time.UnixMilli(refused), time.UnixMilli(t.refusedSince.Load())
		other := t.otherForm.Load()
		s.OtherForm = other != 0 && other > at-reach.Milliseconds()
	}
	if gap := t.gap.Load(); gap != nil && gap.to > at-reach.Milliseconds() {
		s.GapFrom, s.GapTo = time.UnixMilli(gap.from), time.UnixMilli(gap.to)
	}
	return s
}

// Pod returns what the store knows of a pod for a window before an instant. Newest is zero if it has never reported.
func (s *Store) Pod(namespace, name string, at time.Time, window time.Duration) PodState {
	t, gone := s.tables.find(namespace, name)
	switch {
	case t != nil:
		return t.state(s.millis(at), window)
	case gone != 0:
		return PodState{Namespace: namespace, Name: name, Newest: time.UnixMilli(gone)}
	}
	return PodState{Namespace: namespace, Name: name}
}

// NamesPods reports whether the query asks for the identity of the pods whose series it selects. Where it does not, any pod
// could have them, and which ones should report cannot be told.
func (q *Query) NamesPods() bool {
	for _, sel := range q.selectors {
		if !sel.namesPods() {
			return false
		}
	}
	return len(q.selectors) > 0
}

// Names reports whether the pod could have series of a selector that asks for the identity of its pods, by what it says of itself.
func (q *Query) Names(p *Pod) bool {
	for _, sel := range q.selectors {
		if sel.namesPods() && sel.couldBe(p) {
			return true
		}
	}
	return false
}

// Open reports whether the query has a selector of series that any pod could have: it asks for no pod's identity, and for what ends of
// calls report, not waypoints.
func (q *Query) Open() bool {
	for _, sel := range q.selectors {
		if !sel.namesPods() && (sel.sides.destination.reports || sel.sides.source.reports) {
			return true
		}
	}
	return false
}

// namesPods reports whether the selector asks for the identity of the pods whose series it selects.
func (s *selector) namesPods() bool {
	return s.sides.destination.asked() || s.sides.source.asked() || s.asksForPod()
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

// asked reports whether the side can report what is selected and is asked for by identity.
func (s *side) asked() bool { return s.reports && len(s.identity) > 0 }

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

// Selects reports whether the pod could have series that the query selects, by what it says of itself: for pods that have
// not reported yet.
func (q *Query) Selects(p *Pod) bool {
	for _, sel := range q.selectors {
		if sel.couldBe(p) {
			return true
		}
	}
	return false
}

// couldHave appends every table whose pod could have the selected series by what its node says. Istio's labels of a
// series name the pod that reports it: the destination's where reporter is destination, else the source's. A selector that
// asks for neither side's identity could be any pod's.
func (s *Store) couldHave(sel *selector, to []*table) []*table {
	if sel.prepared {
		for _, ref := range sel.candidates(&s.tables) {
			if t := ref.table.Load(); t != nil && !t.gone.Load() && sel.couldBe(t.pod.Load()) {
				to = append(to, t)
			}
		}
		return to
	}
	pods := s.tables.all.all()
	if ns, ok := sel.namespace(); ok {
		pods = s.tables.in(ns)
	}
	for _, t := range pods {
		if !t.gone.Load() && sel.couldBe(t.pod.Load()) {
			to = append(to, t)
		}
	}
	return to
}

// candidates are the tables of a log whose pods could have what a selector selects. They are never changed once published: readers
// that find them behind the log make new ones, and whose are kept does not matter.
type candidates struct {
	log    *list[*tableRef]
	seen   int // so many of the log
	tables []*tableRef
}

// candidates returns the tables, with some that are gone. Asking every pod of a namespace who it is would cost more than
// everything else about a small workload.
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

// couldBe reports whether the pod could report what is selected.
func (s *selector) couldBe(p *Pod) bool {
	d, o := &s.sides.destination, &s.sides.source
	return s.matchesPod(p) && (!d.reports && !o.reports || d.reports && d.matches(p) || o.reports && o.matches(p))
}

// namespace returns the one namespace whose pods can report what is selected, false if it can be several.
func (s *selector) namespace() (string, bool) {
	if ns, ok := s.equals(labelNamespace); ok {
		return ns, true
	}
	switch d, o := s.sides.destination.reports, s.sides.source.reports; {
	case d && !o:
		return s.equals("destination_workload_namespace")
	case o && !d:
		return s.equals("source_workload_namespace")
	}
	return "", false
}

// sides are the ends of a call, as a selector sees them.
type sides struct{ destination, source side }

// side is one end of a call.
type side struct {
	reports  bool // it can report what is selected
	identity []identityMatcher
}

// identityMatcher asks for a part of the identity of the pod at one end.
type identityMatcher struct {
	*labels.Matcher
	of func(*Pod) string
}

func (s *side) matches(p *Pod) bool {
	for i := range s.identity {
		if !s.identity[i].Matches(s.identity[i].of(p)) {
			return false
		}
	}
	return true
}

// labelReporter is Istio's label for the end of a call that reports.
const labelReporter = "reporter"

// newSides tells which ends of a call can report what is selected. Without a reporter it is the side whose identity the
// selector asks for: everyone may call a service, so its callers are not counted as those who should report. A waypoint
// (reporter="waypoint") is neither end.
func newSides(ms []*labels.Matcher) sides {
	s := sides{destination: side{reports: true}, source: side{reports: true}}
	asked := false
	for _, m := range ms {
		if m.Name == labelReporter {
			s.destination.reports = s.destination.reports && m.Matches("destination")
			s.source.reports = s.source.reports && m.Matches("source")
			asked = true
		}
		for _, id := range identity {
			switch m.Name {
			case "destination_" + id.label:
				s.destination.identity = append(s.destination.identity, identityMatcher{m, id.of})
			case "source_" + id.label:
				s.source.identity = append(s.source.identity, identityMatcher{m, id.of})
			}
		}
	}
	if !asked || s.destination.reports && s.source.reports {
		hasDestination, hasSource := len(s.destination.identity) > 0, len(s.source.identity) > 0
		if hasDestination != hasSource {
			s.destination.reports, s.source.reports = hasDestination, hasSource
		}
	}
	return s
}

// identity is how a series' labels name the pod at one of its ends, without the end's prefix.
var identity = []struct {
	label string
	of    func(*Pod) string
}{
	{"workload", func(p *Pod) string { return p.Workload }},
	{"workload_namespace", func(p *Pod) string { return p.Namespace }},
	{"canonical_service", func(p *Pod) string { return p.CanonicalService }},
	{"canonical_revision", func(p *Pod) string { return p.CanonicalRevision }},
	{"app", func(p *Pod) string { return p.App }},
	{"version", func(p *Pod) string { return p.Version }},
}

// equals returns the value that the selector asks a label to equal.
func (s *selector) equals(name string) (string, bool) {
	for _, m := range s.matchers {
		if m.Name == name && m.Type == labels.MatchEqual {
			return m.Value, true
		}
	}
	return "", false
}
