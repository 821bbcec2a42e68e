package aggregator

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// Stream is one connection of a pod: the only writer of the pod's table while it is the one that counts (owner.go).
type Stream struct {
	store  *store
	table  *table
	pod    *Pod
	number uint64 // a newer stream of the store has a higher one
	from   sender

	// Under the table's mutex.
	proof Proof
	ended bool
	heard int64      // arrival of its newest message, 0 before the first
	lost  int64      // arrival of the message by which a stream that it does not know to be dead took over from it; 0: none did
	since int        // flushes since another stream counts
	stamp ring.Stamp // timestamp_ms of the newest of them

	clock    ring.Clock
	flushes  int      // flushes of this connection since it has owned the table
	firstRow ring.Row // the row of the first of them
	messages int      // messages of the newest one
	eviction eviction
	single   int         // how many flushes in a row were one message each
	timer    *time.Timer // closes the open row; nil before the first
}

// Connect opens a stream of the pod. Whether it counts is told at each of its messages.
func (s *store) Connect(p Pod) *Stream {
	st := &Stream{store: s, pod: &p, number: s.streams.Add(1), from: p.sender()}
	if st.identify(s.millis(time.Now())) == nil {
		st.table, _ = s.tables.get(s, &p) // nil: tried again at its first message
	}
	return st
}

// lock returns the pod's table with its mutex held: a new one where the stream's has been freed, or set aside after a fault. The error
// is that of a limit, with which there is none.
func (st *Stream) lock() (*table, error) {
	for {
		if st.table == nil {
			t, err := st.store.tables.get(st.store, st.pod)
			if err != nil {
				return nil, err
			}
			st.table = t
		}
		t := st.table
		t.mu.Lock()
		if t.aside.Load() != nil && !t.removed {
			t.discard()
		}
		if !t.removed {
			return t, nil
		}
		t.mu.Unlock()
		if st.timer != nil { // it is the old table's
			st.timer.Stop()
			st.timer = nil
		}
		st.table = nil
	}
}

// sameWorkload reports whether two pods of one name say the same of who they are.
func (p *Pod) sameWorkload(o *Pod) bool {
	return p.Workload == o.Workload && p.App == o.App && p.Version == o.Version && p.CanonicalService == o.CanonicalService && p.CanonicalRevision == o.CanonicalRevision
}

// Close ends the stream: its open row is closed. What it sent stays.
func (st *Stream) Close() {
	if st.table == nil {
		return
	}
	st.table.mu.Lock()
	defer st.table.mu.Unlock()
	if st.timer != nil {
		st.timer.Stop()
	}
	st.table.try(st.end)
}

// Commit takes a whole message that arrived at the given time. Samples that cannot be kept are counted and dropped one
// by one. The errors are ErrSuperseded, ErrAddress and ErrForeignPod, with which the whole message was dropped, ErrPods, with which nothing is known of the pod, and those of a limit that some of its samples
// met while the others were taken: ErrPodLimit, ErrSeriesLimit, ErrMemory, ErrOtherFlush; ErrSharedRow, with which nothing is lost but
// time between samples; ErrSetAside, with which all that the store knows of the pod was given up. Not safe for concurrent use.
func (st *Stream) Commit(arrival time.Time, b *Batch, d Describer) (err error) {
	at := st.store.millis(arrival)
	if err := st.identify(at); err != nil {
		st.store.metrics.drop(ErrAddress, len(b.Samples))
		return err
	}
	t, err := st.lock()
	if err != nil {
		st.store.metrics.drop(err, len(b.Samples))
		return err
	}
	defer t.mu.Unlock()
	defer t.contain(&err, len(b.Samples))
	if t.foreign {
		t.foreign = st.store.refuses(st.pod, at)
	}
	if st.proof = st.from.proof; t.foreign {
		st.store.metrics.drop(ErrForeignPod, len(b.Samples))
		return ErrForeignPod
	}
	if t.owner != st && !st.counts(at, ring.Stamp(b.Timestamp)) {
		st.store.metrics.drop(ErrSuperseded, len(b.Samples))
		return ErrSuperseded
	}
	st.heard, t.limit = at, nil
	t.posing(st.from.poses)
	st.enter(ring.Stamp(b.Timestamp), at)
	if b.Refused > 0 {
		t.refuse(at)
		t.torn = t.torn || b.Refused > b.RefusedAlways
	}
	if b.OtherForm {
		t.otherForm.Store(at)
	}
	for i := range b.Samples {
		if i%1024 == 1023 && b.Stopped != nil && b.Stopped.Load() {
			break
		}
		s := &b.Samples[i]
		if s.Timestamp != b.Timestamp { // a message is one row: what a few bytes can claim is bounded
			t.limit = ErrOtherFlush
			t.lost(ErrOtherFlush, at)
			continue
		}
		t.lost(t.take(s, b, i, d), at)
	}
	t.takeNew(b, at)
	t.settle(false)
	st.leave()
	return t.limit
}

