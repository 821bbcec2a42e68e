package sidecar

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metrics "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"github.com/google/go-cmp/cmp"
	prom "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
)

// flush is a message as a receiver saw it.
type flush struct {
	message *metrics.StreamMetricsMessage
	pod     string // from the node of the stream's first message
}

// sink hands every message it receives to the channel.
type sink struct {
	metrics.UnimplementedMetricsServiceServer
	messages chan flush
}

func (s *sink) StreamMetrics(stream metrics.MetricsService_StreamMetricsServer) error {
	pod := ""
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil // the sidecar is gone: the stream's ordinary end
		}
		if node := m.GetIdentifier().GetNode(); node != nil {
			pod = node.GetMetadata().GetFields()["NAME"].GetStringValue()
		}
		select {
		case s.messages <- flush{m, pod}:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func startSink(t *testing.T, options ...grpc.ServerOption) (address string, messages <-chan flush) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{messages: make(chan flush, 100)}
	server := grpc.NewServer(options...)
	metrics.RegisterMetricsServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return l.Addr().String(), s.messages
}

func startApp(t *testing.T) string {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	t.Cleanup(app.Close)
	return app.Listener.Addr().String()
}

// request sends n requests and returns the status of the last.
func request(t *testing.T, address, source string, n int) int {
	t.Helper()
	status := 0
	for range n {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-source-workload", source)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		status = resp.StatusCode
	}
	return status
}

// awaitTotal reads messages until the counters named istio_requests_total add up to want, and
// returns the last.
func awaitTotal(t *testing.T, messages <-chan flush, want float64) flush {
	t.Helper()
	got := 0.0
	limit := time.After(time.Minute)
	for {
		select {
		case f := <-messages:
			got = 0
			for _, family := range f.message.GetEnvoyMetrics() {
				if strings.HasPrefix(family.GetName(), "istiocustom.istio_requests_total") {
					got += family.GetMetric()[0].GetCounter().GetValue()
				}
			}
			if got == want {
				return f
			}
		case <-limit:
			t.Fatalf("istio_requests_total: got %v, want %v", got, want)
		}
	}
}

func options(t *testing.T, sink string) Options {
	return Options{
		Dir: t.TempDir(), Pod: "podinfo-0", Namespace: "test", Workload: "podinfo", Address: "127.97.250.1",
		Upstreams: []string{startApp(t)}, Sink: sink, FlushInterval: 200 * time.Millisecond,
	}
}

