// Package link is the wire between sidecars and their sink, and what can go wrong with it:
// connections that are refused, cut or stalled, and messages that are changed on their way.
//
// It passes TCP through byte by byte: the HTTP/2 that the sidecar speaks is what the sink answers.
// It reads the frames only to find gRPC messages, which a fault may change in place, never in
// length, so nobody's flow control notices. It knows HTTP/2 frames and gRPC's prefix; it must not
// know what becomes of a message.
package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config says where a link leads.
type Config struct {
	// Upstream is the sink, host:port.
	Upstream string
	// TLS returns how the sink is to be spoken to for each new connection, as a sidecar would do it
	// itself; nil is plaintext.
	TLS func() *tls.Config
	// Opaque passes on what both ends say to each other, as it is: nothing is counted or changed.
	Opaque bool
}

// Link is one listener and its connections. It is safe for concurrent use.
type Link struct {
	config   Config
	address  string
	messages atomic.Int64
	wg       sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while connections are refused
	conns    map[*conn]struct{}
	open     chan struct{} // closed unless stalled
	changes  []*change
	closed   bool
}

// conn is a sidecar's connection and the one that it leads to.
type conn struct {
	down, up net.Conn
	ended    context.Context
	end      context.CancelFunc
}

// Open listens on a free port of 127.0.0.1. The caller must Close the link.
func Open(config Config) (*Link, error) {
	l := &Link{config: config, conns: map[*conn]struct{}{}, open: make(chan struct{})}
	close(l.open)
	if err := l.listen("127.0.0.1:0"); err != nil {
		return nil, err
	}
	l.address = l.listener.Addr().String()
	return l, nil
}

// Address is where sidecars connect, host:port.
func (l *Link) Address() string { return l.address }

// Messages is how many whole messages have been sent into the link.
func (l *Link) Messages() int64 { return l.messages.Load() }

// Cut resets every connection, as a node that dies or a firewall that forgets does.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut()
}

// Refuse cuts every connection and lets none be made until it is called with false.
func (l *Link) Refuse(on bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if on == (l.listener == nil) || l.closed {
		return nil
	}
	if !on {
		return l.listen(l.address)
	}
	_ = l.listener.Close()
	l.listener = nil
	l.cut()
	return nil
}

// Stall lets nothing through in either direction, the end of a connection included, until it is
// called with false: then everything that was held up arrives at once.
func (l *Link) Stall(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
		if on {
			l.open = make(chan struct{})
		}
	default:
		if !on {
			close(l.open)
		}
	}
}

// change is one that messages undergo.
type change struct{ apply func(message []byte) }

// Change has every whole message changed in place before it is passed on, until undo is called. The
// function may be called from several goroutines; several changes are applied in their order.
func (l *Link) Change(f func(message []byte)) (undo func()) {
	c := &change{f}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes = append(slices.Clip(l.changes), c)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changes = slices.DeleteFunc(slices.Clone(l.changes), func(o *change) bool { return o == c })
	}
}

// current are the changes of now; the slice is never written to.
func (l *Link) current() []*change {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// Close ends the link and its connections.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	if l.listener != nil {
		_ = l.listener.Close()
		l.listener = nil
	}
	l.cut()
	l.mu.Unlock()
	l.wg.Wait()
}

// listen is called with the lock held, or before anyone else knows the link.
func (l *Link) listen(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("link to %s: %w", l.config.Upstream, err)
	}
	l.listener = listener
	l.wg.Go(func() {
		for {
			down, err := listener.Accept()
			if err != nil {
				return // refused from now on
			}
			l.wg.Go(func() { l.carry(down) })
		}
	})
	return nil
}

func (l *Link) cut() {
	for c := range l.conns {
		c.reset()
	}
}

// reset ends both sides with RST: what is on its way is lost.
func (c *conn) reset() {
	c.end()
	for _, side := range []net.Conn{c.down, c.up} {
		if t, ok := side.(*tls.Conn); ok {
			side = t.NetConn()
		}
		if t, ok := side.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = side.Close()
	}
}

const dialTimeout = 5 * time.Second

// carry connects a sidecar with the sink. A sink that cannot be reached is a reset for the sidecar.
func (l *Link) carry(down net.Conn) {
	c := &conn{down: down}
	c.ended, c.end = context.WithCancel(context.Background())
	defer c.end()
	up, err := l.dial(c.ended)
	if err != nil {
		if t, ok := down.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = down.Close()
		return
	}
	c.up = up
	l.mu.Lock()
	if l.listener == nil { // refused in the meantime
		l.mu.Unlock()
		c.reset()
		return
	}
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.copy(c, c.up, l.upwards(c)); l.finish(c) })
	both.Go(func() { l.copy(c, c.down, plain{c.up}); l.finish(c) })
	both.Wait()
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

func (l *Link) upwards(c *conn) chunks {
	if l.config.Opaque {
		return plain{c.down}
	}
	return &frames{from: c.down, link: l}
}

func (l *Link) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if l.config.TLS == nil {
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.config.Upstream)
	}
	return (&tls.Dialer{Config: l.config.TLS()}).DialContext(ctx, "tcp", l.config.Upstream)
}

// chunks gives bytes that belong together.
type chunks interface{ next() ([]byte, error) }

// copy passes chunks on until one side ends.
func (l *Link) copy(c *conn, to io.Writer, from chunks) {
	for {
		chunk, err := from.next()
		if !l.pass(c) {
			return
		}
		if len(chunk) > 0 {
			if _, err := to.Write(chunk); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits until nothing is stalled; false says that the connection was cut.
func (l *Link) pass(c *conn) bool {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	select {
	case <-open:
		return c.ended.Err() == nil
	case <-c.ended.Done():
		return false
	}
}

// finish closes both sides when one has ended.
func (l *Link) finish(c *conn) {
	c.end()
	_ = c.down.Close()
	_ = c.up.Close()
}

// plain gives what was read, as it was read.
type plain struct{ from io.Reader }

func (p plain) next() ([]byte, error) {
	buf := make([]byte, 16<<10)
	n, err := p.from.Read(buf)
	return buf[:n], err
}
