package aggregator

import "math"

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

// of evaluates the function for the i-th view (as block.value takes it) of rows that lie in (mint, maxt].
func (f rangeFunc) of(b *block, lo, hi int64, s span, mint, maxt int64, i int) float64 {
	if f == funcIrate {
		return (b.value(hi, i) - b.value(hi-1, i)) * f.factor(s, mint, maxt, 0, 0)
	}
	first := b.value(lo, i)
	increase := b.value(hi, i) - first
	return increase * f.factor(s, mint, maxt, first, increase)
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
			g := b.gen
			s := span{firstT: g.time(lo), lastT: g.time(hi), beforeT: g.time(hi - 1), n: hi - lo + 1}
			switch v {
			case viewCounter:
				values = append(values, r.f.of(b, lo, hi, s, mint, at, 0))
			case viewSum:
				values = append(values, r.f.of(b, lo, hi, s, mint, at, sumIndex))
			case viewCount:
				values = append(values, r.f.of(b, lo, hi, s, mint, at, len(b.totals)-1))
			case viewBucket:
				for i := range b.totals {
					values = append(values, r.f.of(b, lo, hi, s, mint, at, i))
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
func (b *block) value(row int64, i int) float64 {
	words := b.row(row)
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
