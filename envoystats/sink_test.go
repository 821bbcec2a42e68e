package envoystats

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

// recorder stands in for the store where a test asks what the sink hands over. It is safe for
// concurrent use.
type recorder struct {
	mu      sync.Mutex
	pods    []aggregator.Pod
	closed  int
	missed  int
	commits []commit
	fail    error // what Commit answers
}

type commit struct {
	pod     string
	row     int64
	refused int
	series  []string // names of the samples
	values  []float64
}

type recorderStream struct {
	*recorder
	pod string
}

func (r *recorder) connect(p aggregator.Pod) podStream {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods = append(r.pods, p)
	return recorderStream{r, p.Namespace + "/" + p.Name}
}

func (s recorderStream) Commit(_ time.Time, b *aggregator.Batch, d aggregator.Describer) error {
	c := commit{pod: s.pod, row: b.Timestamp, refused: b.Refused}
	for i, sample := range b.Samples {
		name, _, err := d.Describe(i)
		if err != nil {
			name = err.Error()
		}
		c.series = append(c.series, name)
		c.values = append(c.values, sample.Value)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commits = append(s.commits, c)
	return s.fail
}

func (recorderStream) Asked() *aggregator.Asked { return nil }

func (s recorderStream) Missed(time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed++
}

func (s recorderStream) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed++
}

func (r *recorder) all() []commit {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]commit(nil), r.commits...)
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// sink is a served sink with all that a test looks at.
type sink struct {
	*Server
	recorder *recorder
	registry *prometheus.Registry
	log      *lockedBuffer
	addr     string
	served   chan error
	creds    credentials.TransportCredentials
}

func serveSink(t *testing.T, c Config) *sink {
	t.Helper()
	r := &recorder{}
	return serveWith(t, c, r, r.connect)
}

// allOfIstio is for tests in which families have names of their own.
var allOfIstio = []string{istioPrefix}

func serveWith(t *testing.T, c Config, r *recorder, connect func(aggregator.Pod) podStream) *sink {
	t.Helper()
	if c.Keep == nil {
		c.Keep = allOfIstio
	}
	k := &sink{
		recorder: r, registry: prometheus.NewRegistry(), log: new(lockedBuffer), served: make(chan error, 1),
		creds: insecure.NewCredentials(),
	}
	c.Registerer = k.registry
	c.Logger = slog.New(slog.NewTextHandler(k.log, nil))
	var err error
	if k.Server, err = newServer(c, connect); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k.addr = lis.Addr().String()
	go func() { k.served <- k.Serve(lis) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // tests that care for the grace shut down themselves
		if err := k.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-k.served; err != nil {
			t.Error(err)
		}
	})
	return k
}

// metric returns the value of one of the sink's own metrics; label is its only label's value.
func (k *sink) metric(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := k.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "meshpulse_ingest_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric meshpulse_ingest_%s with label %q", name, label)
	return 0
}

// rawCodec lets a test send any bytes.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
func (rawCodec) Name() string { return "proto" }

// sender is the other side of a stream.
type sender struct {
	t      *testing.T
	stream grpc.ClientStream
}

// open opens a stream on a connection of its own.
func (k *sink) open(t *testing.T, opts ...grpc.CallOption) *sender {
	t.Helper()
	s, err := k.dial(t, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (k *sink) dial(t *testing.T, opts ...grpc.CallOption) (*sender, error) {
	t.Helper()
	conn, err := grpc.NewClient(k.addr, grpc.WithTransportCredentials(k.creds), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, metricsv3.MetricsService_StreamMetrics_FullMethodName, opts...)
	return &sender{t, stream}, err
}

// send sends messages. That the sink has ended the stream meanwhile is told by end.
func (s *sender) send(messages ...[]byte) *sender {
	s.t.Helper()
	for _, b := range messages {
		if err := s.stream.SendMsg(b); err != nil && !errors.Is(err, io.EOF) {
			s.t.Fatal(err)
		}
	}
	return s
}

// end waits for the sink to end the stream; it is OK where the sink ends it well.
func (s *sender) end() *status.Status {
	for {
		var b []byte
		if err := s.stream.RecvMsg(&b); errors.Is(err, io.EOF) {
			return status.New(codes.OK, "")
		} else if err != nil {
			return status.Convert(err)
		}
	}
}

// close ends the stream and waits until the sink has read everything.
func (s *sender) close() *status.Status {
	s.t.Helper()
	if err := s.stream.CloseSend(); err != nil {
		s.t.Fatal(err)
	}
	return s.end()
}

// codeOf says how a stream ends that could perhaps not be opened, and sends one message.
func codeOf(s *sender, err error, b []byte) codes.Code {
	if err != nil {
		return status.Code(err)
	}
	return s.send(b).close().Code()
}

// hello is a first message: a node, and families.
func hello(t testing.TB, name string, families ...*dto.MetricFamily) []byte {
	t.Helper()
	b, err := proto.Marshal(&metricsv3.StreamMetricsMessage{
		Identifier:   &metricsv3.StreamMetricsMessage_Identifier{Node: &corev3.Node{Id: "sidecar~10.0.0.1~" + name + ".test~test.svc.cluster.local"}},
		EnvoyMetrics: families,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// request is a family that the sink keeps.
func request(timestamp int64, v float64) *dto.MetricFamily {
	return family("istiocustom.istio_requests_total", dto.MetricType_COUNTER, counter(timestamp, v, "reporter", "destination"))
}

// withTLS makes the sink's clients speak TLS.
func (k *sink) withTLS(c *tls.Config) *sink {
	k.creds = credentials.NewTLS(c)
	return k
}
