// Package nullsink is the floor that the ingest is measured against: a gRPC server that receives
// what sidecars send and throws it away.
//
// It knows the transport only. Its settings are the sink's own (envoystats.Config.ServerOptions),
// so that what differs is what is done with a message; a message is not even put together here.
package nullsink

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/meshpulse/meshpulse/envoystats"
)

// Sink receives and forgets. It is safe for concurrent use.
type Sink struct {
	grpc     *grpc.Server
	messages atomic.Int64
}

// codec drops messages.
type codec struct{}

func (codec) Unmarshal(mem.BufferSlice, any) error { return nil }
func (codec) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (codec) Name() string                         { return "proto" }

// New returns a sink; a nil configuration is plaintext.
func New(c *tls.Config) *Sink {
	s := &Sink{}
	opts := envoystats.Config{TLS: c}.ServerOptions()
	s.grpc = grpc.NewServer(append(opts, grpc.ForceServerCodecV2(codec{}))...)
	s.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: "envoy.service.metrics.v3.MetricsService",
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "StreamMetrics", Handler: s.receive, ClientStreams: true}},
	}, nil)
	return s
}

func (s *Sink) receive(_ any, stream grpc.ServerStream) error {
	for {
		if err := stream.RecvMsg(nil); err != nil {
			return nil // the sender has gone: there is nobody to tell
		}
		s.messages.Add(1)
	}
}

// Messages is how many have been received.
func (s *Sink) Messages() int64 { return s.messages.Load() }

// Serve receives on the listener until Stop.
func (s *Sink) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("null sink on %s: %w", l.Addr(), err)
	}
	return nil
}

// Stop ends all streams.
func (s *Sink) Stop() { s.grpc.Stop() }
