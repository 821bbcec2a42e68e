package aggregator

import (
	"math"
	"sync/atomic"
)

// span is what a range function needs of one series: its first and last samples in the window and how many there are.
// That is all, because stored counters are monotone: whatever resets happened in between are already added up.
type span struct {
	firstT, lastT int64 // milliseconds
	beforeT       int64 // the last sample but one
	n             int64
}

// extrapolate returns the factor that takes last - first to the increase over (mint, maxt], as Prometheus'
// extrapolatedRate does (promql/functions.go): to the window's edges where samples are near them, and not beyond the
// point at which the counter would have been 0.
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

// windowed is a function over the rows lo to hi of a block, which lie in (mint, maxt]: what all values of a row share.
type windowed struct {
	f          rangeFunc
	b          *block
	from, to   []atomic.Uint64 // the words of the first row (irate: of the last but one) and of the last
	s          span
	mint, maxt int64
	factor     float64 // of a series that did not start within the window
	toStart    float64 // seconds to the window's start, as far as extrapolate would go
	sampled    float64 // seconds between first and last sample
}

func (f rangeFunc) over(b *block, first, hi int64, mint, maxt int64) windowed {
	g := b.gen
	w := windowed{f: f, b: b, to: b.row(hi), mint: mint, maxt: maxt}
	if w.from = b.row(first); f == funcIrate {
		w.from = b.row(hi - 1)
	}
	w.s = span{firstT: g.time(first), lastT: g.time(hi), beforeT: g.time(hi - 1), n: hi - first + 1}
	w.factor = f.factor(w.s, mint, maxt, -1, 0)
	w.toStart = float64(w.s.firstT-mint) / 1000
	w.sampled = float64(w.s.lastT-w.s.firstT) / 1000
	return w
}

// of evaluates the function for the i-th view, as block.value takes it.
func (w *windowed) of(i int) float64 {
	first := w.b.valueOf(w.from, i)
	increase := w.b.valueOf(w.to, i) - first
	if w.f != funcIrate && increase > 0 && first*w.sampled < w.toStart*increase { // it may have been 0 within the window; a division decides
		return increase * w.f.factor(w.s, w.mint, w.maxt, first, increase)
	}
	return increase * w.factor
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

// each calls visit with every selected series that has two samples in the window: with one value, or for a histogram's
// buckets one a bound and the last for +Inf. values is only valid during the call. It returns false if a native histogram
// is selected, which has no such values.
func (r rangeVector) each(s *Store, at int64, visit func(c *column, p *Pod, v view, values []float64)) bool {
	values, plain := make([]float64, 0, 32), true
	r.columns(s, func(c *column, p *Pod, v view) {
		if v == viewNative {
			plain = false
			return
		}
		if values = r.read(c, v, at, values); len(values) > 0 {
			visit(c, p, v, values)
		}
	})
	return plain
}

// columns calls visit with every selected column and view.
func (r rangeVector) columns(s *Store, visit func(c *column, p *Pod, v view)) {
	checkPod := r.sel.asksForPod()
	for _, c := range s.classesOf(r.sel) {
		for _, v := range c.views() {
			if !r.sel.matches(c, v) {
				continue
			}
			for _, col := range c.columns.all() {
				p := col.table.pod.Load()
				if !checkPod || r.sel.matchesPod(p) {
					visit(col, p, v)
				}
			}
		}
	}
}

// read evaluates the function for a column into values; none if it has fewer than two samples in the window.
func (r rangeVector) read(col *column, v view, at int64, values []float64) []float64 {
	for mint := at - r.reach; ; {
		b := col.block.Load()
		if b == nil {
			return values[:0]
		}
		lo, hi, oldest := b.window(mint, at)
		values = values[:0]
		if hi > lo {
			w := r.f.over(b, lo, hi, mint, at)
			switch v {
			case viewCounter:
				values = append(values, w.of(0))
			case viewSum:
				values = append(values, w.of(sumIndex))
			case viewCount:
				values = append(values, w.of(len(b.totals)-1))
			case viewBucket:
				for i := range b.totals {
					values = append(values, w.of(i))
				}
			}
		}
		if !b.torn(oldest) {
			return values
		}
	}
}

// readFine puts what the finer view counts in the window into f, and returns the factor that makes the function's value of
// it; false if there are fewer than two rows.
func (r rangeVector) readFine(col *column, p *Pod, at int64, f *fine) (factor float64, ok bool) {
	for mint := at - r.reach; ; {
		b := col.block.Load()
		if b == nil {
			return 0, false
		}
		lo, hi, oldest := b.window(mint, at)
		f.reset()
		if ok = hi > lo; ok {
			g := b.gen
			s := span{firstT: g.time(lo), lastT: g.time(hi), beforeT: g.time(hi - 1), n: hi - lo + 1}
			from := lo
			if r.f == funcIrate {
				from = hi - 1
			}
			ends := col.layout.ends(p)
			b.fineRange(f, ends, from, hi)
			factor = r.f.factor(s, mint, at, b.value(lo, len(b.totals)-1)-b.value(oldest, len(b.totals)-1), f.count)
		}
		if !b.torn(oldest) {
			return factor, ok
		}
	}
}

// value reads the i-th view of a row: a counter's value, a histogram's cumulative count of bucket i (+Inf last), or with
// sumIndex its sum.
func (b *block) value(row int64, i int) float64 { return b.valueOf(b.row(row), i) }

// valueOf is value for a row's words.
func (b *block) valueOf(words []atomic.Uint64, i int) float64 {
	switch {
	case b.totals == nil:
		return math.Float64frombits(words[0].Load())
	case i == sumIndex:
		return math.Float64frombits(words[countWords(len(b.totals)-1)].Load())
	}
	low := uint32(words[i/2].Load() >> (32 * (i & 1)))
	total := b.totals[i].Load() // may be newer than the row, by less than 2^32
	return float64(total - uint64(uint32(total)-low))
}

const sumIndex = -1
