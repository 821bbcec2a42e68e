package envoystats

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"hash/maphash"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// What a sender is told when its stream ends; Envoy ignores it, people who debug do not.
var (
	statusTooMany  = status.Error(codes.ResourceExhausted, "too many streams, of all or of this sender: raise --max-streams or add a replica")
	statusFault    = status.Error(codes.Internal, "a fault of the sink, its log says more: open a new stream")
	statusDraining = status.Error(codes.Unavailable, "sink is shutting down: open a new stream")
	statusExpired  = status.Error(codes.PermissionDenied, "the certificate has ended: connect anew, with a new one")
)

// stream is one StreamMetrics call. Only its own goroutine uses it.
type stream struct {
	server  *Server
	peer    string            // SPIFFE ID, "" if not proven
	shown   *x509.Certificate // that the connection was made with and that was verified; nil: none
	secure  string            // securityNone, …
	addr    string
	sender  string      // aggregator.Pod.Sender
	conn    *connection // nil in tests without a transport
	pace    pace
	pod     aggregator.Pod
	known   bool          // who the pod is
	node    uint64        // hash of the identifier that named the pod
	space   uint64        // of the pod's keys: aggregator.Batch.Space
	out     podStream     // nil until the pod is known, and while it is kept by other replicas alone
	relay   *relay.Sender // to other replicas; nil where there are none
	relayed bool          // by another replica, which counts what has come
	seen    seen
	over    overflow

	toldMalformed, toldSuperseded, toldRefused, toldLimit, toldPace, toldForm, toldShared, toldForeign bool
}

// compression is how a stream's messages are compressed, "" if they are not. What gRPC has inflated
// cannot be bounded any more, so it has to be known before: gRPC keeps it with the transport's
// stream.
func compression(ctx context.Context) string {
	s, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ RecvCompress() string })
	if !ok || s.RecvCompress() == encoding.Identity {
		return ""
	}
	return s.RecvCompress()
}

// streamMetrics serves one stream until it ends.
func (s *Server) streamMetrics(gs grpc.ServerStream) error {
	st := newStream(s, gs.Context())
	defer st.close()
	if !s.open.Take(st.sender, 1) {
		s.metrics.ends.WithLabelValues(endLimit).Inc()
		s.warnings.warn(endLimit, st.sender, st.sender, "stream refused: too many are open, or its sender has its share of them: raise --max-streams, or look who opens them",
			slog.String("peer", st.addr), slog.Int("max_streams", s.config.MaxStreams))
		return statusTooMany
	}
	defer s.open.Give(st.sender, 1)
	if name := compression(gs.Context()); name != "" {
		s.metrics.ends.WithLabelValues(endCompressed).Inc()
		s.warnings.warn(endCompressed, st.sender, st.subject(), "stream refused: its messages are compressed, which Envoy's metrics sink never does",
			slog.String("peer", st.addr), slog.String("grpc_encoding", name))
		return status.Errorf(codes.Unimplemented, "messages are compressed (grpc-encoding %.50q): send them as they are", name)
	}
	open := s.metrics.streams.WithLabelValues(st.secure)
	open.Inc()
	defer open.Dec()
	reason, err := endFault, statusFault
	s.contained(st.subject(), func() { reason, err = st.serve(gs) })
	s.metrics.ends.WithLabelValues(reason).Inc()
	return err
}

// contained serves a stream. A panic ends that stream and no other: its sidecar opens another one.
func (s *Server) contained(subject string, serve func()) {
	if s.config.contain == nil {
		serve()
		return
	}
	s.config.contain("stream", subject, serve)
}

func newStream(s *Server, ctx context.Context) *stream {
	st := &stream{server: s, secure: securityNone}
	if p, ok := peer.FromContext(ctx); ok {
		st.addr = p.Addr.String()
		if a, ok := p.Addr.(peerAddr); ok {
			st.conn = a.connection
		}
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			st.showed(t)
		}
		st.sender = cmp.Or(st.peer, hostOf(p.Addr))
	}
	return st
}

// showed notes what the connection was made with.
func (st *stream) showed(t credentials.TLSInfo) {
	switch mutual := st.server.config.Mutual != nil; {
	case mutual && len(t.State.PeerCertificates) > 0: // which the handshake has verified (handshakes)
		st.secure, st.shown = securityMutual, t.State.PeerCertificates[0]
	case len(t.State.VerifiedChains) > 0:
		st.secure, st.shown = securityTLS, t.State.VerifiedChains[0][0]
	default:
		st.secure = securityTLS
		return
	}
	if t.SPIFFEID != nil {
		st.peer = t.SPIFFEID.String()
	}
}

func (st *stream) close() {
	if st.out != nil {
		st.out.Close()
	}
	if st.relay != nil {
		st.relay.End()
	}
}

