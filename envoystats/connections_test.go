package envoystats

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// message sends a whole message on a stream of the connection.
func (r raw) message(stream uint32, b []byte) raw {
	head := []byte{0, byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}
	return r.frame(frameData, 0, stream, append(head, b...)...)
}

// Padding holds no memory, so nobody is closed for it; least of all who is in the middle of a
// flush.
func TestPaddingIsNotPending(t *testing.T) {
	l := serveLimited(t, Config{MaxPendingBytes: 1 << 20}, aggregator.Config{})
	r := l.raw(t).preface().headers(endHeaders)
	for range maxIdleFrames / 2 {
		r.frame(frameData, flagPadded, 1, padded(255, nil)...)
	}
	b := body(1 << 20)[:100_000]
	for part := range slices.Chunk(b, 700) {
		r.frame(frameData, flagPadded, 1, padded(255, part)...)
	}
	waitFor(t, "the data", func() bool { return l.conns.pending.Load() >= 100_000 })
	if got := l.conns.pending.Load(); got > 200_000 {
		t.Errorf("%d bytes are pending", got)
	}
	r.frame(frameReset, 0, 1, 0, 0, 0, 8)
	waitFor(t, "nothing to be pending", func() bool { return l.conns.pending.Load() == 0 })
	l.stillRight(t)
}

// What gRPC has thrown away is not pending, whoever ended the stream.
func TestDataOfStreamsThatEndedIsNotPending(t *testing.T) {
	l := serveLimited(t, Config{MaxPendingBytes: 1 << 20}, aggregator.Config{})
	lives := l.raw(t).preface().headersOf(1, endHeaders).message(1, hello(t, "lives"))
	waitFor(t, "its message", func() bool { return l.metric(t, "messages_total", "") >= 3 })
	for stream := uint32(3); stream < 20; stream += 2 {
		lives.headersOf(stream, endHeaders).message(stream, []byte("no node: refused"))
		lives.frame(frameData, 0, stream, body(90_000)[:16_000]...)
	}
	l.counts(t, "stream_ends_total", "malformed", 9)
	lives.headersOf(31, endHeaders).frame(frameData, 0, 31, body(90_000)[:16_000]...).frame(frameReset, 0, 31, 0, 0, 0, 8)
	for stream := uint32(3); stream < 33; stream += 2 {
		lives.frame(frameData, 0, stream, make([]byte, 16_000)...)
	}
	lives.message(1, message(t, request(l.clock.Load(), 1)))
	waitFor(t, "the message after", func() bool { return l.metric(t, "samples_total", "counter") >= 2 })
	waitFor(t, "nothing to be pending", func() bool { return l.conns.pending.Load() == 0 })
	l.stillRight(t)
}

// A message has its minute, whatever else comes over the connection.
func TestAMessageThatIsNotFinishedEndsAConnectionThatIsOtherwiseBusy(t *testing.T) {
	l := serveLimited(t, Config{times: times{message: patient}}, aggregator.Config{})
	busy := l.raw(t).preface().headersOf(1, endHeaders).message(1, hello(t, "busy"))
	busy.headersOf(3, endHeaders).frame(frameData, 0, 3, body(1000)[:100]...)
	stop, cancel := context.WithCancel(t.Context())
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		for i := int64(1); stop.Err() == nil; i++ {
			busy.message(1, message(t, request(i, 1)))
			wait(stop, 50*time.Millisecond)
		}
	}()
	busy.ended()
	cancel()
	<-sending
	l.counts(t, "closed_connections_total", "slow", 1)
	l.stillRight(t)
}

