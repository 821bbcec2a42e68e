package ring

import "sync/atomic"

// Row is the number of a flush: 0 is the pod's first row.
type Row int64

// Rows are the rows of one generation of a ring, as readers see them: between two times at which it
// grows.
type Rows struct {
	claim atomic.Int64 // newest row whose slots may be written; -1 before the first
	head  atomic.Int64 // newest row with a time; -1 before the first
	times []atomic.Int64
	mask  int64
	begin Row          // the first row that was copied here; 0 in a ring's first generation
	bound atomic.Int64 // what bounds the length of the first row in milliseconds until it is measured, then 0
	hook  Hook
}

func newRows(slots int64, begin Row, h Hook) *Rows {
	g := &Rows{times: make([]atomic.Int64, slots), mask: slots - 1, begin: begin, hook: h}
	g.claim.Store(-1)
	g.head.Store(-1)
	return g
}

func (g *Rows) slots() int64 { return g.mask + 1 }

// Time returns when a row was, in unix milliseconds.
func (g *Rows) Time(row Row) int64 { return g.times[int64(row)&g.mask].Load() }

// First returns the oldest row that is there: neither overwritten before the ring moved to this
// generation nor claimed since.
func (g *Rows) First() Row { return max(g.begin, Row(g.claim.Load()-g.slots()+1)) }

// Claimed reports whether the writer has claimed the slot of the row for a newer one.
func (g *Rows) Claimed(row Row) bool { return row < g.First() }

// Newest returns the time of the newest row, or false if there is none.
func (g *Rows) Newest() (int64, bool) {
	for {
		r := Row(g.head.Load())
		if r < 0 || g.claim.Load() == allClaimed {
			return 0, false
		}
		t := g.Time(r)
		if !g.Claimed(r) {
			return t, true
		}
	}
}

// Oldest returns the time of the oldest row that is still in the ring and from which on all is
// known, and whether nothing is missing before it; or false if there is none.
func (g *Rows) Oldest() (time int64, first, ok bool) {
	for {
		r, head := g.First(), Row(g.head.Load())
		if head < r {
			return 0, false, false
		}
		whole := r == 0
		if whole && head > 0 && g.Unmeasured() {
			r, whole = 1, false
		}
		t := g.Time(r)
		if !g.Claimed(r) {
			return t, whole, true
		}
	}
}

// Window returns the rows with mint < time <= maxt; hi < lo: none. The writer had claimed none of
// them when it was looked up.
func (g *Rows) Window(mint, maxt int64) (lo, hi Row) {
	for {
		oldest := g.First()
		hi = Row(g.head.Load())
		lo = g.After(oldest, hi, mint)
		if hi >= lo && g.Time(hi) > maxt {
			hi = g.After(lo, hi, maxt) - 1
		}
		if lo == 0 && g.Unbounded(mint, maxt) {
			lo = 1
		}
		if !g.Claimed(oldest) {
			return lo, hi
		}
	}
}

// After returns the first row from lo to hi whose time is after t, hi+1 if there is none.
func (g *Rows) After(lo, hi Row, t int64) Row {
	hi++
	for lo < hi {
		m := Row(uint64(lo+hi) >> 1)
		if g.Time(m) > t {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo
}

// Bound is what bounds the length of the first row, in milliseconds, while that is a guess:
// MaxInt64 if nothing does. 0 once it is measured.
func (g *Rows) Bound() int64 { return g.bound.Load() }

// Unmeasured reports whether the length of the first row is a guess. The row before it is row 0.
func (g *Rows) Unmeasured() bool { return g.bound.Load() != 0 }

// Unbounded reports whether the first row has no rate in the window (mint, maxt], so that the row
// before it is not shown.
func (g *Rows) Unbounded(mint, maxt int64) bool {
	bound := g.bound.Load()
	return bound != 0 && mint > maxt-bound
}
