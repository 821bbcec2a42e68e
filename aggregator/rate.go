package aggregator

import (
	"math"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// span is what a range function needs of one series: its first and last samples in the window and
// how many there are. That is all, because stored counters are monotone: whatever resets happened
// in between are already added up.
type span struct {
	firstT, lastT int64 // milliseconds
	beforeT       int64 // the last sample but one
	n             int64
}

// extrapolate returns the factor that takes last - first to the increase over (mint, maxt], as
// Prometheus' extrapolatedRate does (promql/functions.go): to the window's edges where samples are
// near them, and not beyond the point at which the counter would have been 0.
func (s span) extrapolate(mint, maxt int64, first, increase float64) float64 {
	toStart := float64(s.firstT-mint) / 1000
	toEnd := float64(maxt-s.lastT) / 1000
	sampled := float64(s.lastT-s.firstT) / 1000
	average := sampled / float64(s.n-1)
	threshold := average * 1.1
	if toStart >= threshold {
		toStart = average / 2
	}
	if increase > 0 && first >= 0 {
		toStart = min(toStart, sampled*(first/increase))
	}
	if toEnd >= threshold {
		toEnd = average / 2
	}
	return (sampled + toStart + toEnd) / sampled
}

// rangeFunc is a function over a range of a counter-like series that the store evaluates itself.
type rangeFunc uint8

const (
	funcRate rangeFunc = iota
	funcIncrease
	funcIrate
)

var rangeFuncs = map[string]rangeFunc{"rate": funcRate, "increase": funcIncrease, "irate": funcIrate}

// over is a range function over the rows lo to hi of a generation, which lie in (mint, maxt]: what
// all series with these rows share.
type over struct {
	lo, hi  ring.Row
	from    ring.Row // the row that the increase counts from: lo, of irate the last but one
	f       rangeFunc
	s       span
	mint    int64
	maxt    int64
	factor  float64 // of a series that did not start within the window
	plain   bool    // of the table's first row alone, whose length is a guess: nothing is extrapolated
	toStart float64 // seconds to the window's start, as far as extrapolate would go
	sampled float64 // seconds between first and last sample
}

func (f rangeFunc) over(g *ring.Rows, lo, hi ring.Row, mint, maxt int64) over {
	o := over{lo: lo, hi: hi, from: lo, f: f, mint: mint, maxt: maxt}
	o.s = span{firstT: g.Time(lo), lastT: g.Time(hi), beforeT: g.Time(hi - 1), n: int64(hi - lo + 1)}
	if lo == 0 && f != funcIrate && g.Unmeasured() {
		o.plain, o.factor = true, 1
		if f == funcRate {
			o.factor = 1000 / float64(maxt-mint)
		}
		return o
	}
	if o.factor = f.factor(o.s, mint, maxt, -1, 0); f == funcIrate {
		o.from = hi - 1
		return o
	}
	o.toStart = float64(o.s.firstT-mint) / 1000
	o.sampled = float64(o.s.lastT-o.s.firstT) / 1000
	return o
}

// of takes an increase to the function's value; first is what the series began the window with.
func (o *over) of(first, increase float64) float64 {
	if o.mayHaveBegun(first, increase) {
		return increase * o.factorOf(first, increase)
	}
	return increase * o.factor
}

// mayHaveBegun reports whether the series may have been 0 within the window; factorOf decides, with
// a division.
func (o *over) mayHaveBegun(first, increase float64) bool {
	return first*o.sampled < o.toStart*increase
}

func (o *over) factorOf(first, increase float64) float64 {
	if o.plain {
		return o.factor
	}
	return o.f.factor(o.s, o.mint, o.maxt, first, increase)
}

// factor is what an increase over the window's samples is multiplied by.
func (f rangeFunc) factor(s span, mint, maxt int64, first, increase float64) float64 {
	switch f {
	case funcIrate:
		return 1000 / float64(s.lastT-s.beforeT)
	case funcIncrease:
		return s.extrapolate(mint, maxt, first, increase)
	default:
		return s.extrapolate(mint, maxt, first, increase) / (float64(maxt-mint) / 1000)
	}
}

// rangeVector is a function over selector[range], without offset.
type rangeVector struct {
	f     rangeFunc
	sel   *selector
	reach int64 // milliseconds
}

// rangeValues visits a rangeVector's series, with their values.
type rangeValues struct {
	scan
	r    rangeVector
	over over
}

// values visits the selected series that have two samples in the window.
func (r rangeVector) values(s *Store, at int64) rangeValues {
	return rangeValues{scan: newScan(s.index, r.sel, at-r.reach, at, 2), r: r}
}

// read appends the values of the batch's columns in turn: one each, or for a histogram's buckets
// one a bound and the last for +Inf. The caller checks torn afterwards.
func (vs *rangeValues) read(to []float64) []float64 {
	o := &vs.over
	if vs.n > 0 {
		*o = vs.r.f.over(vs.gen, vs.batch[0].lo, vs.batch[0].hi, vs.mint, vs.maxt)
	}
	for i := range vs.batch[:vs.n] {
		in := &vs.batch[i]
		if in.lo != o.lo || in.hi != o.hi { // seldom: what columns of a pod have in common
			*o = vs.r.f.over(vs.gen, in.lo, in.hi, vs.mint, vs.maxt)
		}
		from, last := in.block.At(o.from), in.block.At(o.hi)
		switch vs.view {
		case viewCounter:
			first := from.Counter()
			to = append(to, o.of(first, last.Counter()-first))
		case viewSum:
			first := in.block.Sum(from)
			to = append(to, o.of(first, in.block.Sum(last)-first))
		case viewCount:
			n := in.block.Counts() - 1
			first := in.block.Count(from, n)
			to = append(to, o.of(first, in.block.Count(last, n)-first))
		case viewBucket:
			for n := range in.block.Counts() {
				first := in.block.Count(from, n)
				to = append(to, o.of(first, in.block.Count(last, n)-first))
			}
		}
	}
	return to
}

// each returns how many values read appends for the batch's i-th column.
func (vs *rangeValues) each(i int) int {
	if vs.view == viewBucket {
		return vs.batch[i].block.Counts()
	}
	return 1
}

// fines visits the selected series that have rows for the finer view. It begins with the ring's
// oldest row, from which that counts (queryable.go).
func (r rangeVector) fines(s *Store, at int64) scan {
	return newScan(s.index, r.sel, math.MinInt64, at, 2)
}

// readFine reads what the finer view of the batch's i-th column counts in the window, with its
// shape, and returns the factor that makes the function's value of it; false if there are fewer
// than two rows. A column without ranks is spread as the pool is. The caller checks torn before it
// takes what was read.
func (r rangeVector) readFine(sc *scan, i int, p *Pod, j *fine.Joiner, pool *fine.Counts) (factor float64, ok bool) {
	in := &sc.batch[i]
	mint := sc.maxt - r.reach
	lo := max(in.lo, sc.gen.After(sc.lo, sc.hi, mint))
	if lo == 0 && sc.gen.Unbounded(mint, sc.maxt) {
		lo = 1
	}
	if lo >= in.hi {
		return 0, false
	}
	o := r.f.over(sc.gen, lo, in.hi, mint, sc.maxt)
	b, l := in.block, in.column.layout
	readFineRows(j, b, l, p, lo, in.hi)
	j.Shape(pool)
	if o.from > lo {
		readFineRows(j, b, l, p, o.from, in.hi)
	}
	all := b.Counts() - 1
	first := b.Count(b.At(lo), all) - b.Count(b.At(in.lo), all)
	return o.factorOf(first, j.Count()), true
}

// pool counts what the selected series with ranks tell of (mint, maxt]: the shape of those without.
func (s *Store) pool(sel *selector, mint, maxt int64, j *fine.Joiner) *fine.Counts {
	pool := &fine.Counts{}
	for sc := newScan(s.index, sel, mint, maxt, 2); sc.begin(); {
		if sc.view != viewNative {
			sc.done()
			continue
		}
		p, read := sc.table.pod.Load(), 0
		for ; read < sc.n; read++ {
			in := &sc.batch[read]
			if !in.block.Ranked() {
				continue
			}
			readFineRows(j, in.block, in.column.layout, p, in.lo, in.hi)
			if sc.torn() {
				break
			}
			j.Shape(nil)
			j.Spread(pool, 1)
		}
		sc.doneBefore(read)
	}
	return pool
}
