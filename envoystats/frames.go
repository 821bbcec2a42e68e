package envoystats

// clientPreface is what an HTTP/2 connection begins with (RFC 9113, section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frames follows HTTP/2's frames through what is read of a connection, in pieces of any size, to tell data from the rest (RFC
// 9113, section 4.1: nine bytes of head, of which the first three are the length and the fourth is the type).
type frames struct {
	left   int // of the frame's body, or of the preface
	isData bool
	head   [9]byte
	have   int // of head
}

// frameData is the type of the frames that hold messages.
const frameData = 0

// data returns how many of the next bytes are data.
func (f *frames) data(b []byte) (n int) {
	for len(b) > 0 {
		if f.left > 0 {
			k := min(f.left, len(b))
			if f.isData {
				n += k
			}
			f.left -= k
			b = b[k:]
			continue
		}
		k := copy(f.head[f.have:], b)
		b = b[k:]
		if f.have += k; f.have == len(f.head) {
			f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
			f.isData, f.have = f.head[3] == frameData, 0
		}
	}
	return n
}
