package aggregator

import (
	"math"
	"slices"
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

	// key is the newest under which the series came, and next the column of the sample that followed: a sidecar sends its
	// series in the same order again and again, so this is where the next one is found.
	key  uint64
	next *column

	row       int64   // newest row with a value, -1 before the first
	seen      int64   // time of the newest flush that held the series
	timestamp int64   // that flush's timestamp_ms: an equal one is a duplicate
	raw       float64 // a counter's newest value on the wire
	total     float64 // a counter's value with its resets added up, or a histogram's sum
	past      float64 // the value one row before the first, where it is known
	flush     uint32  // number in the table of the newest flush that held the series, modulo 2^32
	pastKnown bool
	removed   bool
	waiting   bool // for its block, until the message is through
	left      bool // under classes.mu: removed, and gone from its class
}

// intervals is what a column knows of a histogram beside its rows.
type intervals struct {
	layout *layout // the buckets; set before the column's block, nil until then
	// interval is the newest interval's count, and intervalAt its timestamp_ms.
	interval   uint64
	intervalAt int64
	held       *heldInterval // nil if there never was one
	// step is its partner's newest increase between consecutive flushes; after a strike the value that the partner had then.
	step float64

	quantilesAt int64                         // timestamp_ms of the newest summary
	quantiles   [len(SummaryQuantiles)]uint16 // and its quantiles
	stepFlush   uint32                        // number of the flush that step led to
	ahead       float32                       // how far step was beyond the interval when they were last compared
	agreed      uint8                         // rows in which step was the interval, up to agreement
	strikes     uint8                         // rows in succession in which step contradicted the interval
	summed      bool                          // the column keeps quantiles: a summary came with its first histogram (frame)
}

// heldInterval is what flushes that have no row of their own have counted since the newest row.
type heldInterval struct {
	buckets []Bucket
	count   uint64
}

// Words of a histogram's slot: two cumulative bucket counts a word (the +Inf bucket last), the sum, the quantiles.
func countWords(bounds int) int { return (bounds + 2) / 2 }

const quantileWords = (len(SummaryQuantiles) + 3) / 4

// frame sets what a histogram's rows will consist of. A histogram's past is always known: it begins with nothing. Sizes keep no
// quantiles beside buckets.
func (c *column) frame(l *layout, summed bool) {
	plain := len(l.bounds) > 0 && slices.Contains(Sizes[:], c.class.name)
	c.layout, c.summed, c.pastKnown = l, summed && !plain, true
}

// shape returns what the column's rows consist of. A histogram's layout is known by then.
func (c *column) shape() shape {
	if c.intervals == nil {
		return shape{width: 1}
	}
	s := shape{width: int16(countWords(len(c.layout.bounds)) + 1), counts: int16(len(c.layout.bounds) + 1)}
	if c.summed {
		s.width += int16(quantileWords)
	}
	return s
}

// show publishes the column's block.
func (c *column) show(b *block) {
	c.block.Store(b)
	b.gen.hook.after(stepBlock)
}

// begin returns the words of the row that is about to be written, and has admitted what the column held one row before its first.
func (c *column) begin(b *block, row int64) []atomic.Uint64 {
	if c.row < 0 && c.pastKnown {
		b.hold(row - 1)
		words := b.row(row - 1)
		for i := range words {
			words[i].Store(0)
		}
		if c.intervals == nil {
			words[0].Store(math.Float64bits(c.past))
		}
		b.admitFrom(row - 1)
	}
	b.hold(row)
	return b.row(row)
}

// writeCounter publishes a counter's value as the row's.
func (c *column) writeCounter(row int64) {
	b := c.block.Load()
	c.begin(b, row)[0].Store(math.Float64bits(c.total))
	b.admit(row)
	c.row = row
}

// repeat publishes the column's values as the row's: it has none of its own.
func (c *column) repeat(row int64) {
	if c.intervals == nil {
		c.writeCounter(row)
		return
	}
	c.writeInterval(row, nil, 0, false)
}

