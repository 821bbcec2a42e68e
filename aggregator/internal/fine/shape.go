package fine

import "math/bits"

// Shape makes the shape of what was taken. What tells no ranks is spread as a pool is, if that is
// not empty; else pool is nil.
func (j *Joiner) Shape(pool *Counts) {
	switch {
	case len(j.parts) == 0: // nothing is open
	case pool.empty():
		j.shapeEvenly()
	default:
		j.shapeAs(pool)
	}
}

// shapeEvenly spreads each part evenly over its cells.
func (j *Joiner) shapeEvenly() {
	from := &j.tables.from
	for _, p := range j.parts {
		j.over(p, float64(p.n)/(from[p.to]-from[p.from]))
	}
	j.integrate(j.shape[:], j.sure.cells, j.tables.width[:])
	j.accumulate(j.shape[:], j.sure.lo, j.sure.hi)
}

// accumulate makes below from cells.
func (j *Joiner) accumulate(cells []float64, lo, hi int) {
	total := 0.0
	below, cells := j.below[lo:hi+2], cells[lo:hi+1]
	for c, n := range cells {
		below[c] = total
		total += n
	}
	below[len(cells)] = total
}

// over adds a part's density to the differences.
func (j *Joiner) over(p part, density float64) {
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

// integrate makes cells that are to plus the density that the differences say times the cells'
// weights, and clears the differences.
func (j *Joiner) integrate(cells, to, weights []float64) {
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

// shapeAs makes the shape of a series without ranks: as the requests of a pool are spread within
// each part, but as if the pool had a few more there, spread evenly.
func (j *Joiner) shapeAs(pool *Counts) {
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

// Spread adds a multiple of what was taken to f, its parts spread as the shape is: that of the same
// rows, or of more.
func (j *Joiner) Spread(f *Counts, factor float64) {
	f.begin()
	s := &j.sure
	f.count += s.count * factor
	f.sum += s.sum * factor
	if s.lo > s.hi {
		return
	}
	f.lo, f.hi = min(f.lo, s.lo), max(f.hi, s.hi)
	cells := s.cells[s.lo : s.hi+1]
	to := f.cells[s.lo:][:len(cells)]
	for c, n := range cells {
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
