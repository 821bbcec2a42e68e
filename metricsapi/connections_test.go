package metricsapi

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// heldConn is a connection from an address that is open until somebody closes it.
type heldConn struct {
	net.Conn
	from   string
	closed bool
}

func (c *heldConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.ParseIP(c.from), Port: 1}
}
func (c *heldConn) Close() error { c.closed = true; return nil }

// queue is a listener with connections that wait.
type connQueue struct {
	net.Listener
	waiting []*heldConn
}

func (q *connQueue) Accept() (net.Conn, error) {
	if len(q.waiting) == 0 {
		return nil, net.ErrClosed
	}
	c := q.waiting[0]
	q.waiting = q.waiting[1:]
	return c, nil
}

// Who takes all connections loses them to others, and is refused himself.
func TestConnectionsAreShared(t *testing.T) {
	refused := 0
	q := &connQueue{}
	l := newFairListener(q, 4, func() { refused++ })
	come := func(from string) (*heldConn, net.Conn) {
		t.Helper()
		c := &heldConn{from: from}
		q.waiting = append(q.waiting, c)
		accepted, err := l.Accept()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		return c, accepted
	}
	var greedy []*heldConn
	var first net.Conn
	for i := range 6 {
		c, accepted := come("10.0.0.1")
		if greedy = append(greedy, c); i == 0 {
			first = accepted
		}
		if c.closed != (i >= 4) || (accepted == nil) != c.closed {
			t.Errorf("connection %d of one sender: closed %v", i, c.closed)
		}
	}
	one, _ := come("10.0.0.2")
	two, _ := come("::ffff:10.0.0.2") // the same
	if one.closed || two.closed || !greedy[0].closed || !greedy[1].closed || greedy[2].closed {
		t.Errorf("others: %v, %v, the greedy one's: %v %v %v", one.closed, two.closed, greedy[0].closed, greedy[1].closed, greedy[2].closed)
	}
	if again, _ := come("10.0.0.2"); !again.closed {
		t.Error("one who has as much as the other takes more")
	}
	if three, _ := come("2001:db8::1"); three.closed {
		t.Error("a third finds no room")
	}
	if four, _ := come("2001:db8::2"); !four.closed && !one.closed && !greedy[2].closed {
		t.Error("nobody has lost one")
	}
	if refused != 7 {
		t.Errorf("%d are counted", refused)
	}
	// One that was closed long ago is closed again, and counts once.
	_ = first.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, conns := range l.from {
		n += len(conns)
	}
	if l.n != 4 || n != 4 {
		t.Errorf("%d connections are counted, %d are kept, want 4", l.n, n)
	}
}

// A thousand connections that say nothing do not take the HTTPS port away.
func TestSilentConnectionsLeaveRoom(t *testing.T) {
	s := startServer(t, nil)
	silent := make([]net.Conn, 0, MaxConnections)
	for range MaxConnections + 1 {
		c, err := net.Dial("tcp4", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
		t.Cleanup(func() { _ = c.Close() })
	}
	// The last is one too many: it is closed at once, not after half a minute.
	last := silent[len(silent)-1]
	_ = last.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := last.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection past the limit is open: %v", err)
	}
	// Somebody else's address is served.
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	response, err := client.Get("https://" + s.Addr().String() + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK || err != nil {
		t.Errorf("another address gets %d: %s, error %v", response.StatusCode, body, err)
	}
	if n := testutil.ToFloat64(s.provider.metrics.refusedConnections); n < 2 {
		t.Errorf("%v connections are counted", n)
	}
}
