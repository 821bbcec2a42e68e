package aggregator

import (
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

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

// ended is what a flush leaves to the next one: memory that is needed at each. Counters pend
// rarely: not worth 24 bytes each.
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
		t.broken = st.flushes == 0 || at-t.flushTime > lateFlushes*flush
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
		t.atOnce = t.rejoined == t.flushes-1 && at-t.flushTime < flush/2
	}
	if t.flushTime != 0 && (doubt || at-t.flushTime > 2*t.flush.Load()) {
		t.gap.Store(&gap{t.flushTime, at, doubt, t.gap.Load().alone()})
		if !doubt {
			t.rejoined = t.flushes
		}
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

// observe takes two intervals in a row that agree within a quarter as the flush interval: one alone
// may be a lost flush. They are told by the sidecar's clock: flushes that the network held up
// arrive at once.
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

// flushesEvery notes the flush interval that was observed. What was taken for a gap by the told one
// may be none.
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

// closeRow ends the newest row: what is still open about its counters is decided, and series that
// the flush did not hold are carried forward, so that an idle or evicted counter is 0 per second
// and not missing.
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

// countedBefore reports, when the first row closes, whether the pod's process may have counted
// before that flush. Counters are sent from their first use on, always: one that is not there has
// not been used lately.
func (t *table) countedBefore() bool {
	unknown, fresh := false, false
	for _, c := range t.columns {
		switch {
		case c.removed, c.class.kind == Gauge:
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
