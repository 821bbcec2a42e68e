package fine

// part is n requests somewhere in the cells [from, to).
type part struct {
	from, to uint16
	n        uint32
}

// Joiner joins rows of a series and spreads what they leave open. It is the scratch of one query.
type Joiner struct {
	tables *Tables

	// What was read: the requests of which the cell is known, with the count and the sum of all,
	// and the others.
	sure  Counts
	parts []part
	runs  [len(Quantiles)]run
	many  quantileRanks // of more requests than the tables have
	older bool          // the rows are those of an Envoy before 1.38

	// How the requests are spread that were read when the shape was made: by cell, and how many are
	// below it. Only the cells that these requests may lie in are valid.
	shape [cellCount]float64
	below [cellCount + 1]float64
	// Differences: of density, and of how many parts lie over a cell; and a bit for each cell that
	// has one. All 0 between two uses.
	edges [cellCount + 1]edge
	marks [(cellCount + 64) / 64]uint64
}

type edge struct {
	density float64
	parts   int32
}

// NewJoiner returns a joiner that has read nothing.
func NewJoiner(t *Tables) *Joiner {
	j := &Joiner{tables: t}
	j.sure.begin()
	return j
}

// Reset forgets what was taken, but not its shape. What comes next is of an Envoy whose buckets
// hold their bounds (since 1.38), or of an older one.
func (j *Joiner) Reset(inclusive bool) {
	j.sure.reset()
	j.parts, j.older = j.parts[:0], !inclusive
}

// SetSum says what the requests that were taken add up to.
func (j *Joiner) SetSum(sum float64) { j.sure.sum = sum }

// Count is how many requests were taken.
func (j *Joiner) Count() float64 { return j.sure.count }

// Take takes the requests between two rows: cumulative counts by bucket (+Inf last), of which each
// holds the cells below its end, and the later row's quantiles (as [Pack] makes them; all 0 where
// the row has no summary).
func (j *Joiner) Take(ends []uint16, cumulative []uint32, codes *[len(Quantiles)]uint16) {
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

// bucket takes the requests of ranks (below, upTo], which all lie in the cells [from, to), and
// returns the runs beyond.
func (j *Joiner) bucket(from, to, below, upTo int, runs []run) []run {
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

// put takes n requests of the cells [from, to). Those without cells of their own are put at the
// beginning.
func (j *Joiner) put(from, to, n int) {
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
func (j *Joiner) known(n int, codes *[len(Quantiles)]uint16) []run {
	ranks, runs := j.ranksOf(n), 0
	// Of the run in the making: the ranks told and their places, and the highest rank told before
	// it.
	var first, last told
	cell, before := -1, 0
	for i, code := range codes {
		rank := int(ranks[i])
		if code == 0 || rank == last.rank {
			continue
		}
		in, place := cellOf(code)
		k := told{rank, place, float64(rank)}
		if j.older {
			k.at = Quantiles[i] * float64(n)
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
func (j *Joiner) ranksOf(n int) *quantileRanks {
	if n < len(j.tables.ranks) {
		return &j.tables.ranks[n]
	}
	j.many.set(n)
	return &j.many
}

// told is a request of which the place in its cell is known. at is the rank that the place stands
// for.
type told struct {
	rank, place int
	at          float64
}

// set works out how many requests there are in a run's cell, of n in all, of which the ranks first
// to last are told; ranks up to before and from after on lie in other cells.
func (r *run) set(cell int, first, last told, before, after, n int, older bool) {
	r.first, r.last, r.told, r.cell, r.whole = first.rank, last.rank, last.rank, int32(cell), false
	// Places tell the more, the further apart they are. fewPlaces keeps the error of a count below
	// some 15 %.
	const fewPlaces = 6
	// place is in cellPlaces.
	place := func(k told) float64 { return float64(k.place) + 0.5 }
	more := 1.0 // a bin of m requests is divided into m + more
	if older {
		more = 0
	}
	var m, s float64 // requests in the cell, and the rank before the first of them
	switch {
	case first.rank == 1 && last.rank == n:
		m = float64(n)
	case first.rank == 1 && last.place >= fewPlaces:
		m = last.at*cellPlaces/place(last) - more
	case last.rank == n && cellPlaces-1-first.place >= fewPlaces:
		m = ((float64(n)-first.at)*cellPlaces + more*place(first)) / (cellPlaces - place(first))
		s = float64(n) - m
	case last.place-first.place >= 2:
		divided := (last.at - first.at) / float64(last.place-first.place) // a place
		m, s = divided*cellPlaces-more, first.at-place(first)*divided
	default:
		return
	}
	r.whole = true
	// Rounded: s below 0 is cut off by before.
	r.first = min(r.first, max(before+1, int(s+0.5)+1))
	r.last = max(r.last, min(after-1, int(s+m+0.5)))
}
