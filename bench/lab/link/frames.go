package link

import (
	"encoding/binary"
	"io"
)

// HTTP/2 (RFC 9113) and gRPC on it: what is needed to find a message.
const (
	prefaceBytes     = 24 // "PRI * HTTP/2.0…", before a client's first frame
	frameHeaderBytes = 9
	frameData        = 0x0
	frameRSTStream   = 0x3
	flagEndStream    = 0x1
	flagPadded       = 0x8
	prefixBytes      = 5 // a message's: compressed or not, and its length
	// maxHeld bounds what is held back for a whole message; a larger one goes on unchanged. It is
	// less than the sink's window, or the sidecar would wait for the sink, and the sink for us.
	maxHeld = 768 << 10
)

// frames reads what a client sends, frame by frame. While messages are to be changed, frames are
// held back until the message in them is whole.
type frames struct {
	from    io.Reader
	link    *Link
	begun   bool
	held    []byte
	streams map[uint32]*message // those in the middle of a message
}

// message is what has come of one. Its bytes lie in held, between those of frame headers.
type message struct {
	prefix []byte
	left   int    // bytes that are still to come
	spans  []span // of held
}

type span struct{ from, to int }

// next returns the bytes that may go on: whole frames.
func (f *frames) next() ([]byte, error) {
	if !f.begun {
		f.begun, f.streams = true, map[uint32]*message{}
		preface := make([]byte, prefaceBytes)
		n, err := io.ReadFull(f.from, preface)
		return preface[:n], err
	}
	for {
		if err := f.frame(); err != nil {
			return f.release(), err
		}
		if len(f.streams) == 0 || len(f.held) > maxHeld || len(f.link.current()) == 0 {
			return f.release(), nil
		}
	}
}

// release gives up what is held. Messages that are not whole yet keep their count, and lose their
// bytes.
func (f *frames) release() []byte {
	out := f.held
	f.held = nil
	for _, m := range f.streams {
		m.spans = nil
	}
	return out
}

// frame adds the next one to what is held.
func (f *frames) frame() error {
	start := len(f.held)
	f.held = append(f.held, make([]byte, frameHeaderBytes)...)
	header := f.held[start:]
	if n, err := io.ReadFull(f.from, header); err != nil {
		f.held = f.held[:start+n]
		return err
	}
	length := int(header[0])<<16 | int(header[1])<<8 | int(header[2])
	kind, flags, id := header[3], header[4], binary.BigEndian.Uint32(header[5:])&^(1<<31)
	body := len(f.held)
	f.held = append(f.held, make([]byte, length)...)
	if n, err := io.ReadFull(f.from, f.held[body:]); err != nil {
		f.held = f.held[:body+n]
		return err
	}
	if kind == frameData && flags&flagPadded == 0 {
		f.data(id, span{body, len(f.held)})
	}
	if kind == frameRSTStream || kind == frameData && flags&flagEndStream != 0 {
		delete(f.streams, id)
	}
	return nil
}

// data takes the bytes of a stream into account: prefixes, parts of messages, several messages.
func (f *frames) data(id uint32, s span) {
	m := f.streams[id]
	if m == nil {
		m = &message{}
	}
	for s.from < s.to {
		if missing := prefixBytes - len(m.prefix); missing > 0 {
			n := min(missing, s.to-s.from)
			m.prefix = append(m.prefix, f.held[s.from:s.from+n]...)
			s.from += n
			if n < missing {
				break
			}
			m.left = int(binary.BigEndian.Uint32(m.prefix[1:]))
		}
		n := min(m.left, s.to-s.from)
		m.spans = append(m.spans, span{s.from, s.from + n})
		m.left -= n
		s.from += n
		if m.left == 0 {
			f.whole(m)
			m = &message{}
		}
	}
	if len(m.prefix) > 0 {
		f.streams[id] = m
	} else {
		delete(f.streams, id)
	}
}

// whole counts a message and has it changed, if all of it is still here.
func (f *frames) whole(m *message) {
	f.link.messages.Add(1)
	changes := f.link.current()
	size := 0
	for _, s := range m.spans {
		size += s.to - s.from
	}
	if len(changes) == 0 || size != int(binary.BigEndian.Uint32(m.prefix[1:])) || m.prefix[0] != 0 {
		return
	}
	bytes := make([]byte, 0, size)
	for _, s := range m.spans {
		bytes = append(bytes, f.held[s.from:s.to]...)
	}
	for _, c := range changes {
		c.apply(bytes)
	}
	for _, s := range m.spans {
		copy(f.held[s.from:s.to], bytes)
		bytes = bytes[s.to-s.from:]
	}
}
