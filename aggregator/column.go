package aggregator

import (
	"math"
	"slices"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/value"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// column is one series of one pod. Its block is read by anyone; the rest belongs to the table's
// writer. Counters are most of what a busy mesh adds, so they do not carry what only histograms
// need, and the fields fill a size class (112 bytes).
type column struct {
	class *class
	table *table
	block atomic.Pointer[ring.Block] // nil until the first value
	// partner links a request counter and the duration histogram of its label set; nil where there
	// is none to rely on.
	partner    *column
	*intervals // of a histogram; nil for a counter or a gauge

	// key is the newest under which the series came, and next the column of the sample that
	// followed: a sidecar sends its series in the same order again and again, so this is where the
	// next one is found.
	key  uint64
	next *column

	row       ring.Row   // newest row with a value, -1 before the first
	seen      int64      // time of the newest flush that held the series
	timestamp ring.Stamp // that flush's timestamp_ms: an equal one is a duplicate
	raw       float64    // a counter's newest value on the wire
	total     float64    // a counter's value with its resets added up, a gauge's value, or a histogram's sum
	past      float64    // the value one row before the first, where it is known
	flush     uint32     // number in the table of the newest flush that held the series, modulo 2^32
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
	intervalAt ring.Stamp
	held       *heldInterval // nil if there never was one
	// step is its partner's newest increase between consecutive flushes; after a strike the value
	// that the partner had then.
	step float64

	quantilesAt ring.Stamp                    // timestamp_ms of the newest summary
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

// frame sets what a histogram's rows will consist of. A histogram's past is always known: it begins
// with nothing. Sizes keep no quantiles beside buckets.
func (c *column) frame(l *layout, summed bool) {
	plain := len(l.bounds) > 0 && slices.Contains(Sizes[:], c.class.name)
	c.layout, c.summed, c.pastKnown = l, summed && !plain, true
}

// shape returns what the column's rows consist of. A histogram's layout is known by then.
func (c *column) shape() ring.Shape {
	if c.intervals == nil {
		return ring.Counter()
	}
	return ring.Histogram(len(c.layout.bounds), c.summed)
}

// show publishes the column's block.
func (c *column) show(b *ring.Block) {
	c.block.Store(b)
	c.table.store.hook.After(stepBlock)
}

// writeCounter publishes a counter's or gauge's value as the newest row's.
func (c *column) writeCounter(r *ring.Ring) {
	b := c.block.Load()
	c.begin(r, b)
	r.PutCounter(b, c.total)
	c.row = r.Newest()
}

// begin publishes what the column held one row before its first, where that is known.
func (c *column) begin(r *ring.Ring, b *ring.Block) {
	if c.row < 0 && c.pastKnown {
		r.PutPast(b, c.past)
	}
}

// repeat publishes the column's values as the newest row's: it has none of its own. A gauge that
// its sidecar does not send any more is not there any more, and Prometheus' marker says so.
func (c *column) repeat(r *ring.Ring) {
	if c.class.kind == Gauge {
		c.total = math.Float64frombits(value.StaleNaN)
	}
	if c.intervals == nil {
		c.writeCounter(r)
		return
	}
	c.writeInterval(r, nil, 0, false)
}

// writeInterval publishes as a histogram's newest row the one before and an interval, with the
// quantiles that tell of that interval, if any. No buckets at all are buckets without observations.
// Where flushes share the row no quantiles tell of all.
func (c *column) writeInterval(r *ring.Ring, buckets []Bucket, count uint64, withQuantiles bool) {
	b := c.block.Load()
	c.begin(r, b)
	h := c.held
	if h != nil {
		withQuantiles = withQuantiles && h.count == 0
		h.add(buckets, count)
		buckets, count = h.buckets, h.count
	}
	var codes *[ring.Quantiles]uint16
	if withQuantiles {
		codes = &c.quantiles
	}
	r.PutInterval(b, c.row, buckets, count, c.total, codes)
	c.row = r.Newest()
	if h != nil {
		h.reset()
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