// serve reads messages until the stream ends, and returns why it did and what the sender is told.
func (st *stream) serve(gs grpc.ServerStream) (reason string, err error) {
	var in incoming
	for {
		if err := gs.RecvMsg(&in); err != nil {
			return st.received(gs, err)
		}
		arrival, size := st.server.config.Now(), len(in.scan.buf)
		st.conn.whole(size)
		if st.conn.over(arrival) {
			st.server.scans.put(in.scan)
			st.conn.part()
			return endExpired, statusExpired
		}
		reason, err := st.message(arrival, in.scan)
		st.server.scans.put(in.scan)
		if st.server.draining.Load() {
			return endDraining, statusDraining
		}
		if err != nil {
			return reason, st.refuse(reason, err)
		}
		st.conn.renew(arrival, cmp.Or(st.pod.FlushInterval, usualFlush))
		if d := st.pace.spend(arrival, size, float64(st.server.config.MaxBytesPerSecond)); d > 0 {
			st.server.metrics.throttled.Inc()
			st.tell(&st.toldPace, limitPace, st.subject(), "sidecar sends more than it may, its messages are read later: raise --max-bytes-per-second, or make it send less", nil)
			st.conn.pause()
			wait(gs.Context(), d)
			st.conn.resume()
		}
	}
}

// refuse tells that the stream is refused, and returns what its sender is told. One who is not who
// he says he is would come back at each flush: his connection ends.
func (st *stream) refuse(reason string, err error) error {
	s, code := st.server, codes.InvalidArgument
	if why := refusedFor(err); why != "" {
		code = codes.PermissionDenied
		s.metrics.refusals.WithLabelValues(why).Inc()
		st.conn.part()
		if s.refused != nil {
			s.refused(st.pod, err.Error())
		}
	}
	attrs := []any{slog.String("peer", st.addr)}
	if st.pod.Name != "" {
		attrs = st.who()
	}
	s.warnings.warn(reason, st.sender, st.subject(), "stream refused", append(attrs, slog.Any("error", err))...)
	return status.Error(code, err.Error())
}

// received says what it means that a message could not be received.
func (st *stream) received(gs grpc.ServerStream, err error) (reason string, told error) {
	if errors.Is(err, io.EOF) {
		return endClosed, gs.SendMsg(&reply{})
	}
	switch status.Code(err) {
	case codes.ResourceExhausted:
		st.server.metrics.rejected.WithLabelValues(rejectedSize).Inc()
		st.server.warnings.warn(endTooLarge, st.sender, st.subject(), "message is too large, a sidecar tries it again at every flush: raise --max-message-bytes, "+
			"or make it send less (batch_size, a Telemetry resource that drops metrics or tags)", append(st.who(), slog.Any("error", err))...)
		return endTooLarge, err // gRPC has told the sender
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		if st.server.draining.Load() {
			return endDraining, statusDraining
		}
		if st.conn.whyLeft() == closedCertificate {
			return endRenewed, err
		}
		return endLost, err
	}
	return endTransport, err
}

// message applies the message in the scratch's buf. An error ends the stream.
func (st *stream) message(arrival time.Time, s *scan) (reason string, err error) {
	m := st.server.metrics
	if !st.relayed {
		m.messages.Inc()
		m.bytes.Add(float64(len(s.buf)))
	}
	if st.known && !st.keep(arrival, s.buf) {
		return "", nil
	}
	first := !st.known
	if err := st.read(s); err != nil {
		if s.rules.stopped.Load() { // cut off
			return endDraining, errStopped
		}
		m.rejected.WithLabelValues(rejectedWire).Inc()
		if !st.known {
			return endFirst, err
		}
		st.out.Missed(arrival)
		st.tell(&st.toldMalformed, rejectedWire, st.subject(), "message rejected, nothing of it was applied", err)
		return "", nil
	}
	if err := st.identify(s.identifier); err != nil {
		if refusedFor(err) != "" {
			return endIdentity, err
		}
		return endNode, err
	}
	if first && !st.keep(arrival, s.buf) {
		return "", nil
	}
	if first && st.out.Asked() != nil { // what is asked of the pod is known by now
		if err := st.read(s); err != nil {
			return endDraining, err
		}
	}
	s.own, s.batch.Space = (*own)(&st.pod), st.space
	st.seen.fit(len(s.batch.Samples) + s.batch.Refused)
	s.share(&st.over)
	if s.shared > 0 {
		st.tell(&st.toldShared, limitCallers, st.subject(), "label values that callers choose share a series from now on, sums stay right: the pod has too many. "+
			"Raise --max-series-per-pod, of which they may be half, or drop tags with a Telemetry resource", nil)
	}
	m.applied(s)
	st.tellUnread(s)
	if s.batch.Timestamp == 0 {
		return "", nil // no family in it, so no row
	}
	switch err := st.out.Commit(arrival, &s.batch, s); {
	case errors.Is(err, aggregator.ErrAddress):
		return endAddress, err
	case err != nil && refusedFor(err) != "":
		return endIdentity, err
	case err != nil:
		st.limited(err)
	}
	return "", nil
}

