package aggregator

// rowClock turns a sidecar's timestamps into times of our own clock, in milliseconds: timestamp + the smallest
// (arrival - timestamp) of the connection's last five minutes. The smallest, because a message can be late but never
// early; so a row's time does not jitter with the network, and a wrong sidecar clock costs nothing.
type rowClock struct {
	offsets [offsetSpans]int64 // smallest offset of each span, newest first
	spans   int                // how many are filled
	started int64              // when the newest span began
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
		if d := offset - c.smallest(); d > flush || d < -flush {
			c.spans = 0
		}
	}
	switch {
	case c.spans == 0:
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

func (c *rowClock) smallest() int64 {
	m := c.offsets[0]
	for _, o := range c.offsets[1:c.spans] {
		m = min(m, o)
	}
	return m
}
