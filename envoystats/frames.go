package envoystats

import "encoding/binary"

// clientPreface is what an HTTP/2 connection begins with (RFC 9113, section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frames follows HTTP/2's frames through what is read of a connection, in pieces of any size, and
// the messages of each of its streams through their data, to know what gRPC keeps of messages that
// nobody has taken: of data alone, without its padding, and of streams that have not ended.
type frames struct {
	frameHead
	left   int // of the frame's body, or of the preface
	data   int // of that, what is left of data
	padded bool
	at     *progress // the stream that the data is of; nil where it is thrown away
	ended  int       // messages that end in the frame, of which the rest is still to come: nobody gets a frame before its end
	bytes  int       // of data in the frame

	streams map[uint32]*progress // that have not ended
	last    uint32               // stream that was begun

	payload, kept int64 // bytes of messages that were not taken, and what gRPC keeps for them
	waiting       int   // whole messages that were not taken
	idle          int   // frames that brought nothing; the connection's to forget
}

// progress follows the messages of one stream. Where one begins and ends is known even if the
// handler is behind.
type progress struct {
	left  int // of the message
	head  [messageHead]byte
	has   int   // of head
	bytes int64 // that have come of a message that is not whole
	since int64 // when that began
	done  bool  // the sender has ended it: nothing may follow
}

// messageHead is what gRPC puts before a message: whether it is compressed, and its length.
const messageHead = 5

// Types and flags of frames.
const (
	frameData    = 0
	frameHeaders = 1
	frameReset   = 3
	flagEnd      = 0x1
	flagPadded   = 0x8
)

// frameHead is a frame's head (RFC 9113, section 4.1).
type frameHead struct {
	head [9]byte
	have int
}

// add takes bytes of the head and returns how many, and whether it is whole.
func (f *frameHead) add(b []byte) (n int, whole bool) {
	n = copy(f.head[f.have:], b)
	if f.have += n; f.have < len(f.head) {
		return n, false
	}
	f.have = 0
	return n, true
}

func (f *frameHead) length() int        { return int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2]) }
func (f *frameHead) kind() byte         { return f.head[3] }
func (f *frameHead) has(flag byte) bool { return f.head[4]&flag != 0 }
func (f *frameHead) stream() uint32     { return binary.BigEndian.Uint32(f.head[5:]) &^ (1 << 31) }

// frameCost is what gRPC keeps for a frame of data beside its bytes: its place in the queue and in
// the message, and the head of its buffer.
const frameCost = 64

// keeps is what a frame of data takes in memory until its message is taken: buffers are lent in two
// sizes (framePool).
func keeps(length int) int64 {
	switch {
	case length <= 1<<10: // gRPC does not ask the pool for these
		return int64(frameCost + length)
	case length <= smallFrame:
		return frameCost + smallFrame
	}
	return int64(frameCost + max(length, fullFrame))
}

// tinyFrame is how many bytes of data are less than what they cost. A message may end with such a
// frame, but not consist of them.
const tinyFrame = frameCost

// read follows the next bytes; now is what messages that begin with them are dated.
func (f *frames) read(b []byte, now int64) {
	for len(b) > 0 {
		switch {
		case f.left == 0:
			n, whole := f.add(b)
			b = b[n:]
			if whole {
				f.begin()
			}
		case f.padded:
			f.padded = false
			f.left--
			f.announce(f.left - int(b[0]))
			b = b[1:]
			f.done()
		default:
			n := min(f.left, len(b))
			if d := min(n, f.data); f.at != nil && d > 0 {
				f.data -= d
				f.ended += f.at.follow(b[:d], now)
			}
			f.left -= n
			b = b[n:]
			f.done()
		}
	}
}