// Missed says that a message of the stream, which arrived at the given time, was rejected as a whole: what its flush does not hold may
// have been in it. Where it was the next flush's, a counter that was in the newest one is missing from none that is taken for whole.
func (st *Stream) Missed(arrival time.Time) {
	t := st.table
	if t == nil { // refused at a limit
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owner == st && !t.removed {
		t.torn = true
		t.refuse(st.store.millis(arrival))
	}
}

// enter makes the flush of the timestamp the table's newest. A known timestamp after its row was closed gets a row more:
// what the first one holds is final.
func (st *Stream) enter(timestamp ring.Stamp, arrival int64) {
	t := st.table
	if t.open && t.timestamp == timestamp {
		st.messages++
		return
	}
	if st.messages == 1 {
		st.single++
	} else {
		st.single = 0
	}
	again := st.flushes > 0 && t.timestamp == timestamp
	t.beginRow(st, timestamp, arrival)
	st.messages = 1
	if again {
		st.single = 0
	}
}

// leave closes the row where the stream's flushes are one message each and this one is no part whose histograms are to come, else soon.
func (st *Stream) leave() {
	if st.single >= 2 && st.messages == 1 && !st.table.awaits() {
		st.table.closeRow()
		return
	}
	t := st.table
	t.closeAt = time.Now().Add(rowCloseDelay)
	if st.timer == nil {
		st.timer = time.AfterFunc(rowCloseDelay, t.late)
		return
	}
	st.timer.Reset(rowCloseDelay)
}

// awaits reports whether a request counter of the open flush is new and without its histogram, as in no other flush of the pod.
func (t *table) awaits() bool {
	return t.pairs && slices.ContainsFunc(t.pending, func(p pendingCounter) bool {
		return p.col.class.name == requestsName && p.col.partner == nil && p.col.row < 0 && !p.col.pastKnown
	})
}

// late closes a row for which no message has come in a while, whichever stream's timer tells. One that fired while a message was being
// taken finds a later time to close.
func (t *table) late() {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.contain(nil, 0)
	if !time.Now().Before(t.closeAt) {
		t.closeRow()
	}
}

// lost counts a sample that was dropped, if there is an error.
func (t *table) lost(err error, at int64) {
	if err == nil {
		return
	}
	if !errors.Is(err, ErrDuplicate) { // a duplicate loses nothing
		t.refuse(at)
	}
	t.torn = t.torn || errors.Is(err, ErrOtherFlush) // the others are of series that are not known
	t.store.metrics.drop(err, 1)
}

// take brings one sample to its column. Where the column has no block yet, it waits for takeNew.
func (t *table) take(s *Sample, b *Batch, i int, d Describer) error {
	c := t.find(s.Key)
	if c == nil {
		var err error
		if c, err = t.introduce(s, b, i, d); err != nil {
			return err
		}
	}
	if c.block.Load() == nil && s.Kind != Summary {
		t.await(c, s, b, i)
		return nil
	}
	return t.bring(c, s, b)
}

// find returns the column of a key, nil if there is none. It looks first where the last message went on from the sample before.
func (t *table) find(key uint64) *column {
	if c := t.cursor; c != nil {
		if c.key == key && !c.removed { // a histogram after its summary
			return c
		}
		if n := c.next; n != nil && n.key == key && !n.removed {
			t.cursor = n
			return n
		}
	}
	c := t.keys[key]
	if c == nil || c.removed {
		return nil
	}
	c.key = key
	if t.cursor != nil {
		t.cursor.next = c
	}
	t.cursor = c
	return c
}

// await keeps a sample until all of the message's new columns are known, so that their slots lie together.
func (t *table) await(c *column, s *Sample, b *Batch, i int) {
	t.fresh = append(t.fresh, freshSample{c, i})
	if c.waiting {
		return
	}
	c.waiting = true
	if c.intervals != nil {
		c.frame(t.store.layouts.of(b.Buckets[s.First:s.Last]), c.quantilesAt == s.stamp())
	}
}

// takeNew takes the samples that wait.
func (t *table) takeNew(b *Batch, at int64) {
	if len(t.fresh) == 0 {
		return
	}
	columns := make([]*column, 0, len(t.fresh))
	for _, f := range t.fresh {
		if f.column.waiting {
			f.column.waiting = false
			columns = append(columns, f.column)
		}
	}
	err := t.allocate(columns...)
	for _, f := range t.fresh {
		if f.column.removed {
			t.lost(err, at)
			continue
		}
		t.lost(t.bring(f.column, &b.Samples[f.sample], b), at)
	}
	t.fresh = nil // rarely needed again
}

// bring gives a sample to its column, which has its block.
func (t *table) bring(c *column, s *Sample, b *Batch) error {
	switch s.Kind {
	case Counter:
		return t.takeCounter(c, s)
	case Histogram:
		return t.takeHistogram(c, s, b.Buckets[s.First:s.Last])
	default:
		return t.takeSummary(c, s, b.Quantiles[s.First:s.Last])
	}
}

// introduce is the slow path, once per new series of a pod: it decodes name and labels and makes the column.
func (t *table) introduce(s *Sample, b *Batch, i int, d Describer) (*column, error) {
	if _, bad := t.unreadable[s.Key]; bad {
		return nil, ErrBadSeries
	}
	if t.flushTime-t.vainSince >= defaultFlushMs {
		t.vain, t.vainSince = 0, t.flushTime
	}
	if t.vain >= t.store.config.MaxSeriesPerPod {
		return nil, ErrBadSeries
	}
	kind := s.Kind
	if kind == Summary {
		kind = Histogram
	}
	describe := func() (string, []Label, error) {
		name, labels, err := d.Describe(i)
		return name, t.said(labels), err
	}
	if err := t.limited(); err != nil {
		if c := t.known(s.Key, t.space(b), kind, describe); c != nil {
			return c, nil
		}
		t.limit = err
		return nil, err
	}
	cl, err := t.classOf(s.Key, t.space(b), kind, describe)
	if errors.Is(err, ErrMemory) {
		return nil, t.short(err)
	}
	if err != nil {
		t.vain++
		if t.unreadable == nil {
			t.unreadable = map[uint64]struct{}{}
		}
		if len(t.unreadable) < maxUnreadable {
			t.unreadable[s.Key] = struct{}{}
		}
		return nil, errors.Join(ErrBadSeries, err)
	}
	if c := t.byClass[cl]; c != nil { // the same series under another name on the wire: the pod's naming mode has changed
		t.store.classes.release(cl)
		t.keys[s.Key], c.key = c, s.Key
		return c, nil
	}
	if err := t.affordSeries(expectedWords(s)); err != nil {
		t.store.classes.release(cl)
		return nil, t.short(err)
	}
	return t.addColumn(s.Key, cl), nil
}

// known returns the column of a series that comes under a new key while the table takes no new ones, nil if it is not known. What
// is refused is described once, and at most a few for each series that could be found: not at every flush of a flood.
func (t *table) known(key, space uint64, kind Kind, describe func() (string, []Label, error)) *column {
	if _, refused := t.strange[key]; refused || len(t.strange) >= 4*len(t.columns) || t.keysFull() {
		return nil
	}
	if c := t.byClass[t.store.classes.known(space, key, kind, describe)]; c != nil {
		t.keys[key], c.key = c, key
		return c
	}
	if t.strange == nil {
		t.strange = map[uint64]struct{}{}
	}
	t.strange[key] = struct{}{}
	return nil
}

// keysFull reports whether the table takes no key more. One series may come under many, by the order of its labels: they are bounded
// as the tombstones are.
func (t *table) keysFull() bool { return len(t.keys) >= 4*t.store.config.MaxSeriesPerPod }

// limited says why the table takes no new series, nil if it does.
func (t *table) limited() error {
	switch {
	case len(t.byClass) >= t.store.config.MaxSeriesPerPod || t.keysFull():
		return ErrPodLimit
	case t.shortOf != nil && t.shortAt == t.flushes:
		return t.shortOf
	}
	return nil
}

// classOf returns the class of a series, with a user more.
func (t *table) classOf(key, space uint64, kind Kind, describe func() (string, []Label, error)) (*class, error) {
	cs := t.store.classes
	if space != 0 {
		if cl := cs.recall(space^key, kind); cl != nil {
			return cl, nil
		}
	}
	name, ls, err := describe()
	if err != nil {
		return nil, err
	}
	cl := cs.acquire(t.sender, name, kind, ls)
	if cl == nil {
		return nil, ErrMemory
	}
	if space != 0 {
		cs.remember(space^key, cl)
	}
	return cl, nil
}

// maxUnreadable bounds the keys of a pod that are remembered as unreadable, so that they are decoded once and not every flush.
const maxUnreadable = 1024

func (t *table) addColumn(key uint64, cl *class) *column {
	const never = math.MinInt64
	c := &column{class: cl, table: t, key: key, row: -1, flush: neverSeen, timestamp: never}
	if cl.kind == Histogram {
		c.intervals = &intervals{intervalAt: never, quantilesAt: never}
	}
	if t.keys == nil {
		t.keys, t.byClass = map[uint64]*column{}, map[*class]*column{}
	}
	t.keys[key] = c
	t.byClass[cl] = c
	t.columns = append(t.columns, c)
	if tomb, ok := t.past.get(key); ok {
		c.raw, c.total, c.past, c.pastKnown, c.flush = tomb.raw, tomb.total, tomb.total, true, tomb.flush
	}
	t.pair(c)
	t.store.classes.join(c)
	t.watchEpoch, t.rangeEpoch = 0, 0
	return c
}

// pair links a request counter with the duration histogram of its label set, whichever comes first.
func (t *table) pair(c *column) {
	other, kind := durationsName, Histogram
	switch {
	case c.class.kind == Counter && c.class.name == requestsName:
	case c.class.kind == Histogram && c.class.name == durationsName:
		other, kind = requestsName, Counter
	default:
		return
	}
	if o := t.byClass[t.store.classes.sibling(c.class, other, kind)]; o != nil {
		c.partner, o.partner = o, c
		t.pairs = true
	}
}

// The two that are paired.
const (
	requestsName  = "istio_requests_total"
	durationsName = "istio_request_duration_milliseconds"
)

// stamp is the sample's timestamp, which is by the sidecar's clock.
func (s *Sample) stamp() ring.Stamp { return ring.Stamp(s.Timestamp) }

// mark notes that the open flush holds the series, and returns the flush that held it last.
func (t *table) mark(c *column, s *Sample) (last uint32) {
	last = c.flush
	c.flush, c.timestamp, c.seen = uint32(t.flushes), s.stamp(), t.flushTime
	return last
}

func (t *table) takeCounter(c *column, s *Sample) error {
	if c.timestamp == s.stamp() {
		return ErrDuplicate
	}
	last := t.mark(c, s)
	if t.store.config.CountersAsDeltas {
		if c.row < 0 && !c.pastKnown {
			c.pastKnown = true
		}
		c.total += s.Value
		t.publish(c)
		return nil
	}
	if t.broken || last != uint32(t.flushes-1) {
		t.pending = append(t.pending, pendingCounter{c, s.Value, last})
		return nil
	}
	h := c.partner
	if h != nil && suspicious(s.Value-c.raw, h) {
		t.suspects = append(t.suspects, pendingCounter{c, s.Value, last})
		return nil
	}
	step := t.advance(c, s.Value, s.Value < c.raw)
	if h == nil {
		return nil
	}
	h.step, h.stepFlush = step, c.flush
	if h.intervalAt == s.stamp() { // it has come before
		t.compare(h)
	}
	return nil
}

// publish writes a counter's value to the open row, where the flush has one.
func (t *table) publish(c *column) {
	if !t.held {
		c.writeCounter(&t.ring)
	}
}

// advance brings a counter to a value, and returns by how much. After a reset all of it is new.
func (t *table) advance(c *column, raw float64, reset bool) (step float64) {
	step = raw
	if reset {
		t.store.metrics.resets.Inc()
	} else {
		step -= c.raw
	}
	c.raw, c.total = raw, c.total+step
	t.publish(c)
	return step
}

func (t *table) takeHistogram(c *column, s *Sample, buckets []Bucket) error {
	if c.intervalAt == s.stamp() {
		return ErrDuplicate
	}
	if !c.layout.holds(buckets) { // bounds are bootstrap: this is another process under the pod's name
		var err error
		if c, err = t.rebound(c, s.Key, s.stamp(), buckets); err != nil {
			return err
		}
	}
	t.mark(c, s)
	t.count(c, buckets, s.Count, s.Value, s.stamp())
	return nil
}

// rebound puts a column with other bounds in a histogram's place, whose flush has the timestamp. The error is that of a limit: then
// the histogram is gone.
func (t *table) rebound(c *column, key uint64, timestamp ring.Stamp, buckets []Bucket) (*column, error) {
	cl := c.class
	t.store.classes.retain(cl)
	t.drop(c) // it leaves t.columns with the row
	t.store.metrics.rebounded.Inc()
	if err := t.affordSeries(ring.Histogram(len(buckets), true).Words()); err != nil {
		t.store.classes.release(cl)
		return nil, t.short(err)
	}
	n := t.addColumn(key, cl)
	n.quantiles, n.quantilesAt, n.seen = c.quantiles, c.quantilesAt, c.seen
	n.frame(t.store.layouts.of(buckets), n.quantilesAt == timestamp)
	return n, t.allocate(n)
}

// count adds an interval to a histogram and publishes the row, where the flush has one.
func (t *table) count(c *column, buckets []Bucket, count uint64, sum float64, timestamp ring.Stamp) {
	c.interval, c.intervalAt = count, timestamp
	c.total += sum
	if t.held {
		c.hold(buckets, count)
	} else {
		c.writeInterval(&t.ring, buckets, count, c.quantilesAt == timestamp)
	}
	t.compare(c)
}

// takeSummary keeps the quantiles for the histogram that follows. A sidecar that sends summaries alone gets a histogram
// without buckets: its count and sum.
func (t *table) takeSummary(c *column, s *Sample, quantiles []float64) error {
	if c.quantilesAt == s.stamp() {
		return ErrDuplicate
	}
	// The one before came without a histogram, or this is a process whose clock is behind: a histogram that follows tells.
	alone := c.layout == nil || len(c.layout.bounds) == 0 || c.quantilesAt > c.intervalAt || s.stamp() < c.intervalAt
	c.quantilesAt, c.seen = s.stamp(), t.flushTime
	fine.Pack(quantiles, t.pod.Load().InclusiveBounds, &c.quantiles)
	if alone && c.intervalAt != s.stamp() {
		t.summaries = append(t.summaries, pendingSummary{c, s.Count, s.Value})
	}
	return nil
}

// addSummary counts a summary for which the whole flush had no histogram. Where the series has buckets this is another process under
// the pod's name, one that sends none.
func (t *table) addSummary(p pendingSummary) {
	c := p.col
	if c.removed || c.intervalAt == c.quantilesAt {
		return
	}
	var err error
	switch {
	case c.block.Load() == nil:
		c.frame(t.store.layouts.of(nil), true)
		err = t.allocate(c)
	case len(c.layout.bounds) > 0:
		c, err = t.rebound(c, c.key, c.quantilesAt, nil)
	}
	if err != nil {
		t.lost(err, t.flushTime)
		return
	}
	c.flush, c.timestamp = uint32(t.flushes), c.quantilesAt
	t.count(c, nil, p.count, p.sum, c.quantilesAt)
}
