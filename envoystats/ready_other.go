//go:build !unix

package envoystats

import "google.golang.org/grpc/mem"

// readiness is for systems where a read can be waited for without a buffer.
type readiness struct{}

// readReady reads into a buffer that is lent before.
func (c *connection) readReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	return c.readBlocking(size, pool)
}
