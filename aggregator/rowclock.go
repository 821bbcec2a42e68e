package aggregator

// rowClock turns a sidecar's timestamps into times of our own clock, in milliseconds: timestamp + the smallest
// (arrival - timestamp) of the connection's last five minutes. The smallest, because a message can be late but never
// early; so a row's time does not jitter with the network, and a wrong sidecar clock costs nothing.
type rowClock struct {
	offsets [offsetSpans]int64 // smallest offset of each span, newest first
	spans   int                // how many are filled
	started int64              // when the newest span began

	timestamp, arrival int64 // of the newest flush
	behind             int   // how many flushes in a row were late and yet came at their own pace
}

const (
	offsetSpans  = 10
	offsetSpanMs = 30_000
)

// row returns the time of a flush that arrived at arrival: never after it. A step of more than one flush interval, of either
// clock, measures the offset anew.
func (c *rowClock) row(timestamp, arrival, flush int64) int64 {
	offset := arrival - timestamp
	if c.spans > 0 {
		if d := offset - c.smallest(); d < -flush || d > flush && !c.heldUp(timestamp, arrival, flush) {
			c.spans = 0
		} else if d <= flush {
			c.behind = 0
		}
	}
	c.timestamp, c.arrival = timestamp, arrival
	switch {
	case c.spans == 0:
		c.behind = 0
		c.offsets[0], c.spans, c.started = offset, 1, arrival
	case arrival-c.started >= offsetSpanMs:
		copy(c.offsets[1:], c.offsets[:])
		c.offsets[0], c.started = offset, arrival
		c.spans = min(c.spans+1, offsetSpans)
	default:
		c.offsets[0] = min(c.offsets[0], offset)
	}
	return timestamp + c.smallest()
}

// behindFlushes is after how many late flushes it is the sidecar's clock that was set back, and not the network that is slow.
const behindFlushes = 2

// heldUp reports whether a flush that is more than one interval late was held up on its way: the sidecar's clock has gone on. What was
// held up comes all at once, with the times at which it was sent, and taken as of its arrival it would look like a burst of
// requests. Where late flushes keep coming at their own pace the clock was set back while the network was away.
func (c *rowClock) heldUp(timestamp, arrival, flush int64) bool {
	if timestamp <= c.timestamp {
		return false
	}
	if arrival-c.arrival >= flush/2 {
		c.behind++
	}
	return c.behind < behindFlushes
}

func (c *rowClock) smallest() int64 {
	m := c.offsets[0]
	for _, o := range c.offsets[1:c.spans] {
		m = min(m, o)
	}
	return m
}
