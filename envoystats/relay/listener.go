package relay

import (
	"net"
	"sync"

	"github.com/meshpulse/meshpulse/aggregator"
)

// bounded is a listener of which no more connections are open at once than replicas need, each
// address its share of them: whoever opens many keeps no replica out. What has not proven itself
// within handshakeTime is closed.
type bounded struct {
	net.Listener
	shares  *aggregator.Shares
	refused interface{ Inc() }
}

// Bounds of the port: a replica has one connection, and one more while the former is not known to
// be gone. Over it go its lanes, and as many questions as it may ask at once.
const (
	maxConnections = 64
	leastEach      = 4
	maxStreams     = 256
)

// Accept returns the next connection that is let in.
func (l *bounded) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(c.RemoteAddr().String())
		if err == nil && l.shares.Take(host, 1) {
			return &counted{Conn: c, give: func() { l.shares.Give(host, 1) }}, nil
		}
		l.refused.Inc()
		_ = c.Close()
	}
}

// counted gives its place back when it is closed.
type counted struct {
	net.Conn
	once sync.Once
	give func()
}

// Close is part of net.Conn.
func (c *counted) Close() error {
	c.once.Do(c.give)
	return c.Conn.Close()
}