// writeInterval publishes as a histogram's row the newest one and an interval, with the quantiles that tell of that interval, if
// any. No buckets at all are buckets without observations. Where flushes share the row no quantiles tell of all.
func (c *column) writeInterval(row int64, buckets []Bucket, count uint64, withQuantiles bool) {
	b := c.block.Load()
	words := c.begin(b, row)
	h := c.held
	if h != nil {
		withQuantiles = withQuantiles && h.count == 0
		h.add(buckets, count)
		buckets, count = h.buckets, h.count
	}
	before := words
	if c.row >= 0 {
		before = b.row(c.row)
	} else {
		for i := range words {
			words[i].Store(0)
		}
	}
	if b.addCounts(words, before, buckets, count) {
		b.raise(words, buckets, count)
	}
	at := countWords(len(c.layout.bounds))
	words[at].Store(math.Float64bits(c.total))
	if c.summed {
		c.fillQuantiles(words[at+1:], withQuantiles)
	}
	b.admit(row)
	c.row = row
	if h != nil {
		h.reset()
	}
}

// addCounts writes the counts of a row: those of another and an interval's, halves of words apart. It reports whether one of them
// may have passed into its next epoch.
func (b *block) addCounts(words, before []atomic.Uint64, buckets []Bucket, count uint64) bool {
	var changed uint64
	add := func(i int, low, high uint64) {
		old := before[i/2].Load()
		sum := uint64(uint32(old)+uint32(low)) | (old>>32+high)<<32
		changed |= old ^ sum
		words[i/2].Store(sum)
	}
	n := int(b.counts)
	if len(buckets) < n-1 {
		for i := 0; i < n; i += 2 {
			words[i/2].Store(before[i/2].Load())
		}
		return false
	}
	i := 0
	for ; i+1 < len(buckets); i += 2 {
		add(i, buckets[i].Count, buckets[i+1].Count)
	}
	if i < len(buckets) {
		add(i, buckets[i].Count, count)
	} else {
		add(i, count, 0)
	}
	return changed&(1<<31|1<<63) != 0 || count>>31 != 0
}

// raise puts the epochs of a row's counts in place, before it is admitted. The counts hold the interval already.
func (b *block) raise(words []atomic.Uint64, buckets []Bucket, count uint64) {
	for i := range int(b.counts) {
		interval := count
		if i < len(buckets) {
			interval = buckets[i].Count
		}
		low := uint32(words[i/2].Load() >> (32 * (i & 1)))
		b.setEpoch(i, (b.whole(i, low-uint32(interval))+interval)>>31)
	}
	b.gen.hook.after(stepEpochs)
}

func (c *column) fillQuantiles(words []atomic.Uint64, known bool) {
	for i := range quantileWords {
		var w uint64
		if known {
			for j := 4 * i; j < min(4*i+4, len(c.quantiles)); j++ {
				w |= uint64(c.quantiles[j]) << (16 * (j & 3))
			}
		}
		words[i].Store(w)
	}
}

// hold keeps an interval for the next row.
func (c *column) hold(buckets []Bucket, count uint64) {
	if c.held == nil {
		c.held = &heldInterval{buckets: make([]Bucket, len(c.layout.bounds))}
	}
	c.held.add(buckets, count)
}

func (h *heldInterval) add(buckets []Bucket, count uint64) {
	for i := range buckets {
		h.buckets[i].Count += buckets[i].Count
	}
	h.count += count
}

func (h *heldInterval) reset() {
	clear(h.buckets)
	h.count = 0
}

// valueIn reads a counter's row. The caller checks torn afterwards, as with all that is read from a row.
func valueIn(words []atomic.Uint64) float64 { return math.Float64frombits(words[0].Load()) }

// countIn reads a histogram's i-th cumulative count since the series began, +Inf last.
func (b *block) countIn(words []atomic.Uint64, i int) float64 {
	return float64(b.whole(i, uint32(words[i/2].Load()>>(32*(i&1)))))
}

// sumIn reads a histogram's sum since the series began.
func (b *block) sumIn(words []atomic.Uint64) float64 {
	return math.Float64frombits(words[countWords(int(b.counts)-1)].Load())
}
