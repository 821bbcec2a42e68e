package envoystats

import "encoding/binary"

// clientPreface is what an HTTP/2 connection begins with (RFC 9113, section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frames follows HTTP/2's frames through what is read of a connection, in pieces of any size, to tell data from the rest (RFC
// 9113, section 4.1: nine bytes of head, of which the first three are the length, the fourth is the type and the fifth are flags),
// and the messages of its newest stream through the data.
type frames struct {
	left   int // of the frame's body, or of the preface
	isData bool
	head   [9]byte
	have   int // of head

	message     int // left of the message
	messageHead [messageHead]byte
	messageHas  int  // of messageHead
	ended       int  // messages that end in the frame, of which the rest is still to come
	lost        bool // where messages begin is not known
}

// Types and flags of frames.
const (
	frameData    = 0
	frameHeaders = 1
	flagPadded   = 0x8
)

// messageHead is what gRPC puts before a message: whether it is compressed, and its length.
const messageHead = 5

// data returns how many of the next bytes are data, and how many messages are whole with them: nobody gets a frame before its end.
func (f *frames) data(b []byte) (n, ended int) {
	for len(b) > 0 {
		if f.left > 0 {
			k := min(f.left, len(b))
			if f.isData {
				n += k
				f.ended += f.follow(b[:k])
			}
			if f.left -= k; f.left == 0 {
				ended, f.ended = ended+f.ended, 0
			}
			b = b[k:]
			continue
		}
		k := copy(f.head[f.have:], b)
		b = b[k:]
		if f.have += k; f.have == len(f.head) {
			f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
			f.isData, f.have = f.head[3] == frameData, 0
			switch {
			case f.head[3] == frameHeaders: // a stream begins
				f.message, f.messageHas, f.lost = 0, 0, false
			case f.isData && f.head[4]&flagPadded != 0: // which Envoy does not do
				f.lost = true
			}
		}
	}
	return n, ended
}

// follow takes the next bytes of the stream and returns how many messages they end.
func (f *frames) follow(b []byte) (ended int) {
	for len(b) > 0 && !f.lost {
		if f.message > 0 {
			k := min(f.message, len(b))
			b = b[k:]
			if f.message -= k; f.message == 0 {
				ended++
			}
			continue
		}
		k := copy(f.messageHead[f.messageHas:], b)
		b = b[k:]
		if f.messageHas += k; f.messageHas == messageHead {
			f.messageHas = 0
			if f.message = int(binary.BigEndian.Uint32(f.messageHead[1:])); f.message == 0 {
				ended++
			}
		}
	}
	return ended
}
