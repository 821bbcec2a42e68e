package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

const (
	// lanes is over how many streams of the one connection what goes to a replica is spread, a pod
	// always over the same: each is read by one goroutine there, which takes some 110 us a flush.
	lanes = 4
	// laneFrames is how many frames may wait in a lane, however small they are.
	laneFrames = 4096
	// tooOld is how long a frame may wait: where a replica is not there, or does not read, its gap
	// is not filled with what is of no use any more.
	tooOld = 30 * time.Second
	// gather is how long a frame waits for others, of all lanes, where they come as often as that:
	// together they take one write, and wake the other replica once. A frame by itself wakes five
	// goroutines and both processes' polls. Of 3,000 sidecars two replicas then take 1.84 times the
	// CPU of one, and not 2.00; of 500, where no other frame comes, waiting alone would cost more
	// (2.48 and 1.99). The wait is in the frame's age.
	gather = 20 * time.Millisecond
	// window is gRPC's flow-control window: some hundred flushes.
	window = 4 << 20
	// maxAnswer bounds an answer: that of a whole cluster's pods is larger than gRPC's 4 MiB.
	maxAnswer = 64 << 20
)

// peer is another replica, as this one talks to it.
type peer struct {
	of            *Replicas
	name, address string
	conn          *grpc.ClientConn
	lanes         [lanes]chan packet
	queued        atomic.Int64 // bytes that wait
	heard         atomic.Int64 // when it was, in nanoseconds since Config.Since and 1; 0: never
	ending        atomic.Bool  // it has said so
	ahead         atomic.Int64 // by how many nanoseconds it has been up for longer

	cancel  context.CancelFunc
	close   chan struct{} // once nothing more is put in
	closing sync.Once
	sending sync.WaitGroup
}

// packet is what waits to be sent.
type packet struct {
	sender  *Sender
	arrival time.Time
	message mem.Buffer // the frame's field; nil: the stream has ended
	bytes   int64
}

// buffers are what messages wait in, of sizes that waste little.
var buffers = mem.NewTieredBufferPool(2<<10, 4<<10, 8<<10, 16<<10, 32<<10, 64<<10, 128<<10, 256<<10)

// connect begins to talk to a replica. It is connected anew for ever.
func (r *Replicas) connect(m fleet.Member) *peer {
	p := &peer{of: r, name: m.Name, address: m.Address, close: make(chan struct{})}
	creds := insecure.NewCredentials()
	if r.config.TLS != nil {
		creds = r.config.TLS.client()
	}
	conn, err := grpc.NewClient("passthrough:///"+m.Address, clientOptions(creds)...)
	if err != nil { // the target is one that it takes
		r.config.Logger.Error("replica not connected", "replica", m.Name, "address", m.Address, "err", err)
		return p
	}
	p.conn = conn
	r.metrics.begin(m.Name)
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), nameKey, r.config.Self.Name))
	for i := range p.lanes {
		p.lanes[i] = make(chan packet, laneFrames)
		every := beatEvery
		if i > 0 { // one lane tells that this replica lives; others let the receiver look after theirs
			every = sweepEvery
		}
		p.sending.Go(func() { p.run(ctx, p.lanes[i], every) })
	}
	return p
}

func clientOptions(creds credentials.TransportCredentials) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: 2 * time.Second,
		}),
	}
}

// silent is for how long nothing was heard of it.
func (p *peer) silent(now time.Time) time.Duration {
	heard := p.heard.Load()
	if heard == 0 || p.ending.Load() {
		return math.MaxInt64
	}
	return now.Sub(p.of.config.Since) - time.Duration(heard)
}

// offer puts a packet into its lane, if there is room. Nobody waits.
func (p *peer) offer(k packet) (taken bool) {
	if p.conn == nil || p.queued.Add(k.bytes) > int64(p.of.config.QueueBytes) {
		p.queued.Add(-k.bytes)
		return false
	}
	select {
	case p.lanes[k.sender.number%lanes] <- k:
		return true
	default:
		p.queued.Add(-k.bytes)
		return false
	}
}

// run sends what is put into a lane until the peer is left, or the lane is empty and closed.
func (p *peer) run(ctx context.Context, lane <-chan packet, every time.Duration) {
	told := false
	for ctx.Err() == nil {
		err := p.stream(ctx, lane, every)
		if err == nil || ctx.Err() != nil {
			return
		}
		if !told {
			p.of.config.Logger.Debug("relay to a replica broken, begun anew", "replica", p.name, "err", err)
		}
		told = true
		select { // connecting has a back-off of its own; what is refused each time has this one
		case <-ctx.Done():
		case <-time.After(beatEvery):
		}
	}
}

