package aggregator

import (
	"cmp"
	"slices"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
	"github.com/meshpulse/meshpulse/aggregator/internal/surge"
)

// surgeRows reads the closed rows of the selected pods off the rings, each once. It takes no lock
// that a writer holds.
type surgeRows struct {
	store  *Store
	plan   *surgePlan
	tables map[*table]*surgeTable
	free   []int // places of pods that are gone
	places int
	pass   uint64

	could   []*table // scratch, as is
	scratch []float64
}

// surgeTable is how far a pod's table has been read.
type surgeTable struct {
	pod    Pod
	place  int
	pass   uint64   // the newest pass that saw it
	next   ring.Row // the row to read next; 0: none has been read
	newest int64    // time of the newest row that was read
	flush  int64    // as the node says
	first  ring.Row // of the rows below
	rows   []surge.Row
}

func newSurgeRows(s *Store, p *surgePlan) *surgeRows {
	return &surgeRows{store: s, plan: p, tables: map[*table]*surgeTable{}}
}

// collect returns the rows that have been closed since the last call, in no order.
func (s *surgeRows) collect(newPod func(place int, flush int64)) (rows []surge.Row) {
	s.pass++
	// A pod's rows are looked up before its columns: the other way round, rows that a column closed
	// which had not joined yet when the columns were looked up would be taken as read without it.
	for _, term := range s.plan.terms {
		s.could = s.store.couldHave(term.sel, s.could[:0])
		for _, t := range s.could {
			s.enter(t, newPod)
		}
	}
	for i, term := range s.plan.terms {
		for _, in := range s.store.selectionsOf(term.sel) {
			if in.gone.Load() || in.view == viewGauge { // what there is now is the newest flush's: nothing lags behind that a surge would have to tell
				continue
			}
			t := s.enter(in.table, newPod)
			if len(t.rows) == 0 {
				continue
			}
			for _, col := range in.columns.all() {
				s.read(t, col, in.view, i)
			}
		}
	}
	for _, t := range s.tables {
		if t.pass == s.pass {
			rows = append(rows, t.rows...)
			t.rows = nil
		}
	}
	return rows
}

// enter begins to read a table's new rows, once in a pass: their times.
func (s *surgeRows) enter(t *table, newPod func(place int, flush int64)) *surgeTable {
	st := s.tables[t]
	if st != nil && st.pass == s.pass {
		return st
	}
	if st == nil {
		st = s.add(t)
		newPod(st.place, st.flush)
	}
	st.pass = s.pass
	closed := ring.Row(t.closed.Load())
	since, ok := s.plan.since(t)
	if !ok || closed < max(st.next, 1) {
		return st
	}
	for {
		g := t.gen.Load()
		oldest := g.First()
		if oldest > 0 {
			oldest++ // the next to be overwritten
		}
		st.first = max(st.next, oldest+1, g.After(oldest, closed, since))
		st.rows = st.rows[:0]
		second := ring.Row(t.second.Load())
		for row := st.first; row <= closed; row++ {
			r := surge.Row{Pod: st.place, At: g.Time(row), First: second == 0 || row < second}
			if row == second && g.First() == 0 {
				r.Began = g.Time(0)
			}
			st.rows = append(st.rows, r)
		}
		if len(st.rows) > 0 && (st.next == 0 || st.first > st.next) {
			st.rows[0].Before = g.Time(st.first - 1)
			st.rows[0].Aged = st.first > 1 || t.aged.Load()
			if bound := g.Bound(); st.rows[0].First && bound > surge.MinuteMs { // it may have taken long
				st.rows[0].Before = 0
			}
		}
		if !g.Claimed(st.first - 1) {
			break
		}
	}
	series := s.plan.series()
	counts := make([]float64, series*len(st.rows))
	for i := range st.rows {
		st.rows[i].Counts, counts = counts[:series:series], counts[series:]
	}
	if len(st.rows) > 0 {
		st.next, st.newest = closed+1, st.rows[len(st.rows)-1].At
	}
	return st
}

func (s *surgeRows) add(t *table) *surgeTable {
	st := &surgeTable{pod: *t.pod.Load()}
	st.flush = st.pod.toldFlush()
	if n := len(s.free); n > 0 {
		st.place, s.free = s.free[n-1], s.free[:n-1]
	} else {
		st.place = s.places
		s.places++
	}
	s.tables[t] = st
	return st
}

// read adds what a column counted in the table's new rows.
func (s *surgeRows) read(st *surgeTable, col *column, v view, term int) {
	increases := s.increases(st, col, v, s.plan.terms[term].counted)
	interval := v != viewCounter || s.store.config.CountersAsDeltas
	for i, n := range increases {
		r := &st.rows[i]
		into := r.Counts
		if interval {
			if r.Intervals == nil {
				r.Intervals = make([]float64, len(r.Counts))
			}
			into = r.Intervals
		}
		s.plan.addTo(into, term, n)
	}
}

// increases returns by how much the column rose in each of the table's new rows. One without a
// predecessor tells nothing.
func (s *surgeRows) increases(st *surgeTable, col *column, v view, counted bool) []float64 {
	s.scratch = slices.Grow(s.scratch[:0], len(st.rows))[:len(st.rows)]
	for {
		clear(s.scratch)
		b := col.block.Load()
		if b == nil {
			return s.scratch
		}
		oldest, last := b.Present(max(st.first-1, b.Rows().First()), st.first+ring.Row(len(st.rows))-1)
		if last <= oldest {
			return s.scratch
		}
		before := countedIn(b, oldest, v, counted)
		for row := oldest + 1; row <= last; row++ {
			value := countedIn(b, row, v, counted)
			s.scratch[row-st.first] = value - before
			before = value
		}
		if !b.Torn(oldest) {
			return s.scratch
		}
	}
}

// countedIn reads a row of a counter, a histogram's count, or its sum where that is selected and
// not its count meant.
func countedIn(b *ring.Block, row ring.Row, v view, counted bool) float64 {
	is := b.At(row)
	switch {
	case v == viewCounter:
		return is.Counter()
	case v == viewSum && !counted:
		return b.Sum(is)
	}
	return b.Count(is, b.Counts()-1)
}

// forget gives up the tables of which nothing has come since a time and that the last pass did not
// see.
func (s *surgeRows) forget(since int64, gone func(place int)) {
	for t, st := range s.tables {
		if st.pass != s.pass && st.newest < since {
			delete(s.tables, t)
			s.free = append(s.free, st.place)
			gone(st.place)
		}
	}
}

// settled is the time up to which no pod that reports has a row to come.
func (s *surgeRows) settled(now int64) int64 {
	oldest := now
	for _, st := range s.tables {
		if st.newest != 0 && now-st.newest <= min(surgeSettleFlushes*st.flush, surge.LongMs) {
			oldest = min(oldest, st.newest)
		}
	}
	return oldest
}

// surgeSettleFlushes is for how many flushes the rows of a pod that has fallen silent are waited
// for: a network that was held up delivers them at once, with the times at which they were sent.
// Never longer than the fold reaches back: a node may claim a flush of an hour.
const surgeSettleFlushes = 4

// byName compares pods, by their places, by name.
func (s *surgeRows) byName() func(a, b int) int {
	pods := make([]*Pod, s.places)
	for _, st := range s.tables {
		pods[st.place] = &st.pod
	}
	return func(a, b int) int {
		p, o := pods[a], pods[b]
		if a == b || p == nil || o == nil {
			return 0
		}
		return cmp.Or(cmp.Compare(p.Namespace, o.Namespace), cmp.Compare(p.Name, o.Name))
	}
}
