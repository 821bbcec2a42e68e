package aggregator

import (
	"math/bits"

	"github.com/prometheus/prometheus/model/histogram"
)

// The finer view of a histogram. Classic buckets tell only that a request lies between two bounds, up to a factor of 2.5
// apart. The summary that a sidecar sends beside them tells ten ranks, each by its cell (cells.go) and its place there:
//
//   - Quantile q of n requests is the request of rank ceil(q n). Up to five requests a flush all are known.
//   - The k-th of m requests of a bin is put at k/(m+1) of it (before Envoy 1.38 at k/m, with q n in place of its rank). Two ranks
//     in one bin so tell m, and where the bin's ranks begin and end; so does one, where it is the first or the last of all.
//   - An unknown request lies between its known neighbours and within its bucket. Where, the series' other flushes tell: it is
//     spread as all the window's requests are, after each has been spread evenly (one step of expectation maximisation; more of
//     them begin to fit noise).
//
// The result is a native histogram, which adds up over time and over pods. A series of a sidecar that sends no summaries is
// spread within its buckets as the selected series that tell more are (see pool); so is one of sizes.

// part is n requests somewhere in the cells [from, to).
type part struct {
	from, to uint16
	n        uint32
}

// fine counts requests by cell.
type fine struct {
	cells  []float64
	lo, hi int // the range of cells that is not all 0
	count  float64
	sum    float64
}

func newFine() *fine { return &fine{cells: make([]float64, cellCount), lo: cellCount, hi: -1} }

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

	// What was read: the requests of which the cell is known, with the count and the sum of all, and the others.
	sure  fine
	parts []part
	runs  [len(SummaryQuantiles)]run
	many  quantileRanks // of more requests than the tables have
	older bool          // the rows are those of an Envoy before 1.38

	// How the requests are spread that were read when the shape was made: by cell, and how many are below it. Only the cells that
	// these requests may lie in are valid.
	shape [cellCount]float64
	below [cellCount + 1]float64
	// Differences: of density, and of how many parts lie over a cell; and a bit for each cell that has one. All 0 between two uses.
	edges [cellCount + 1]edge
	marks [(cellCount + 64) / 64]uint64
}

type edge struct {
	density float64
	parts   int32
}

func newJoiner(t *cellTables) *joiner { return &joiner{tables: t, sure: *newFine()} }

// reset forgets what was read, but not its shape.
func (j *joiner) reset() {
	j.sure.reset()
	j.parts = j.parts[:0]
}

// open takes the requests between two rows: cumulative counts by bucket (+Inf last), of which each holds the cells below
// its end, and the later row's quantiles (codes as quantileCode packs them; all 0 where the row has no summary).
func (j *joiner) open(ends []uint16, cumulative []uint32, codes *[len(SummaryQuantiles)]uint16) {
	n := int(cumulative[len(cumulative)-1])
	j.sure.count += float64(n)
	runs := j.known(n, codes)
	top := cellCount // where the largest request's cell ends
	if len(runs) > 0 {
		top = int(runs[len(runs)-1].cell) + 1
	}
	below := 0
	for i, c := range cumulative {
		upTo := int(c)
		if upTo <= below {
			continue
		}
		from, to := 0, top
		if i > 0 {
			from = int(ends[i-1])
		}
		switch {
		case i < len(ends):
			to = max(from, min(int(ends[i]), top))
		case top == cellCount: // an endless bucket is taken as its beginning, as histogram_quantile does
			to = from
		}
		runs = j.bucket(from, to, below, upTo, runs)
		if below = upTo; below == n {
			break
		}
	}
}

