package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// errUnconfirmed: the sink did not end a stream that was closed, so it is not known whether it read
// everything.
var errUnconfirmed = errors.New("sink did not confirm the end of the stream")

// confirmWithin is how long a sink may take to read what is on its way when a stream is closed.
const confirmWithin = time.Minute

// dial returns a connection that is made when it is first used, and tried again where the target
// does not listen yet: after a tenth of a second, then less and less often. The error names the
// target.
func dial(target string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
		MinConnectTimeout: 5 * time.Second,
	}))
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", target, err)
	}
	return conn, nil
}

// reach waits until the target takes connections, or for as long as it may. That it still takes
// none then is no error here: the first stream says why, which a connection's state does not.
func reach(ctx context.Context, target string, wait time.Duration) error {
	if wait == 0 {
		return nil
	}
	conn, err := dial(target)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it has no streams
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(waiting, state) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// run is one replay.
type run struct {
	config Config
	base   int64     // a time of the recordings,
	start  time.Time // and when that is now

	sending sync.WaitGroup // one for each node that has something to send
	allSent chan struct{}  // closed when they are done

	progress sync.Mutex
}

// node sends the streams of one node, one after the other, over a connection of its own as a
// sidecar does.
func (r *run) node(ctx context.Context, n *node) error {
	sent := sync.OnceFunc(r.sending.Done)
	defer sent()
	conn, err := dial(r.config.Target)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // its streams have ended
	stamps := moved(n.stamps, r.base, r.start, r.config.Speed)
	for i, rec := range n.streams {
		s := &sender{run: r, recording: rec, stamps: stamps, at: Progress{File: rec.path, Node: n.id, Messages: len(rec.times)}}
		linger := func() error { return nil }
		if i == len(n.streams)-1 {
			linger = func() error {
				sent()
				return s.linger(ctx)
			}
		}
		if err := s.send(ctx, conn, linger); err != nil {
			return fmt.Errorf("%s: after %d of %d messages: %w", rec.path, s.at.Sent, s.at.Messages, err)
		}
	}
	return nil
}

// sender sends one recording as one stream.
type sender struct {
	*run
	*recording
	stamps map[int64]int64
	at     Progress
	ended  chan error // the sink's end of the stream, nil when it is done well
}

// send sends the recording, waits for what is to be done before the stream is closed, closes it,
// and waits until the sink has read everything.
func (s *sender) send(ctx context.Context, conn *grpc.ClientConn, beforeClose func() error) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	rd, err := newReader(f)
	if err != nil {
		return err
	}
	if err := s.wait(ctx, s.times[0]); err != nil {
		return err
	}
	// Envoy's service is client-streaming. Asked for as one that streams both ways, it need not
	// reply to end well.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := conn.NewStream(ctx, desc, metricsv3.MetricsService_StreamMetrics_FullMethodName)
	if err != nil {
		return fmt.Errorf("target %s: %w", s.config.Target, err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- receiveEnd(stream) }()
	for {
		var m metricsv3.StreamMetricsMessage
		size, err := rd.next(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := s.message(ctx, stream, &m, size); err != nil {
			return err
		}
	}
	if err := beforeClose(); err != nil {
		return err
	}
	return s.close(ctx, stream)
}

// message sends one message when it is its time.
func (s *sender) message(ctx context.Context, stream grpc.ClientStream, m *metricsv3.StreamMetricsMessage, size int) error {
	if s.at.Sent == len(s.times) {
		return errors.New("file grew while it was sent")
	}
	if err := s.wait(ctx, s.times[s.at.Sent]); err != nil {
		return err
	}
	eachStamp(m, func(t int64) int64 { return s.stamps[t] })
	if err := stream.SendMsg(m); errors.Is(err, io.EOF) {
		return s.endedEarly(ctx, <-s.ended) // the sink ended the stream; why is what it was told
	} else if err != nil {
		return err
	}
	s.at.Sent++
	s.at.Bytes += int64(size)
	s.report()
	return nil
}

// wait waits until the time of the recording has come, or the stream or the context has ended.
func (s *sender) wait(ctx context.Context, recorded int64) error {
	at := s.start.Add(time.Duration(float64(recorded-s.base) / s.config.Speed * float64(time.Millisecond)))
	return until(ctx, s, time.After(time.Until(at)))
}

// until waits for what is done, or until the stream or the context has ended.
func until[T any](ctx context.Context, s *sender, done <-chan T) error {
	select {
	case <-done:
		return nil
	case err := <-s.ended:
		return s.endedEarly(ctx, err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// linger keeps the stream open, where it is wanted, until all nodes have sent everything and for a
// while more.
func (s *sender) linger(ctx context.Context) error {
	if s.config.Linger == 0 {
		return nil
	}
	if err := until(ctx, s, s.allSent); err != nil {
		return err
	}
	return until(ctx, s, time.After(s.config.Linger))
}

// endedEarly says that the sink ended the stream before we did.
func (s *sender) endedEarly(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		return errors.New("sink ended the stream")
	}
	return fmt.Errorf("sink ended the stream: %w", err)
}

// close ends the stream. A sink never replies: that it ends the stream well tells that it has read
// everything before.
func (s *sender) close(ctx context.Context, stream grpc.ClientStream) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	select {
	case err := <-s.ended:
		if err != nil {
			return s.endedEarly(ctx, err)
		}
	case <-time.After(confirmWithin):
		return fmt.Errorf("%w within %s", errUnconfirmed, confirmWithin)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.at.Done = true
	s.report()
	return nil
}

// receiveEnd waits for the end of the stream; nil is a good one.
func receiveEnd(stream grpc.ClientStream) error {
	for {
		var reply metricsv3.StreamMetricsResponse
		if err := stream.RecvMsg(&reply); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *sender) report() {
	if s.config.Progress == nil {
		return
	}
	s.progress.Lock()
	defer s.progress.Unlock()
	s.config.Progress(s.at)
}