func TestFloodsOfFramesThatBringNothingEndTheConnection(t *testing.T) {
	for name, frame := range map[string]func(r raw, i int){
		"settings": func(r raw, _ int) { r.frame(4, 0, 0, 0, 4, 0, 1, 0, 0) },
		"resets": func(r raw, i int) {
			r.headersOf(uint32(2*i+3), endHeaders).frame(frameReset, 0, uint32(2*i+3), 0, 0, 0, 8)
		},
		"empty data":    func(r raw, _ int) { r.frame(frameData, 0, 1) },
		"padding":       func(r raw, _ int) { r.frame(frameData, flagPadded, 1, 0) },
		"a byte each":   func(r raw, _ int) { r.frame(frameData, 0, 1, 1) },
		"priorities":    func(r raw, _ int) { r.frame(2, 0, 1, 0, 0, 0, 0, 0) },
		"windows":       func(r raw, _ int) { r.frame(8, 0, 0, 0, 0, 0, 1) },
		"unknown kinds": func(r raw, _ int) { r.frame(77, 0, 0, 1, 2, 3) },
		"continuations": func(r raw, i int) {
			if i == 0 {
				r.headersOf(3, 0)
			}
			r.frame(9, 0, 3)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := serveLimited(t, Config{}, aggregator.Config{})
			r := l.raw(t).preface().headersOf(1, endHeaders).message(1, hello(t, "flood"))
			waitFor(t, "its message", func() bool { return l.metric(t, "messages_total", "") >= 3 })
			for i := range 2 * maxIdleFrames {
				frame(r, i)
			}
			r.ended()
			l.counts(t, "closed_connections_total", "flood", 1)
			l.toldOnce(t, "flood")
			l.stillRight(t)
		})
	}
}

// What a healthy connection sends in a day must not add up to a flood.
func TestFramesThatBringNothingAreForgottenAtEachLook(t *testing.T) {
	cs, sweep := manyConnections(t, 1<<30)
	c := cs.admit(fakeConn{addr: "10.0.0.1:1"})
	c.count(framesOf(frame{frameHeaders, endHeaders, 1, nil}, frame{frameData, 0, 1, body(100)}))
	c.whole(100)
	for range 20 {
		for range maxIdleFrames / 2 {
			c.count(framesOf(frame{6, 0, 0, make([]byte, 8)})[len(clientPreface):])
		}
		sweep()
	}
	if c.closed {
		t.Error("it was closed")
	}
}

type fakeConn struct {
	net.Conn
	addr string
}

func (c fakeConn) RemoteAddr() net.Addr { return fakeAddr(c.addr) }
func (fakeConn) Close() error           { return nil }

type fakeAddr string

func (fakeAddr) Network() string  { return "tcp" }
func (a fakeAddr) String() string { return string(a) }

// manyConnections are a sink's without a listener, and what looks at them.
func manyConnections(t *testing.T, maxPending int) (cs *connections, sweep func()) {
	t.Helper()
	s, err := newServer(Config{MaxPendingBytes: maxPending}, (&recorder{}).connect)
	if err != nil {
		t.Fatal(err)
	}
	return s.conns, s.conns.sweep
}

