package aggregator

import (
	"errors"
	"math"
	"slices"
	"time"
)

// Stream is one connection of a pod: the only writer of the pod's table until a newer connection takes over.
type Stream struct {
	store *Store
	table *table
	pod   *Pod

	// Under the table's mutex.
	clock    rowClock
	flushes  int         // flushes of this connection
	messages int         // messages of the newest one
	single   int         // how many flushes in a row were one message each
	timer    *time.Timer // closes the open row; nil before the first
}

// Connect opens a stream of the pod. It owns the pod's table from now on; an older stream's samples are dropped.
func (s *Store) Connect(p Pod) *Stream {
	st := &Stream{store: s, pod: &p}
	st.own()
	return st
}

// own makes the stream the owner of its pod's table.
func (st *Stream) own() {
	for {
		t := st.store.tables.get(st.store, st.pod)
		t.mu.Lock()
		if t.removed { // freed between the look-up and the lock
			t.mu.Unlock()
			continue
		}
		t.closeRow()
		t.owner = st
		t.pod.Store(st.pod)
		if st.timer != nil { // it is the old table's
			st.timer.Stop()
			st.timer = nil
		}
		st.table = t
		t.mu.Unlock()
		return
	}
}

// Close ends the stream: its open row is closed. What it sent stays.
func (st *Stream) Close() {
	st.table.mu.Lock()
	defer st.table.mu.Unlock()
	if st.timer != nil {
		st.timer.Stop()
	}
	if st.table.owner == st {
		st.table.closeRow()
		st.table.owner = nil
	}
}

// Commit takes a whole message that arrived at the given time. Samples that cannot be kept are counted and dropped one
// by one. The errors are ErrSuperseded, with which the whole message was dropped, and those of a limit that some of its samples
// met while the others were taken: ErrPodLimit, ErrSeriesLimit, ErrMemory; ErrSharedRow, with which nothing is lost but time
// between samples. Not safe for concurrent use.
func (st *Stream) Commit(arrival time.Time, b *Batch, d Describer) error {
	t := st.table
	t.mu.Lock()
	if t.removed {
		t.mu.Unlock()
		st.own()
		t = st.table
		t.mu.Lock()
	}
	defer t.mu.Unlock()
	if t.owner != st {
		st.store.metrics.drop(ErrSuperseded, len(b.Samples))
		return ErrSuperseded
	}
	t.limit = nil
	at := st.store.millis(arrival)
	st.enter(b.Timestamp, at)
	if b.Refused > 0 {
		t.refuse(at)
	}
	for i := range b.Samples {
		s := &b.Samples[i]
		if s.Timestamp != t.timestamp {
			st.enter(s.Timestamp, at)
		}
		if err := t.take(s, b, i, d); err != nil {
			if !errors.Is(err, ErrDuplicate) { // a duplicate loses nothing
				t.refuse(at)
			}
			st.store.metrics.drop(err, 1)
		}
	}
	t.settle(false)
	st.leave()
	return t.limit
}

// enter makes the flush of the timestamp the table's newest. A known timestamp after its row was closed gets a row more:
// what the first one holds is final.
func (st *Stream) enter(timestamp, arrival int64) {
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
		st.single, t.broken = 0, false
	}
}

// leave closes the row where the stream's flushes are one message each, else soon.
func (st *Stream) leave() {
	if st.single >= 2 && st.messages == 1 {
		st.table.closeRow()
		return
	}
	t := st.table
	t.closeAt = time.Now().Add(rowCloseDelay)
	if st.timer == nil {
		st.timer = time.AfterFunc(rowCloseDelay, func() { t.late(st) })
		return
	}
	st.timer.Reset(rowCloseDelay)
}

// late closes a row for which no message has come in a while. A timer that fired while a message was being taken finds a later
// time to close.
func (t *table) late(st *Stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owner == st && !time.Now().Before(t.closeAt) {
		t.closeRow()
	}
}

