package envoystats

import (
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
)

const (
	// window is gRPC's flow-control window, of a connection and of a stream. A whole flush fits, so
	// that its sender never waits for us; and as an update is due with every quarter that was read,
	// one write to the sender serves seven flushes, not two.
	window = 4 << 20
	// readBuffer is what one read takes from a plaintext connection. Frames of 16 KiB that are
	// parsed from memory, without a system call or two for each, reach the stream's goroutine
	// together, and it is woken once and not nine times a flush. gRPC lends the buffer from a pool
	// for as long as a burst takes. A larger one saves no more, it only leaves the cache.
	readBuffer = 64 << 10
	// readBufferTLS is for a connection that is not the sink's own kind ([secured]): it has the
	// buffer for its life, and a read ends with the TLS record at 16 KiB.
	readBufferTLS = 8 << 10
	writeBuffer   = 2 << 10 // window updates and settings
)

// streamsPerConnection bounds what is begun on a connection at once. An Envoy has one stream, and
// one more when it begins anew; a proxy that carries the streams of several opens another
// connection. What begins is a goroutine with its stack, before anybody counts it: with 100,
// senders that begun and left 1,000 connections took 604 MiB at GOMEMLIMIT=512MiB (make attack
// ONLY=podflood, on a machine without a free CPU).
const streamsPerConnection = 16

// ServerOptions set gRPC up for many connections that each send one message in a few seconds and
// receive nothing: all of the transport but the codec. The null sink of the benchmarks has the
// same, so that it is the floor of this one.
func (c Config) ServerOptions() []grpc.ServerOption {
	c = c.withDefaults()
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(c.MaxMessageBytes),
		grpc.MaxConcurrentStreams(uint32(min(c.MaxStreams, streamsPerConnection))),
		grpc.MaxHeaderListSize(16 << 10), // Envoy's are a few hundred bytes
		grpc.WaitForHandlers(true),
		// A fixed window also spares the pings that measure one.
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.WriteBufferSize(writeBuffer),
		experimental.BufferPool(&framePool{}),
		// A sidecar that is silent for longer than flushes take is asked whether it is still there,
		// and gone half a minute later, as is one that does not get a frame done; one that has no
		// stream for five minutes is let go.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 20 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: 5 * time.Minute,
		}),
		// Envoy may be told to ping, too (connection_keepalive): more often than gRPC's five
		// minutes is fine here.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(c.times.handshake),
	}
	if c.TLS != nil {
		return append(opts, grpc.ReadBufferSize(readBufferTLS), grpc.Creds(credentials.NewTLS(c.TLS)))
	}
	return append(opts, grpc.ReadBufferSize(readBuffer))
}

// framePool lends out what frames are read into. gRPC's own pool clears a buffer whenever it is
// lent, though the frame then fills all that is used of it.
type framePool struct{ small, full, read sync.Pool }

// Sizes of buffers: a full frame's, and one for what is much less, so that many short frames do not
// hold a full one's memory each.
const (
	smallFrame = 4 << 10
	fullFrame  = 16 << 10
)

// Get implements [google.golang.org/grpc/mem.BufferPool].
func (p *framePool) Get(length int) *[]byte {
	pool, size := &p.small, smallFrame
	switch {
	case length == readBuffer: // of TLS' records
		pool, size = &p.read, readBuffer
	case length > fullFrame: // not a frame: a message that was sent compressed
		b := make([]byte, length)
		return &b
	case length > smallFrame:
		pool, size = &p.full, fullFrame
	}
	if b, ok := pool.Get().(*[]byte); ok {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length, size)
	return &b
}

// Put implements [google.golang.org/grpc/mem.BufferPool].
func (p *framePool) Put(b *[]byte) {
	switch cap(*b) {
	case smallFrame:
		p.small.Put(b)
	case fullFrame:
		p.full.Put(b)
	case readBuffer:
		p.read.Put(b)
	}
}
