package envoystats

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcmetadata "google.golang.org/grpc/metadata"

	"github.com/meshpulse/meshpulse/aggregator"
)

// limitedSink is a sink over a real store, with a sidecar that behaves: whoever else comes, its
// number has to stay right.
type limitedSink struct {
	*sink
	store *aggregator.Store
	good  *sender
	sent  float64
	clock *atomic.Int64 // milliseconds on the sink's clock
}

func serveLimited(t *testing.T, c Config, sc aggregator.Config) *limitedSink {
	t.Helper()
	store, err := aggregator.New(sc)
	if err != nil {
		t.Fatal(err)
	}
	l := &limitedSink{store: store, clock: new(atomic.Int64)}
	l.clock.Store(time.Now().UnixMilli())
	c.Now = l.now
	l.sink = serveWith(t, c, nil, func(p aggregator.Pod) podStream { return store.Connect(p) })
	l.good = l.open(t).send(hello(t, "good"))
	l.flush(t)
	return l
}

func (l *limitedSink) now() time.Time { return time.UnixMilli(l.clock.Load()) }

// flush lets the good sidecar report five requests more.
func (l *limitedSink) flush(t *testing.T) {
	t.Helper()
	l.sent += 5
	l.good.send(message(t, request(l.clock.Add(5000), l.sent)))
}

// stillRight has the good sidecar flush once more and checks that its stream lives and its number
// is right.
func (l *limitedSink) stillRight(t *testing.T) {
	t.Helper()
	l.flush(t)
	if st := l.good.close(); st.Code() != codes.OK {
		t.Errorf("the good sidecar's stream: %v", st)
	}
	if got := l.eval(t, `max_over_time(istio_requests_total{pod="good"}[5m])`); got != l.sent {
		t.Errorf("the good sidecar's requests are %v, want %v", got, l.sent)
	}
}

func (l *limitedSink) eval(t *testing.T, expr string) float64 {
	t.Helper()
	q, err := l.store.Query(expr)
	if err != nil {
		t.Fatal(err)
	}
	// A message that the sink takes up after the clock went on pushes the rows behind it a little
	// into the future.
	a, err := q.Eval(t.Context(), l.now().Add(time.Second))
	if err != nil || len(a.Values) != 1 {
		t.Fatalf("%s: %d values, error %v", expr, len(a.Values), err)
	}
	return a.Values[0].V
}

// toldOnce checks that one line gives the reason, and waits for it.
func (l *limitedSink) toldOnce(t *testing.T, reason string) {
	t.Helper()
	lines := func() int {
		n := 0
		for line := range strings.Lines(l.log.String()) {
			if text, _ := strings.CutSuffix(line, "\n"); strings.HasSuffix(text, "reason="+reason) || strings.HasSuffix(text, `reason="`+reason+`"`) {
				n++
			}
		}
		return n
	}
	waitFor(t, "a line about "+reason, func() bool { return lines() > 0 })
	if n := lines(); n != 1 {
		t.Errorf("%d lines about %s, want one:\n%s", n, reason, l.log)
	}
}

func (l *limitedSink) counts(t *testing.T, name, label string, want float64) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%s{%s} to be %v", name, label, want), func() bool { return l.metric(t, name, label) == want })
}

// raw is a connection that speaks as much HTTP/2 as it likes.
type raw struct {
	net.Conn
	t *testing.T
}

func (l *limitedSink) raw(t *testing.T) raw { return l.rawFrom(t, "127.0.0.1") }

// rawFrom is a connection of another sender's: all of 127/8 is loopback.
func (l *limitedSink) rawFrom(t *testing.T, host string) raw {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}).DialContext(t.Context(), "tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return raw{c, t}
}

// write does not care whether the sink has closed meanwhile: ended tells.
func (r raw) write(b ...byte) raw {
	_, _ = r.Write(b)
	return r
}

func (r raw) preface() raw { return r.write([]byte(clientPreface)...).frame(4, 0, 0) }

func (r raw) frame(kind, flags byte, stream uint32, body ...byte) raw {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body))<<8|uint32(kind))
	head = binary.BigEndian.AppendUint32(append(head, flags), stream)
	return r.write(append(head, body...)...)
}

const endHeaders = 4

