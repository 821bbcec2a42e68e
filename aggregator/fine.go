package aggregator

import (
	"math"

	"github.com/prometheus/prometheus/model/histogram"
)

// The finer view of a histogram. Classic buckets tell only that a request lies between two bounds, up to a factor of 2.5
// apart. The summary that a sidecar sends beside them tells ten ranks, each by its cell (cells.go) and its place there:
//
//   - Quantile q of n requests is the request of rank ceil(q n). Up to five requests a flush all are known.
//   - The k-th of m requests of a bin is put at k/(m+1) of it. Two ranks in one bin so tell m, and where the bin's ranks begin
//     and end; so does one, where it is the first or the last of all.
//   - An unknown request lies between its known neighbours and within its bucket. Where, the series' other flushes tell: it is
//     spread as all the window's requests are, after each has been spread evenly (one step of expectation maximisation; more of
//     them begin to fit noise).
//
// The result is a native histogram, which adds up over time and over pods. A series of a sidecar that sends no summaries is
// spread within its buckets as the selected series that tell more are (see pool).

// part is n requests somewhere in the cells [from, to).
type part struct {
	from, to uint16
	n        float64
}

// fine counts requests by cell.
type fine struct {
	cells  []float64
	lo, hi int // the range of cells that is not all 0
	count  float64
	sum    float64
}

func newFine() *fine { return &fine{cells: make([]float64, cellCount), lo: cellCount, hi: -1} }

// add adds a multiple of another one.
func (f *fine) add(o *fine, factor float64) {
	f.count += o.count * factor
	f.sum += o.sum * factor
	for i := o.lo; i <= o.hi; i++ {
		f.cells[i] += o.cells[i] * factor
	}
	f.lo, f.hi = min(f.lo, o.lo), max(f.hi, o.hi)
}

func (f *fine) reset() {
	if f.lo <= f.hi {
		clear(f.cells[f.lo : f.hi+1])
	}
	f.count, f.sum, f.lo, f.hi = 0, 0, cellCount, -1
}

// native returns what was counted as Prometheus' native histogram. All have one schema and one zero threshold, so they
// merge exactly.
func (f *fine) native(t *cellTables) *histogram.FloatHistogram {
	h := &histogram.FloatHistogram{
		Schema: fineSchema, ZeroThreshold: fineZeroThreshold,
		CounterResetHint: histogram.UnknownCounterReset,
		Count:            f.count, Sum: f.sum, ZeroCount: f.cells[0],
	}
	lo := max(f.lo, 1)
	if lo > f.hi {
		return h
	}
	first := int(t.first[lo])
	h.PositiveBuckets = make([]float64, int(t.first[f.hi])+len(t.shares[f.hi])-first)
	h.PositiveSpans = []histogram.Span{{Offset: int32(first), Length: uint32(len(h.PositiveBuckets))}}
	for c := lo; c <= f.hi; c++ {
		into := h.PositiveBuckets[int(t.first[c])-first:]
		for i, share := range t.shares[c] {
			into[i] += f.cells[c] * share
		}
	}
	return h
}

const fineZeroThreshold = 0x1p-128 // Prometheus' default

// joiner joins rows of a series and spreads what they leave open. It is the scratch of one query.
type joiner struct {
	tables *cellTables
	parts  []part
	rows   []joined
	runs   []run
	edges  [cellCount + 1]edge    // differences: of density, and of how many parts lie over a cell
	below  [cellCount + 1]float64 // requests of the shape below a cell
	shape  fine                   // how the series' requests are spread
}

type joined struct {
	parts int // of joiner.parts, to the end of this row
	count float64
	sum   float64
}

type edge struct {
	density float64
	parts   int32
}

func newJoiner(t *cellTables) *joiner { return &joiner{tables: t, shape: *newFine()} }

// open takes the requests between two rows: cumulative counts by bucket (+Inf last), of which each holds the cells below
// its end, and the later row's quantiles (codes as quantileCode packs them; all 0 where the row has no summary).
func (j *joiner) open(ends []uint16, cumulative []float64, codes *[len(SummaryQuantiles)]uint16) {
	runs := j.known(cumulative[len(cumulative)-1], codes)
	top := cellCount // where the largest request's cell ends
	if len(runs) > 0 {
		top = runs[len(runs)-1].cell + 1
	}
	from, below := 0, 0.0
	for i, upTo := range cumulative {
		to := top
		switch {
		case i < len(ends):
			to = max(from, min(int(ends[i]), top))
		case top == cellCount: // an endless bucket is taken as its beginning, as histogram_quantile does
			to = from
		}
		if upTo > below {
			runs = j.bucket(from, to, below, upTo, runs)
			below = upTo
		}
		if i < len(ends) {
			from = int(ends[i])
		}
	}
}

