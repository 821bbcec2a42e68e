package fine

import "github.com/prometheus/prometheus/model/histogram"

// Counts are requests by cell. The zero value has none.
type Counts struct {
	cells  []float64
	lo, hi int // the range of cells that is not all 0
	count  float64
	sum    float64
}

// begin makes the zero value ready for use.
func (f *Counts) begin() {
	if f.cells == nil {
		f.cells, f.lo, f.hi = make([]float64, cellCount), cellCount, -1
	}
}

// empty reports whether nothing was counted.
func (f *Counts) empty() bool { return f == nil || f.cells == nil || f.hi < f.lo }

func (f *Counts) reset() {
	if f.lo <= f.hi {
		clear(f.cells[f.lo : f.hi+1])
	}
	f.count, f.sum, f.lo, f.hi = 0, 0, cellCount, -1
}

// Native returns what was counted as Prometheus' native histogram. All have one schema and one zero
// threshold, so they merge exactly.
func (f *Counts) Native(t *Tables) *histogram.FloatHistogram {
	f.begin()
	h := &histogram.FloatHistogram{
		Schema: schema, ZeroThreshold: zeroThreshold,
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