// stream sends over one stream, and so often that this replica lives. The error is that of a stream
// that has broken.
func (p *peer) stream(ctx context.Context, lane <-chan packet, every time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gs, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, methodRelay, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if err := p.sayBeat(gs); err != nil {
		return ended(gs, err)
	}
	beats := time.NewTicker(every)
	defer beats.Stop()
	for last := p.of.up() - gather; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beats.C:
			if err := p.sayBeat(gs); err != nil {
				return ended(gs, err)
			}
		case k := <-lane:
			if p.of.up()-last < gather {
				p.gather(ctx)
			}
			if err := p.sendAll(gs, k, lane); err != nil {
				return ended(gs, err)
			}
			last = p.of.up()
		case <-p.close:
			return p.finish(gs, lane)
		}
	}
}

// gather waits until frames are sent next, those of all lanes at once.
func (p *peer) gather(ctx context.Context) {
	wait := time.NewTimer(gather - p.of.up()%gather)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-p.close:
	case <-ctx.Done():
	}
}

// sendAll sends a packet and those that wait behind it now.
func (p *peer) sendAll(gs grpc.ClientStream, k packet, lane <-chan packet) error {
	for more := len(lane); ; more-- {
		if err := p.send(gs, k); err != nil || more == 0 {
			return err
		}
		k = <-lane
	}
}

// finish sends what still waits, the last sign of life, and waits until it has been taken.
func (p *peer) finish(gs grpc.ClientStream, lane <-chan packet) error {
	for {
		select {
		case k := <-lane:
			if err := p.send(gs, k); err != nil {
				return nil
			}
			continue
		default:
		}
		break
	}
	if p.sayBeat(gs) == nil && gs.CloseSend() == nil {
		_ = gs.RecvMsg(&raw{})
	}
	return nil
}

// ended is why a stream has: what SendMsg says is that it has.
func ended(gs grpc.ClientStream, err error) error {
	if errors.Is(err, io.EOF) {
		return gs.RecvMsg(&raw{})
	}
	return err
}

func (p *peer) sayBeat(gs grpc.ClientStream) error {
	return gs.SendMsg(outgoing{mem.SliceBuffer(appendBeat(nil, p.of.beat()))})
}

// send sends a packet, unless it has waited for too long.
func (p *peer) send(gs grpc.ClientStream, k packet) error {
	p.queued.Add(-k.bytes)
	age := p.of.config.Now().Sub(k.arrival)
	switch {
	case k.message == nil: // an end is one whenever it comes
		age = 0
	case age > tooOld:
		k.message.Free()
		p.of.metrics.dropped(p.name, droppedOld)
		return nil
	}
	head := appendHead(make([]byte, 0, 24), k.sender.number, age, k.message == nil)
	frame := outgoing{mem.SliceBuffer(head), mem.SliceBuffer(k.sender.pod)}
	size := len(head) + len(k.sender.pod)
	if k.message != nil {
		frame = append(frame, k.message)
		size += k.message.Len()
	}
	if err := gs.SendMsg(frame); err != nil {
		p.of.metrics.dropped(p.name, droppedBroken)
		return err
	}
	p.of.metrics.sent(p.name, size)
	return nil
}

// ask asks the replica.
func (p *peer) ask(ctx context.Context, request []byte) ([]byte, error) {
	if p.conn == nil {
		return nil, errors.New("not connected")
	}
	var answer raw
	if err := p.conn.Invoke(ctx, methodAsk, outgoing{mem.SliceBuffer(request)}, &answer); err != nil {
		return nil, err
	}
	return answer.bytes, nil
}

// drain sends what waits and ends, within the context.
func (p *peer) drain(ctx context.Context) {
	if p.conn == nil {
		return
	}
	p.closing.Do(func() { close(p.close) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.sending.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	p.cut()
	<-done
}

// cut ends all talking.
func (p *peer) cut() {
	p.cancel()
	_ = p.conn.Close()
}

// leave ends all talking to a replica that is gone.
func (p *peer) leave() {
	if p.conn == nil {
		return
	}
	p.of.config.Logger.Info("replica gone", slog.String("replica", p.name), slog.String("address", p.address))
	p.cut()
	p.of.metrics.forget(p.name)
}