// tellUnread says what of a message was not read.
func (st *stream) tellUnread(s *scan) {
	if s.batch.OtherForm {
		st.tell(&st.toldForm, limitForm, st.subject(), "sidecar sends Istio's metrics in a form that is not read, so nothing is known of its requests: "+
			"names of Istio 1.17 and before, or another stats prefix than istiocustom. (an EnvoyFilter, stat_prefix)", nil)
	} else if s.batch.Refused > 0 && !st.toldRefused {
		st.tell(&st.toldRefused, limitSamples, st.subject(), "samples refused, the rest of the message was taken", errors.New(s.why()))
	}
}

// read reads the message in the scratch's buf, for what is asked of the pod as far as it is known.
func (st *stream) read(s *scan) error {
	if s.batch.Asked = nil; st.out != nil {
		s.batch.Asked = st.out.Asked()
	}
	return s.read(s.buf, &st.seen)
}

// limited says what the store did not take. It has counted that.
func (st *stream) limited(err error) {
	const series = "samples of new series are dropped, those that are known go on: "
	switch {
	case errors.Is(err, aggregator.ErrPodLimit):
		st.tell(&st.toldLimit, limitPodSeries, st.subject(), series+"raise --max-series-per-pod, or drop tags with a Telemetry resource", err)
	case errors.Is(err, aggregator.ErrSeriesLimit):
		st.tell(&st.toldLimit, limitSeries, st.sender, series+"raise --max-series, if not a few senders have most of them", err)
	case errors.Is(err, aggregator.ErrPods):
		st.tell(&st.toldLimit, limitPods, st.sender, "what the pod sends is dropped: raise --max-pods, if not a few senders have most of them", err)
	case errors.Is(err, aggregator.ErrMemory):
		st.tell(&st.toldLimit, limitMemory, st.sender, series+"raise the memory limit with GOMEMLIMIT, or --memory-budget", err)
	case errors.Is(err, aggregator.ErrForeignPod):
		st.tell(&st.toldForeign, limitForeign, st.subject(), "what the pod sends is not counted, the cluster does not know it: --foreign-pods=count, if it is a virtual machine or of another cluster", err)
	case errors.Is(err, aggregator.ErrOtherFlush):
		st.tell(&st.toldLimit, limitSamples, st.subject(), "samples refused, the rest of the message was taken", err)
	case errors.Is(err, aggregator.ErrSharedRow):
		st.tell(&st.toldLimit, limitRows, st.subject(), "sidecar flushes faster than rows are kept, flushes share rows: raise its stats_flush_interval", err)
	case errors.Is(err, aggregator.ErrSetAside): // the store has told, and the next message begins anew
	default:
		st.server.metrics.rejected.WithLabelValues(rejectedOld).Inc()
		st.tell(&st.toldSuperseded, rejectedOld, st.subject(), "message dropped", err)
	}
}

// identify takes who reports from the first message's identifier, and holds later ones to it: the
// pod's table must not be filled by others.
func (st *stream) identify(identifier []byte) error {
	if identifier == nil {
		if !st.known {
			return errNoNode
		}
		return nil
	}
	node := maphash.Bytes(st.server.nodeSeed, identifier)
	if st.known && node == st.node {
		return nil
	}
	pod, err := readNode(identifier)
	if err != nil {
		return err
	}
	if st.known {
		if pod.Namespace != st.pod.Namespace || pod.Name != st.pod.Name {
			return errOtherNode
		}
		return nil
	}
	pod.Peer, pod.Sender, pod.Address = st.peer, st.sender, st.addr
	st.pod = pod
	if m := st.server.config.Mutual; m != nil {
		if err := m.bind(st.shown, &st.pod); err != nil {
			return err
		}
	}
	st.node = node
	st.knows()
	if r := st.server.config.Replicas; r != nil {
		st.relay = r.Sender(&st.pod)
	}
	return nil
}

// knows notes that it is known who the pod is.
func (st *stream) knows() {
	st.known, st.space = true, (*own)(&st.pod).space(st.server.scans.rules)
}

// keep relays a message to the other replicas that keep what the pod sends, and reports whether
// this one does. Where it does not the message is not even read: who keeps it judges it.
func (st *stream) keep(arrival time.Time, message []byte) bool {
	if st.relay != nil {
		st.relay.Send(arrival, message)
		if !st.relay.Keeps() {
			return false
		}
	}
	if st.out == nil {
		st.out = st.server.connect(st.pod)
	}
	return true
}

// tell logs what is wrong with a stream once.
func (st *stream) tell(told *bool, reason, subject, message string, err error) {
	if *told {
		return
	}
	*told = true
	attrs := st.who()
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	st.server.warnings.warn(reason, st.sender, subject, message, attrs...)
}

// subject is who is warned about: the pod, or the host where it is not known.
func (st *stream) subject() string {
	if st.pod.Name != "" {
		return st.pod.Namespace + "/" + st.pod.Name
	}
	return st.sender
}

func (st *stream) who() []any {
	return []any{slog.String("peer", st.addr), slog.String("namespace", st.pod.Namespace), slog.String("pod", st.pod.Name)}
}
