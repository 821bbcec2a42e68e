package aggregator

import (
	"math"
	"sync/atomic"
)

// column is one series of one pod. Its block is read by anyone; the rest belongs to the table's writer. Counters are most of
// what a busy mesh adds, so they do not carry what only histograms need, and the fields fill a size class (112 bytes).
type column struct {
	class *class
	table *table
	block atomic.Pointer[block] // nil until the first value
	// partner links a request counter and the duration histogram of its label set; nil where there is none to rely on.
	partner    *column
	*intervals // of a histogram; nil for a counter

	row       int64   // newest row with a value, -1 before the first
	seen      int64   // time of the newest flush that held the series
	timestamp int64   // that flush's timestamp_ms: an equal one is a duplicate
	raw       float64 // a counter's newest value on the wire
	total     float64 // a counter's value with its resets added up, or a histogram's sum
	past      float64 // the value one row before the first, where it is known
	step      float64 // a counter's newest increase
	stepAt    int64   // timestamp_ms of the newest one between consecutive flushes
	flush     uint32  // number in the table of the newest flush that held the series, modulo 2^32
	pastKnown bool
	removed   bool
}

// intervals is what a column knows of a histogram beside its rows.
type intervals struct {
	layout *layout // the buckets; set before the column's block, nil until then
	// interval is the newest interval's count, and intervalAt its timestamp_ms.
	interval   uint64
	intervalAt int64

	quantilesAt int64                         // timestamp_ms of the newest summary
	quantiles   [len(SummaryQuantiles)]uint16 // and its quantiles
	summed      bool                          // the column keeps quantiles: a summary came with its first histogram
}

// Words of a histogram's slot: two cumulative bucket counts a word (the +Inf bucket last), the sum, the quantiles.
func countWords(bounds int) int { return (bounds + 2) / 2 }

const quantileWords = (len(SummaryQuantiles) + 3) / 4

func (c *column) width() int {
	switch {
	case c.class.kind == Counter:
		return 1
	case c.summed:
		return countWords(len(c.layout.bounds)) + 1 + quantileWords
	default:
		return countWords(len(c.layout.bounds)) + 1
	}
}

// allocate gives the column its block in the table's ring.
func (c *column) allocate(g *generation) *block {
	totals := 0
	if c.class.kind == Histogram {
		totals = len(c.layout.bounds) + 1
	}
	b := newBlock(g, c.width(), totals)
	c.block.Store(b)
	return b
}

// write publishes the column's running values as the row's, and before its first row what it held one row earlier.
// Quantiles are those of the row's own interval, if any.
func (c *column) write(row int64, withQuantiles bool) {
	b := c.block.Load()
	if c.row < 0 && c.pastKnown {
		words := b.row(row - 1)
		for i := range words {
			words[i].Store(0)
		}
		if c.class.kind == Counter {
			words[0].Store(math.Float64bits(c.past))
		}
		b.admitBefore(row - 1)
	}
	c.fill(b, b.row(row), withQuantiles)
	b.admit(row)
	c.row = row
}

func (c *column) fill(b *block, words []atomic.Uint64, withQuantiles bool) {
	if c.class.kind == Counter {
		words[0].Store(math.Float64bits(c.total))
		return
	}
	n := len(b.totals)
	for i := 0; i < n; i += 2 {
		w := uint64(uint32(b.totals[i].Load()))
		if i+1 < n {
			w |= b.totals[i+1].Load() << 32
		}
		words[i/2].Store(w)
	}
	at := countWords(len(c.layout.bounds))
	words[at].Store(math.Float64bits(c.total))
	if !c.summed {
		return
	}
	for i := range quantileWords {
		var w uint64
		if withQuantiles {
			for j := 4 * i; j < min(4*i+4, len(c.quantiles)); j++ {
				w |= uint64(c.quantiles[j]) << (16 * (j & 3))
			}
		}
		words[at+1+i].Store(w)
	}
}

// add adds an interval to a histogram's totals.
func (c *column) add(buckets []Bucket, count uint64, sum float64) {
	b := c.block.Load()
	for i := range buckets {
		if n := buckets[i].Count; n != 0 { // an atomic add costs as much as all else here, and idle series are most of a mesh
			b.totals[i].Add(n)
		}
	}
	b.totals[len(b.totals)-1].Add(count)
	c.total += sum
}

// valueIn reads a counter's row. The caller checks torn afterwards, as with all that is read from a row.
func valueIn(words []atomic.Uint64) float64 { return math.Float64frombits(words[0].Load()) }

// countIn reads a histogram's i-th cumulative count since the series began, +Inf last.
func (b *block) countIn(words []atomic.Uint64, i int) float64 {
	low := uint32(words[i/2].Load() >> (32 * (i & 1)))
	// The total may be newer than the row: it is less than 2^32 ahead, so the row's count is the one below it.
	total := b.totals[i].Load()
	return float64(total - uint64(uint32(total)-low))
}

// sumIn reads a histogram's sum since the series began.
func (b *block) sumIn(words []atomic.Uint64) float64 {
	return math.Float64frombits(words[countWords(len(b.totals)-1)].Load())
}

// quantileCode packs a quantile into 16 bits: 256 steps a doubling, 1 for zero, 0 for none (an empty interval's NaN).
func quantileCode(v float64) uint16 {
	switch {
	case !(v >= 0) || math.IsInf(v, 1):
		return 0
	case v == 0:
		return 1
	}
	return uint16(min(max(math.Round(256*math.Log2(v))+1<<15, 2), math.MaxUint16))
}

// quantileValue is the inverse of quantileCode, good to 0.14 %; NaN for none.
func quantileValue(code uint16) float64 {
	switch code {
	case 0:
		return math.NaN()
	case 1:
		return 0
	}
	return math.Exp2((float64(code) - 1<<15) / 256)
}
