package aggregator

// A counter's past. Between consecutive flushes of a stream the stored value is the past. Otherwise (first flush of a pod, a
// reconnect, a restart of either side, a return after absence) it is the value minus the interval count of the duration
// histogram of the same labels in the same flush: what the counter was one flush earlier. Exact in 259 of 261 captured
// flushes; at 54,000 requests a second off by up to 26 either way, since Envoy does not snapshot the two at one instant.

// pairTolerance is how far a counter's step and its histogram's interval count may lie apart and still be the same.
func pairTolerance(interval float64) float64 { return max(1, 0.002*interval) }

// settle decides what is pending: counters whose interval is known by now, and when the row closes all of them.
func (t *table) settle(closing bool) {
	kept := t.pending[:0]
	for _, p := range t.pending {
		interval, ok := t.interval(p.col)
		if !ok && !closing {
			kept = append(kept, p)
			continue
		}
		t.resolve(p.col, p.raw, interval, ok)
	}
	t.pending = kept
	if closing { // rarely needed again: not worth 16 bytes a counter
		t.pending = nil
	}
}

// interval returns how many requests of the counter's label set the open flush's histogram holds.
func (t *table) interval(c *column) (float64, bool) {
	p := c.partner
	if p == nil || p.removed || p.intervalAt != c.timestamp {
		return 0, false
	}
	return float64(p.interval), true
}

// resolve brings a counter to a value whose predecessor is not the stored one.
func (t *table) resolve(c *column, raw, interval float64, intervalKnown bool) {
	if c.removed {
		return
	}
	// There is a stored value: a row's, a tombstone's, or of a flush that shares a row still to come.
	known := c.row >= 0 || c.pastKnown || c.raw > 0
	if !intervalKnown {
		switch {
		case known:
			t.advance(c, raw, raw < c.raw)
		default:
			c.raw, c.total = raw, raw
			c.pastKnown = t.startsFromZero(c)
			t.publish(c)
		}
		return
	}
	past, tolerance := max(0, raw-interval), pairTolerance(interval)
	if known && (within(past, c.raw, tolerance) || past > tolerance && continues(past, c.raw, interval)) {
		past = c.raw
	} else if past <= tolerance {
		past = 0
	}
	if known {
		t.advance(c, raw, raw < c.raw || past < c.raw)
		return
	}
	if past > 0 && t.flushes == 1 {
		t.begun.Store(true)
	}
	c.raw, c.total, c.past, c.pastKnown = raw, raw, past, true
	t.publish(c)
}

// continues reports whether a past just below the last value belongs to the same process. An Envoy that is short of CPU takes its
// counters after its histograms: what came in between is in this flush's counter and in the next one's interval, which then
// tells a past that is too small by as many requests (a chaos run on a machine under load counted all of a counter at a reconnect). A quarter of an interval is more than one
// second of standing still. To take that for a restart would count all that the counter ever counted; to take a restart for that
// loses the requests of flushes that nobody received.
func continues(past, last, interval float64) bool { return past < last && last-past <= interval/4 }

func within(a, b, tolerance float64) bool { return a-b <= tolerance && b-a <= tolerance }

// startsFromZero reports whether a series without a histogram that the table has never seen is new in the sidecar too.
// In a stream's first flush it may be as old as the sidecar; later it was not there a flush ago, unless we may have
// forgotten or refused it. A request counter alone, in a pod whose others come with histograms, is no new series: its name has
// been damaged on the way, or its histogram's, and all that it ever counted is not of this flush.
func (t *table) startsFromZero(c *column) bool {
	if t.pairs && c.class.name == requestsName {
		return false
	}
	return t.owner.flushes > 1 && !t.past.lost && !t.refusedLately()
}

// compare gives up a pair whose two sides do not count the same (a Telemetry override may rename the tags of one): such a
// histogram does not tell its counter's past. Steps that stand on the histogram themselves are not compared.
func (t *table) compare(histogram *column) {
	c := histogram.partner
	if c == nil || histogram.stepAt != histogram.intervalAt {
		return
	}
	interval := float64(histogram.interval)
	if within(histogram.step, interval, pairTolerance(interval)) {
		return
	}
	c.partner, histogram.partner = nil, nil
	t.store.metrics.unpaired.Inc()
}
