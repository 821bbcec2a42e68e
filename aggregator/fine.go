package aggregator

import (
	"math"

	"github.com/prometheus/prometheus/model/histogram"
)

// The finer view of a histogram. Classic buckets tell only that a request lies between two bounds, up to a factor of 2.5
// apart. The summary that a sidecar sends beside them tells ten ranks to two decimal digits. Joined, a flush gives:
// quantile q of n requests is the request of rank ceil(q n), within its two-digit bin; up to five requests all are known;
// the unknown ranks lie between their known neighbours and within the bucket counts, and are spread evenly there.
//
// The result is a native histogram (schema 5: buckets 2.2 % wide), which adds up over time and over pods.

const (
	fineSchema  = 5
	finePerTwo  = 1 << fineSchema // buckets a doubling
	fineLowest  = -2 * finePerTwo // index of the bucket that ends at 1/4
	fineHighest = 42 * finePerTwo // and at 2^42: values beyond share the last
	// wholeBelow: durations are whole milliseconds and sizes whole bytes. Above it a native bucket is wider than that.
	wholeBelow = 100
)

// fineTables are the bounds of the native buckets, the bucket of each small whole number, and the bins of the quantiles that
// can be seen: a query looks at ten quantiles of every row, and a logarithm takes as long as ten look-ups. Read only.
type fineTables struct {
	ends  [fineHighest - fineLowest + 1]float64
	whole [wholeBelow]int
	below [64]int // buckets of a doubling that end below 1 + i/64
	bins  [256 * (lastBinned - firstBinned)]bin
}

// bin is a two-digit bin [from, to).
type bin struct{ from, to float64 }

// Quantiles from 2^firstBinned to 2^lastBinned (12 days, in milliseconds) have their bins in a table.
const firstBinned, lastBinned = -4, 30

func newFineTables() *fineTables {
	t := &fineTables{}
	for i := range t.ends {
		t.ends[i] = math.Exp2(float64(i+fineLowest) / finePerTwo)
	}
	for i := range t.below {
		t.below[i] = int(math.Log2(1+float64(i)/float64(len(t.below))) * finePerTwo)
	}
	for v := 1; v < wholeBelow; v++ {
		t.whole[v] = t.index(float64(v))
	}
	for i := range t.bins {
		t.bins[i].from, t.bins[i].to = binOf(quantileValue(uint16(i + 1<<15 + 256*firstBinned)))
	}
	return t
}

// index is the place of a positive value's bucket, whose upper bound is inclusive as in Prometheus.
func (t *fineTables) index(v float64) int {
	const exact = 1 - 2e-11 // a bound may be computed a little too low
	bits := math.Float64bits(v)
	exponent := int(bits>>52)&0x7ff - 1023
	i := exponent*finePerTwo + t.below[bits>>46&63] - fineLowest
	i = min(max(i, 0), len(t.ends)-1)
	for i < len(t.ends)-1 && t.ends[i] < v*exact { // at most twice
		i++
	}
	return i
}

// bin returns the two-digit bin of a packed quantile.
func (t *fineTables) bin(code uint16) bin {
	if i := int(code) - 1<<15 - 256*firstBinned; i >= 0 && i < len(t.bins) {
		return t.bins[i]
	}
	from, to := binOf(quantileValue(code))
	return bin{from, to}
}

// fine is a native histogram in the making.
type fine struct {
	tables *fineTables
	zero   float64
	counts []float64 // by fineTables.index
	lo, hi int       // the range of counts that is not all 0
	count  float64
	sum    float64
	known  []knownRank
}

func newFine(t *fineTables) *fine {
	return &fine{tables: t, counts: make([]float64, len(t.ends)), lo: len(t.ends), hi: -1}
}

func (f *fine) put(i int, n float64) {
	f.counts[i] += n
	f.lo, f.hi = min(f.lo, i), max(f.hi, i)
}

// add adds a multiple of another one.
func (f *fine) add(o *fine, factor float64) {
	f.zero += o.zero * factor
	f.count += o.count * factor
	f.sum += o.sum * factor
	for i := o.lo; i <= o.hi; i++ {
		f.counts[i] += o.counts[i] * factor
	}
	f.lo, f.hi = min(f.lo, o.lo), max(f.hi, o.hi)
}

func (f *fine) reset() {
	if f.lo <= f.hi {
		clear(f.counts[f.lo : f.hi+1])
	}
	f.zero, f.count, f.sum, f.lo, f.hi = 0, 0, 0, len(f.counts), -1
}

// knownRank is a request of which the bin [from, to) is known.
type knownRank struct {
	rank     float64
	from, to float64
}

// addInterval adds the requests between two rows: cumulative counts along the layout's ends (+Inf last), and the later
// row's quantiles (codes as quantileCode packs them; all 0 where the row has no summary).
func (f *fine) addInterval(ends, cumulative []float64, codes *[len(SummaryQuantiles)]uint16) {
	n := cumulative[len(cumulative)-1]
	if n <= 0 {
		return
	}
	f.count += n
	known := f.ranks(n, codes)
	top := math.Inf(1) // where the largest request's bin ends
	if len(known) > 0 {
		top = known[len(known)-1].to
	}
	from, below := 0.0, 0.0
	for i, c := range cumulative {
		to := top
		if i < len(ends) {
			to = min(ends[i], max(top, from))
		}
		if c > below {
			known = f.bucket(from, to, below, c, known)
			below = c
		}
		if i < len(ends) {
			from = ends[i]
		}
	}
}

