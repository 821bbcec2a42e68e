//go:build unix

package envoystats

import (
	"io"
	"syscall"

	"google.golang.org/grpc/mem"
)

// readiness reads where something can be read, into a buffer that is lent only then.
type readiness struct {
	raw  syscall.RawConn
	read func(fd uintptr) (done bool) // attempt, made once

	// Of the read that goes on.
	size int
	pool mem.BufferPool
	buf  *[]byte
	n    int
	err  error
}

// attempt reads from the descriptor; false waits until it can be read.
func (r *readiness) attempt(fd uintptr) (done bool) {
	r.buf = r.pool.Get(r.size)
	for r.n, r.err = syscall.Read(int(fd), *r.buf); r.err == syscall.EINTR; {
		r.n, r.err = syscall.Read(int(fd), *r.buf)
	}
	if r.err != nil {
		r.pool.Put(r.buf)
		r.buf = nil
	}
	return r.err != syscall.EAGAIN
}

// ReadOnReady is what gRPC calls in place of Read on connections that are not its own kind
// (internal/transport/readyreader in grpc-go), so that an idle connection holds no buffer. Only one
// goroutine reads.
func (c *connection) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	c.awaitTurn()
	buf, n, err := c.readReady(size, pool)
	if n > 0 {
		c.count((*buf)[:n])
	}
	return buf, n, err
}

// readReady lends a buffer once something can be read, and reads, whatever it is.
func (c *connection) readReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	if c.peeked {
		return c.readBlocking(size, pool) // at once
	}
	r := &c.ready
	if r.raw == nil {
		conn, ok := c.Conn.(syscall.Conn)
		if !ok { // a test's
			return c.readBlocking(size, pool)
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return nil, 0, err
		}
		r.raw, r.read = raw, r.attempt
	}
	r.size, r.pool, r.buf, r.n, r.err = size, pool, nil, 0, nil
	err := r.raw.Read(r.read)
	if err == nil {
		err = r.err
	}
	if err == nil && r.n == 0 {
		err = io.EOF
	}
	buf, n := r.buf, r.n
	r.buf, r.pool = nil, nil
	if err != nil {
		if buf != nil {
			pool.Put(buf)
		}
		return nil, 0, err
	}
	return buf, n, nil
}
