package aggregator

import (
	"math"
	"slices"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// scan visits the columns that a selector selects and that have rows in a window, a batch of one
// pod at a time:
//
//	for sc := newScan(…); sc.begin(); {
//		… read rows of sc.batch[:sc.n] …
//		if sc.torn() {
//			continue // the writer has claimed one of them meanwhile: read them again
//		}
//		… use what was read …
//		sc.done()
//	}
//
// It reads as internal/ring has it. What a series costs is the memory that it lies in, which the
// last query has seldom left in the cache. So the columns of a batch are taken step by step, all
// blocks, then all bounds, then all values: loads of one step do not depend on each other, and the
// processor waits for many of them at a time instead of one after the other.
type scan struct {
	mint, maxt int64
	least      int64 // rows that a column needs in the window

	left    []*selection
	columns []*column // of the first of them that are still to be visited
	taken   int       // of which the batch has taken these
	table   *table
	view    view

	gen    *ring.Rows // of the batch
	lo, hi ring.Row   // its rows in the window; hi < lo: none

	n     int // columns in the batch
	batch [scanBatch]inWindow
}

// inWindow is a column's rows in the window, lo to hi.
type inWindow struct {
	column *column
	block  *ring.Block
	lo, hi ring.Row
}

// scanBatch is enough to keep the processor's outstanding loads (a dozen or two) busy.
const scanBatch = 32

// scanValues is room for the values of a batch: Istio's histograms have twenty buckets.
const scanValues = 20 * scanBatch

// newScan visits the columns that have at least so many rows with mint < time <= maxt.
func newScan(x *index, sel *selector, mint, maxt, least int64) scan {
	return scan{mint: mint, maxt: maxt, least: least, left: x.selectionsOf(sel)}
}

// begin takes the next batch, or the same one again if it is not done. It returns false after the
// last.
func (sc *scan) begin() bool {
	for len(sc.columns) == 0 {
		if len(sc.left) == 0 {
			return false
		}
		sc.columns, sc.table, sc.view = sc.left[0].columns.all(), sc.left[0].table, sc.left[0].view
		sc.left, sc.gen = sc.left[1:], nil
	}
	columns := sc.columns[:min(len(sc.columns), scanBatch)]
	for i, c := range columns {
		sc.batch[i] = inWindow{column: c, block: c.block.Load()}
	}
	sc.n, sc.taken = 0, len(columns)
	for i := range columns {
		in := sc.batch[i]
		if in.block == nil {
			continue
		}
		if in.block.Rows() != sc.gen {
			if sc.n > 0 { // the ring grows at this moment: what is in the new one makes a batch of its own
				sc.taken = i
				break
			}
			sc.gen = in.block.Rows()
			sc.lo, sc.hi = sc.gen.Window(sc.mint, sc.maxt)
		}
		if in.lo, in.hi = in.block.Present(sc.lo, sc.hi); int64(in.hi-in.lo+1) >= sc.least {
			sc.batch[sc.n] = in
			sc.n++
		}
	}
	return true
}

// torn reports whether the writer has claimed a row of the window, so that what was read of the
// batch may be mixed.
func (sc *scan) torn() bool {
	if sc.n == 0 || !sc.gen.Claimed(sc.lo) {
		return false
	}
	sc.gen = nil // and with it the window
	return true
}

// done ends the batch.
func (sc *scan) done() { sc.columns = sc.columns[sc.taken:] }

// doneBefore ends the batch before its i-th column, with which the next one begins.
func (sc *scan) doneBefore(i int) {
	if i < sc.n {
		sc.taken = slices.Index(sc.columns, sc.batch[i].column)
	}
	sc.done()
}

// newest returns the time of the batch's newest row in the window.
func (sc *scan) newest() int64 {
	newest := ring.Row(-1)
	for i := range sc.batch[:sc.n] {
		newest = max(newest, sc.batch[i].hi)
	}
	if newest < 0 {
		return math.MinInt64
	}
	return sc.gen.Time(newest)
}

// reaches reports whether one of the batch's columns has rows since a time, or since the first row
// of the window: a pod's first row is one flush before its first flush, and only a column whose
// past is known is in it.
func (sc *scan) reaches(from int64) bool {
	from = max(from, sc.gen.Time(min(sc.lo+1, sc.hi)))
	for i := range sc.batch[:sc.n] {
		if sc.gen.Time(sc.batch[i].lo) <= from {
			return true
		}
	}
	return false
}

// moved reports whether one of the batch's values has changed within the window.
func (sc *scan) moved() bool {
	for i := range sc.batch[:sc.n] {
		if sc.batch[i].moved() {
			return true
		}
	}
	return false
}

func (in *inWindow) moved() bool { return in.block.Moved(in.lo, in.hi) }
