package ring

// Stamp is a time by a sidecar's own clock, in unix milliseconds.
type Stamp int64

// Clock turns a sidecar's timestamps into times of our own clock, in milliseconds: timestamp + the
// smallest (arrival - timestamp) of the connection's last five minutes. The smallest, because a
// message can be late but never early; so a row's time does not jitter with the network, and a
// wrong sidecar clock costs nothing.
type Clock struct {
	offsets [offsetSpans]int64 // smallest offset of each span, newest first
	spans   int                // how many are filled
	fresh   bool               // the newest flush measured the offset anew
	loose   bool               // all flushes since have come at once, nobody knows how late
	set     bool               // since rows were last in time the clock may have been set
	started int64              // when the newest span began

	timestamp Stamp // of the newest flush
	arrival   int64 // and when it came
	behind    int   // how many flushes in a row were late and yet came at their own pace
	ahead     int64 // smallest offset of the late ones
}

const (
	offsetSpans  = 10
	offsetSpanMs = 30_000
)

// Row returns the time of a flush that arrived at arrival: never after it; and by how much all
// flushes since the offset was measured came later than this one. A step of either clock measures
// the offset anew. pace is the time between flushes that has been seen, 0 if none has: then the
// times of the first two are in doubt where they come closer together than they were sent, or
// further apart.
func (c *Clock) Row(timestamp Stamp, arrival, flush, pace int64) (at, late int64, doubt bool) {
	offset, odd := arrival-int64(timestamp), false
	if c.spans > 0 {
		sent, came := int64(timestamp-c.timestamp), arrival-c.arrival // since the flush before
		if sent == 0 {
			// A row more of the same flush was sent when the first was, however late it comes.
			return int64(timestamp) + c.smallest(), 0, false
		}
		c.loose = c.loose && came < flush/2
		odd = pace == flush && distance(sent, flush) > flush // else it is not the interval that was observed
		unknown := pace == 0 && (sent <= 0 || sent > MaxUnmeasuredMs)
		if c.loose && (odd || unknown) || c.set && odd && came < flush/2 {
			c.turn(sent - flush)
			sent, odd = flush, false
		}
		d := offset - c.smallest()
		doubt = pace == 0 && distance(d, 0) > flush/10
		switch {
		case -d > flush/10 && (c.spans == 1 || c.set) && c.cameLate(sent, came, pace):
			late = -d
		case d < -flush, d > flush/10 && c.setBack(sent, came, d, pace):
			c.spans = 0
		case d <= flush/10:
			c.behind, c.set = 0, c.set && came < flush/2
		case !c.heldUp(sent, came, offset, d > flush, flush):
			c.spans, offset = 0, c.ahead
		}
		c.set = c.set || odd
	}
	c.timestamp, c.arrival = timestamp, arrival
	switch c.fresh = c.spans == 0; {
	case c.fresh:
		c.behind, c.set, c.loose = 0, false, true
		c.offsets[0], c.spans, c.started = offset, 1, arrival
	case arrival-c.started >= offsetSpanMs:
		copy(c.offsets[1:], c.offsets[:])
		c.offsets[0], c.started = offset, arrival
		c.spans = min(c.spans+1, offsetSpans)
	default:
		c.offsets[0] = min(c.offsets[0], offset)
	}
	c.fresh = c.fresh || odd
	return int64(timestamp) + c.smallest(), late, doubt
}

// turn takes it that the clock was set forward by so much since the flush before. Among flushes
// that came at once nothing but their pace tells when they were sent.
func (c *Clock) turn(by int64) {
	for i := range c.offsets[:c.spans] {
		c.offsets[i] -= by
	}
	c.ahead -= by
}

// cameLate reports whether a flush that is earlier than all before it shows that those came late,
// and not that the clock was set forward.
func (c *Clock) cameLate(sent, came, pace int64) bool {
	if pace == 0 {
		return came < sent && sent <= MaxUnmeasuredMs
	}
	return came < sent && distance(sent, pace) <= distance(came, pace)
}

// MaxUnmeasuredMs is how far apart a sidecar's first two flushes may be for what its clock tells of
// it to be believed.
const MaxUnmeasuredMs = 120_000

// Fresh reports whether later flushes may show that the rows from the newest one on came late: it
// measured the offset anew, or is not as far from the flush before as flushes are, which may be its
// clock, set while flushes were held up.
func (c *Clock) Fresh() bool { return c.fresh }

func distance(a, b int64) int64 { return max(a-b, b-a) }

// setBack reports whether a flush that seems late by d comes at its own pace, by a clock that was
// set back since the flush before. Where no pace has been seen it may as well be late: taken for
// earlier than it is, it would make a rate too high.
func (c *Clock) setBack(sent, came, d, pace int64) bool {
	if pace == 0 {
		return true
	}
	return distance(came, pace) <= pace/4 && distance(sent, pace) > distance(came, pace) && came-sent > d/2
}

const (
	// behindFlushes is after how many late flushes it is the sidecar's clock that was set back, and
	// not the network that is slow.
	behindFlushes = 2
	// littleBehindFlushes is the same for those that are late by less than a flush, as on a node
	// that is busy for a while.
	littleBehindFlushes = 6
)

// heldUp reports whether a flush that is late was held up on its way: the sidecar's clock has gone
// on. What was held up comes all at once, with the times at which it was sent, and taken as of its
// arrival it would look like a burst of requests. Where late flushes keep coming at their own pace
// the clock was set back while the network was away.
func (c *Clock) heldUp(sent, came, offset int64, far bool, flush int64) bool {
	if c.behind == 0 || offset < c.ahead {
		c.ahead = offset
	}
	if sent <= 0 {
		c.ahead = offset
		return false
	}
	if came >= flush/2 {
		c.behind++
	}
	if far {
		return c.behind < behindFlushes
	}
	return c.behind < littleBehindFlushes
}

func (c *Clock) smallest() int64 {
	m := c.offsets[0]
	for _, o := range c.offsets[1:c.spans] {
		m = min(m, o)
	}
	return m
}
