package aggregator

import (
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// table is what is known of one pod. It belongs to the pod's identity, not to a connection, so history survives reconnects.
//
// mu is taken once per message by the stream that owns the table (uncontended in the steady state); readers never take it.
type table struct {
	store  *store
	number uint64                    // no other table of the store has it
	ref    *tableRef                 // its place in the store's log
	pod    atomic.Pointer[Pod]       // as the newest connection's node says
	gen    atomic.Pointer[ring.Rows] // the ring's newest generation, for readers
	flush  atomic.Int64              // observed flush interval in milliseconds
	gap    atomic.Pointer[gap]       // the newest one, nil if there was none
	// refused is the time of the newest sample that was refused or dropped, refusedSince when that began; 0 if none was.
	refused, refusedSince atomic.Int64
	// otherForm is when some of them were last Istio's metrics under names that are not read.
	otherForm atomic.Int64
	gone      atomic.Bool // freed, for readers
	// aside is when what is known of the pod ends, of a table that was set aside after a fault (faults.go); else nil.
	aside atomic.Pointer[int64]
	// begun: the pod's sidecar had counted requests before the first flush that came.
	begun atomic.Bool

	// closed is the newest row that no message can add to any more, for the surge fold. aged: the pod had counted before its first
	// row, so that what it counted before is not known to be nothing; set before the first row closes.
	closed atomic.Int64
	aged   atomic.Bool
	second atomic.Int64 // the row with which the first flush was measured, 0 before

	asked   atomic.Int64            // when the cluster did not know the pod, or knownPod; 0: not asked
	contest atomic.Pointer[contest] // the newest, for readers; nil if there never was one

	mu      sync.Mutex
	owner   *Stream // the stream that counts, or that counted last; nil before the first message
	rival   *Stream // one that the newest contest is with, nil if it has ended
	removed bool    // freed; a stream that still writes gets a new table
	born    int64   // time of the first row, 0 before it
	poses   bool    // its pod is no waypoint, in a cluster (sender.go)
	foreign bool    // its pod has left, and is not taken for one that sends any more (foreign.go)
	ring    ring.Ring
	keys    map[uint64]*column // by the key on the wire
	byClass map[*class]*column
	columns []*column
	cursor  *column // of the newest sample, nil if there was none
	past    tombstones
	// unreadable are the keys of series whose names or labels could not be decoded.
	unreadable map[uint64]struct{}
	// strange are keys of this stream that were refused at a limit, and are of no series that is known under another key.
	strange map[uint64]struct{}
	limit   error // what the message that is being taken has met, nil if none
	// shortOf is what the sender had no more of in a flush (shortAt), nil if nothing.
	shortOf error
	shortAt int64
	// sender is who has taken so many bytes for the table (memory.go).
	sender          string
	taken, promised int64
	// keep is how far back the rows reach that are kept, in milliseconds, and stretch how many times as many as the retention
	// needs; author is the namespace to which that is lent (ranges.go).
	keep, stretch, lent int64
	author              string
	rangeEpoch          uint64

	pairs     bool       // a request counter of the pod has come with its duration histogram
	flushes   int64      // how many have come, from all connections
	vain      int        // how many series were described in vain since vainSince: in 5 s no more than a pod may have
	vainSince int64      // time of a flush
	timestamp ring.Stamp // timestamp_ms of the newest flush
	flushTime int64      // and its time on our clock
	rowTime   int64      // the newest row's time: flushTime, but where rows coalesce
	lastGap   int64      // time between the two newest flushes of a stream
	observed  int64      // the longest flush interval that was observed and told to the workload, 0 before the first
	broken    bool       // the newest flush does not follow the one before: first of a stream, or after a lost flush
	torn      bool       // a part of the newest flush was refused that may be of known series, or of the next one, which has not begun
	whole     uint32     // how many flushes directly before the newest one are known to be whole: of its stream, none lost, none torn

	openFlush

	// watching are the watched queries that a row marks, as of watchEpoch; 0: to be found anew.
	watching   []*mark
	watchEpoch uint64
}

// openFlush is the newest flush while more messages of it may come.
type openFlush struct {
	open    bool
	held    bool      // it has no row of its own: the ring is at its cap, flushes coalesce
	closeAt time.Time // when its row closes if no message comes

	// Counters whose past is not known yet, and columns that so far have only a summary.
	pending   []pendingCounter
	suspects  []pendingCounter // those whose step has to be held against their interval
	summaries []pendingSummary
	// fresh are samples of the message whose columns have no block yet.
	fresh []freshSample
}

// ended is what a flush leaves to the next one: memory that is needed at each. Counters pend rarely: not worth 24 bytes each.
func (f *openFlush) ended() openFlush {
	return openFlush{suspects: f.suspects[:0], summaries: f.summaries[:0]}
}

type freshSample struct {
	column *column
	sample int // its place in the batch
}

type pendingSummary struct {
	col   *column
	count uint64
	sum   float64
}

const (
	defaultFlushMs = 5_000
	// minRowSpacing bounds a ring: rows closer together than retention / maxSlots coalesce once it is full.
	minRowSpacingMs = 250
	// rowCloseDelay is how long after its last message a row stays open for another (Envoy's batch_size gives no end marker).
	rowCloseDelay = 250 * time.Millisecond
)

func newTable(s *store, p *Pod) *table {
	t := &table{store: s, sender: p.Sender, stretch: 1, keep: s.retention}
	flush := p.toldFlush()
	t.flush.Store(flush)
	t.pod.Store(p)
	t.ring = ring.New(firstSlots, s.hook)
	t.gen.Store(t.ring.Rows())
	return t
}

// slotsFor is how many rows cover the retention, two more for the flush in progress and its jitter, as a power of two.
func (s *store) slotsFor(flush int64) int64 {
	n := min((s.retention+flush-1)/flush+2, s.maxSlots())
	return 1 << bits.Len64(uint64(n-1))
}

func (s *store) maxSlots() int64 { return max(64, s.retention/minRowSpacingMs) }

// beginRow closes the open row and opens the next for a flush of the given timestamp.
func (t *table) beginRow(st *Stream, timestamp ring.Stamp, arrival int64) {
	t.closeRow()
	flush := t.flush.Load()
	at, late, doubt := st.clock.Row(timestamp, arrival, flush, t.pace())
	if late > 0 && st.flushes > 0 { // else the newest rows are another's
		t.pullBack(st, late)
	}
	if t.ring.Newest() < 0 {
		t.openFirst(at)
	}
	at = max(at, t.rowTime+1)
	if again := st.flushes > 0 && timestamp == t.timestamp; !again { // else a row more of the same flush
		t.broken = st.flushes == 0 || at-t.flushTime > flush+flush/2
		if st.flushes > 0 {
			t.observe(int64(timestamp - t.timestamp))
		}
		if st.flushes == 0 || st.clock.Fresh() { // the offset is measured anew
			st.firstRow = t.ring.Newest() + 1
		}
		if t.ring.Newest() > 0 && st.flushes > 0 && t.ring.Rows().Unmeasured() { // between two streams flushes may have been lost
			t.measureFirst(at-t.flushTime, int64(timestamp-t.timestamp))
		}
		st.flushes++
		t.countFlush()
	}
	if t.flushTime != 0 && (doubt || at-t.flushTime > 2*t.flush.Load()) {
		t.gap.Store(&gap{t.flushTime, at, doubt, t.gap.Load().alone()})
	}
	t.timestamp, t.flushTime, t.open = timestamp, at, true
	t.refit()
	t.held = !t.makeRoom(at)
	if t.held {
		t.limit = ErrSharedRow
		t.store.metrics.shared.Inc()
		return
	}
	t.rowTime = at
	t.ring.Open(at)
	t.store.metrics.rows.Inc()
}

// countFlush numbers a flush that begins.
func (t *table) countFlush() {
	t.flushes++
	t.whole++
	if t.broken || t.torn {
		t.whole = 0
	}
	t.torn = false
}

// pace is the time between the flushes of the stream by its own clock, 0 before the second.
func (t *table) pace() int64 {
	if t.observed > 0 {
		return t.flush.Load()
	}
	return t.lastGap
}

// gap is a time from which a pod has told nothing: between two of its rows, or the rows of two of its tables.
// doubt: when it was is not certain, however long it takes.
type gap struct {
	from, to int64
	doubt    bool
	before   *gap // stays where this one turns out to be none
}

// alone is the gap without the one before.
func (g *gap) alone() *gap {
	if g == nil || g.before == nil {
		return g
	}
	return &gap{g.from, g.to, g.doubt, nil}
}

// pullBack is the gap where rows from a time on are moved back.
func (g *gap) pullBack(from, late int64) *gap {
	if g == nil || g.to < from {
		return g
	}
	moved := &gap{from: g.from, doubt: g.doubt, before: g.before.pullBack(from, late)}
	if g.from >= from {
		moved.from -= late
	}
	moved.to = max(moved.from, g.to-late)
	return moved
}

// none says whether it is only as long as flushes of an interval may be apart.
func (g *gap) none(flush int64) bool { return !g.doubt && g.to-g.from <= 2*flush }

// refuse notes that a sample was refused or dropped.
func (t *table) refuse(at int64) {
	if last := t.refused.Load(); last == 0 || at-last > t.keep {
		t.refusedSince.Store(at)
	}
	t.refused.Store(at)
}

// refusedLately reports whether a sample was refused within the retention of the newest flush.
func (t *table) refusedLately() bool {
	last := t.refused.Load()
	return last != 0 && t.flushTime-last <= t.keep
}

// observe takes two intervals in a row that agree within a quarter as the flush interval: one alone may be a lost flush.
// They are told by the sidecar's clock: flushes that the network held up arrive at once.
func (t *table) observe(gap int64) {
	if gap <= 0 || gap > t.keep { // that clock was set, or nothing is left of the flush before
		t.lastGap = 0
		return
	}
	before := t.lastGap
	if told := t.pod.Load().FlushInterval.Milliseconds(); t.observed == 0 && before == 0 && distance(gap, told) <= gap/4 {
		before = gap // what is told is kept
	}
	if before > 0 && distance(gap, before) <= max(gap, before)/4 {
		t.flushesEvery(max((gap+before+1)/2, t.store.retention/t.store.maxSlots()))
	} else if t.observed == 0 && gap < t.flush.Load() { // what was told is not kept: a flush may be lost, but none comes too soon
		t.flush.Store(max(gap, defaultFlushMs))
	}
	t.lastGap = gap
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// flushesEvery notes the flush interval that was observed. What was taken for a gap by the told one may be none.
func (t *table) flushesEvery(flush int64) {
	t.flush.Store(flush)
	if t.observed == 0 {
		gap := t.gap.Load()
		for gap != nil && gap.none(flush) {
			gap = gap.before
		}
		t.gap.Store(gap)
	}
	if flush > t.observed+t.observed/8 { // seldom: timers jitter
		t.store.tables.observed(t.pod.Load(), flush)
		t.observed = flush
	}
}

// makeRoom doubles the ring where the next row would overwrite one inside the retention. It returns false where the ring
// is at its cap and the row has to share the next one's slot. Beyond the memory budget the oldest row is overwritten instead: only
// queries that look so far back know less then.
func (t *table) makeRoom(at int64) bool {
	slots := t.ring.Slots()
	oldest := t.ring.Newest() + 2 - ring.Row(slots) // that is left with the next row
	if oldest < 1 || t.ring.Rows().Time(oldest) <= at-t.keep {
		return true
	}
	if base := t.baseSlots(); base < t.store.maxSlots() {
		if t.afford(t.rowBytes(base)) == nil {
			more := t.rowBytes(slots) - t.rowBytes(base)
			t.grow()
			t.lend(more)
		}
		return true
	}
	return at-t.rowTime >= t.keep/slots
}

func (t *table) grow() {
	t.move(2 * t.ring.Slots())
	t.store.metrics.grown.Inc()
}

// move copies the rows to a new generation, in which the columns lie together in the order in which they came.
func (t *table) move(slots int64) {
	old, columns := make([]*ring.Block, 0, len(t.columns)), make([]*column, 0, len(t.columns))
	for _, c := range t.columns {
		if b := c.block.Load(); b != nil {
			old, columns = append(old, b), append(columns, c)
		}
	}
	moved, blocks := t.ring.Moved(slots, old)
	for i, b := range blocks {
		columns[i].show(b)
	}
	t.ring = moved
	t.gen.Store(moved.Rows())
	t.store.hook.After(stepGeneration)
	t.recount()
}

// allocate gives columns their blocks, in one slab. Those for which there is no memory are dropped, with ErrMemory.
func (t *table) allocate(columns ...*column) (err error) {
	if want := t.store.slotsFor(t.flush.Load()); t.words() == 0 && t.baseSlots() < want && t.afford(8*want) == nil {
		more := 8 * (want - t.baseSlots()) * (t.stretch - 1)
		t.move(want * t.stretch) // the first: until now rows were times alone
		t.lend(more)
	}
	var refused []*column
	columns = slices.DeleteFunc(columns, func(c *column) bool {
		if t.affordRows(c) == nil {
			return false
		}
		refused = append(refused, c)
		return true
	})
	words, shapes := t.words(), make([]ring.Shape, len(columns))
	for i, c := range columns {
		shapes[i] = c.shape()
	}
	for i, b := range t.ring.Blocks(shapes) {
		columns[i].show(b)
	}
	t.lend(8 * (t.words() - words) * (t.ring.Slots() - t.baseSlots()))
	for _, c := range refused {
		err = t.short(ErrMemory)
		delete(t.keys, c.key)
		t.drop(c)
	}
	return err
}

// closeRow ends the newest row: what is still open about its counters is decided, and series that the flush did not hold
// are carried forward, so that an idle or evicted counter is 0 per second and not missing.
func (t *table) closeRow() {
	if !t.open {
		return
	}
	for _, s := range t.summaries {
		t.addSummary(s)
	}
	t.settle(true)
	held := t.held
	t.openFlush = t.ended()
	if t.promised > 0 { // more than series had
		t.promised = 0
		t.recount()
	}
	if held {
		return
	}
	var expired []*column
	limit := t.rowTime - t.keep
	removed := false // by other bounds
	for _, c := range t.columns {
		switch {
		case c.removed:
			removed = true
		case c.seen < limit:
			expired = append(expired, c)
		case c.row < t.ring.Newest():
			c.repeat(&t.ring)
		}
	}
	if t.closed.Load() == 0 && t.countedBefore() {
		t.aged.Store(true)
	}
	t.closed.Store(int64(t.ring.Newest()))
	t.store.hook.After(stepClosed)
	if expired != nil || removed {
		t.forget(expired)
		t.columns = slices.DeleteFunc(t.columns, func(c *column) bool { return c.removed })
		if live, dead := t.ring.Words(); dead > live { // label sets come and go
			t.move(t.ring.Slots())
		}
	}
	t.markQueries()
}

// countedBefore reports, when the first row closes, whether the pod's process may have counted before that flush. Counters are
// sent from their first use on, always: one that is not there has not been used lately.
func (t *table) countedBefore() bool {
	unknown, fresh := false, false
	for _, c := range t.columns {
		switch {
		case c.removed:
		case c.class.kind == Histogram:
			unknown = unknown || c.partner == nil && c.class.name == durationsName
		case t.store.config.CountersAsDeltas || !c.pastKnown:
			unknown = unknown || c.raw > 0 || c.total > 0
		case c.past > 0:
			return true
		default:
			fresh = true
		}
	}
	return unknown && !fresh
}

// forget frees the columns that have expired and keeps their counters' values, for when they come back.
func (t *table) forget(expired []*column) {
	for _, c := range expired {
		t.drop(c)
	}
	for k, c := range t.keys { // a label set may be known under several keys
		if !c.removed {
			continue
		}
		delete(t.keys, k)
		if c.class.kind == Counter {
			gaveUp := t.afford(tombstoneBytes) != nil || t.past.keep(k, tombstone{c.raw, c.total, c.flush}, 4*t.store.config.MaxSeriesPerPod)
			t.past.lost = t.past.lost || gaveUp
		}
	}
	t.recount()
}

func (t *table) drop(c *column) {
	c.removed, c.next = true, nil
	if b := c.block.Load(); b != nil {
		t.ring.Leave(b)
	}
	delete(t.byClass, c.class)
	t.store.classes.leave(c)
	t.store.series.Give(t.sender, 1)
	t.recount()
}

// expired reports whether the pod has been silent for longer than the rings reach.
func (t *table) expired(now int64) bool {
	newest, ok := t.newest()
	if !ok {
		return true
	}
	return now-newest > t.keep+2*t.flush.Load()
}

// free gives everything up. A stream that is still there gets a new table at its next flush.
func (t *table) free() {
	t.removed = true
	t.gone.Store(true)
	defer t.giveUp()
	for _, c := range t.columns {
		if c != nil && !c.removed { // else a fault has left it
			t.drop(c)
		}
	}
	t.columns, t.keys, t.byClass, t.cursor, t.past, t.watching = nil, nil, nil, nil, tombstones{}, nil
}

// newest returns the time of the pod's newest row.
func (t *table) newest() (int64, bool) {
	if aside := t.aside.Load(); aside != nil {
		return *aside, true
	}
	return t.gen.Load().Newest()
}

// tombstones remember the counters of freed series by key; beyond the limit the oldest are given up.
type tombstones struct {
	bounded[uint64, tombstone]
	lost bool // some were given up: a key that is not here may still have been seen
}

// tombstone is what is kept of a counter. flush is the number of the flush that held it last, or neverSeen.
type tombstone struct {
	raw, total float64
	flush      uint32
}

// neverSeen is a flush's number from before the table's first: what is known of the flushes since does not tell of the counter.
const neverSeen = math.MaxUint32
