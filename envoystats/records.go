package envoystats

import (
	"errors"
	"net"

	"google.golang.org/grpc/mem"
)

// crypto/tls reads as far as its buffer goes, which it never makes smaller: 40 KiB a connection
// were measured for records of 16 KiB. And it gives no more than a record at a time, which gRPC
// hands on at once, so that a stream's goroutine is woken for each, nine times a flush. So what it
// reads from is of our own: a record at a time, out of a buffer that is lent for as long as there
// is something in it. Once TLS is agreed upon it never waits there: what there is of whole records
// is taken together, and it is [secured] that waits.

// records is what TLS reads a connection from. One goroutine reads.
type records struct {
	*connection
	agreed  bool // upon TLS
	shaking int  // bytes that came before that

	pool     mem.BufferPool
	buf      *[]byte // what was read of the connection; nil where all of it is taken
	from, to int     // what is left in it

	head [recordHead]byte // of the record that goes on
	have int              // of head
	left int              // of the record behind its head
}

// recordHead is the length of what a record begins with: its type, a version and its length.
const recordHead = 5

// errDrained says that TLS has all that came.
var errDrained net.Error = drained{}

// drained is an error after which TLS reads on, as after a deadline.
type drained struct{}

func (drained) Error() string   { return "no more has come" }
func (drained) Timeout() bool   { return true }
func (drained) Temporary() bool { return true }

// Read gives what there is of the record that goes on, or of the next.
func (r *records) Read(b []byte) (int, error) {
	if r.buf == nil {
		if r.agreed {
			return 0, errDrained
		}
		if err := r.wait(smallFrame); err != nil {
			return 0, err
		}
		if r.shaking += r.to; r.shaking > maxHandshake {
			return 0, errLongHandshake
		}
	}
	n := copy(b, (*r.buf)[r.from:r.to])
	n = r.follow(b[:n])
	if r.from += n; r.from == r.to {
		r.pool.Put(r.buf)
		r.buf = nil
	}
	return n, nil
}

// wait reads from the connection, at most size bytes.
func (r *records) wait(size int) (err error) {
	r.from = 0
	r.buf, r.to, err = r.readReady(size, r.pool)
	return err
}

// Write writes what TLS has made of it.
func (r *records) Write(b []byte) (int, error) { return r.Conn.Write(b) }

// follow returns how many of the bytes are of the record that goes on, or of the next.
func (r *records) follow(b []byte) (n int) {
	if r.left == 0 {
		n = copy(r.head[r.have:], b)
		if r.have += n; r.have < recordHead {
			return n
		}
		r.have = 0
		r.left = int(r.head[3])<<8 | int(r.head[4])
	}
	body := min(r.left, len(b)-n)
	r.left -= body
	return n + body
}

// secured is a connection over TLS, in HTTP/2's bytes.
type secured struct {
	net.Conn // TLS itself
	records  *records
	more     bool // may be left in TLS, of a record that was not taken whole
}

// Read is how gRPC reads HTTP/2's preface; it waits.
func (s *secured) Read(b []byte) (int, error) {
	for {
		n, err := s.Conn.Read(b)
		if !errors.Is(err, errDrained) {
			s.more = n == len(b)
			s.records.count(b[:n])
			return n, err
		}
		if err := s.wait(); err != nil {
			return 0, err
		}
	}
}

// wait waits for bytes, and before them for the connection's turn: what has come by then is taken.
func (s *secured) wait() error {
	s.records.awaitTurn()
	return s.records.wait(readBuffer)
}

// ReadOnReady is what gRPC calls in place of Read. An idle connection holds no buffer, nor does one
// that has sent a part of a record: TLS has that.
func (s *secured) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	for {
		if s.records.buf == nil && !s.more {
			if err := s.wait(); err != nil {
				return nil, 0, err
			}
		}
		buf := pool.Get(size)
		n, err := s.drain(*buf)
		s.more = n == len(*buf)
		if n > 0 {
			s.records.count((*buf)[:n])
			return buf, n, nil
		}
		pool.Put(buf)
		if !errors.Is(err, errDrained) {
			return nil, 0, err
		}
	}
}

// drain takes what has come, as far as it is whole. An error after that TLS tells again.
func (s *secured) drain(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = s.Conn.Read(b[n:])
		n += more
	}
	return n, err
}

// Write looks which streams end with what is written.
func (s *secured) Write(b []byte) (int, error) {
	leaves := s.records.write(b)
	n, err := s.Conn.Write(b)
	if leaves {
		s.records.leave()
	}
	return n, err
}
