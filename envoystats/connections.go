package envoystats

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// Envoy never waits and is never slow, but whoever reaches the port may be: a connection that says nothing, a message that is
// never finished. gRPC keeps what it has of a message in memory, up to the limit of its size and for as long as the peer
// answers pings, and a handler cannot see it. So the bytes of unfinished messages are counted where they come in.
//
// Nor does Envoy wait for us: where handlers are behind, after a restart say, when every series of every sidecar is new, flush comes
// after flush. Windows let gRPC keep many of them. So from an eighth of the bytes that may be pending on, a connection of which a whole
// message waits for its handler is not read until that one has been taken: what is on the way stays with its sender. The rest has
// room for a flush of each.

// connections are the sink's open ones. It is safe for concurrent use.
type connections struct {
	metrics  *metrics
	warnings *warnings
	overTLS  bool

	max        int           // open at once
	maxPending int64         // bytes of unfinished messages, of all
	patience   time.Duration // for a first message, and for the end of one that has begun
	turn       time.Duration // that a connection is not read, at most, while its handler is behind

	pending atomic.Int64
	mu      sync.Mutex // before a connection's own
	open    map[*connection]struct{}
}

// connection counts the bytes of messages that have not come in whole. Reader, handler and sweep share it: its mutex is taken
// once a read (8 KiB) and once a message.
type connection struct {
	net.Conn
	of *connections

	frames frames // of the reader, as is ready
	ready  readiness

	mu       sync.Mutex
	closed   bool
	pending  int64
	messages int64 // that were taken whole
	waiting  int   // messages that have come in whole and were not taken
	streams  int
	taken    chan struct{} // tells the reader that one was taken; nil until it has to wait

	// Of the sweep: what it last saw, and how often in a row nothing had come in whole.
	seen  int64
	waits int
}

// Why connections are closed: values of the reason label of meshpulse_ingest_closed_connections_total.
const (
	closedLimit     = "limit"     // beyond Config.MaxConnections
	closedHandshake = "handshake" // TLS was not agreed upon, or not in time
	closedSilent    = "silent"    // no message within the patience
	closedSlow      = "slow"      // a message was not finished within the patience
	closedPending   = "pending"   // most of the unfinished bytes, which were beyond Config.MaxPendingBytes
)

// listen returns the listener whose connections are counted.
func (cs *connections) listen(l net.Listener) net.Listener { return &listener{l, cs} }

type listener struct {
	net.Listener
	connections *connections
}

// Accept returns the next connection that is let in.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.connections.admit(raw); c != nil {
			return c, nil
		}
	}
}

// admit returns nil, and closes, where too many are open.
func (cs *connections) admit(raw net.Conn) *connection {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.open) >= cs.max {
		_ = raw.Close()
		cs.metrics.closed.WithLabelValues(closedLimit).Inc()
		cs.warnings.warn(closedLimit+" of connections", "", "connection refused: too many are open: raise --max-connections, or look who opens them",
			slog.String("peer", raw.RemoteAddr().String()), slog.Int("max_connections", cs.max))
		return nil
	}
	c := &connection{Conn: raw, of: cs, frames: frames{left: len(clientPreface)}}
	if cs.open == nil {
		cs.open = map[*connection]struct{}{}
	}
	cs.open[c] = struct{}{}
	cs.metrics.connections.Inc()
	return c
}

// peerAddr leads from a stream to its connection.
type peerAddr struct {
	net.Addr
	connection *connection
}

// RemoteAddr is what gRPC tells a stream of its peer.
func (c *connection) RemoteAddr() net.Addr { return peerAddr{c.Conn.RemoteAddr(), c} }

// Read counts, but where TLS is between: then its reader does.
func (c *connection) Read(b []byte) (int, error) {
	if !c.of.overTLS {
		c.awaitTurn()
	}
	n, err := c.Conn.Read(b)
	if !c.of.overTLS {
		c.count(b[:n])
	}
	return n, err
}

// Close gives up what the connection holds.
func (c *connection) Close() error {
	c.of.mu.Lock()
	c.release()
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// release takes the connection out of the sums, once. The connections' mutex is held.
func (c *connection) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.tell()
	c.of.pending.Add(-c.pending)
	c.pending = 0
	delete(c.of.open, c)
	c.of.metrics.connections.Dec()
}

// count takes what was read into account.
func (c *connection) count(b []byte) {
	n, ended := c.frames.data(b)
	if n == 0 {
		return
	}
	data := int64(n)
	c.mu.Lock()
	if c.closed {
		data = 0
	}
	c.pending += data
	c.waiting += ended
	c.mu.Unlock()
	if c.of.pending.Add(data) > c.of.maxPending {
		c.of.shed()
	}
}

// awaitTurn waits while much is pending and this connection's handler is behind.
func (c *connection) awaitTurn() {
	if !c.of.crowded() || !c.behind() {
		return
	}
	timer := time.NewTimer(c.of.turn)
	defer timer.Stop()
	for c.behind() && c.of.crowded() {
		select {
		case <-c.taken:
		case <-timer.C:
			return
		}
	}
}