// take brings one sample to its column.
func (t *table) take(s *Sample, b *Batch, i int, d Describer) error {
	c := t.keys[s.Key]
	if c == nil || c.removed {
		var err error
		if c, err = t.introduce(s, i, d); err != nil {
			return err
		}
	}
	switch s.Kind {
	case Counter:
		return t.takeCounter(c, s)
	case Histogram:
		return t.takeHistogram(c, s, b.Buckets[s.First:s.Last], s.Key)
	default:
		return t.takeSummary(c, s, b.Quantiles[s.First:s.Last])
	}
}

// introduce is the slow path, once per new series of a pod: it decodes name and labels and makes the column.
func (t *table) introduce(s *Sample, i int, d Describer) (*column, error) {
	if _, bad := t.unreadable[s.Key]; bad {
		return nil, ErrBadSeries
	}
	if err := t.limited(); err != nil {
		t.past.lost, t.limit = true, err
		return nil, err
	}
	name, ls, err := d.Describe(i)
	if err != nil {
		if len(t.unreadable) < maxUnreadable {
			t.unreadable[s.Key] = struct{}{}
		}
		return nil, errors.Join(ErrBadSeries, err)
	}
	kind := s.Kind
	if kind == Summary {
		kind = Histogram
	}
	cl := t.store.classes.acquire(name, kind, ls)
	if c := t.byClass[cl]; c != nil { // the same series under another name on the wire: the pod's naming mode has changed
		t.store.classes.release(cl)
		t.keys[s.Key] = c
		return c, nil
	}
	return t.addColumn(s.Key, cl), nil
}

// limited says why the table takes no new series, nil if it does. One series may come under many keys, by the order of its
// labels: they are bounded as the tombstones are.
func (t *table) limited() error {
	most := t.store.config.MaxSeriesPerPod
	switch {
	case len(t.columns) >= most || len(t.keys) >= 4*most:
		return ErrPodLimit
	case t.store.series.Load() >= int64(t.store.config.MaxSeries):
		return ErrSeriesLimit
	case t.store.full.Load():
		return ErrMemory
	}
	return nil
}

// maxUnreadable bounds the keys of a pod that are remembered as unreadable, so that they are decoded once and not every flush.
const maxUnreadable = 1024

func (t *table) addColumn(key uint64, cl *class) *column {
	const never = math.MinInt64
	c := &column{class: cl, table: t, row: -1, flush: math.MaxUint32, timestamp: never}
	if cl.kind == Histogram {
		c.intervals = &intervals{intervalAt: never, quantilesAt: never}
	}
	t.store.series.Add(1)
	t.keys[key] = c
	t.byClass[cl] = c
	t.columns = append(t.columns, c)
	if cl.kind == Counter {
		c.allocate(t.ring.gen)
		if tomb, ok := t.past.values[key]; ok {
			c.raw, c.total, c.past, c.pastKnown = tomb.raw, tomb.total, tomb.total, true
		}
	}
	t.pair(c)
	t.store.classes.join(c)
	t.watchEpoch = 0
	return c
}

// pair links a request counter with the duration histogram of its label set, whichever comes first.
func (t *table) pair(c *column) {
	const requests, durations = "istio_requests_total", "istio_request_duration_milliseconds"
	other, kind := durations, Histogram
	switch {
	case c.class.kind == Counter && c.class.name == requests:
	case c.class.kind == Histogram && c.class.name == durations:
		other, kind = requests, Counter
	default:
		return
	}
	if o := t.byClass[t.store.classes.sibling(c.class, other, kind)]; o != nil {
		c.partner, o.partner = o, c
	}
}

// mark notes that the open flush holds the series, and returns the flush that held it last.
func (t *table) mark(c *column, s *Sample) (last uint32) {
	last = c.flush
	c.flush, c.timestamp, c.seen = uint32(t.flushes), s.Timestamp, t.flushTime
	return last
}

