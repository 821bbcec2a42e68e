package ring

import (
	"math/bits"
	"sync/atomic"
)

// slab is the slots of several columns in one generation: of the series that a pod sent first in
// one message, which is most of them. A row of all of them lies in one piece, in the order in which
// they came, so a flush walks through memory once.
//
// The rows come in chunks, made when the first of their rows is written: the memory of a pod grows
// with what is known of it. The writer makes a chunk before it admits a row of it, so a reader
// never meets one that is missing.
type slab struct {
	rows     *Rows
	rowWords int64  // of all columns
	shift    uint32 // a chunk holds 1 << shift rows
	chunks   []atomic.Pointer[chunk]
	// totals are counts in full, of which rows hold the lower halves, two a word of a row. Each is
	// less than 2^31 from that of any row in the ring, while no count grows by more; nil where 0
	// is. The writer replaces one when a half's upper bit turns, before it admits the row: to write
	// them with every row, so that halves need not be told apart, took a third more of a commit.
	totals atomic.Pointer[[]atomic.Uint64]
	live   int64 // words a row of columns that are not removed; only the writer uses it
}

type chunk struct{ words []atomic.Uint64 }

// Chunks are small where rows are narrow, since Go's size classes are close together there (a
// counter's 64 rows are 512 bytes in one chunk, a duration histogram's are 7,168 bytes in four and
// would be 8,192 in one), and large where rows are wide: beyond 32 KiB memory comes in pages of 8
// KiB, of which half of one is lost.
const (
	wideRowWords    = 1 << 10 / 8
	smallChunkWords = 2 << 10 / 8 // at most
	largeChunkWords = 64 << 10 / 8
	pageWords       = 8 << 10 / 8
)

// wideShift is how many rows a chunk of wide ones has, as a power of two: more than half of
// largeChunkWords, or twice as many where those lose less of their last page. A sidecar of 20 label
// sets (300 words a row) would lose a fifteenth with 32 rows, and loses an eightieth with 64.
func wideShift(rowWords int) int {
	lost := func(shift int) float64 {
		words := rowWords << shift
		return float64((pageWords-words%pageWords)%pageWords) / float64(words)
	}
	shift := bits.Len(uint(largeChunkWords / rowWords))
	if lost(shift+1) < lost(shift) {
		shift++
	}
	return shift
}

func newSlab(g *Rows, rowWords int) *slab {
	shift := bits.Len(uint(max(smallChunkWords/rowWords, 1))) - 1
	if rowWords >= wideRowWords {
		shift = wideShift(rowWords)
	}
	shift = min(shift, bits.Len(uint(g.slots()))-1)
	return &slab{
		rows: g, rowWords: int64(rowWords), shift: uint32(shift),
		chunks: make([]atomic.Pointer[chunk], g.slots()>>shift),
	}
}

// hold makes the row's chunk where there is none yet.
func (s *slab) hold(row Row) {
	if c := &s.chunks[int64(row)&s.rows.mask>>s.shift]; c.Load() == nil {
		c.Store(&chunk{make([]atomic.Uint64, s.rowWords<<s.shift)})
	}
}
