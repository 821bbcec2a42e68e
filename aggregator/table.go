package aggregator

import (
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// table is what is known of one pod. It belongs to the pod's identity, not to a connection, so
// history survives reconnects.
//
// mu is taken once per message by the stream that owns the table (uncontended in the steady state);
// readers never take it.
type table struct {
	store  *store
	number uint64    // no other table of the store has it
	ref    *tableRef // its place in the store's log
	shown

	mu      sync.Mutex
	owner   *Stream // the stream that counts, or that counted last; nil before the first message
	rival   *Stream // one that the newest contest is with, nil if it has ended
	removed bool    // freed; a stream that still writes gets a new table
	born    int64   // time of the first row, 0 before it
	poses   bool    // its pod is no waypoint, in a cluster (sender.go)
	created int64   // when the pod was that proven is of (identity.go)
	foreign bool    // its pod has left, and is not taken for one that sends any more (foreign.go)
	ring    ring.Ring
	keys    map[uint64]*column // by the key on the wire
	byClass map[*class]*column
	columns []*column
	cursor  *column // of the newest sample, nil if there was none
	past    tombstones
	// unreadable are the keys of series whose names or labels could not be decoded.
	unreadable map[uint64]struct{}
	// strange are keys of this stream that were refused at a limit, and are of no series that is
	// known under another key.
	strange map[uint64]struct{}
	limit   error // what the message that is being taken has met, nil if none
	// shortOf is what the sender had no more of in a flush (shortAt), nil if nothing.
	shortOf error
	shortAt int64
	account
	stretched

	pairs     bool       // a request counter of the pod has come with its duration histogram
	flushes   int64      // how many have come, from all connections
	vain      int        // how many series were described in vain since vainSince: in 5 s no more than a pod may have
	vainSince int64      // time of a flush
	timestamp ring.Stamp // timestamp_ms of the newest flush
	flushTime int64      // and its time on our clock
	rowTime   int64      // the newest row's time: flushTime, but where rows coalesce
	lastGap   int64      // time between the two newest flushes of a stream
	observed  int64      // the longest flush interval that was observed and told to the workload, 0 before the first
	broken    bool       // the newest flush does not follow the one before: first of a stream, or after a long silence
	torn      bool       // a part of the newest flush was refused that may be of known series, or of the next one, which has not begun
	whole     uint32     // how many flushes directly before the newest one are known to be whole: of its stream, none lost, none torn
	rejoined  int64      // number of the flush that ended the newest gap, 0 if there was none
	atOnce    bool       // the newest flush came upon that one: its intervals began in the gap

	openFlush

	// watching are the watched queries that a row marks, as of watchEpoch; 0: to be found anew.
	watching   []*mark
	watchEpoch uint64
}

const (
	defaultFlushMs = 5_000
	// minRowSpacing bounds a ring: rows closer together than retention / maxSlots coalesce once it
	// is full.
	minRowSpacingMs = 250
	// lateFlushes is how many flush intervals a flush may come after the one before and be the next
	// one: a stream loses none of them, but an Envoy that is short of CPU flushes late. After a
	// longer silence nobody vouches for that.
	lateFlushes = 4
	// rowCloseDelay is how long after its last message a row stays open for another (Envoy's
	// batch_size gives no end marker).
	rowCloseDelay = 250 * time.Millisecond
)

func newTable(s *store, p *Pod) *table {
	t := &table{store: s, account: account{sender: p.Sender}, stretched: stretched{stretch: 1, keep: s.retention}}
	flush := p.toldFlush()
	t.flush.Store(flush)
	t.pod.Store(p)
	t.ask(s.ranges.all())
	t.ring = ring.New(firstSlots, s.hook)
	t.gen.Store(t.ring.Rows())
	return t
}

// slotsFor is how many rows cover the retention, two more for the flush in progress and its jitter,
// as a power of two.
func (s *store) slotsFor(flush int64) int64 {
	n := min((s.retention+flush-1)/flush+2, s.maxSlots())
	return 1 << bits.Len64(uint64(n-1))
}

func (s *store) maxSlots() int64 { return max(64, s.retention/minRowSpacingMs) }

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

// makeRoom doubles the ring where the next row would overwrite one inside the retention. It returns
// false where the ring is at its cap and the row has to share the next one's slot. Beyond the
// memory budget the oldest row is overwritten instead: only queries that look so far back know less
// then.
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

// move copies the rows to a new generation, in which the columns lie together in the order in which
// they came.
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

// allocate gives columns their blocks, in one slab. Those for which there is no memory are dropped,
// with ErrMemory.
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

// forget frees the columns that have expired and keeps their counters' values, for when they come
// back.
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

// tombstones remember the counters of freed series by key; beyond the limit the oldest are given
// up.
type tombstones struct {
	bounded[uint64, tombstone]
	lost bool // some were given up: a key that is not here may still have been seen
}

// tombstone is what is kept of a counter. flush is the number of the flush that held it last, or
// neverSeen.
type tombstone struct {
	raw, total float64
	flush      uint32
}

// neverSeen is a flush's number from before the table's first: what is known of the flushes since
// does not tell of the counter.
const neverSeen = math.MaxUint32