func (t *table) takeCounter(c *column, s *Sample) error {
	if c.timestamp == s.Timestamp {
		return ErrDuplicate
	}
	last := t.mark(c, s)
	if t.store.config.CountersAsDeltas {
		if c.row < 0 && !c.pastKnown {
			c.pastKnown = true
		}
		c.total += s.Value
		t.publish(c, false)
		return nil
	}
	if t.broken || last != uint32(t.flushes-1) {
		t.pending = append(t.pending, pendingCounter{c, s.Value})
		return nil
	}
	t.advance(c, s.Value, s.Value < c.raw)
	c.stepAt = s.Timestamp
	return nil
}

// publish writes the column's values to the open row, where the flush has one.
func (t *table) publish(c *column, withQuantiles bool) {
	if !t.held {
		c.write(t.ring.row, withQuantiles)
	}
}

// advance brings a counter to a value. After a reset all of it is new.
func (t *table) advance(c *column, raw float64, reset bool) {
	c.step = raw
	if reset {
		t.store.metrics.resets.Inc()
	} else {
		c.step -= c.raw
	}
	c.raw, c.total = raw, c.total+c.step
	t.publish(c, false)
}

func (t *table) takeHistogram(c *column, s *Sample, buckets []Bucket, key uint64) error {
	if c.intervalAt == s.Timestamp {
		return ErrDuplicate
	}
	switch {
	case c.block.Load() == nil: // its first histogram
		c.layout = t.store.layouts.of(buckets)
		c.summed = c.quantilesAt == s.Timestamp
		c.pastKnown = true
		c.allocate(t.ring.gen)
	case !c.layout.holds(buckets): // bounds are bootstrap: this is another process under the pod's name
		cl := c.class
		t.store.classes.retain(cl)
		t.drop(c)
		t.columns = slices.DeleteFunc(t.columns, func(o *column) bool { return o == c })
		t.store.metrics.rebounded.Inc()
		n := t.addColumn(key, cl)
		n.quantiles, n.quantilesAt = c.quantiles, c.quantilesAt
		return t.takeHistogram(n, s, buckets, key)
	}
	t.mark(c, s)
	c.interval, c.intervalAt = s.Count, s.Timestamp
	c.add(buckets, s.Count, s.Value)
	t.publish(c, c.quantilesAt == s.Timestamp)
	t.compare(c)
	return nil
}

// takeSummary keeps the quantiles for the histogram that follows. A sidecar that sends summaries alone gets a histogram
// without buckets: its count and sum.
func (t *table) takeSummary(c *column, s *Sample, quantiles []float64) error {
	if c.quantilesAt == s.Timestamp {
		return ErrDuplicate
	}
	c.quantilesAt, c.seen = s.Timestamp, t.flushTime
	for i := range c.quantiles {
		c.quantiles[i] = 0
		if i < len(quantiles) {
			c.quantiles[i] = quantileCode(quantiles[i])
		}
	}
	if (c.layout == nil || len(c.layout.bounds) == 0) && c.intervalAt != s.Timestamp {
		t.summaries = append(t.summaries, pendingSummary{c, s.Count, s.Value})
	}
	return nil
}

// addSummary counts a summary for which the whole flush had no histogram.
func (t *table) addSummary(p pendingSummary) {
	c := p.col
	if c.removed || c.intervalAt == c.quantilesAt || c.layout != nil && len(c.layout.bounds) > 0 {
		return
	}
	if c.block.Load() == nil {
		c.layout, c.summed, c.pastKnown = t.store.layouts.of(nil), true, true
		c.allocate(t.ring.gen)
	}
	c.flush, c.timestamp = uint32(t.flushes), c.quantilesAt
	c.interval, c.intervalAt = p.count, c.quantilesAt
	c.add(nil, p.count, p.sum)
	t.publish(c, true)
	t.compare(c)
}