func start(t *testing.T, o Options) *Sidecar {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func families(f flush, name string) []*prom.MetricFamily {
	var found []*prom.MetricFamily
	for _, family := range f.message.GetEnvoyMetrics() {
		if strings.HasPrefix(family.GetName(), name) {
			found = append(found, family)
		}
	}
	return found
}

func TestSidecarJoinsTagsIntoTheName(t *testing.T) {
	address, messages := startSink(t)
	s := start(t, options(t, address))
	request(t, s.Address(), "web", 3)
	f := awaitTotal(t, messages, 3)
	if f.pod != "podinfo-0" {
		t.Errorf("pod of the node: got %q", f.pod)
	}
	want := "istiocustom.istio_requests_total.reporter.destination.source_workload.web.source_canonical_service.web." +
		"source_canonical_revision.latest.source_workload_namespace.unknown.source_principal.unknown.source_app.web." +
		"source_version.unknown.source_cluster.unknown.destination_workload.podinfo.destination_workload_namespace.test." +
		"destination_principal.unknown.destination_app.podinfo.destination_version.v1." +
		"destination_service.podinfo.test.svc.cluster.local.destination_canonical_service.podinfo." +
		"destination_canonical_revision.v1.destination_service_name.podinfo.destination_service_namespace.test." +
		"destination_cluster.Kubernetes.request_protocol.http.response_code.200.grpc_response_status..response_flags.-." +
		"connection_security_policy.none"
	if diff := cmp.Diff(want, families(f, "istiocustom.istio_requests_total")[0].GetName()); diff != "" {
		t.Error(diff)
	}
	total, err := s.RequestsTotal(t.Context())
	if err != nil || total != 3 {
		t.Errorf("the admin API's total: got %d, %v, want 3", total, err)
	}
}

func TestSidecarSendsLabelsAndHistogramsOnly(t *testing.T) {
	address, messages := startSink(t)
	o := options(t, address)
	o.TagsAsLabels, o.HistogramOnly, o.Duration = true, true, "%REQ(x-duration)%"
	s := start(t, o)
	request(t, s.Address(), "web", 2)
	f := awaitTotal(t, messages, 2)
	if n := len(families(f, "istiocustom.istio_requests_total")[0].GetMetric()[0].GetLabel()); n != 25 {
		t.Errorf("labels: got %d, want 25", n)
	}
	for _, family := range families(f, "istiocustom.istio_re") {
		if family.GetType() == prom.MetricType_SUMMARY {
			t.Errorf("a summary of %s", family.GetName())
		}
	}
}

// An Envoy forgets a series that was not used between two evictions: its counter is missing, then
// begins at 0 again.
func TestEvictionTakesUnusedSeriesAway(t *testing.T) {
	address, messages := startSink(t)
	o := options(t, address)
	o.EvictionInterval = o.FlushInterval
	s := start(t, o)
	request(t, s.Address(), "web", 3)
	awaitTotal(t, messages, 3)
	if gone := awaitTotal(t, messages, 0); len(families(gone, "istiocustom.istio_re")) != 0 {
		t.Errorf("of an unused label set: got %d families, want none", len(families(gone, "istiocustom.istio_re")))
	}
	awaitTotal(t, messages, 0) // evicted at the end of the flush before
	request(t, s.Address(), "web", 2)
	awaitTotal(t, messages, 2)
	if told := s.Options.Annotations["sidecar.istio.io/statsEvictionInterval"]; told != "200ms" {
		t.Errorf("the interval that the pod's annotations tell: got %q", told)
	}
}

func TestGatewayReportsAsSourceAndFollowsItsUpstreams(t *testing.T) {
	address, messages := startSink(t)
	o := options(t, address)
	app := o.Upstreams
	o.Reporter, o.DestinationWorkload, o.TagsAsLabels, o.Upstreams = Source, "podinfo", true, nil
	o.Pod, o.Workload = "gateway-0", "gateway"
	s := start(t, o)
	if status := request(t, s.Address(), "", 1); status != http.StatusServiceUnavailable {
		t.Errorf("without upstreams: got %d, want 503", status)
	}
	if err := s.SetUpstreams(app...); err != nil {
		t.Fatal(err)
	}
	sent := 1.0
	for status := 0; status != http.StatusOK; sent++ {
		status = request(t, s.Address(), "", 1)
	}
	f := awaitTotal(t, messages, sent)
	labels := map[string]string{}
	for _, l := range families(f, "istiocustom.istio_requests_total")[0].GetMetric()[0].GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	got := fmt.Sprint(labels["reporter"], labels["source_workload"], labels["destination_workload"])
	if want := fmt.Sprint("source", "gateway", "podinfo"); got != want {
		t.Errorf("labels: got %s, want %s", got, want)
	}
}

func TestStopLeavesNothingRunning(t *testing.T) {
	address, messages := startSink(t)
	s, err := Start(t.Context(), options(t, address))
	if err != nil {
		t.Fatal(err)
	}
	awaitTotal(t, messages, 0) // it serves, and its stream is open
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(s.PID(), 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", s.PID(), err)
	}
}

func TestStartNamesWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.97.250.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	for name, test := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"no pod":              {func(o *Options) { o.Pod = "" }, "Pod is not set"},
		"a sink without port": {func(o *Options) { o.Sink = "127.0.0.1" }, "Sink: address 127.0.0.1: missing port"},
		"no such reporter":    {func(o *Options) { o.Reporter = "client" }, `"client" is neither`},
		"whom a source calls": {func(o *Options) { o.Reporter = Source }, "DestinationWorkload is not set"},
		"no such binary":      {func(o *Options) { o.Binary = "/nowhere/envoy" }, "start /nowhere/envoy"},
		"a port in use":       {func(o *Options) { o.InboundPort = taken.Addr().(*net.TCPAddr).Port }, "Address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, "127.0.0.1:1")
			test.change(&o)
			s, err := Start(t.Context(), o)
			if err == nil {
				s.Kill()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
		})
	}
}

func TestEnvoyBinaryIsLookedForUpwardsAndItsAbsenceExplained(t *testing.T) {
	root := t.TempDir()
	deep := filepath.Join(root, "bench", "lab")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ENVOY_BIN", "")
	t.Chdir(deep)
	if _, err := EnvoyBinary(); err == nil || !strings.Contains(err.Error(), "make envoy") {
		t.Errorf("got %v, want it to name `make envoy`", err)
	}
	path := filepath.Join(root, installed)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := EnvoyBinary(); err != nil || got != path {
		t.Errorf("got %q, %v, want %q", got, err, path)
	}
	t.Setenv("ENVOY_BIN", filepath.Join(root, "missing"))
	if _, err := EnvoyBinary(); err == nil || !strings.Contains(err.Error(), "ENVOY_BIN") {
		t.Errorf("got %v, want it to name ENVOY_BIN", err)
	}
}
