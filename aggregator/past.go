package aggregator

// A counter's past. Between consecutive flushes of a stream the stored value is the past (but where
// the interval contradicts, see judge). Where a counter comes back in a stream whose flushes
// meanwhile are known to be whole, it has gone on or begun anew (comeBack). Otherwise (first flush
// of a pod, a reconnect, a restart of either side, a lost flush) it is the value minus the interval
// count of the duration histogram of the same labels in the same flush: what the counter was one
// flush earlier. Exact in 259 of 261 captured flushes; at 54,000 requests a second off by up to 26
// either way, since Envoy does not snapshot the two at one instant.

// pairTolerance is how far a counter's step and its histogram's interval count may lie apart and
// still be the same.
func pairTolerance(interval float64) float64 { return max(1, 0.002*interval) }

// pendingCounter is a counter that waits for its histogram's interval.
type pendingCounter struct {
	col  *column
	raw  float64
	last uint32 // number of the flush that held it before
}

// settle decides what is pending: counters whose interval is known by now, and when the row closes
// all of them.
func (t *table) settle(closing bool) {
	t.pending = t.settled(t.pending, closing, t.resolve)
	t.suspects = t.settled(t.suspects, closing, t.judge)
}

// settled decides those of a list that can be by now, and returns the rest.
func (t *table) settled(ps []pendingCounter, closing bool, decide func(p pendingCounter, interval float64, known bool)) []pendingCounter {
	kept := ps[:0]
	for _, p := range ps {
		interval, ok := t.interval(p.col)
		switch {
		case p.col.removed:
		case ok || closing:
			decide(p, interval, ok)
		default:
			kept = append(kept, p)
		}
	}
	return kept
}

// interval returns how many requests of the counter's label set the open flush's histogram holds.
func (t *table) interval(c *column) (float64, bool) {
	p := c.partner
	if p == nil || p.removed || p.intervalAt != c.timestamp {
		return 0, false
	}
	return float64(p.interval), true
}

// resolve brings a counter to a value whose predecessor is not of the flush before.
func (t *table) resolve(p pendingCounter, interval float64, intervalKnown bool) {
	c, raw := p.col, p.raw
	// There is a stored value: a row's, a tombstone's, or of a flush that shares a row still to
	// come.
	known := c.row >= 0 || c.pastKnown || c.raw > 0
	if h := c.partner; h != nil {
		h.strikes, h.ahead = 0, 0
	}
	switch absent := uint32(t.flushes) - 1 - p.last; {
	case known && t.unread(c, p.last):
		c.raw = max(0, raw-interval)
		t.advance(c, raw, false)
		return
	case known && absent < t.whole && (c.row >= 0 || !t.refusedLately()): // a freed one may be among the refused
		t.comeBack(c, raw, absent, interval, intervalKnown)
		return
	case known && !intervalKnown:
		t.advance(c, raw, raw < c.raw)
		return
	case !intervalKnown:
		c.raw, c.total = raw, raw
		c.pastKnown = t.startsFromZero(c)
		t.publish(c)
		return
	}
	past, tolerance := max(0, raw-interval), pairTolerance(interval)
	if known && (within(past, c.raw, tolerance) || past > tolerance && continues(past, c.raw, interval)) {
		past = c.raw
	} else if past <= tolerance {
		past = 0
	}
	if known {
		if (t.whole > 0 || t.atOnce) && p.last != uint32(t.flushes)-1 { // what it had counted before was not in the flush before: it was lost earlier
			c.raw = past
		}
		t.advance(c, raw, raw < c.raw || past < c.raw)
		return
	}
	if past > 0 && t.flushes == 1 {
		t.begun.Store(true)
	}
	c.raw, c.total, c.past, c.pastKnown = raw, raw, past, true
	t.publish(c)
}

// comeBack brings a counter to a value after so many flushes, all of them known to be whole, in
// which its sidecar left it out. Envoy leaves a counter out when an eviction period has passed
// without a request, and sends it again when there is one: by then it has counted on from its last
// value, or, where a whole period more had passed, begun anew. So one that is not above its last
// value began anew, and one that is did what is nearer to its histogram's interval, or what the
// period tells. Where nothing tells, the smaller of the two is counted.
func (t *table) comeBack(c *column, raw float64, absent uint32, interval float64, intervalKnown bool) {
	e, last := &t.owner.eviction, c.raw
	var anew bool
	switch {
	case raw < last:
		anew = true
		e.restarted(absent)
	case intervalKnown && raw == last: // nothing or all of it; a histogram of nothing is of a counter that has not moved
		anew = interval >= raw/2 && raw > 0
		e.observe(absent, interval == raw, interval == 0)
	case intervalKnown:
		anew = interval > raw-last/2
		e.observe(absent, interval == raw, interval == raw-last)
	case raw == last:
		anew = raw > 0
		e.restarted(absent)
	default:
		var certain bool
		if anew, certain = e.tells(absent, t.toldEviction()); !certain {
			t.store.metrics.ambiguous.Inc()
		}
	}
	t.advance(c, raw, anew)
}

// eviction is what a stream has shown of after how many flushes of absence its counters begin anew.
type eviction struct {
	kept uint32 // the longest absence after which a counter went on
	gone uint32 // the shortest after which one began anew, 0: none yet
}

func (e *eviction) observe(absent uint32, anew, on bool) {
	switch {
	case anew:
		e.restarted(absent)
	case on:
		e.wentOn(absent)
	}
}

func (e *eviction) restarted(absent uint32) {
	if e.gone == 0 || absent < e.gone {
		e.gone = absent
	}
	e.kept = min(e.kept, e.gone-1)
}

