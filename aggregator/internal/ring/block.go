package ring

import (
	"math"
	"sync/atomic"
)

// Block is the slots of one column in one generation, as readers see them: some words of each row
// of its slab.
type Block struct {
	*slab
	at int32 // its first word in a row
	Shape
	first, last atomic.Int64 // the rows that are present, first to last without a hole; none: MaxInt64 and -1
}

// Shape is what a row of a column consists of. The zero value is no shape.
type Shape struct {
	width  int16 // words
	counts int16 // cumulative counts of a histogram, +Inf last; 0: a counter
}

// Quantiles is how many codes of quantiles a histogram's row has room for.
const Quantiles = 10

// Words of a histogram's slot: two cumulative bucket counts a word (the +Inf bucket last), the sum,
// the quantiles.
func countWords(counts int16) int16 { return (counts + 1) / 2 }

const quantileWords = (Quantiles + 3) / 4

// Counter is the shape of a counter.
func Counter() Shape { return Shape{width: 1} }

// Histogram is the shape of a histogram with so many bounds, with quantiles beside the counts or
// not.
func Histogram(bounds int, quantiles bool) Shape {
	s := Shape{counts: int16(bounds + 1)}
	s.width = countWords(s.counts) + 1
	if quantiles {
		s.width += quantileWords
	}
	return s
}

// Words is how many words of 8 bytes a row takes.
func (s Shape) Words() int { return int(s.width) }

// Counts is how many cumulative counts a row of a histogram has, +Inf last; 0: it is a counter's.
func (s Shape) Counts() int { return int(s.counts) }

// Ranked reports whether rows have quantiles.
func (s Shape) Ranked() bool { return s.counts > 0 && s.width > countWords(s.counts)+1 }

// newBlock returns a block whose words begin at one of the slab's rows.
func newBlock(s *slab, at int64, of Shape) *Block {
	b := &Block{slab: s, at: int32(at), Shape: of}
	b.first.Store(math.MaxInt64) // not 0: a reader that loads first, then a fresh last, must still see nothing
	b.last.Store(-1)
	return b
}

// Rows are those that the block's slots are of.
func (b *Block) Rows() *Rows { return b.rows }

// Window returns the present rows with mint < time <= maxt; hi < lo: none. oldest is the row to
// check with Torn.
func (b *Block) Window(mint, maxt int64) (lo, hi, oldest Row) {
	oldest, hi = b.rows.Window(mint, maxt)
	lo, hi = b.Present(oldest, hi)
	return lo, hi, oldest
}

// Present returns those of the rows lo to hi that are present; hi < lo: none.
func (b *Block) Present(lo, hi Row) (Row, Row) {
	return max(lo, Row(b.first.Load())), min(hi, Row(b.last.Load()))
}

// Torn reports whether the writer has meanwhile claimed the slot of the row, so that what was read
// may be mixed.
func (b *Block) Torn(row Row) bool { return b.rows.Claimed(row) }

// words returns the words of a row: to a reader, who checks Torn afterwards, or to the writer, who
// has held it.
func (b *Block) words(row Row) []atomic.Uint64 {
	slot := int64(row) & b.rows.mask
	i := (slot&(1<<b.shift-1))*b.rowWords + int64(b.at)
	end := i + int64(b.width)
	return b.chunks[slot>>b.shift].Load().words[i:end:end]
}

// Values are what a row holds. Who reads them checks Torn before it uses what it has read.
type Values struct{ words []atomic.Uint64 }

// At returns what a present row holds.
func (b *Block) At(row Row) Values { return Values{b.words(row)} }

// Counter reads a counter.
func (v Values) Counter() float64 { return math.Float64frombits(v.words[0].Load()) }

// Count reads a histogram's i-th cumulative count since the series began, +Inf last.
func (b *Block) Count(v Values, i int) float64 {
	return float64(b.whole(i, uint32(v.words[i/2].Load()>>(32*(i&1)))))
}

// Sum reads a histogram's sum since the series began.
func (b *Block) Sum(v Values) float64 {
	return math.Float64frombits(v.words[countWords(b.counts)].Load())
}

// Moved reports whether a counter, or a histogram's count, is another one in one row than in
// another.
func (b *Block) Moved(from, to Row) bool {
	word := 0
	if b.counts != 0 { // the last count holds all observations
		word = (int(b.counts) - 1) / 2
	}
	return b.words(from)[word].Load() != b.words(to)[word].Load()
}

// Interval returns by how much a histogram's cumulative counts rose from one row to a later one, in
// n where that has room for an even number of them; nil if they did not.
func (b *Block) Interval(from, to Values, n []uint32) []uint32 {
	words := int(countWords(b.counts))
	later, earlier := to.words[:words], from.words[:words]
	if later[words-1].Load() == earlier[words-1].Load() {
		return nil
	}
	if 2*words > len(n) {
		n = make([]uint32, 2*words)
	}
	for i := range later {
		now, was := later[i].Load(), earlier[i].Load()
		two := n[2*i : 2*i+2 : 2*i+2]
		two[0], two[1] = uint32(now)-uint32(was), uint32(now>>32)-uint32(was>>32)
	}
	if n = n[:b.counts]; n[b.counts-1] == 0 {
		return nil
	}
	return n
}

// Codes reads the quantiles' codes of a row that has some.
func (b *Block) Codes(v Values, codes *[Quantiles]uint16) {
	words := v.words[int(countWords(b.counts))+1:]
	for i := range words[:quantileWords] {
		four := words[i].Load()
		for j := 4 * i; j < min(4*i+4, len(codes)); j++ {
			codes[j] = uint16(four)
			four >>= 16
		}
	}
}
