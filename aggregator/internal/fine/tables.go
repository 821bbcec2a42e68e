package fine

import "math"

// A native histogram has schema 5: buckets 2.2 % wide.
const (
	schema = 5
	perTwo = 1 << schema // buckets a doubling
)

const zeroThreshold = 0x1p-128 // Prometheus' default

// Tables are what is worked out once about cells. They are read only.
type Tables struct {
	from   [cellCount + 1]float64 // cellFrom
	width  [cellCount]float64     // in values: 1 for a whole number
	first  [cellCount]uint16      // the native bucket that a cell begins in
	shares [cellCount][]float64   // of that bucket and those after it; a whole number lies in one
	ranks  [fewRequests]quantileRanks
}

// NewTables works them out.
func NewTables() *Tables {
	t := &Tables{}
	for c := range t.from {
		t.from[c] = cellFrom(c)
	}
	end := func(bucket int) float64 { return math.Exp2(float64(bucket) / perTwo) }
	bucket := 0
	for c := 1; c < cellCount; c++ {
		t.width[c] = t.from[c+1] - t.from[c]
		from, to := t.from[c], t.from[c+1]
		if c < wholeCells {
			to = from
		}
		for end(bucket)*(1+1e-12) < from { // a bound is inclusive, and may be computed a little too low
			bucket++
		}
		t.first[c] = uint16(bucket)
		for at := from; ; {
			upper := min(end(bucket), to)
			if to == from {
				t.shares[c] = []float64{1}
				break
			}
			t.shares[c] = append(t.shares[c], max(0, upper-at)/(to-from))
			if at = upper; at >= to {
				break
			}
			bucket++
		}
	}
	t.width[0] = 1
	for n := range t.ranks {
		t.ranks[n].set(n)
	}
	return t
}

// quantileRanks are the ranks of the requests that Quantiles tell.
type quantileRanks [len(Quantiles)]uint32

// fewRequests of a series in a flush are what most have; their ranks are looked up.
const fewRequests = 128

// set makes the ranks for n requests: ceil(q n).
func (r *quantileRanks) set(n int) {
	const rounding = 1e-6
	for i, q := range Quantiles {
		r[i] = uint32(max(1, math.Ceil(q*float64(n)-rounding)))
	}
}
