package fine

import "math"

// Envoy keeps a histogram in bins of two significant decimal digits (libcircllhist), and what it
// records is whole: durations milliseconds, sizes bytes. So there is nothing on the wire finer than
// a cell: a whole number below 100, a two-digit bin from there on. Bounds of buckets and quantiles
// of summaries lie in cells too, and what is counted is counted by cell.
const (
	wholeCells  = 100 // cell v is the value v; cell 0 holds what is below 1
	decadeCells = 90  // of a power of ten from 100 on: 100 to 109, 110 to 119 …
	cellDecades = 12  // to 10^14; larger values share the last cell
	cellCount   = wholeCells + cellDecades*decadeCells
)

// Quantiles are those of an Envoy summary, in its order (Envoy:
// source/common/stats/histogram_impl.cc).
var Quantiles = [10]float64{0, .25, .5, .75, .9, .95, .99, .995, .999, 1}

// A quantile tells its cell and a place within the bin (see joiner.go). Both fit 16 bits: places to
// a cell, and 0 for none.
const cellPlaces = math.MaxUint16 / cellCount

// cellFrom returns the smallest value of a cell; of cellCount, where the last one ends.
func cellFrom(cell int) float64 {
	if cell < wholeCells {
		return float64(cell)
	}
	cell -= wholeCells
	return float64(cell%decadeCells+10) * math.Pow10(cell/decadeCells+1)
}

// locate returns the cell of a value that is not negative, and the value's place in its bin, from 0
// to below 1.
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

// Pack makes codes for [Joiner.Take] of a summary's values, at Quantiles; 0 for none (it has no
// more, or an empty interval's NaN). inclusive is how the Envoy that tells them places them (since
// 1.38).
func Pack(values []float64, inclusive bool, codes *[len(Quantiles)]uint16) {
	values = values[:min(len(values), len(codes))]
	clear(codes[len(values):])
	if inclusive {
		for i, v := range values {
			codes[i] = codeOf(v)
		}
		return
	}
	for i, v := range values {
		codes[i] = olderCode(Quantiles[i], v)
	}
}

// codeOf packs a quantile; 0 for none (an empty interval's NaN).
func codeOf(v float64) uint16 {
	if !(v >= 0) || math.IsInf(v, 1) {
		return 0
	}
	cell, place := locate(v)
	return uint16(1 + cell*cellPlaces + int(place*cellPlaces))
}

// olderCode is codeOf for an Envoy before 1.38. It puts quantile q of n requests at q n, without
// rounding to a request: where that is the last of a bin, at the bin's end, which is where the next
// one begins. Only q = 0 is a bin's beginning.
func olderCode(q, v float64) uint16 {
	if q > 0 {
		v *= 1 - 1e-12
	}
	return codeOf(v)
}

// cellOf unpacks a code that is not 0: the cell, and which of its cellPlaces places.
func cellOf(code uint16) (cell, place int) {
	c := uint32(code - 1)
	return int(c / cellPlaces), int(c % cellPlaces)
}

// CellsBelow returns how many cells a bucket holds that ends at a bound. Since Envoy 1.38 a bucket
// holds the bins that begin at its bound or below (le="100" holds 100 to 109), before that the bins
// that end there or below.
func CellsBelow(bound float64, inclusive bool) uint16 {
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