// bucket takes the requests of ranks (below, upTo], which all lie in the cells [from, to), and returns the runs beyond.
func (j *joiner) bucket(from, to, below, upTo int, runs []run) []run {
	rank, at := below, from
	for len(runs) > 0 && runs[0].first <= upTo {
		r := &runs[0]
		cell := max(min(int(r.cell), to-1), from)
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

// put takes n requests of the cells [from, to). Those without cells of their own are put at the beginning.
func (j *joiner) put(from, to, n int) {
	if n <= 0 {
		return
	}
	from = min(from, cellCount-1)
	to = max(to, from+1)
	j.sure.lo, j.sure.hi = min(j.sure.lo, from), max(j.sure.hi, to-1)
	if to == from+1 {
		j.sure.cells[from] += float64(n)
		return
	}
	j.parts = append(j.parts, part{uint16(from), uint16(to), uint32(n)})
}

// run is requests of one cell: ranks first to last. whole: there are no others in the cell.
type run struct {
	first, last int
	told        int // the highest rank that a quantile told
	cell        int32
	whole       bool
}

// known returns what the quantiles of n requests tell, by rank.
func (j *joiner) known(n int, codes *[len(SummaryQuantiles)]uint16) []run {
	ranks, runs := j.ranksOf(n), 0
	// Of the run in the making: the ranks told and their places, and the highest rank told before it.
	var first, last told
	cell, before := -1, 0
	for i, code := range codes {
		rank := int(ranks[i])
		if code == 0 || rank == last.rank {
			continue
		}
		in, place := quantileCell(code)
		k := told{rank, place, float64(rank)}
		if j.older {
			k.at = SummaryQuantiles[i] * float64(n)
		}
		if in != cell {
			switch {
			case last.rank == 0: // the first cell
			case last.rank == first.rank && first.rank > 1: // most: one rank amid the others does not tell how many are in its cell
				j.runs[runs] = run{first: last.rank, last: last.rank, told: last.rank, cell: int32(cell)}
				runs++
				before = last.rank
			default:
				j.runs[runs].set(cell, first, last, before, rank, n, j.older)
				runs++
				before = last.rank
			}
			cell, first = in, k
		}
		if last = k; rank == n {
			break
		}
	}
	if last.rank > 0 {
		j.runs[runs].set(cell, first, last, before, n+1, n, j.older)
		runs++
	}
	return j.runs[:runs]
}

// ranksOf returns the ranks of the requests that the quantiles of n requests tell.
func (j *joiner) ranksOf(n int) *quantileRanks {
	if n < len(j.tables.ranks) {
		return &j.tables.ranks[n]
	}
	j.many.set(n)
	return &j.many
}

// told is a request of which the place in its cell is known. at is the rank that the place stands for.
type told struct {
	rank, place int
	at          float64
}

// set works out how many requests there are in a run's cell, of n in all, of which the ranks first to last are told; ranks up to
// before and from after on lie in other cells.
func (r *run) set(cell int, first, last told, before, after, n int, older bool) {
	r.first, r.last, r.told, r.cell, r.whole = first.rank, last.rank, last.rank, int32(cell), false
	// Places tell the more, the further apart they are. fewPlaces keeps the error of a count below some 15 %.
	const fewPlaces = 6
	place := func(k told) float64 { return (float64(k.place) + 0.5) / cellPlaces }
	more := 1.0 // a bin of m requests is divided into m + more
	if older {
		more = 0
	}
	var m, s float64 // requests in the cell, and the rank before the first of them
	switch {
	case first.rank == 1 && last.rank == n:
		m = float64(n)
	case first.rank == 1 && last.place >= fewPlaces:
		m = last.at/place(last) - more
	case last.rank == n && cellPlaces-1-first.place >= fewPlaces:
		m = (float64(n) - first.at + more*place(first)) / (1 - place(first))
		s = float64(n) - m
	case last.place-first.place >= 2:
		divided := (last.at - first.at) / (place(last) - place(first))
		m, s = divided-more, first.at-place(first)*divided
	default:
		return
	}
	r.whole = true
	// Rounded: s below 0 is cut off by before.
	r.first = min(r.first, max(before+1, int(s+0.5)+1))
	r.last = max(r.last, min(after-1, int(s+m+0.5)))
}

// shapeFor makes the shape of what was read from a block; pool may be nil for one with ranks.
func (j *joiner) shapeFor(b *block, pool *fine) {
	switch {
	case len(j.parts) == 0: // nothing is open
	case b.ranked() || pool.hi < 0:
		j.shapeEvenly()
	default:
		j.shapeAs(pool)
	}
}

// shapeEvenly spreads each part evenly over its cells.
func (j *joiner) shapeEvenly() {
	from := &j.tables.from
	for _, p := range j.parts {
		j.over(p, float64(p.n)/(from[p.to]-from[p.from]))
	}
	j.integrate(j.shape[:], j.sure.cells, j.tables.width[:])
	j.accumulate(j.shape[:], j.sure.lo, j.sure.hi)
}

// accumulate makes below from cells.
func (j *joiner) accumulate(cells []float64, lo, hi int) {
	total := 0.0
	for c := lo; c <= hi; c++ {
		j.below[c] = total
		total += cells[c]
	}
	j.below[hi+1] = total
}

// over adds a part's density to the differences.
func (j *joiner) over(p part, density float64) {
	from, to := &j.edges[p.from], &j.edges[p.to]
	if from.parts == 0 { // else it is marked: not to wait for the mark of the part before
		j.marks[p.from/64] |= 1 << (p.from % 64)
	}
	if to.parts == 0 {
		j.marks[p.to/64] |= 1 << (p.to % 64)
	}
	from.density += density
	from.parts++
	to.density -= density
	to.parts--
}

// integrate makes cells that are to plus the density that the differences say times the cells' weights, and clears the differences.
func (j *joiner) integrate(cells, to, weights []float64) {
	at, density, parts := j.sure.lo, 0.0, int32(0)
	for i := at / 64; i < len(j.marks); i++ {
		for m := j.marks[i]; m != 0; m &= m - 1 {
			c := 64*i + bits.TrailingZeros64(m)
			addDensity(cells[at:c], to[at:c], weights[at:c], density)
			at = c
			e := &j.edges[c]
			density += e.density
			if parts += e.parts; parts == 0 {
				density = 0 // and not what rounding left
			}
			*e = edge{}
		}
		j.marks[i] = 0
	}
	end := j.sure.hi + 1
	addDensity(cells[at:end], to[at:end], weights[at:end], 0)
}

func addDensity(cells, to, weights []float64, density float64) {
	if density == 0 {
		copy(cells, to)
		return
	}
	cells, to = cells[:len(weights)], to[:len(weights)]
	for c, w := range weights {
		cells[c] = to[c] + density*w
	}
}

// shapeAs makes the shape of a series without ranks: as the requests of a pool are spread within each part, but as if the pool
// had a few more there, spread evenly.
func (j *joiner) shapeAs(pool *fine) {
	const few = 2
	from := &j.tables.from
	j.accumulate(pool.cells, pool.lo, pool.hi)
	below := func(c uint16) float64 { return j.below[min(max(int(c), pool.lo), pool.hi+1)] }
	for _, p := range j.parts {
		j.over(p, float64(p.n)/(below(p.to)-below(p.from)+few))
	}
	j.integrate(j.shape[:], j.sure.cells, pool.cells)
	for _, p := range j.parts {
		j.over(p, float64(p.n)*few/(below(p.to)-below(p.from)+few)/(from[p.to]-from[p.from]))
	}
	j.integrate(j.shape[:], j.shape[:], j.tables.width[:])
	j.accumulate(j.shape[:], j.sure.lo, j.sure.hi)
}

// read takes a pod's rows (lo, hi]. It reads what the ring holds; the caller checks torn.
func (j *joiner) read(b *block, l *layout, p *Pod, lo, hi int64) {
	j.reset()
	j.older = !p.InclusiveBounds
	ends := l.ends(p)
	n := int(b.counts)
	words, ranked := countWords(n-1), b.ranked()
	var scratch [32]uint32
	cumulative := scratch[:]
	if 2*words > len(scratch) {
		cumulative = make([]uint32, 2*words)
	}
	var codes [len(SummaryQuantiles)]uint16
	before := b.row(lo)
	for row := lo + 1; row <= hi; row++ {
		now := b.row(row)
		was := before
		before = now
		if now[words-1].Load() == was[words-1].Load() { // nothing in this interval
			continue
		}
		for i := range words {
			n, w := now[i].Load(), was[i].Load()
			cumulative[2*i], cumulative[2*i+1] = uint32(n)-uint32(w), uint32(n>>32)-uint32(w>>32)
		}
		if ranked {
			var four uint64
			for i := range codes {
				if i&3 == 0 {
					four = now[words+1+i/4].Load()
				}
				codes[i] = uint16(four)
				four >>= 16
			}
		}
		if cumulative[n-1] > 0 {
			j.open(ends, cumulative[:n], &codes)
		}
	}
	j.sure.sum = b.sumIn(b.row(hi)) - b.sumIn(b.row(lo))
}

// ranked reports whether the block's rows tell ranks.
func (b *block) ranked() bool { return int(b.width) > countWords(int(b.counts)-1)+1 }

// spread adds a multiple of what was read to f, its parts spread as the shape is: that of the same rows, or of more.
func (j *joiner) spread(f *fine, factor float64) {
	s := &j.sure
	f.count += s.count * factor
	f.sum += s.sum * factor
	if s.lo > s.hi {
		return
	}
	f.lo, f.hi = min(f.lo, s.lo), max(f.hi, s.hi)
	to := f.cells[s.lo : s.hi+1]
	for c, n := range s.cells[s.lo : s.hi+1] {
		to[c] += n * factor
	}
	if len(j.parts) == 0 {
		return
	}
	for _, p := range j.parts {
		j.over(p, factor*float64(p.n)/(j.below[p.to]-j.below[p.from]))
	}
	j.integrate(f.cells, f.cells, j.shape[:])
}