func (e *eviction) wentOn(absent uint32) {
	e.kept = max(e.kept, absent)
	if e.gone <= e.kept {
		e.gone = 0
	}
}

// tells says whether a counter began anew after an absence, and whether that is certain. The told
// period is in flushes, 0: none.
func (e *eviction) tells(absent, told uint32) (anew, certain bool) {
	switch {
	case e.gone > 0 && absent >= e.gone:
		return true, true
	case absent <= e.kept:
		return false, true
	}
	return told > 0 && absent >= told, told > 0
}

// toldEviction is the eviction period that the pod tells, in flushes: Envoy counts those. 0: it
// tells none.
func (t *table) toldEviction() uint32 {
	p := t.pod.Load()
	period, flush, observed := p.EvictionInterval.Milliseconds(), p.FlushInterval.Milliseconds(), t.flush.Load()
	if period <= 0 {
		return 0
	}
	if flush <= 0 {
		flush = defaultFlushMs
		if d := observed - flush; max(d, -d) > flush/4 {
			flush = observed
		}
	}
	return uint32(max(1, (period+flush/2)/flush))
}

// continues reports whether a past just below the last value belongs to the same process. An Envoy
// that is short of CPU takes its counters after its histograms: what came in between is in this
// flush's counter and in the next one's interval, which then tells a past that is too small by as
// many requests (a chaos run on a machine under load counted all of a counter at a reconnect). A
// quarter of an interval is more than one second of standing still. To take that for a restart
// would count all that the counter ever counted; to take a restart for that loses the requests of
// flushes that nobody received.
func continues(past, last, interval float64) bool { return past < last && last-past <= interval/4 }

func within(a, b, tolerance float64) bool { return a-b <= tolerance && b-a <= tolerance }

// startsFromZero reports whether a series without a histogram that the table has never seen is new
// in the sidecar too. In a stream's first flush it may be as old as the sidecar; later it was not
// there a flush ago, unless that was not whole or not read for it, or we may have forgotten it. A
// request counter alone, in a pod whose others come with histograms, is no new series: its name has
// been damaged on the way, or its histogram's, and all that it ever counted is not of this flush.
func (t *table) startsFromZero(c *column) bool {
	if t.pairs && c.class.name == requestsName {
		return false
	}
	return t.owner.flushes > 1 && !t.past.lost && !t.refusedLately() && !t.unread(c, neverSeen)
}

// agreement is how many rows a pair has to agree before its interval is believed against its
// counter, and givenUp how many in succession may contradict before it is not any more.
const (
	agreement = 10
	givenUp   = 3
)

// suspectStep is the step of a counter beyond which its interval is asked, requests in a flush.
const suspectStep = 1_000

// contradicts reports whether a counter cannot have made a step in an interval that counted so many
// requests. The two may lie apart by what came between their snapshots, which the next flush evens
// out, but not so far: what the step was behind before is no part of it.
func contradicts(step, interval float64, histogram *column) bool {
	evened := step + min(0, float64(histogram.ahead))
	return step < 0 || evened-interval > suspectStep && evened > 10*interval
}

// suspicious reports whether a step of a counter between consecutive flushes is held against its
// interval before it counts.
func suspicious(step float64, histogram *column) bool {
	return histogram.agreed == agreement && (step > suspectStep || step < 0 || histogram.strikes > 0)
}

// judge brings a counter to a value that is suspicious. Where the interval of the same flush
// contradicts, the interval counts, and the counter is taken to be where it should: it may come
// back there, or go on from where it is. No interval is no evidence.
func (t *table) judge(p pendingCounter, interval float64, known bool) {
	c, raw, h := p.col, p.raw, p.col.partner
	if h == nil || h.removed {
		t.advance(c, raw, raw < c.raw)
		return
	}
	if h.strikes > 0 && raw >= h.step { // it may go on from the value that was not believed
		tolerance := pairTolerance(interval)
		goesOn := !within(raw-c.raw, interval, tolerance) && within(raw-h.step, interval, tolerance)
		if !known { // the smaller step
			goesOn = h.step > c.raw || raw < c.raw
		}
		if goesOn {
			c.raw = h.step
		}
	}
	if !known || !contradicts(raw-c.raw, interval, h) {
		h.strikes = 0
		h.step, h.stepFlush = t.advance(c, raw, raw < c.raw), uint32(t.flushes)
		if known {
			t.compare(h)
		}
		return
	}
	if raw < c.raw {
		t.store.metrics.resets.Inc()
	}
	t.store.metrics.contradicted.Inc()
	h.step = raw
	c.raw, c.total = c.raw+interval, c.total+interval
	t.publish(c)
	if h.strikes++; h.strikes == givenUp {
		c.raw = raw
		t.unpair(h)
	}
}

// compare gives up a pair whose two sides do not count the same (a Telemetry override may rename
// the tags of one): such a histogram does not tell its counter's past. One that has long agreed may
// be off once, by what came between the snapshots of an Envoy that is short of CPU: the next flush
// evens it out. Steps that stand on the histogram themselves are not compared.
func (t *table) compare(h *column) {
	if h.partner == nil || h.stepFlush != uint32(t.flushes) {
		return
	}
	interval := float64(h.interval)
	tolerance := pairTolerance(interval)
	switch {
	case within(h.step+float64(h.ahead), interval, tolerance):
		h.agreed, h.ahead = min(h.agreed+1, agreement), 0
	case within(h.step, interval, tolerance):
		h.agreed, h.ahead = 1, 0
	case h.agreed == agreement && h.ahead == 0:
		h.ahead = float32(h.step - interval)
	default:
		t.unpair(h)
	}
}

func (t *table) unpair(histogram *column) {
	histogram.partner.partner, histogram.partner = nil, nil
	t.store.metrics.unpaired.Inc()
}
