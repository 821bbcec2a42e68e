package metricsapi

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"

	"github.com/meshpulse/meshpulse/aggregator"
)

const apiPath = "/apis/external.metrics.k8s.io/v1beta1"

// testServer is a standalone server on a loopback port, its files and its store.
type testServer struct {
	*Server
	t      *testing.T
	dir    string
	store  *aggregator.Store
	log    *logBuffer
	client *http.Client
	token  string
	cancel context.CancelFunc
	done   chan error
}

func testOptions(t *testing.T) (Options, *logBuffer) {
	log := &logBuffer{}
	registry := prometheus.NewRegistry()
	return Options{
		Store: newTestStore(t), Standalone: true, HPADir: t.TempDir(), Registerer: registry, Gatherer: registry,
		Log: slog.New(slog.NewTextHandler(log, nil)),
	}, log
}

func startServer(t *testing.T, change func(*Options)) *testServer {
	t.Helper()
	o, log := testOptions(t)
	if change != nil {
		change(&o)
	}
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	s := &testServer{
		Server: server, t: t, dir: o.HPADir, store: o.Store, log: log, done: make(chan error, 1),
		client: &http.Client{Timeout: 20 * time.Second, Transport: transport},
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	go func() { s.done <- server.Run(ctx) }()
	t.Cleanup(func() {
		s.stop()
		transport.CloseIdleConnections()
	})
	s.eventually("/readyz", http.StatusOK)
	return s
}

// stop ends the server, once, and says how long it took.
func (s *testServer) stop() time.Duration {
	start := time.Now()
	if s.done != nil {
		s.cancel()
		if err := <-s.done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
		s.done = nil
	}
	return time.Since(start)
}

func (s *testServer) get(path string) (int, string) {
	s.t.Helper()
	request, err := http.NewRequest(http.MethodGet, "https://"+s.Addr().String()+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.token != "" {
		request.Header.Set("Authorization", "Bearer "+s.token)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func (s *testServer) eventually(path string, code int) string {
	s.t.Helper()
	var got int
	var body string
	eventually(s.t, func() bool { got, body = s.get(path); return got == code }, func() string { return fmt.Sprintf("%s gives %d, want %d: %s", path, got, code, body) })
	return body
}

func metricPath(namespace, metric, selector string) string {
	return apiPath + "/namespaces/" + namespace + "/" + metric + "?labelSelector=" + url.QueryEscape(selector)
}

// value asks for a metric that must have one item.
func (s *testServer) value(namespace, metric, selector string) emv1beta1.ExternalMetricValue {
	s.t.Helper()
	code, body := s.get(metricPath(namespace, metric, selector))
	var list emv1beta1.ExternalMetricValueList
	if err := json.Unmarshal([]byte(body), &list); code != http.StatusOK || err != nil || len(list.Items) != 1 {
		s.t.Fatalf("%s with %q gives %d: %s", metric, selector, code, body)
	}
	return list.Items[0]
}

// refused asks for a metric that must give a status with the code, and returns its message.
func (s *testServer) refused(namespace, metric, selector string, code int) string {
	s.t.Helper()
	got, body := s.get(metricPath(namespace, metric, selector))
	var status metav1.Status
	if err := json.Unmarshal([]byte(body), &status); got != code || err != nil || status.Kind != "Status" {
		s.t.Fatalf("%s with %q gives %d, want a status of %d: %s", metric, selector, got, code, body)
	}
	return status.Message
}

func (s *testServer) resources() string {
	s.t.Helper()
	code, body := s.get(apiPath)
	var document map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &document); code != http.StatusOK || err != nil {
		s.t.Fatalf("discovery gives %d: %s", code, body)
	}
	return strings.Join(strings.Fields(string(document["resources"])), "")
}

func (s *testServer) discovers(resources string) {
	s.t.Helper()
	eventually(s.t, func() bool { return s.resources() == resources }, func() string { return "discovery is " + s.resources() + ", want " + resources })
}

func (s *testServer) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// sidecar lets a pod of workload podinfo report for 70 s until now, every 5 s 5 requests that took
// 4 ms.
func (s *testServer) sidecar(pod string) time.Time {
	s.t.Helper()
	stream := s.store.Connect(aggregator.Pod{Namespace: "test", Name: pod, Workload: "podinfo", CanonicalService: "podinfo", FlushInterval: 5 * time.Second})
	defer stream.Close()
	now := time.UnixMilli(time.Now().UnixMilli())
	for i := 1; i <= 15; i++ {
		at := now.Add(time.Duration(i-15) * 5 * time.Second)
		batch := &aggregator.Batch{
			Timestamp: at.UnixMilli(),
			Samples: []aggregator.Sample{
				{Key: 1, Timestamp: at.UnixMilli(), Kind: aggregator.Counter, Value: float64(5 * i)},
				{Key: 2, Timestamp: at.UnixMilli(), Kind: aggregator.Histogram, Value: 20, Count: 5, Last: 2},
			},
			Buckets: []aggregator.Bucket{{UpperBound: 1}, {UpperBound: 5, Count: 5}},
		}
		if err := stream.Commit(at, batch, podinfoRequests{}); err != nil {
			s.t.Fatal(err)
		}
	}
	return now
}

// podinfoRequests names the samples of sidecar.
type podinfoRequests struct{}

func (podinfoRequests) Describe(i int) (string, []aggregator.Label, error) {
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[i], []aggregator.Label{
		{Name: "reporter", Value: "destination"},
		{Name: "destination_workload", Value: "podinfo"},
		{Name: "destination_workload_namespace", Value: "test"},
		{Name: "destination_canonical_service", Value: "podinfo"},
		{Name: "response_code", Value: "200"},
	}, nil
}