// bucket spreads the requests of ranks (below, upTo], which all lie in [from, to), and returns the known ranks beyond.
func (f *fine) bucket(from, to, below, upTo float64, known []knownRank) []knownRank {
	rank, at := below, from
	for len(known) > 0 && known[0].rank <= upTo {
		k := known[0]
		known = known[1:]
		a, b := min(max(k.from, from), to), max(min(k.to, to), from)
		f.spread(k.rank-rank-1, at, b)
		if b > wholeBelow {
			f.put(f.tables.index((a+b)/2), 1)
		} else {
			f.spread(1, a, b)
		}
		rank, at = k.rank, a
	}
	f.spread(upTo-rank, at, to)
	return known
}

// ranks are the requests that the quantiles tell, by rank, each once.
func (f *fine) ranks(n float64, codes *[len(SummaryQuantiles)]uint16) []knownRank {
	f.known = f.known[:0]
	for i, q := range SummaryQuantiles {
		if codes[i] == 0 {
			continue
		}
		rank := max(1, math.Ceil(q*n-1e-6))
		if last := len(f.known) - 1; last >= 0 && f.known[last].rank >= rank {
			continue
		}
		bin := f.tables.bin(codes[i])
		f.known = append(f.known, knownRank{rank, bin.from, bin.to})
	}
	return f.known
}

// binOf returns the two-digit bin of a quantile. Envoy gives a place strictly inside the bin.
func binOf(v float64) (from, to float64) {
	w := binWidth(v)
	if w == 0 {
		return 0, 0
	}
	from = math.Floor(v/w) * w
	return from, from + w
}

// spread puts n requests evenly into [from, to): below wholeBelow on whole numbers, else by width. An endless range, beyond
// the last bound and without a summary, is taken as its beginning, as histogram_quantile does.
func (f *fine) spread(n, from, to float64) {
	if n <= 0 {
		return
	}
	const rounding = 1e-6
	if from < wholeBelow && to <= wholeBelow+rounding {
		first, end := int(math.Ceil(from-rounding)), int(math.Ceil(to-rounding))
		each := n / float64(end-first)
		for v := first; v < end; v++ {
			if v == 0 {
				f.zero += each
			} else {
				f.put(f.tables.whole[v], each)
			}
		}
		if end > first {
			return
		}
	}
	if from <= 0 {
		from = min(1, to)
	}
	if math.IsInf(to, 1) || to <= from {
		if from <= 0 {
			f.zero += n
			return
		}
		f.put(f.tables.index(from), n)
		return
	}
	density := n / (to - from)
	first, last := f.tables.index(from), f.tables.index(to)
	for i := first; i < last; i++ {
		end := f.tables.ends[i]
		f.put(i, (end-from)*density)
		from = end
	}
	f.put(last, max(0, to-from)*density)
}

// native returns what was added as Prometheus' native histogram. All have one schema and one zero threshold, so they
// merge exactly.
func (f *fine) native() *histogram.FloatHistogram {
	h := &histogram.FloatHistogram{
		Schema: fineSchema, ZeroThreshold: fineZeroThreshold,
		CounterResetHint: histogram.UnknownCounterReset,
		ZeroCount:        f.zero, Count: f.count, Sum: f.sum,
	}
	if f.lo <= f.hi {
		h.PositiveSpans = []histogram.Span{{Offset: int32(f.lo + fineLowest), Length: uint32(f.hi - f.lo + 1)}}
		h.PositiveBuckets = append([]float64(nil), f.counts[f.lo:f.hi+1]...)
	}
	return h
}

const fineZeroThreshold = 0x1p-128 // Prometheus' default

// fineRange accumulates the rows (lo, hi] of a block into f. It reads what the ring holds; the caller checks torn.
func (b *block) fineRange(f *fine, ends []float64, lo, hi int64) {
	n := int(b.counts)
	sumAt := countWords(n - 1)
	summed := int(b.width) > sumAt+1
	var cumulative []float64
	var scratch [32]float64
	if n <= len(scratch) {
		cumulative = scratch[:n]
	} else {
		cumulative = make([]float64, n)
	}
	for row := lo + 1; row <= hi; row++ {
		before, now := b.row(row-1), b.row(row)
		if now[(n-1)/2].Load() == before[(n-1)/2].Load() {
			continue // nothing in this interval
		}
		for i := range n {
			shift := 32 * (i & 1)
			cumulative[i] = float64(uint32(now[i/2].Load()>>shift) - uint32(before[i/2].Load()>>shift))
		}
		var codes [len(SummaryQuantiles)]uint16
		if summed {
			for i := range codes {
				codes[i] = uint16(now[sumAt+1+i/4].Load() >> (16 * (i & 3)))
			}
		}
		f.addInterval(ends, cumulative, &codes)
		f.sum += math.Float64frombits(now[sumAt].Load()) - math.Float64frombits(before[sumAt].Load())
	}
}
