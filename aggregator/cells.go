package aggregator

import "math"

// Envoy keeps a histogram in bins of two significant decimal digits (libcircllhist), and what it records is whole: durations
// milliseconds, sizes bytes. So there is nothing on the wire finer than a cell: a whole number below 100, a two-digit bin from
// there on. Bounds of buckets and quantiles of summaries lie in cells too, and the finer view counts by cell.
const (
	wholeCells  = 100 // cell v is the value v; cell 0 holds what is below 1
	decadeCells = 90  // of a power of ten from 100 on: 100 to 109, 110 to 119 …
	cellDecades = 12  // to 10^14; larger values share the last cell
	cellCount   = wholeCells + cellDecades*decadeCells
)

// A quantile tells its cell and a place within the bin (see fine.go). Both fit 16 bits: places to a cell, and 0 for none.
const cellPlaces = math.MaxUint16 / cellCount

// cellFrom returns the smallest value of a cell; of cellCount, where the last one ends.
func cellFrom(cell int) float64 {
	if cell < wholeCells {
		return float64(cell)
	}
	cell -= wholeCells
	return float64(cell%decadeCells+10) * math.Pow10(cell/decadeCells+1)
}

// locate returns the cell of a value that is not negative, and the value's place in its bin, from 0 to below 1.
func locate(v float64) (cell int, place float64) {
	switch {
	case v < 10: // bins of 0.1, of which those that begin with a whole number are used
		cell = int(v)
		return cell, min((v-float64(cell))*10, oneBelow)
	case v < wholeCells:
		cell = int(v)
		return cell, v - float64(cell)
	}
	unit := 10.0 // width of the bin
	for decade := range cellDecades {
		if digits := v / unit; digits < wholeCells {
			cell = int(digits)
			return wholeCells + decade*decadeCells + cell - 10, digits - float64(cell)
		}
		unit *= 10
	}
	return cellCount - 1, oneBelow
}

const oneBelow = 1 - 1.0/(1<<53)

// quantileCode packs a quantile; 0 for none (an empty interval's NaN).
func quantileCode(v float64) uint16 {
	if !(v >= 0) || math.IsInf(v, 1) {
		return 0
	}
	cell, place := locate(v)
	return uint16(1 + cell*cellPlaces + int(place*cellPlaces))
}

// olderQuantileCode is quantileCode for an Envoy before 1.38. It puts quantile q of n requests at q n, without rounding to a
// request: where that is the last of a bin, at the bin's end, which is where the next one begins. Only q = 0 is a bin's beginning.
func olderQuantileCode(q, v float64) uint16 {
	if q > 0 {
		v *= 1 - 1e-12
	}
	return quantileCode(v)
}

// quantileCell unpacks a code that is not 0: the cell, and which of its cellPlaces places.
func quantileCell(code uint16) (cell, place int) {
	return int(code-1) / cellPlaces, int(code-1) % cellPlaces
}

// cellsBelow returns how many cells a bucket holds that ends at a bound. Since Envoy 1.38 a bucket holds the bins that begin at
// its bound or below (le="100" holds 100 to 109), before that the bins that end there or below.
func cellsBelow(bound float64, inclusive bool) uint16 {
	cell, place := locate(max(bound, 0))
	switch {
	case bound < 0:
		return 0
	case inclusive:
		return uint16(cell + 1)
	case bound < 10 && (place > 1-1e-9 || cell == 0): // the value ends a tenth above itself, and 0 at 0
		return uint16(cell + 1)
	}
	return uint16(cell)
}

// A native histogram has schema 5: buckets 2.2 % wide.
const (
	fineSchema  = 5
	finePerTwo  = 1 << fineSchema // buckets a doubling
	fineBuckets = 48 * finePerTwo // the last one's bound is 2^47
)

// cellTables are read only.
type cellTables struct {
	from   [cellCount + 1]float64 // cellFrom
	width  [cellCount]float64     // in values: 1 for a whole number
	first  [cellCount]uint16      // the native bucket that a cell begins in
	shares [cellCount][]float64   // of that bucket and those after it; a whole number lies in one
	ranks  [fewRequests]quantileRanks
}

// quantileRanks are the ranks of the requests that SummaryQuantiles tell.
type quantileRanks [len(SummaryQuantiles)]uint32

// fewRequests of a series in a flush are what most have; their ranks are looked up.
const fewRequests = 128

// set makes the ranks for n requests: ceil(q n).
func (r *quantileRanks) set(n int) {
	const rounding = 1e-6
	for i, q := range SummaryQuantiles {
		r[i] = uint32(max(1, math.Ceil(q*float64(n)-rounding)))
	}
}

func newCellTables() *cellTables {
	t := &cellTables{}
	for c := range t.from {
		t.from[c] = cellFrom(c)
	}
	end := func(bucket int) float64 { return math.Exp2(float64(bucket) / finePerTwo) }
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
