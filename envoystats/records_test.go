package envoystats

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
)

// counting is a pool that knows how much of it is lent.
type counting struct {
	framePool
	mu   sync.Mutex
	lent map[*[]byte]bool
}

func (p *counting) Get(n int) *[]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.framePool.Get(n)
	if p.lent == nil {
		p.lent = map[*[]byte]bool{}
	}
	p.lent[b] = true
	return b
}

func (p *counting) Put(b *[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.lent[b] {
		panic("given back, and not lent")
	}
	delete(p.lent, b)
	p.framePool.Put(b)
}

func (p *counting) held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.lent)
}

// overTLS are both ends of a connection that was agreed upon; change may change the sink's socket.
func overTLS(t *testing.T, version uint16, change func(net.Conn) net.Conn) (client *tls.Conn, sink *secured) {
	t.Helper()
	mesh := newAuthority(t)
	cs, _ := manyConnections(t, 1<<30)
	d := newDoors(Config{Mutual: &Mutual{Serving: func() *tls.Config { return Serving(mesh.issue(sinkID), mesh.pool()) }}}, cs)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	raw, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client = tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{*mesh.until(podinfoID, time.Hour)}, NextProtos: []string{"h2"}, MaxVersion: version,
	})
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	conn, _, err := d.ServerHandshake(cs.admit(change(accepted)))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	sink = conn.(*secured)
	t.Cleanup(func() { _, _ = client.Close(), sink.Close() })
	return client, sink
}

func asIs(c net.Conn) net.Conn { return c }

// readAll reads what gRPC would, until n bytes have come: HTTP/2's preface by Read, the rest on
// readiness.
func readAll(t *testing.T, s *secured, n int, pool mem.BufferPool) []byte {
	t.Helper()
	got := make([]byte, min(n, len(clientPreface)))
	if _, err := io.ReadFull(s, got); err != nil {
		t.Fatal(err)
	}
	for len(got) < n {
		buf, read, err := s.ReadOnReady(readBuffer, pool)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, (*buf)[:read]...)
		pool.Put(buf)
	}
	return got
}

// What comes over TLS comes through, however its bytes and its records fall.
func TestWhatComesOverTLSComesThrough(t *testing.T) {
	var sent []frame
	for i := range 6 {
		sent = append(sent, frame{frameData, 0, 1, bytes.Repeat([]byte{byte(i), byte(i + 1), 7}, 5000)})
	}
	want := framesOf(sent...)
	for name, socket := range map[string]func(net.Conn) net.Conn{"at once": asIs, "seven bytes at a time": func(c net.Conn) net.Conn { return dribble{c} }} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, record := range []int{1, 64, 100, 16 << 10, len(want)} {
				client, sink := overTLS(t, version, socket)
				some := want[:min(len(want), 300*record)]
				go func() {
					for b := some; len(b) > 0; b = b[min(record, len(b)):] {
						if _, err := client.Write(b[:min(record, len(b))]); err != nil {
							return
						}
					}
				}()
				pool := &counting{}
				if got := readAll(t, sink, len(some), pool); !bytes.Equal(got, some) {
					t.Errorf("%s, TLS %x, records of %d: other bytes", name, version, record)
				}
				if n := pool.held(); n != 0 {
					t.Errorf("%s, TLS %x, records of %d: %d buffers are held", name, version, record, n)
				}
				_ = client.Close()
				if _, _, err := sink.ReadOnReady(readBuffer, pool); err != io.EOF {
					t.Errorf("%s, TLS %x, records of %d: at its end %v", name, version, record, err)
				}
			}
		}
	}
}

// dribble is a connection that gives seven bytes at a time.
type dribble struct{ net.Conn }

func (d dribble) Read(b []byte) (int, error) { return d.Conn.Read(b[:min(7, len(b))]) }

// parts is a connection whose reader gets, once it is told to, what it is given, part by part.
type parts struct {
	net.Conn
	told    bool
	more    chan []byte
	waiting chan struct{} // told of each read that finds nothing
}

func (p *parts) Read(b []byte) (int, error) {
	if !p.told {
		return p.Conn.Read(b)
	}
	select {
	case part := <-p.more:
		return copy(b, part), nil
	default:
	}
	p.waiting <- struct{}{}
	part, ok := <-p.more
	if !ok {
		return 0, io.EOF
	}
	return copy(b, part), nil
}

// TestWhoeverWaitsHoldsNoBuffer: neither for the next record, of whatever length the last one was,
// nor for the rest of one.
func TestWhoeverWaitsHoldsNoBuffer(t *testing.T) {
	wire := &parts{more: make(chan []byte, 1), waiting: make(chan struct{})}
	client, sink := overTLS(t, tls.VersionTLS12, func(c net.Conn) net.Conn { wire.Conn = c; return wire })
	wire.told = true
	lent := &counting{}
	record := func(n int) []byte {
		t.Helper()
		if _, err := client.Write(body(n)[:n]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5+8+n+16) // TLS 1.2 with AES-GCM
		if _, err := io.ReadFull(wire.Conn, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	got := make(chan int)
	go func() {
		defer close(got)
		for {
			buf, n, err := sink.ReadOnReady(readBuffer, lent)
			if err != nil {
				return
			}
			lent.Put(buf)
			got <- n
		}
	}()
	<-wire.waiting
	for _, n := range []int{9, 64, 64, 100} {
		b := record(n)
		wire.more <- b[:7]
		<-wire.waiting
		if lent.held() != 0 {
			t.Errorf("a buffer is held for the rest of a record of %d bytes", n)
		}
		wire.more <- b[7:]
		if read := <-got; read != n {
			t.Errorf("%d bytes of %d", read, n)
		}
		<-wire.waiting
		if lent.held() != 0 {
			t.Errorf("a buffer is held after a record of %d bytes", n)
		}
	}
	close(wire.more)
	<-got
}
