package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	service     = "meshpulse.relay.v1.Replica"
	methodRelay = "/" + service + "/Relay"
	methodAsk   = "/" + service + "/Ask"
	// nameKey is the header in which a replica says its name.
	nameKey = "meshpulse-replica"
	// frameRoom is what a frame takes beside its message: the pod, whose texts are bounded.
	frameRoom = 64 << 10
	// handshakeTime is how long a connection may take to show that it is a replica's.
	handshakeTime = 5 * time.Second
)

// raw is bytes as they are on the wire; outgoing is what is sent.
type (
	raw      struct{ bytes []byte }
	outgoing mem.BufferSlice
)

// codec hands over bytes as they are.
type codec struct{}

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	out, ok := v.(outgoing)
	if !ok {
		return nil, fmt.Errorf("cannot send %T", v)
	}
	return mem.BufferSlice(out), nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*raw)
	if !ok {
		return fmt.Errorf("cannot receive into %T", v)
	}
	n := data.Len()
	in.bytes = slices.Grow(in.bytes[:0], n)[:n]
	data.CopyTo(in.bytes)
	return nil
}

func (codec) Name() string { return "proto" }

func (r *Replicas) newServer() *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{}),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxRecvMsgSize(s2.MaxEncodedLen(r.config.MaxMessageBytes) + frameRoom),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
	if r.config.TLS != nil {
		opts = append(opts, grpc.Creds(r.config.TLS.server()))
	}
	s := grpc.NewServer(opts...)
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: service,
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Relay", ClientStreams: true,
			Handler: func(_ any, gs grpc.ServerStream) error { return r.take(gs) },
		}},
		Methods: []grpc.MethodDesc{{MethodName: "Ask", Handler: r.asked}},
	}, nil)
	return s
}

// asked answers a question.
func (r *Replicas) asked(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var request raw
	if err := decode(&request); err != nil {
		return nil, err
	}
	answer := r.answer.Load()
	if answer == nil {
		return nil, status.Error(codes.Unavailable, "nothing is answered yet")
	}
	return outgoing{mem.SliceBuffer((*answer)(ctx, request.bytes))}, nil
}

// take takes what comes over one lane of another replica until it ends.
func (r *Replicas) take(gs grpc.ServerStream) error {
	md, _ := metadata.FromIncomingContext(gs.Context())
	names := md.Get(nameKey)
	if len(names) != 1 {
		return status.Errorf(codes.InvalidArgument, "header %s has to say once which replica this is", nameKey)
	}
	l := &lane{of: r, name: names[0], streams: map[uint64]*relayed{}}
	defer l.end()
	var in raw
	for {
		switch err := gs.RecvMsg(&in); {
		case errors.Is(err, io.EOF):
			return gs.SendMsg(outgoing{})
		case err != nil:
			return err
		}
		err := l.frame(r.config.Now(), in.bytes)
		if cap(in.bytes) > maxScratch {
			in.bytes = nil
		}
		if err != nil {
			r.metrics.refused.Inc()
			if errors.Is(err, errVersion) {
				return status.Error(codes.Unimplemented, err.Error())
			}
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// lane is one stream of another replica, with the sidecars' streams that come over it.
type lane struct {
	of      *Replicas
	name    string
	streams map[uint64]*relayed
	plain   []byte // what a message is decompressed into
	swept   time.Time
}

// relayed is a sidecar's stream.
type relayed struct {
	stream Stream // nil: it was refused
	pod    []byte
	last   time.Time
	again  time.Time // when one that was refused is asked for again
}

const (
	// againAfter is how long a stream that was refused is not asked for again: a flush. A sidecar
	// that is refused connects anew at its next. It knows nothing of a refusal here: of a replica
	// that has not heard of its pod yet, or after a fault, while the one that it reports to goes
	// on.
	againAfter = 5 * time.Second
	// idleFor is how long a stream is kept of which nothing comes: its end may have been dropped.
	idleFor = 10 * time.Minute
	// sweepEvery is how often such ones are looked for.
	sweepEvery = time.Minute
)

// frame applies a frame. An error ends the lane: what comes after cannot be believed either.
func (l *lane) frame(now time.Time, b []byte) error {
	f, err := ReadFrame(b)
	if err != nil {
		return err
	}
	l.of.heard(l.name, f.Beat)
	if f.Beat != nil {
		l.sweep(now)
		return nil
	}
	s, err := l.stream(now, &f)
	if err != nil {
		return err
	}
	s.last = now
	if f.End {
		s.end()
		delete(l.streams, f.Stream)
		return nil
	}
	if s.stream == nil {
		l.of.metrics.refused.Inc()
		return nil
	}
	if err := l.decompress(f.Message); err != nil {
		return err
	}
	l.of.metrics.received(l.name, len(b))
	if !s.stream.Message(now.Add(-f.Age), l.plain) {
		s.end()
		s.stream, s.again = nil, now.Add(againAfter)
	}
	if cap(l.plain) > maxScratch {
		l.plain = nil
	}
	return nil
}

// stream returns the frame's, which may be the first of it.
func (l *lane) stream(now time.Time, f *Frame) (*relayed, error) {
	s := l.streams[f.Stream]
	if s != nil && bytes.Equal(s.pod, f.Pod) && (s.stream != nil || f.End || now.Before(s.again)) {
		return s, nil
	}
	pod, err := ReadPod(f.Pod)
	if err != nil {
		return nil, err
	}
	if s != nil {
		s.end()
	}
	s = &relayed{pod: bytes.Clone(f.Pod), again: now.Add(againAfter)}
	l.streams[f.Stream] = s
	if sink := l.of.sink.Load(); sink != nil && !f.End {
		if s.stream, err = (*sink).Relayed(pod); err != nil {
			s.stream = nil
		}
	}
	return s, nil
}

// decompress puts the message into plain.
func (l *lane) decompress(message []byte) (err error) {
	if n, err := s2.DecodedLen(message); err == nil && n > l.of.config.MaxMessageBytes {
		return fmt.Errorf("%w: a message of %d bytes", errFrame, n)
	}
	if l.plain, err = s2.Decode(l.plain[:cap(l.plain)], message); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}

// sweep lets go of streams of which nothing comes any more.
func (l *lane) sweep(now time.Time) {
	if now.Sub(l.swept) < sweepEvery {
		return
	}
	l.swept = now
	for number, s := range l.streams {
		if now.Sub(s.last) > idleFor {
			s.end()
			delete(l.streams, number)
		}
	}
}

// end ends all streams: the replica begins them anew when it is back.
func (l *lane) end() {
	for _, s := range l.streams {
		s.end()
	}
}

func (s *relayed) end() {
	if s.stream != nil {
		s.stream.End()
	}
}
