package aggregator

import (
	"errors"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// Commit takes a whole message that arrived at the given time. Samples that cannot be kept are
// counted and dropped one by one. The errors are ErrSuperseded, ErrAddress, ErrIdentity,
// ErrDowngrade and ErrForeignPod, with which the whole message was dropped, ErrPods, with which
// nothing is known of the pod, and those of a limit that some of its samples met while the others
// were taken: ErrPodLimit, ErrSeriesLimit, ErrMemory, ErrOtherFlush; ErrSharedRow, with which
// nothing is lost but time between samples; ErrSetAside, with which all that the store knows of the
// pod was given up. Not safe for concurrent use.
func (st *Stream) Commit(arrival time.Time, b *Batch, d Describer) (err error) {
	at := st.store.millis(arrival)
	if err := st.identify(at); err != nil {
		st.store.metrics.drop(err, len(b.Samples))
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
	if t.owner != st {
		if err := st.counts(at, ring.Stamp(b.Timestamp)); err != nil {
			st.store.metrics.drop(err, len(b.Samples))
			return err
		}
	}
	t.prove(st)
	st.heard, t.limit = at, nil
	t.posing(st.from.poses)
	before := t.rowTime
	if st.enter(ring.Stamp(b.Timestamp), at); st.messages == 1 {
		t.beginReading(b.Asked, before)
	}
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

// find returns the column of a key, nil if there is none. It looks first where the last message
// went on from the sample before.
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

// await keeps a sample until all of the message's new columns are known, so that their slots lie
// together.
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
	case Gauge:
		return t.takeGauge(c, s)
	default:
		return t.takeSummary(c, s, b.Quantiles[s.First:s.Last])
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

// takeGauge takes a gauge's value as it is: a process that begins anew begins with its own.
func (t *table) takeGauge(c *column, s *Sample) error {
	if c.timestamp == s.stamp() {
		return ErrDuplicate
	}
	t.mark(c, s)
	c.total = s.Value
	t.publish(c)
	return nil
}

// publish writes a counter's or gauge's value to the open row, where the flush has one.
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

// rebound puts a column with other bounds in a histogram's place, whose flush has the timestamp.
// The error is that of a limit: then the histogram is gone.
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

// takeSummary keeps the quantiles for the histogram that follows. A sidecar that sends summaries
// alone gets a histogram without buckets: its count and sum.
func (t *table) takeSummary(c *column, s *Sample, quantiles []float64) error {
	if c.quantilesAt == s.stamp() {
		return ErrDuplicate
	}
	// The one before came without a histogram, or this is a process whose clock is behind: a
	// histogram that follows tells.
	alone := c.layout == nil || len(c.layout.bounds) == 0 || c.quantilesAt > c.intervalAt || s.stamp() < c.intervalAt
	c.quantilesAt, c.seen = s.stamp(), t.flushTime
	fine.Pack(quantiles, t.pod.Load().InclusiveBounds, &c.quantiles)
	if alone && c.intervalAt != s.stamp() {
		t.summaries = append(t.summaries, pendingSummary{c, s.Count, s.Value})
	}
	return nil
}

// addSummary counts a summary for which the whole flush had no histogram. Where the series has
// buckets this is another process under the pod's name, one that sends none.
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
