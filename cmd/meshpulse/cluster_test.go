package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiServer is one that has pods and nothing else.
type apiServer struct {
	pods []corev1.Pod
	news chan corev1.Pod
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch q := r.URL.Query(); {
	case !strings.HasSuffix(r.URL.Path, "/pods"), q.Get("sendInitialEvents") != "":
		w.WriteHeader(http.StatusInternalServerError)
	case q.Get("watch") == "":
		_ = json.NewEncoder(w).Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: a.pods})
	default:
		w.(http.Flusher).Flush()
		for {
			select {
			case p := <-a.news:
				object, _ := json.Marshal(p)
				_, _ = fmt.Fprintf(w, `{"type":"ADDED","object":%s}`+"\n", object)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}
}

func clusterPod(namespace, name, address string) corev1.Pod {
	return corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: "1", CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour))},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: address}}},
	}
}

// inCluster serves in a cluster of these pods until the test ends.
func inCluster(t *testing.T, args []string, pods ...corev1.Pod) (*server, *apiServer) {
	t.Helper()
	api := &apiServer{pods, make(chan corev1.Pod)}
	http := httptest.NewServer(api)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {token: a}}], clusters: [{name: a, cluster: {server: %q}}]}", http.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var o serveOptions
	f := o.flags(console{out: io.Discard, err: io.Discard})
	args = append([]string{"--kubeconfig=" + kubeconfig, "--ingest-address=127.0.0.1:0", "--bind-address=127.0.0.1", "--secure-port=0"}, args...)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.run(ctx, ctx) })
	t.Cleanup(func() {
		cancel()
		http.CloseClientConnections()
		running.Wait()
		http.Close()
	})
	return s, api
}

// sidecar is a connection from an address of its own.
type sidecar struct {
	*testing.T
	client metricsv3.MetricsServiceClient
}

func sidecarAt(t *testing.T, s *server, address string) sidecar {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := grpc.NewClient("passthrough:///"+s.ingest.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, target string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", target)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return sidecar{t, metricsv3.NewMetricsServiceClient(conn)}
}

// open opens a stream that says that it is a pod's, with the first flush. An error is told by flush
// or end.
func (s sidecar) open(namespace, name, code string, value float64) *said {
	s.Helper()
	stream, err := s.client.StreamMetrics(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	a := &said{s.T, stream, code}
	a.send(value, &corev3.Node{Id: "sidecar~" + "10.0.0.1~" + name + "." + namespace + "~cluster.local"})
	return a
}

type said struct {
	*testing.T
	stream metricsv3.MetricsService_StreamMetricsClient
	code   string
}

func (a *said) send(value float64, node *corev3.Node) {
	m := &metricsv3.StreamMetricsMessage{EnvoyMetrics: []*dto.MetricFamily{{
		Name: proto.String("istiocustom.istio_requests_total"), Type: dto.MetricType_COUNTER.Enum(), Metric: []*dto.Metric{{
			Label:       []*dto.LabelPair{{Name: proto.String("reporter"), Value: proto.String("destination")}, {Name: proto.String("response_code"), Value: proto.String(a.code)}},
			Counter:     &dto.Counter{Value: proto.Float64(value)},
			TimestampMs: proto.Int64(time.Now().UnixMilli()),
		}},
	}}}
	if node != nil {
		m.Identifier = &metricsv3.StreamMetricsMessage_Identifier{Node: node}
	}
	_ = a.stream.Send(m)
}

// end half-closes: what was sent has been taken when it returns. The error is what the stream was
// refused for.
func (a *said) end() error {
	_, err := a.stream.CloseAndRecv()
	return err
}

// awaitRefusal waits until a stream of a pod is refused for the pod whose address it comes from:
// until the cluster's pods are known, it may count, or be refused as one that the cluster denies.
func (s sidecar) awaitRefusal(namespace, name, whose string) {
	s.Helper()
	for {
		if err := s.open(namespace, name, "503", 1).end(); err != nil && strings.Contains(err.Error(), whose) {
			return
		}
		select {
		case <-s.Context().Done():
			s.Fatal("it is never refused")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A sender at another pod's address is refused, over plaintext too; one at nobody's does not count
// beside the pod.
func TestWhoIsNotThePodDoesNotCountForIt(t *testing.T) {
	s, api := inCluster(t, nil, clusterPod("shop", "web-0", "127.0.0.2"), clusterPod("evil", "other", "127.0.0.3"))
	sidecarAt(t, s, "127.0.0.3").awaitRefusal("shop", "web-9", "is evil/other's") // the pods are known from now on
	err := sidecarAt(t, s, "127.0.0.3").open("shop", "web-0", "503", 1).end()     // the connection of who is refused is closed
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "127.0.0.3 is evil/other's") || !strings.Contains(err.Error(), "shop/web-0") {
		t.Errorf("error %v, want one that names both pods", err)
	}
	victim := sidecarAt(t, s, "127.0.0.2").open("shop", "web-0", "200", 1000)
	thief := sidecarAt(t, s, "127.0.0.9")
	series := func(code string) int {
		q, err := s.store.Query(fmt.Sprintf(`istio_requests_total{pod="web-0",response_code=%q}`, code))
		if err != nil {
			t.Fatal(err)
		}
		a, err := q.Eval(t.Context(), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return a.Matched
	}
	for series("200") == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		if err := thief.open("shop", "web-0", "500", 1e6).end(); err != nil {
			t.Errorf("nobody's address is refused: %v", err)
		}
	}
	if n := series("500") + series("503"); n != 0 {
		t.Errorf("%d series of the thief count", n)
	}
	if p := s.store.Pod("shop", "web-0", time.Now(), time.Minute); p.Rivals != nil {
		t.Errorf("contested: %+v", p.Rivals)
	}
	if err := victim.end(); err != nil {
		t.Errorf("the pod's own stream: %v", err)
	}
	// A pod that comes has its address from when it is told.
	api.news <- clusterPod("shop", "web-1", "127.0.0.4")
	sidecarAt(t, s, "127.0.0.4").awaitRefusal("shop", "web-2", "is shop/web-1's")
}