// Who takes most is closed first, by sender, and who behaves is closed last.
func TestWhoHoldsMostOfTheUnfinishedBytesIsClosedFirst(t *testing.T) {
	const (
		whole = iota - 3 // has finished one lately
		old              // was begun before the last look
		news             // lately
	)
	type holder struct {
		sender string
		bytes  int
		does   []int
	}
	for name, c := range map[string]struct {
		holders []holder
		closed  []string
	}{
		"the largest": {
			[]holder{{"a", 100, []int{news}}, {"b", 900, []int{news}}, {"c", 300, []int{news}}},
			[]string{"b"},
		},
		"the sender with many small ones, its largest": {
			[]holder{{"a", 250, []int{news}}, {"a", 200, []int{news}}, {"a", 260, []int{news}}, {"b", 400, []int{news}}},
			[]string{"a"},
		},
		"not who has finished messages lately": {
			[]holder{{"victim", 900, []int{whole, news}}, {"a", 40, []int{news}}, {"a", 200, []int{news}}},
			[]string{"a"},
		},
		"whoever holds on to one, though it finishes others": {
			[]holder{{"victim", 700, []int{whole, news}}, {"a", 310, []int{old, whole}}, {"b", 100, []int{news}}},
			[]string{"a"},
		},
		"who behaves, where all do": {
			[]holder{{"a", 900, []int{whole, news}}, {"b", 200, []int{whole, news}}},
			[]string{"a"},
		},
	} {
		cs, sweep := manyConnections(t, 1000<<10)
		conns := make([]*connection, len(c.holders))
		for i, h := range c.holders {
			conns[i] = cs.admit(fakeConn{addr: fmt.Sprintf("%s:%d", h.sender, i)})
			conns[i].count(framesOf(frame{frameHeaders, endHeaders, 1, nil}, frame{frameHeaders, endHeaders, 3, nil}))
			if slices.Contains(h.does, old) {
				conns[i].send(1, h.bytes)
			}
		}
		for range 2 {
			sweep()
		}
		for i, h := range c.holders {
			if slices.Contains(h.does, whole) {
				conns[i].count(framesOf(frame{frameData, 0, 3, body(10)})[len(clientPreface):])
				conns[i].whole(10)
			}
		}
		for i, h := range c.holders {
			if slices.Contains(h.does, news) {
				conns[i].send(1, h.bytes)
			}
		}
		conns[len(conns)-1].send(1, 16) // and more
		var closed []string
		for i, h := range c.holders {
			if conns[i].closed {
				closed = append(closed, h.sender)
			}
		}
		if !slices.Equal(closed, c.closed) {
			t.Errorf("%s: %v closed, want %v", name, closed, c.closed)
		}
	}
}

// send counts n KiB of a message that is never whole.
func (c *connection) send(stream uint32, n int) {
	for i := range (n + 15) / 16 {
		b := make([]byte, min(16, n-16*i)<<10)
		if i == 0 {
			copy(b, body(1<<24 - 1)[:messageHead])
		}
		c.count(framesOf(frame{frameData, 0, stream, b})[len(clientPreface):])
	}
}

// One address does not take all connections: there is room for whoever comes later.
func TestASenderHasAShareOfTheConnectionsAndStreams(t *testing.T) {
	l := serveLimited(t, Config{MaxConnections: 100, MaxStreams: 100}, aggregator.Config{})
	for range 80 {
		l.rawFrom(t, "127.0.0.9").preface()
	}
	waitFor(t, "80 connections and the good one, taken or refused", func() bool {
		return l.metric(t, "connections", "")+l.metric(t, "closed_connections_total", "limit") == 81
	})
	if n := l.metric(t, "connections", ""); n < 40 || n > 51 {
		t.Errorf("%v connections are open, want half", n)
	}
	refused := l.metric(t, "closed_connections_total", "limit")
	for i := range 20 {
		l.rawFrom(t, fmt.Sprintf("127.0.1.%d", i+1)).preface().headers(endHeaders).message(1, hello(t, fmt.Sprintf("web-%d", i), request(l.clock.Load(), 1)))
	}
	waitFor(t, "the newcomers' messages", func() bool { return l.metric(t, "samples_total", "counter") >= 21 })
	if n := l.metric(t, "closed_connections_total", "limit"); n != refused {
		t.Errorf("%v newcomers were refused", n-refused)
	}
	for range 5 { // few connections, many streams
		many := l.rawFrom(t, "127.0.2.1").preface()
		for i := range uint32(14) {
			many.headersOf(2*i+1, endHeaders)
		}
	}
	waitFor(t, "streams that are refused", func() bool { return l.metric(t, "stream_ends_total", "limit") >= 20 })
	l.rawFrom(t, "127.0.2.2").preface().headers(endHeaders).message(1, hello(t, "late", request(l.clock.Load(), 1)))
	waitFor(t, "the newcomer's message", func() bool { return l.metric(t, "samples_total", "counter") >= 22 })
	l.stillRight(t)
}