// bucket takes the requests of ranks (below, upTo], which all lie in the cells [from, to), and returns the runs beyond.
func (j *joiner) bucket(from, to int, below, upTo float64, runs []run) []run {
	rank, at := below, from
	for len(runs) > 0 && runs[0].first <= upTo {
		r := &runs[0]
		cell := max(min(r.cell, to-1), from)
		next := cell + 1
		if r.whole && cell > at {
			next = cell
		}
		j.put(at, next, r.first-rank-1)
		last := min(r.last, upTo)
		j.put(cell, cell+1, last-max(r.first-1, rank))
		rank, at = max(rank, last), cell
		if r.whole && cell+1 < to {
			at = cell + 1
		}
		if r.told > upTo { // the buckets say otherwise: the rest is in the next one
			r.first = upTo + 1
			return runs
		}
		runs = runs[1:]
	}
	j.put(at, to, upTo-rank)
	return runs
}

// put adds a part. One without cells of its own is put at its beginning.
func (j *joiner) put(from, to int, n float64) {
	if n <= 0 {
		return
	}
	from = min(from, cellCount-1)
	j.parts = append(j.parts, part{uint16(from), uint16(max(to, from+1)), n})
}

// run is requests of one cell: ranks first to last. whole: there are no others in the cell.
type run struct {
	first, last float64
	told        float64 // the highest rank that a quantile told
	cell        int
	whole       bool
}

// told is a request of which cell and place are known.
type told struct {
	rank        float64
	cell, place int
}

// known returns what the quantiles of n requests tell, by rank.
func (j *joiner) known(n float64, codes *[len(SummaryQuantiles)]uint16) []run {
	j.runs = j.runs[:0]
	var first, last told // of the run in the making
	before := 0.0        // the highest rank told before it
	for i, q := range SummaryQuantiles {
		if codes[i] == 0 {
			continue
		}
		k := told{rank: max(1, math.Ceil(q*n-1e-6))}
		if k.rank == last.rank {
			continue
		}
		k.cell, k.place = quantileCell(codes[i])
		if last.rank > 0 && k.cell != last.cell {
			j.runs = append(j.runs, newRun(first, last, before, k.rank, n))
			before, first = last.rank, k
		} else if last.rank == 0 {
			first = k
		}
		last = k
	}
	if last.rank > 0 {
		j.runs = append(j.runs, newRun(first, last, before, n+1, n))
	}
	return j.runs
}

// newRun works out how many requests there are in the cell of the told ranks first to last, of n in all; ranks up to before and
// from after on lie in other cells.
func newRun(first, last told, before, after, n float64) run {
	// Places tell the more, the further apart they are. fewPlaces keeps the error of a count below some 15 %.
	const fewPlaces = 6
	at := func(k told) float64 { return (float64(k.place) + 0.5) / cellPlaces }
	r := run{first: first.rank, last: last.rank, told: last.rank, cell: last.cell}
	var m, s float64 // requests in the cell, and the rank before the first of them
	switch {
	case first.rank == 1 && last.rank == n:
		m = n
	case first.rank == 1 && last.place >= fewPlaces:
		m = last.rank/at(last) - 1
	case last.rank == n && cellPlaces-1-first.place >= fewPlaces:
		m = (n - first.rank + at(first)) / (1 - at(first))
		s = n - m
	case last.place-first.place >= 2:
		perPlace := (last.rank - first.rank) / (at(last) - at(first)) // m+1
		m, s = perPlace-1, first.rank-at(first)*perPlace
	default:
		return r
	}
	r.whole = true
	r.first = min(r.first, max(before+1, math.Round(s)+1))
	r.last = max(r.last, min(after-1, math.Round(s+m)))
	return r
}

// shapeFor makes the shape of the rows read from a block; pool may be nil for one with ranks.
func (j *joiner) shapeFor(b *block, pool *fine) {
	if b.ranked() || pool.hi < 0 {
		j.spreadEvenly()
	} else {
		j.spreadAs(pool)
	}
}

// spreadEvenly makes the shape: all parts, each spread evenly over its cells.
func (j *joiner) spreadEvenly() {
	f := &j.shape
	f.reset()
	from := &j.tables.from
	for _, p := range j.parts {
		f.lo, f.hi = min(f.lo, int(p.from)), max(f.hi, int(p.to)-1)
		if p.to-p.from == 1 {
			f.cells[p.from] += p.n
		} else {
			j.over(p, p.n/(from[p.to]-from[p.from]))
		}
	}
	j.integrate(f, j.tables.width[:])
	j.accumulate(f)
}

