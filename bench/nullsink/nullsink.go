// Package nullsink is the floor that the ingest is measured against: a gRPC server that receives what sidecars send and
// throws it away.
//
// It knows the transport only. Its settings are those of the sink in envoystats (server.go, options), so that what differs is
// what is done with a message; a message is not even put together here.
package nullsink

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
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
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(64 << 20),
		grpc.MaxConcurrentStreams(50_000),
		grpc.WaitForHandlers(true),
		grpc.StaticStreamWindowSize(1 << 20),
		grpc.StaticConnWindowSize(1 << 20),
		grpc.ReadBufferSize(8 << 10),
		grpc.WriteBufferSize(2 << 10),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 20 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: 5 * time.Minute,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(20 * time.Second),
	}
	if c != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(c)))
	}
	s.grpc = grpc.NewServer(opts...)
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