// headers opens the first stream, in one frame or in the first of several.
func (r raw) headers(flags byte) raw { return r.headersOf(1, flags) }

func (r raw) headersOf(stream uint32, flags byte) raw {
	var block []byte
	for _, h := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", metricsv3.MetricsService_StreamMetrics_FullMethodName},
		{":authority", "x"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
	} {
		block = append(block, 0, byte(len(h[0])))
		block = append(append(block, h[0]...), byte(len(h[1])))
		block = append(block, h[1]...)
	}
	return r.frame(frameHeaders, flags, stream, block...)
}

// begin sends the first have bytes of a message of n.
func (r raw) begin(n, have int) raw {
	r.frame(0, 0, 1, binary.BigEndian.AppendUint32([]byte{0}, uint32(n))...)
	for have > 0 {
		k := min(have, 16<<10)
		r.frame(0, 0, 1, make([]byte, k)...)
		have -= k
	}
	return r
}

// ended waits until the sink closes.
func (r raw) ended() {
	r.t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	var timeout net.Error
	if _, err := io.Copy(io.Discard, r); errors.As(err, &timeout) && timeout.Timeout() {
		r.t.Error("the sink keeps the connection")
	}
}

// patient is how long tests let the sink wait; the good sidecar is not slower than that.
const patient = 2 * time.Second

func TestConnectionsBeyondTheLimitAreRefused(t *testing.T) {
	l := serveLimited(t, Config{MaxConnections: 3}, aggregator.Config{})
	l.raw(t).preface()
	l.raw(t).preface()
	waitFor(t, "three connections", func() bool { return l.metric(t, "connections", "") == 3 })
	for range 5 {
		l.raw(t).preface().ended()
	}
	l.counts(t, "closed_connections_total", "limit", 5)
	l.toldOnce(t, "limit of connections")
	l.stillRight(t)
}

func TestConnectionsThatSayNothingAreClosed(t *testing.T) {
	l := serveLimited(t, Config{times: times{handshake: patient, message: patient}}, aggregator.Config{})
	silent := []raw{
		l.raw(t),
		l.raw(t).write([]byte(clientPreface[:10])...),
		l.raw(t).preface(),
		// CONTINUATION never comes; a stream without a message; a frame without its body.
		l.raw(t).preface().headers(0),
		l.raw(t).preface().headers(endHeaders),
		l.raw(t).preface().headers(endHeaders).write(0, 0, 100, 0, 0, 0, 0, 0, 1),
	}
	for range 20 {
		silent = append(silent, l.raw(t).preface())
	}
	for _, r := range silent {
		r.ended()
	}
	waitFor(t, "the connections to be gone", func() bool { return l.metric(t, "connections", "") == 1 })
	if n := l.metric(t, "closed_connections_total", "silent"); n < 20 {
		t.Errorf("%v counted, want those that had begun to speak HTTP/2 at least", n)
	}
	l.toldOnce(t, "silent")
	l.stillRight(t)
}

func TestMessagesThatAreNotFinishedEndTheirConnection(t *testing.T) {
	l := serveLimited(t, Config{times: times{message: patient}}, aggregator.Config{})
	slow := l.raw(t).preface().headers(endHeaders).begin(1<<20, 100)
	dripping := make(chan struct{})
	defer func() { <-dripping }()
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // whole frames of a byte each: it is not idle, and never done
		defer close(dripping)
		for stop.Err() == nil {
			slow.frame(0, 0, 1, 0)
			wait(stop, 10*time.Millisecond)
		}
	}()
	slow.ended()
	cancel()
	l.counts(t, "closed_connections_total", "slow", 1)
	l.toldOnce(t, "slow")
	l.stillRight(t)
	waitFor(t, "nothing to be pending", func() bool { return l.conns.pending.Load() == 0 })
}

func TestUnfinishedMessagesBeyondTheBudgetCostTheirSenderTheConnection(t *testing.T) {
	l := serveLimited(t, Config{MaxPendingBytes: 1 << 20}, aggregator.Config{})
	small := l.raw(t).preface().headers(endHeaders).begin(1<<20, 200<<10)
	waitFor(t, "the small one", func() bool { return l.conns.pending.Load() >= 200<<10 })
	for range 3 {
		l.raw(t).preface().headers(endHeaders).begin(10<<20, 900<<10).ended()
	}
	l.counts(t, "closed_connections_total", "pending", 3)
	l.toldOnce(t, "pending")
	l.stillRight(t)
	_ = small.Close()
	waitFor(t, "nothing to be pending", func() bool { return l.conns.pending.Load() == 0 })
}

