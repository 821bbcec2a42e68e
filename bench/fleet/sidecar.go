package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
)

// codec sends bytes as they are.
type codec struct{}

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(mem.BufferSlice)
	if !ok {
		return nil, fmt.Errorf("cannot send %T", v)
	}
	return b, nil
}

func (codec) Unmarshal(mem.BufferSlice, any) error { return nil }
func (codec) Name() string                         { return "proto" }

// buffers lends out messages; gRPC gives one back when its last byte is on the wire. There are as
// many as are being sent.
type buffers struct{ pool sync.Pool }

// Get returns a buffer of the length.
func (p *buffers) Get(length int) *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok && cap(*b) >= length {
		*b = (*b)[:length]
		return b
	}
	b := make([]byte, length)
	return &b
}

// Put takes a buffer back.
func (p *buffers) Put(b *[]byte) { p.pool.Put(b) }

// order is what a sidecar is told to do at once.
type order int

const (
	replace   order = iota // the pod goes, another comes
	restart                // its Envoy is killed and comes back
	reconnect              // its connection breaks
)

// sidecar is one pod's Envoy.
type sidecar struct {
	fleet      *Fleet
	number     int
	generation int // of the pod under this number
	flushes    int64
	failed     int64
	orders     chan order

	conn   *grpc.ClientConn
	stream grpc.ClientStream // nil: opened at the next flush
	first  bool              // the stream's first message is yet to come
}

// run flushes at a steady rate, in the sidecar's own phase, until the context ends.
func (s *sidecar) run(ctx context.Context) {
	defer s.hangUp()
	interval := s.fleet.config.Interval
	next := time.Now().Add(interval * time.Duration(s.number) / time.Duration(s.fleet.config.Pods))
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-s.orders:
			s.obey(ctx, o)
		case <-timer.C:
			s.fleet.late(time.Since(next))
			s.flush(ctx, false)
			next = next.Add(interval)
			timer.Reset(time.Until(next))
		}
	}
}

func (s *sidecar) obey(ctx context.Context, o order) {
	switch o {
	case replace:
		s.flush(ctx, true)
		s.hangUp()
		s.generation, s.flushes = s.generation+1, 0
		s.fleet.stats.replaced.Add(1)
	case restart:
		s.hangUp()
		s.flushes = 0
		s.fleet.stats.restarted.Add(1)
	case reconnect:
		s.hangUp()
		s.flush(ctx, false)
	}
}

// hangUp breaks the connection, as a process that ends does; Envoy never half-closes.
func (s *sidecar) hangUp() {
	if s.conn != nil {
		_ = s.conn.Close() // there is nothing to lose but the connection
		s.fleet.stats.streams.Add(-1)
	}
	s.conn, s.stream = nil, nil
}

// flush sends one. As Envoy does, it opens a stream where there is none, and what cannot be sent is
// lost.
func (s *sidecar) flush(ctx context.Context, last bool) {
	number := s.flushes
	s.flushes++
	if err := s.send(ctx, number, last); err != nil && ctx.Err() == nil {
		s.failed++
		s.fleet.stats.failed.Add(1)
		raise(&s.fleet.stats.mostFailed, s.failed)
		s.fleet.note(err)
		s.hangUp()
	}
}

func (s *sidecar) send(ctx context.Context, number int64, last bool) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	t, ahead := s.fleet.template, s.fleet.template.traffic.ahead(s.number)
	f := t.flush(number, ahead)
	size := len(f.families)
	if last {
		size = f.last
	}
	b := s.fleet.buffers.Get(size)
	copy(*b, f.families)
	workload := s.fleet.config.workload(s.number)
	t.patch(*b, time.Now().UnixMilli(), workload, number, ahead)
	message := mem.BufferSlice{mem.NewBuffer(b, &s.fleet.buffers)}
	if s.first {
		id := mem.SliceBuffer(s.fleet.template.identify(workload, s.number, s.generation))
		message = append(mem.BufferSlice{id}, message...)
		s.first = false
	}
	length := message.Len() // the buffers are given back by the time SendMsg returns
	if err := s.stream.SendMsg(message); err != nil {
		end := s.stream.RecvMsg(nil) // says why the receiver ended the stream
		return fmt.Errorf("flush not sent: %w", errors.Join(err, end))
	}
	s.fleet.stats.flushes.Add(1)
	s.fleet.stats.bytes.Add(int64(length))
	return nil
}

// open dials and opens a stream, where there is none.
func (s *sidecar) open(ctx context.Context) error {
	if s.stream != nil {
		return nil
	}
	conn, err := grpc.NewClient("passthrough:///"+s.fleet.config.Target, s.fleet.dial...)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/envoy.service.metrics.v3.MetricsService/StreamMetrics")
	if err != nil {
		_ = conn.Close() // the error says what there is to say
		return fmt.Errorf("open stream: %w", err)
	}
	s.conn, s.stream, s.first = conn, stream, true
	s.fleet.stats.streams.Add(1)
	s.fleet.stats.opened.Add(1)
	return nil
}

// dialOptions set up connections of which there are thousands: nothing is received on them.
func dialOptions(c Config) ([]grpc.DialOption, error) {
	creds := plaintext()
	if c.CAFile != "" {
		config, err := tlsOf(c)
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(config)
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{})),
		grpc.WithReadBufferSize(1 << 10),
		grpc.WithWriteBufferSize(64 << 10), // an Envoy writes up to 16 slices of 16 KiB at once
		grpc.WithStaticStreamWindowSize(64 << 10),
		grpc.WithStaticConnWindowSize(64 << 10),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	}, nil
}

// tlsOf is what an Envoy does: TLS 1.2, every handshake whole.
func tlsOf(c Config) (*tls.Config, error) {
	text, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%w: %s holds no certificate", ErrConfig, c.CAFile)
	}
	if c.CertFile == "" {
		return config, nil
	}
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// pick returns a random sidecar.
func (f *Fleet) pick() *sidecar { return f.sidecars[rand.IntN(len(f.sidecars))] }