// accumulate makes below from a shape. Only its range is valid.
func (j *joiner) accumulate(shape *fine) {
	total := 0.0
	for c := shape.lo; c <= shape.hi; c++ {
		j.below[c] = total
		total += shape.cells[c]
	}
	j.below[shape.hi+1] = total
}

// over adds a part's density to the differences.
func (j *joiner) over(p part, density float64) {
	j.edges[p.from].density += density
	j.edges[p.from].parts++
	j.edges[p.to].density -= density
	j.edges[p.to].parts--
}

// integrate adds to f's range of cells the density that the differences say times the cells' weights, and clears them.
func (j *joiner) integrate(f *fine, weights []float64) {
	density, parts := 0.0, int32(0)
	for c := f.lo; c <= f.hi; c++ {
		if e := &j.edges[c]; e.parts != 0 || e.density != 0 {
			density += e.density
			if parts += e.parts; parts == 0 {
				density = 0 // and not what rounding left
			}
			*e = edge{}
		}
		if parts > 0 {
			f.cells[c] += density * weights[c]
		}
	}
	if f.hi >= 0 {
		j.edges[f.hi+1] = edge{}
	}
}

// spreadAs makes the shape of a series without ranks: as the requests of a pool are spread within each part, but as if the pool
// had a few more there, spread evenly.
func (j *joiner) spreadAs(pool *fine) {
	const few = 2
	f, from := &j.shape, &j.tables.from
	f.reset()
	j.accumulate(pool)
	below := func(c uint16) float64 { return j.below[min(max(int(c), pool.lo), pool.hi+1)] }
	for _, p := range j.parts {
		f.lo, f.hi = min(f.lo, int(p.from)), max(f.hi, int(p.to)-1)
		j.over(p, p.n/(below(p.to)-below(p.from)+few))
	}
	j.integrate(f, pool.cells)
	for _, p := range j.parts {
		j.over(p, p.n*few/(below(p.to)-below(p.from)+few)/(from[p.to]-from[p.from]))
	}
	j.integrate(f, j.tables.width[:])
	j.accumulate(f)
}

// read takes a block's rows (lo, hi]. It reads what the ring holds; the caller checks torn.
func (j *joiner) read(b *block, ends []uint16, lo, hi int64) {
	j.parts, j.rows = j.parts[:0], j.rows[:0]
	n := int(b.counts)
	sumAt := countWords(n - 1)
	ranked := b.ranked()
	var cumulative []float64
	var scratch [32]float64
	if n <= len(scratch) {
		cumulative = scratch[:n]
	} else {
		cumulative = make([]float64, n)
	}
	for row := lo + 1; row <= hi; row++ {
		before, now := b.row(row-1), b.row(row)
		if now[(n-1)/2].Load() == before[(n-1)/2].Load() { // nothing in this interval
			j.rows = append(j.rows, joined{parts: len(j.parts)})
			continue
		}
		for i := range n {
			shift := 32 * (i & 1)
			cumulative[i] = float64(uint32(now[i/2].Load()>>shift) - uint32(before[i/2].Load()>>shift))
		}
		var codes [len(SummaryQuantiles)]uint16
		if ranked {
			for i := range codes {
				codes[i] = uint16(now[sumAt+1+i/4].Load() >> (16 * (i & 3)))
			}
		}
		if cumulative[n-1] > 0 {
			j.open(ends, cumulative, &codes)
		}
		j.rows = append(j.rows, joined{
			len(j.parts), cumulative[n-1],
			math.Float64frombits(now[sumAt].Load()) - math.Float64frombits(before[sumAt].Load()),
		})
	}
}

// ranked reports whether the block's rows tell ranks.
func (b *block) ranked() bool { return int(b.width) > countWords(int(b.counts)-1)+1 }

// spread adds the rows [from, to) to f, their parts spread as the shape is.
func (j *joiner) spread(f *fine, from, to int) {
	if from == to {
		return
	}
	first := 0
	if from > 0 {
		first = j.rows[from-1].parts
	}
	one := fine{cells: f.cells, lo: cellCount, hi: -1}
	for _, p := range j.parts[first:j.rows[to-1].parts] {
		one.lo, one.hi = min(one.lo, int(p.from)), max(one.hi, int(p.to)-1)
		if p.to-p.from == 1 {
			f.cells[p.from] += p.n
		} else {
			j.over(p, p.n/(j.below[p.to]-j.below[p.from]))
		}
	}
	j.integrate(&one, j.shape.cells)
	for _, r := range j.rows[from:to] {
		f.count += r.count
		f.sum += r.sum
	}
	f.lo, f.hi = min(f.lo, one.lo), max(f.hi, one.hi)
}