// begin takes a frame's head into account.
func (f *frames) begin() {
	f.left, f.data, f.bytes, f.at, f.padded = f.length(), 0, 0, nil, false
	id := f.stream()
	switch f.kind() {
	case frameData:
		if m := f.streams[id]; m != nil && !m.done {
			f.at = m
		}
		if f.padded = f.has(flagPadded) && f.left > 0; !f.padded {
			f.announce(f.left)
		}
	case frameHeaders:
		if id%2 == 1 && id > f.last {
			f.last = id
			if f.streams == nil {
				f.streams = map[uint32]*progress{}
			}
			f.streams[id] = &progress{}
		}
	case frameReset:
		f.end(id)
	}
	f.done()
}

// announce notes that n bytes of data are to come. gRPC takes a frame's memory when it has its
// head.
func (f *frames) announce(n int) {
	if f.at == nil || n <= 0 {
		return
	}
	f.data, f.bytes = n, n
	f.payload += int64(n)
	f.kept += keeps(f.length())
}

// done looks whether the frame is whole, and what it has brought.
func (f *frames) done() {
	if f.left > 0 {
		return
	}
	ends := f.has(flagEnd) && (f.kind() == frameData || f.kind() == frameHeaders)
	if f.kind() != frameData || f.ended == 0 && f.bytes < tinyFrame {
		f.idle++
	}
	f.waiting += f.ended
	f.ended, f.at = 0, nil
	if m := f.streams[f.stream()]; ends && m != nil { // what is whole is still taken
		m.done = true
		f.settle(m.bytes)
		m.bytes = 0
	}
}

// end forgets a stream that gRPC has let go of, and what had come of it.
func (f *frames) end(id uint32) {
	m := f.streams[id]
	if m == nil {
		return
	}
	delete(f.streams, id)
	if f.at == m {
		f.settle(int64(f.data))
		f.at, f.data = nil, 0
	}
	f.settle(m.bytes)
	if len(f.streams) == 0 { // what was whole and is not taken any more
		f.payload, f.kept, f.waiting = 0, 0, 0
	}
}

// settle takes bytes of messages off what is kept, and their share of what they cost.
func (f *frames) settle(n int64) {
	if n = min(n, f.payload); n == f.payload {
		f.payload, f.kept = 0, 0
		return
	}
	f.kept -= int64(float64(f.kept) * float64(n) / float64(f.payload))
	f.payload -= n
}

// taken notes that a message of n bytes was.
func (f *frames) taken(n int) {
	f.waiting = max(0, f.waiting-1)
	f.settle(int64(n + messageHead))
}

// oldest returns when the oldest message was begun that is not whole, and whether there is one.
func (f *frames) oldest() (since int64, ok bool) {
	for _, m := range f.streams {
		if m.bytes > 0 && (!ok || m.since < since) {
			since, ok = m.since, true
		}
	}
	return since, ok
}

// restart dates messages that are not whole anew.
func (f *frames) restart(now int64) {
	for _, m := range f.streams {
		m.since = now
	}
}

// follow takes the next bytes of the stream and returns how many messages they end.
func (m *progress) follow(b []byte, now int64) (ended int) {
	for len(b) > 0 {
		if m.bytes == 0 {
			m.since = now
		}
		if m.left > 0 {
			n := min(m.left, len(b))
			b = b[n:]
			m.bytes += int64(n)
			m.left -= n
		} else {
			n := copy(m.head[m.has:], b)
			b = b[n:]
			m.bytes += int64(n)
			if m.has += n; m.has < messageHead {
				continue
			}
			m.has = 0
			m.left = int(binary.BigEndian.Uint32(m.head[1:]))
		}
		if m.left == 0 && m.has == 0 {
			m.bytes = 0
			ended++
		}
	}
	return ended
}

// endings finds in what is written to a connection which streams end with it.
type endings struct {
	frameHead
	left int
}

// read calls f for each stream that ends.
func (e *endings) read(b []byte, f func(id uint32)) {
	for len(b) > 0 {
		if e.left > 0 {
			n := min(e.left, len(b))
			e.left -= n
			b = b[n:]
			continue
		}
		n, whole := e.add(b)
		b = b[n:]
		if !whole {
			continue
		}
		e.left = e.length()
		if e.kind() == frameReset || e.kind() == frameHeaders && e.has(flagEnd) {
			f(e.stream())
		}
	}
}
