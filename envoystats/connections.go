package envoystats

import (
	"cmp"
	"crypto/x509"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Envoy never waits and is never slow, but whoever reaches the port may be: a connection that says
// nothing, a message that is never finished, frames that bring nothing. gRPC keeps what it has of a
// message in memory, up to the limit of its size and for as long as the peer answers pings, and a
// handler cannot see it. So what it keeps of unfinished messages is counted where they come in.
//
// Nor does Envoy wait for us: where handlers are behind, after a restart say, when every series of
// every sidecar is new, flush comes after flush. Windows let gRPC keep many of them. So from an
// eighth of the bytes that may be pending on, a connection of which a whole message waits for its
// handler is not read until that one has been taken: what is on the way stays with its sender. The
// rest has room for a flush of each.

// connections are the sink's open ones. It is safe for concurrent use.
type connections struct {
	metrics  *metrics
	warnings *warnings
	mutual   *Mutual          // nil: nothing is proven
	now      func() time.Time // that certificates are held against

	shares     *aggregator.Shares // of what may be open at once, by address
	max        int                // open at once
	maxPending int64              // bytes that unfinished messages take, of all
	patience   time.Duration      // for a first message, and for the end of one that has begun
	turn       time.Duration      // that a connection is not read, at most, while its handler is behind
	quiet      time.Duration      // that nothing comes after a flush

	pending atomic.Int64
	looks   atomic.Int64 // of the sweep so far: the clock here
	mu      sync.Mutex   // before a connection's own
	open    map[*connection]struct{}
}

// connection counts what messages take that have not come in whole. Reader, writer, handler and
// sweep share it: its mutex is taken once a read (8 KiB) and once a message.
type connection struct {
	net.Conn
	of     *connections
	sender string // its address, without the port
	since  int64  // look at which it came

	first   [1]byte        // the byte that was looked at, where peeked
	peeked  bool           // of the reader
	ready   readiness      // of the reader
	ended   endings        // of the writer
	leaving bool           // of the writer: once the frame is written that ends a stream
	roots   *x509.CertPool // that the handshake holds the certificate against
	term    *term          // nil: nothing is proven

	mu       sync.Mutex
	closed   bool
	parting  bool   // ends with the next stream of it that does
	why      string // it was closed, where that is nothing to look at
	frames   frames
	messages int64         // that were taken whole
	newest   int64         // look at which the last of them was
	paused   int           // streams that have to wait for their next message: they send too much
	taken    chan struct{} // tells the reader that one was taken; nil until it has to wait
}

// Why connections are closed: values of the reason label of
// meshpulse_ingest_closed_connections_total.
const (
	closedLimit     = "limit"     // beyond Config.MaxConnections, or its address's share of them
	closedHandshake = "handshake" // TLS was not agreed upon, or not in time
	closedSilent    = "silent"    // no message within the patience
	closedSlow      = "slow"      // a message was not finished within the patience
	closedPending   = "pending"   // its sender's unfinished bytes were most, and all together beyond Config.MaxPendingBytes
	closedFlood     = "flood"     // frames that bring nothing, maxIdleFrames between two looks

	closedNothing     = "nothing"     // not one byte came
	closedCertificate = "certificate" // its certificate ends, or is about to: it comes back with a new one
	closedRoot        = "root"        // its certificate's root was withdrawn
	closedRefused     = "refused"     // its sender is not who he says he is
)

// maxIdleFrames is how many frames without news a connection may send between two looks, which are
// ten seconds apart: acknowledgements and pings are a few a minute. HTTP/2's libraries answer each
// and bound only some kinds.
const maxIdleFrames = 1000

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

// admit returns nil, and closes, where too many are open, of all or of the sender.
func (cs *connections) admit(raw net.Conn) *connection {
	sender := hostOf(raw.RemoteAddr())
	if !cs.shares.Take(sender, 1) {
		_ = raw.Close()
		cs.metrics.closed.WithLabelValues(closedLimit).Inc()
		cs.warnings.warn(closedLimit+" of connections", sender, sender, "connection refused: too many are open, or it has its share of them: raise --max-connections, or look who opens them",
			slog.String("peer", raw.RemoteAddr().String()), slog.Int("max_connections", cs.max))
		return nil
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := &connection{Conn: raw, of: cs, sender: sender, since: cs.looks.Load(), frames: frames{left: len(clientPreface)}}
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

// Read waits for the connection's turn, and counts.
func (c *connection) Read(b []byte) (int, error) {
	c.awaitTurn()
	n, err := c.readRaw(b)
	c.count(b[:n])
	return n, err
}

// readRaw reads what has come, whatever it is: TLS' records, too.
func (c *connection) readRaw(b []byte) (int, error) {
	if n := c.again(b); n > 0 {
		return n, nil
	}
	return c.Conn.Read(b)
}

// readBlocking reads into a buffer that is lent before.
func (c *connection) readBlocking(size int, pool mem.BufferPool) (*[]byte, int, error) {
	buf := pool.Get(size)
	n, err := c.readRaw(*buf)
	if n == 0 && err != nil {
		pool.Put(buf)
		return nil, 0, err
	}
	return buf, n, nil
}

// Write looks which streams end with what is written.
func (c *connection) Write(b []byte) (int, error) {
	leaves := c.write(b)
	n, err := c.Conn.Write(b)
	if leaves {
		c.leave()
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
	c.of.pending.Add(-c.frames.kept)
	c.of.shares.Give(c.sender, 1)
	delete(c.of.open, c)
	c.of.metrics.connections.Dec()
}

// change makes a change to what the connection keeps, unless it is closed, and returns how many
// bytes it was.
func (c *connection) change(f func()) (bytes int64) {
	if c == nil { // a test's, without a transport
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0
	}
	before := c.frames.kept
	f()
	bytes = c.frames.kept - before
	c.of.pending.Add(bytes)
	return bytes
}

// count takes what was read into account.
func (c *connection) count(b []byte) {
	flood := false
	more := c.change(func() {
		c.frames.read(b, c.of.looks.Load())
		flood = c.frames.idle > maxIdleFrames
	})
	if more > 0 && c.of.pending.Load() > c.of.maxPending {
		c.of.shed()
	}
	if flood {
		c.of.closed(c, closedFlood, "connection closed: it floods the sink with frames that bring nothing (settings, resets, pings, empty data)",
			slog.Int("frames", maxIdleFrames))
	}
}

// write takes what is written into account: gRPC has let go of the streams that it ends. It reports
// whether the connection ends with it.
func (c *connection) write(b []byte) (leaves bool) {
	c.ended.read(b, func(id uint32) {
		c.change(func() {
			c.frames.end(id)
			c.tell()
			c.leaving = c.leaving || c.parting
		})
	})
	if leaves = c.leaving && c.ended.left == 0; leaves {
		c.leaving = false
	}
	return leaves
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

// crowded reports whether so much is pending that a connection may have to wait. Handlers that keep
// up stay far below.
func (cs *connections) crowded() bool { return cs.pending.Load() > cs.maxPending/8 }

// behind reports whether a message waits for the handler. Of several streams it is not known whose
// it is.
func (c *connection) behind() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken == nil {
		c.taken = make(chan struct{}, 1)
	}
	return c.waits() && !c.closed
}

// waits reports whether the connection's only stream has to wait for us. The mutex is held.
func (c *connection) waits() bool { return c.frames.waiting+c.paused > 0 && len(c.frames.streams) <= 1 }

// tell lets a reader that waits look again. The mutex is held.
func (c *connection) tell() {
	select {
	case c.taken <- struct{}{}: // not if it is nil
	default:
	}
}

// whole notes that a message of n bytes was taken.
func (c *connection) whole(n int) {
	c.change(func() {
		c.messages++
		c.newest = c.of.looks.Load()
		c.frames.taken(n)
		c.tell()
	})
}

// pause and resume are of a stream whose next message is not read yet.
func (c *connection) pause()  { c.change(func() { c.paused++ }) }
func (c *connection) resume() { c.change(func() { c.paused--; c.tell() }) }

// behaves reports whether messages come and are finished: one lately, and none that was begun
// before the last look. The mutex is held.
func (c *connection) behaves(now int64) bool {
	since, unfinished := c.frames.oldest()
	return c.messages > 0 && now-c.newest <= sweeps && (!unfinished || now-since <= 1)
}

// shed closes connections where all together hold too much: first those that do not behave, and of
// them those of the sender that holds most, the largest first.
func (cs *connections) shed() {
	type holder struct {
		*connection
		bytes   int64
		behaves bool
	}
	var holders []holder
	of := map[string]int64{} // by sender
	cs.mu.Lock()
	for c := range cs.open {
		c.mu.Lock()
		if bytes := c.frames.kept; bytes > 0 {
			holders = append(holders, holder{c, bytes, c.behaves(cs.looks.Load())})
			of[c.sender] += bytes
		}
		c.mu.Unlock()
	}
	slices.SortFunc(holders, func(a, b holder) int {
		switch {
		case a.behaves != b.behaves:
			return map[bool]int{false: -1, true: 1}[a.behaves]
		case a.sender != b.sender && of[a.sender] != of[b.sender]:
			return cmp.Compare(of[b.sender], of[a.sender])
		}
		return cmp.Compare(b.bytes, a.bytes)
	})
	n := 0
	for n < len(holders) && cs.pending.Load() > cs.maxPending {
		holders[n].release()
		n++
	}
	cs.mu.Unlock()
	for _, h := range holders[:n] {
		cs.closed(h.connection, closedPending, "connection closed: unfinished messages take too much memory and its sender holds most of them: raise --max-pending-bytes, or look who sends them",
			slog.Int64("bytes", h.bytes), slog.Int64("max_pending_bytes", cs.maxPending))
	}
}

// closed closes a connection for a reason. One line tells of each sender.
func (cs *connections) closed(c *connection, reason, message string, attrs ...any) {
	_ = c.Close()
	cs.metrics.closed.WithLabelValues(reason).Inc()
	cs.warnings.warn(reason, c.sender, c.sender, message, append(attrs, slog.String("peer", c.Conn.RemoteAddr().String()))...)
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

// sweep closes the connections that have kept it waiting for too long: for their first message, or
// for the end of one, whatever else they send meanwhile.
func (cs *connections) sweep() {
	now := cs.looks.Add(1)
	var silent, slow []*connection
	cs.mu.Lock()
	for c := range cs.open {
		c.mu.Lock()
		c.frames.idle = 0
		if c.waits() { // it is us who keep it waiting
			c.frames.restart(now)
		}
		switch since, unfinished := c.frames.oldest(); {
		case unfinished && now-since > sweeps:
			slow = append(slow, c)
		case !unfinished && c.messages == 0 && now-c.since > sweeps:
			silent = append(silent, c)
		}
		c.mu.Unlock()
	}
	cs.mu.Unlock()
	for _, c := range slow {
		cs.closed(c, closedSlow, "connection closed: a message was begun and not finished", slog.Duration("waited", cs.patience))
	}
	for _, c := range silent {
		cs.closed(c, closedSilent, "connection closed: it has sent no message", slog.Duration("waited", cs.patience))
	}
	cs.endTerms()
}

// hostOf is an address without its port.
func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}