// crowded reports whether so much is pending that a connection may have to wait. Handlers that keep up stay far below.
func (cs *connections) crowded() bool { return cs.pending.Load() > cs.maxPending/8 }

// behind reports whether a message waits for the handler. Of several streams it is not known whose it is.
func (c *connection) behind() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken == nil {
		c.taken = make(chan struct{}, 1)
	}
	return c.waiting > 0 && c.streams <= 1 && !c.closed
}

// tell lets a reader that waits look again. The mutex is held.
func (c *connection) tell() {
	select {
	case c.taken <- struct{}{}: // not if it is nil
	default:
	}
}

// whole notes that a message of n bytes has come in. A nil connection is a test's, without a transport.
func (c *connection) whole(n int) {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.messages++
	c.waiting = max(0, c.waiting-1)
	c.settle(int64(n + messageHead))
	c.tell()
	c.mu.Unlock()
}

// begin and end are of a stream. What the last one leaves behind is not pending any more: gRPC has let go of it.
func (c *connection) begin() {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.streams++
	c.mu.Unlock()
}

func (c *connection) end() {
	if c == nil {
		return
	}
	c.mu.Lock()
	if c.streams--; c.streams == 0 {
		c.settle(c.pending)
		c.waiting = 0
		c.tell()
	}
	c.mu.Unlock()
}

// settle takes bytes off what is pending. The mutex is held.
func (c *connection) settle(n int64) {
	n = min(n, c.pending)
	c.pending -= n
	c.of.pending.Add(-n)
}

// shed closes the connection that holds most where all together hold too much.
func (cs *connections) shed() {
	cs.mu.Lock()
	if cs.pending.Load() <= cs.maxPending {
		cs.mu.Unlock()
		return
	}
	var most *connection
	var bytes int64
	for c := range cs.open {
		c.mu.Lock()
		if c.pending > bytes {
			most, bytes = c, c.pending
		}
		c.mu.Unlock()
	}
	if most != nil {
		most.release()
	}
	cs.mu.Unlock()
	if most != nil {
		cs.closed(most, closedPending, "", "connection closed: unfinished messages take too much memory and it holds most of them: raise --max-pending-bytes, or look who sends them",
			slog.Int64("bytes", bytes), slog.Int64("max_pending_bytes", cs.maxPending))
	}
}

// closed closes a connection for a reason. One line tells of each subject.
func (cs *connections) closed(c *connection, reason, subject, message string, attrs ...any) {
	_ = c.Close()
	cs.metrics.closed.WithLabelValues(reason).Inc()
	cs.warnings.warn(reason, subject, message, append(attrs, slog.String("peer", c.Conn.RemoteAddr().String()))...)
}

// sweeps is how many looks make up the patience.
const sweeps = 6

// watch looks at the connections until done.
func (cs *connections) watch(done <-chan struct{}) {
	tick := time.NewTicker(max(cs.patience/sweeps, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			cs.sweep()
		}
	}
}

// sweep closes the connections that have kept it waiting for too long: for their first message, or for the end of one.
func (cs *connections) sweep() {
	var silent, slow []*connection
	cs.mu.Lock()
	for c := range cs.open {
		c.mu.Lock()
		if c.streams == 0 { // what came for streams that had ended: gRPC has thrown it away
			c.settle(c.pending)
		}
		switch {
		case c.messages != c.seen || c.messages > 0 && c.pending == 0:
			c.seen, c.waits = c.messages, 0
		case c.waits < sweeps:
			c.waits++
		case c.pending > 0:
			slow = append(slow, c)
		default:
			silent = append(silent, c)
		}
		c.mu.Unlock()
	}
	cs.mu.Unlock()
	for _, c := range slow {
		cs.closed(c, closedSlow, hostOf(c.Conn.RemoteAddr()), "connection closed: a message was begun and not finished", slog.Duration("waited", cs.patience))
	}
	for _, c := range silent {
		cs.closed(c, closedSilent, hostOf(c.Conn.RemoteAddr()), "connection closed: it has sent no message", slog.Duration("waited", cs.patience))
	}
}

// hostOf is an address without its port.
func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// counted are credentials whose connections are counted above TLS, where frames can be seen.
type counted struct {
	credentials.TransportCredentials
	connections *connections
}

// ServerHandshake is called by gRPC with what Accept gave.
func (t counted) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	c, ok := raw.(*connection)
	if !ok {
		return conn, info, err
	}
	if err != nil {
		t.connections.closed(c, closedHandshake, hostOf(c.Conn.RemoteAddr()), "connection closed: no TLS", slog.Any("error", err))
		return nil, nil, err
	}
	return secured{conn, c}, info, nil
}

// Clone is part of credentials.TransportCredentials.
func (t counted) Clone() credentials.TransportCredentials {
	return counted{t.TransportCredentials.Clone(), t.connections}
}

// secured is a connection over TLS.
type secured struct {
	net.Conn
	connection *connection
}

// Read counts what is read.
func (s secured) Read(b []byte) (int, error) {
	s.connection.awaitTurn()
	n, err := s.Conn.Read(b)
	s.connection.count(b[:n])
	return n, err
}