func TestUnfinishedMessagesMayTakeAQuarterOfTheMemory(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		want   int
	}{
		"no limit is known: 5,000 flushes of 150 KB": {Config{}, 1 << 30},
		"a quarter of the limit":                     {Config{MemoryLimit: 8 << 30}, 2 << 30},
		"a small limit: four of the largest":         {Config{MemoryLimit: 400 << 20}, 256 << 20},
		"a small limit and small messages":           {Config{MemoryLimit: 40 << 20, MaxMessageBytes: 1 << 20}, 16 << 20},
		"as it is told":                              {Config{MemoryLimit: 8 << 30, MaxPendingBytes: 1000}, 1000},
	} {
		if got := c.config.withDefaults().MaxPendingBytes; got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, got, c.want)
		}
	}
}

func TestConnectionsLeaveMemoryAndDescriptorsForTheRest(t *testing.T) {
	for descriptors, want := range map[int]int{64: 32, 256: 192, 1024: 768, 20_000: 15_000, 1 << 20: 3 << 18, 10: 1} {
		if got := connectionsOf(descriptors); got != want {
			t.Errorf("of %d descriptors %d are for connections, want %d", descriptors, got, want)
		}
	}
	room := connectionsOf(descriptors())
	for name, c := range map[string]struct {
		config Config
		want   int
	}{
		"a container of 1 GiB": {Config{MemoryLimit: 900 << 20}, 7200},
		"the same over TLS":    {Config{MemoryLimit: 900 << 20, Mutual: &Mutual{}}, 3600},
		"much memory":          {Config{MemoryLimit: 64 << 30}, 55_000},
		"few streams":          {Config{MaxStreams: 50}, 150},
		"as it is told":        {Config{MaxConnections: 10, MemoryLimit: 1 << 20}, 10},
		"more than can be":     {Config{MaxConnections: 1 << 30}, 1 << 30},
	} {
		if got := c.config.withDefaults().MaxConnections; got != min(c.want, room) {
			t.Errorf("%s: %d connections, want %d", name, got, min(c.want, room))
		}
	}
}

