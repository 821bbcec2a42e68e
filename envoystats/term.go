package envoystats

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"time"
)

// A connection lasts as long as what it has proven. Envoy keeps one past the end of its
// certificate, and past any rotation, and a stream that is ended comes back over the same
// connection with the same certificate. So the connection is closed: after a flush, where Envoy
// loses nothing by it, at some time in the last quarter of what is left of the certificate's life.
// By then the sidecar has had a new one for long. At its end it is closed in any case, and so it is
// when its root is withdrawn.

// quiet is how long nothing has to come before a flush is taken to be over: its messages follow
// each other at once, and the last has no mark.
const quiet = 500 * time.Millisecond

// usualFlush is Istio's interval of flushes, where the node tells none.
const usualFlush = 5 * time.Second

// term is how long a connection may last. It is set before anything is read; only its roots and
// its timer change.
type term struct {
	due, end time.Time
	chain    []*x509.Certificate // leaf first
	roots    *x509.CertPool      // that it was held against last. Of the sweep, and under the connection's mutex
	timer    *time.Timer         // closes it once a flush is over; nil before it is due. Under the connection's mutex
}

// lasts notes what the connection has proven, before anything is read of it.
func (c *connection) lasts(state tls.ConnectionState) {
	if len(state.PeerCertificates) == 0 {
		return
	}
	end := state.PeerCertificates[0].NotAfter
	c.mu.Lock() // the sweep looks at connections from the moment that they are there
	defer c.mu.Unlock()
	c.term = &term{due: dueAt(c.of.now(), end, rand.Float64()), end: end, chain: state.PeerCertificates, roots: c.roots}
}

// dueAt is when a connection that has begun is closed after a flush: in the last quarter of what is
// left, where is from 0 to 1.
func dueAt(now, end time.Time, where float64) time.Time {
	return end.Add(-time.Duration(where * float64(end.Sub(now)) / 4))
}

// over reports whether what the connection has proven is over.
func (c *connection) over(at time.Time) bool {
	return c != nil && c.term != nil && !at.Before(c.term.end)
}

// renew closes the connection once the flush is over of which a message was taken, if it is due or
// would not last until the next one.
func (c *connection) renew(at time.Time, flush time.Duration) {
	if c == nil || c.term == nil || at.Before(c.term.due) && at.Add(flush).Before(c.term.end) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch t := c.term; {
	case c.closed:
	case t.timer == nil:
		t.timer = time.AfterFunc(c.of.quiet, func() { c.of.renewed(c) })
	default:
		t.timer.Reset(c.of.quiet)
	}
}

// renewed closes a connection whose flush is over. In the middle of a message it waits for its end.
func (cs *connections) renewed(c *connection) {
	c.mu.Lock()
	_, unfinished := c.frames.oldest()
	busy := unfinished || c.frames.waiting > 0
	if busy && !c.closed {
		c.term.timer.Reset(cs.quiet)
	}
	c.mu.Unlock()
	if !busy {
		cs.left(c, closedCertificate)
	}
}

// left closes a connection where that is nothing that anybody has to look at.
func (cs *connections) left(c *connection, reason string) {
	c.mu.Lock()
	already := c.closed
	if !already {
		c.why = reason
	}
	c.mu.Unlock()
	if !already {
		_ = c.Close()
		cs.metrics.closed.WithLabelValues(reason).Inc()
	}
}

// whyLeft is why we have closed the connection, "" if we have not, or for something else.
func (c *connection) whyLeft() string {
	if c == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// part lets the connection end with the next stream of it that ends: its sender was refused, and
// would come back over it at each flush.
func (c *connection) part() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parting = true
}

// lingers is how long a peer may take to read why it was refused.
const lingers = time.Second

// leave ends what is sent, so that the peer reads all of it, and then the connection.
func (c *connection) leave() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		c.of.left(c, closedRefused)
		return
	}
	time.AfterFunc(lingers, func() { c.of.left(c, closedRefused) })
}

// endTerms closes the connections whose certificate has ended, and those whose root is not trusted
// any more. A handshake may take half a minute, and its roots have changed meanwhile: so each
// connection knows its own.
func (cs *connections) endTerms() {
	if cs.mutual == nil {
		return
	}
	now, serving := cs.now(), cs.mutual.Serving()
	var over, look []*connection
	cs.mu.Lock()
	for c := range cs.open {
		c.mu.Lock()
		switch {
		case c.over(now):
			over = append(over, c)
		case serving != nil && c.term != nil && c.term.roots != serving.ClientCAs:
			if !serving.ClientCAs.Equal(c.term.roots) {
				look = append(look, c)
			}
			c.term.roots = serving.ClientCAs
		}
		c.mu.Unlock()
	}
	cs.mu.Unlock()
	for _, c := range over {
		cs.left(c, closedCertificate)
	}
	for _, c := range look {
		if err := verify(c.term.chain, serving.ClientCAs, now); err != nil {
			cs.closed(c, closedRoot, "connection closed: its certificate's root is not trusted any more", slog.Any("error", err))
		}
	}
}