func TestFewerConnectionsThanStreamsAreWarnedOf(t *testing.T) {
	for name, test := range map[string]struct {
		config Config
		want   string // in the warning; "" for none
	}{
		"fewer":                    {Config{MaxConnections: 99, MaxStreams: 100}, "max_connections=99 max_streams=100"},
		"fewer than the default":   {Config{MaxConnections: 99}, "max_connections=99 max_streams=50000"},
		"as many":                  {Config{MaxConnections: 100, MaxStreams: 100}, ""},
		"the default":              {Config{MaxStreams: 100}, ""},
		"the default, little room": {Config{MemoryLimit: 1 << 20}, ""},
	} {
		var log strings.Builder
		test.config.Logger = slog.New(slog.NewTextHandler(&log, nil))
		if _, err := newServer(test.config, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		const warning = "--max-connections is less than --max-streams"
		if got := strings.Contains(log.String(), warning); got != (test.want != "") || !strings.Contains(log.String(), test.want) {
			t.Errorf("%s: got %q, want %q", name, log.String(), test.want)
		}
	}
}

// Handlers that are behind cost nobody the connection: what comes meanwhile stays with its sender.
func TestSidecarsWaitWhileHandlersAreBehind(t *testing.T) {
	const sidecars, messages, size = 20, 12, 100 << 10 // all of them are three times what may be pending
	ours := newAuthority(t)
	for name, c := range map[string]Config{"plaintext": {}, "TLS": {TLS: &tls.Config{Certificates: []tls.Certificate{ours.issue("", "sink")}}}} {
		t.Run(name, func(t *testing.T) {
			c.MaxPendingBytes, c.times.turn = 8<<20, 10*time.Second
			k := serveSink(t, c)
			if c.TLS != nil {
				k.withTLS(&tls.Config{RootCAs: ours.pool(), ServerName: "sink", NextProtos: []string{"h2"}})
			}
			senders := make([]*sender, sidecars)
			for i := range senders {
				senders[i] = k.open(t).send(hello(t, fmt.Sprintf("web-%d", i)))
			}
			waitFor(t, "the first messages", func() bool { return k.metric(t, "messages_total", "") == sidecars })
			k.recorder.mu.Lock() // no handler gets past its first message
			b := message(t, request(1, 1), family("cluster."+strings.Repeat("x", size), dto.MetricType_COUNTER, counter(1, 1)))
			var sending sync.WaitGroup
			for _, s := range senders {
				sending.Go(func() {
					for range messages {
						s.send(b)
					}
				})
			}
			waitFor(t, "an eighth of what may be pending", k.conns.crowded)
			for was := int64(0); was != k.conns.pending.Load(); time.Sleep(100 * time.Millisecond) {
				was = k.conns.pending.Load()
			}
			k.recorder.mu.Unlock()
			sending.Wait()
			waitFor(t, "all messages", func() bool { return k.metric(t, "messages_total", "") == sidecars*(1+messages) })
			for _, s := range senders {
				if st := s.close(); st.Code() != codes.OK {
					t.Error(st)
				}
			}
			if n := k.metric(t, "closed_connections_total", "pending"); n != 0 {
				t.Errorf("%v connections were closed", n)
			}
		})
	}
}

func TestWholeMessagesLeaveNothingPending(t *testing.T) {
	ours := newAuthority(t)
	for name, c := range map[string]Config{"plaintext": {}, "TLS": {TLS: &tls.Config{Certificates: []tls.Certificate{ours.issue("", "sink")}}}} {
		t.Run(name, func(t *testing.T) {
			k := serveSink(t, c)
			if c.TLS != nil {
				k.withTLS(&tls.Config{RootCAs: ours.pool(), ServerName: "sink", NextProtos: []string{"h2"}})
			}
			s := k.open(t).send(hello(t, "web-0"))
			for i := range 50 {
				big := family("cluster."+strings.Repeat("x", 1000*i), dto.MetricType_COUNTER, counter(int64(i+1), 1))
				s.send(message(t, request(int64(i+1), 1), big))
			}
			waitFor(t, "all messages", func() bool { return k.metric(t, "messages_total", "") == 51 })
			if got := k.conns.pending.Load(); got != 0 {
				t.Errorf("%d bytes are pending", got)
			}
			if st := s.close(); st.Code() != codes.OK {
				t.Error(st)
			}
		})
	}
}

func TestAStreamThatSendsTooMuchIsReadLater(t *testing.T) {
	l := serveLimited(t, Config{MaxBytesPerSecond: 200 * messageCost}, aggregator.Config{})
	flood := l.open(t).send(hello(t, "flood"))
	const messages = 1000 // credit is for their number without their bytes, and the sink's clock stands still
	for i := range messages {
		flood.send(message(t, request(l.clock.Load(), float64(i))))
	}
	l.counts(t, "messages_total", "", messages+3)
	if st := flood.close(); st.Code() != codes.OK {
		t.Errorf("the flood's stream: %v", st)
	}
	if n := l.metric(t, "throttled_messages_total", ""); n < 10 || n > 50 {
		t.Errorf("%v messages made their stream wait, want those beyond the credit", n)
	}
	l.toldOnce(t, "throttled")
	l.stillRight(t)
}

// Every stream limit that the store knows is told once, however often it is met.
func TestAFloodOfLabelSetsMeetsItsPodsLimitAlone(t *testing.T) {
	l := serveLimited(t, Config{}, aggregator.Config{MaxSeriesPerPod: 100})
	flood := l.open(t).send(hello(t, "flood"))
	const flushes, sets = 20, 500
	for i := range flushes {
		var families []*dto.MetricFamily
		for n := range sets {
			families = append(families, family("istio_requests_total", dto.MetricType_COUNTER,
				counter(l.clock.Load(), 1, "destination_service", fmt.Sprintf("host-%d-%d", i, n))))
		}
		flood.send(message(t, families...))
		l.flush(t)
	}
	if st := flood.close(); st.Code() != codes.OK {
		t.Errorf("the flood's stream: %v", st)
	}
	if got := l.eval(t, `count(istio_requests_total{pod="flood"})`); got != 100 {
		t.Errorf("%v series of the flood, want 100", got)
	}
	l.toldOnce(t, limitPodSeries)
	l.stillRight(t)
}

func TestASidecarThatFlushesEveryTenMillisecondsSharesRows(t *testing.T) {
	l := serveLimited(t, Config{}, aggregator.Config{Retention: 10 * time.Second})
	fast := l.open(t).send(hello(t, "fast"))
	const flushes = 500
	start := l.clock.Load()
	for i := range flushes {
		at := start + int64(i+1)*10
		seen := l.metric(t, "messages_total", "")
		l.clock.Store(at)
		fast.send(message(t, request(at, float64(i+1))))
		waitFor(t, "the message", func() bool { return l.metric(t, "messages_total", "") > seen })
	}
	if st := fast.close(); st.Code() != codes.OK {
		t.Errorf("the fast stream: %v", st)
	}
	if got := l.eval(t, `max_over_time(istio_requests_total{pod="fast"}[10s])`); got < flushes-25 || got > flushes {
		t.Errorf("its requests are %v, want the %d of its last row, 250 ms ago at most", got, flushes)
	}
	l.toldOnce(t, limitRows)
	l.stillRight(t)
}

func TestTooManyStreamsAreToldOnce(t *testing.T) {
	l := serveLimited(t, Config{MaxStreams: 2}, aggregator.Config{})
	l.open(t).send(hello(t, "web-0", request(1000, 1)))
	waitFor(t, "two streams", func() bool { return l.metric(t, "streams", "plaintext") == 2 })
	for range 5 {
		if st := l.open(t).send(hello(t, "web-1", request(1000, 1))).end(); st.Code() != codes.ResourceExhausted {
			t.Errorf("status %v", st)
		}
	}
	l.counts(t, "stream_ends_total", "limit", 5)
	l.toldOnce(t, "limit")
	l.stillRight(t)
}

// gRPC throws away what comes for a stream that has been refused: it takes no memory, and nobody is
// closed for it.
func TestWhatRefusedStreamsSendIsNotPending(t *testing.T) {
	l := serveLimited(t, Config{MaxStreams: 1, times: times{message: patient}}, aggregator.Config{})
	waitFor(t, "the good stream", func() bool { return l.metric(t, "streams", "plaintext") == 1 })
	refused := l.raw(t).preface().headers(endHeaders)
	l.counts(t, "stream_ends_total", "limit", 1)
	refused.begin(1<<20, 200<<10).ended()
	l.counts(t, "closed_connections_total", "silent", 1) // and not slow
	l.stillRight(t)
}

func TestHeadersAreBounded(t *testing.T) {
	l := serveLimited(t, Config{}, aggregator.Config{})
	conn, err := grpc.NewClient(l.addr, grpc.WithTransportCredentials(l.creds), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for size, ok := range map[int]bool{1 << 10: true, 32 << 10: false} {
		ctx := grpcmetadata.AppendToOutgoingContext(t.Context(), "x-large", strings.Repeat("x", size))
		_, err := metricsv3.NewMetricsServiceClient(conn).StreamMetrics(ctx)
		if ok != (err == nil) {
			t.Errorf("%d bytes of headers: error %v", size, err)
		}
	}
	l.stillRight(t)
}

// What is begun is a goroutine before anything of ours sees it, so a connection may begin few, and
// what is beyond is refused.
func TestAConnectionBeginsFewStreams(t *testing.T) {
	const refused, frameReset = 7, 3 // REFUSED_STREAM
	l := serveLimited(t, Config{}, aggregator.Config{})
	r := l.raw(t).preface()
	for i := range uint32(20) {
		r.headersOf(2*i+1, endHeaders)
	}
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for resets := 0; resets < 4; {
		head := make([]byte, 9)
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatalf("%d of 20 streams were refused: %v", resets, err)
		}
		body := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(r, body); err != nil {
			t.Fatal(err)
		}
		if head[3] == frameReset && binary.BigEndian.Uint32(body) == refused {
			resets++
		}
	}
	l.stillRight(t)
}
