package metricsapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// otherAdapter answers for every metric, and remembers what it is asked.
type otherAdapter struct {
	*httptest.Server
	ca   string      // file
	mute atomic.Bool // it does not tell what metrics it has

	mu    sync.Mutex
	asked []*http.Request
}

const (
	theirAnswer    = `{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","metadata":{},"items":[{"value":"7"}],"theirs":true}`
	theirCustoms   = `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"custom.metrics.k8s.io/v1beta2","resources":[{"name":"pods/queue_length","singularName":"","namespaced":true,"kind":"MetricValueList","verbs":["get"]},{"name":"nodes/load","singularName":"","namespaced":false,"kind":"MetricValueList","verbs":["get"]}]}`
	theirDiscovery = `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"external.metrics.k8s.io/v1beta1","resources":[{"name":"externalmetrics","singularName":"","namespaced":true,"kind":"ExternalMetricValueList","verbs":["get"]}]}`
)

func startOtherAdapter(t *testing.T) *otherAdapter {
	t.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey("metrics.keda.svc", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	o := &otherAdapter{ca: filepath.Join(t.TempDir(), "ca.crt")}
	if err := os.WriteFile(o.ca, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Server = httptest.NewUnstartedServer(o)
	o.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	o.StartTLS()
	t.Cleanup(o.Close)
	return o
}

func (o *otherAdapter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if document := map[string]string{apiPath: theirDiscovery, customPath: theirCustoms}[r.URL.Path]; document != "" {
		if o.mute.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte(document))
		return
	}
	o.mu.Lock()
	o.asked = append(o.asked, r)
	o.mu.Unlock()
	if strings.Contains(r.URL.Path, "unknown") {
		w.WriteHeader(http.StatusNotFound)
	}
	_, _ = w.Write([]byte(theirAnswer))
}

// take returns what metrics it has been asked for since it was last looked at.
func (o *otherAdapter) take() (asked []*http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	asked, o.asked = o.asked, nil
	return asked
}

func (o *otherAdapter) options(t *testing.T, api *fakeAPI) func(*Options) {
	return func(p *Options) {
		p.Standalone, p.HPADir, p.BindAddress, p.Kubeconfig, p.Keeps = false, "", "127.0.0.1", api.kubeconfig(t), keepsIstio
		p.Fallback, p.FallbackCAFile = "keda/metrics", o.ca
		p.dialFallback = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "metrics.keda.svc:443" {
				return nil, errors.New("dials " + address)
			}
			return new(net.Dialer).DialContext(ctx, network, o.Listener.Addr().String())
		}
	}
}

// withHeader asks with more headers than a token.
func (s *testServer) withHeader(path string, header http.Header) int {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "https://"+s.Addr().String()+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header = header
	r.Header.Set("Authorization", "Bearer "+s.token)
	answer, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = answer.Body.Close()
	return answer.StatusCode
}

// What is not meshpulse's is asked of the other adapter, for whom the API server lets in and with a
// token of an account of its own; and meshpulse's own is not.
func TestWhatIsNotOursIsPassedOn(t *testing.T) {
	api, other := newFakeAPI(t, asks(t, "podinfo", "rps", istioRate, "app", otherRate), asks(t, "left", "left", istioRate)), startOtherAdapter(t)
	api.hpas.Items[1].Annotations[hpas.Serve] = "false"
	api.namespaces = []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "test", Annotations: map[string]string{hpas.Serve: "true"}}}}
	s := startServer(t, other.options(t, api))
	s.token = "hpa"

	s.discovers(`[{"name":"externalmetrics","singularName":"","namespaced":true,"kind":"ExternalMetricValueList","verbs":["get"]},{"name":"prometheus-query","singularName":"","namespaced":true,"kind":"ExternalMetricValueList","verbs":["get"]}]`)
	if got := s.refused("test", "prometheus-query", "query-name=rps", http.StatusServiceUnavailable); !strings.Contains(got, "no sidecar") {
		t.Errorf("ours says %s", got)
	}
	s.refused("test", "istio-requests-per-second", "destination_workload=x", http.StatusServiceUnavailable)
	if asked := other.take(); len(asked) != 0 {
		t.Errorf("of ours the other adapter is asked %d times", len(asked))
	}
	for _, metric := range []struct{ name, selector string }{{"prometheus-query", "query-name=app"}, {"s0-prometheus", "scaledobject.keda.sh/name=web"}, {"prometheus-query", "query-name=left"}} {
		path := metricPath("test", metric.name, metric.selector)
		if code, body := s.get(path); code != http.StatusOK || body != theirAnswer {
			t.Errorf("%s gives %d: %s", path, code, body)
		}
		asked := other.take()
		if len(asked) != 1 || asked[0].URL.RequestURI() != path || asked[0].Header.Get("Authorization") != "Bearer fallback-for-600s" {
			t.Errorf("%s asks %+v", path, asked)
		}
	}
	if code, body := s.get(metricPath("test", "unknown", "")); code != http.StatusNotFound || body != theirAnswer {
		t.Errorf("an error gives %d: %s", code, body)
	}
	other.take()
	if code, body := s.get(metricPath("test", "s0-prometheus", "a=(")); code != http.StatusBadRequest {
		t.Errorf("a selector that cannot be read gives %d: %s", code, body)
	}
	_, metrics := s.get("/metrics")
	for _, want := range []string{`passed_total{outcome="ok"} 3`, `passed_total{outcome="error"} 1`, `passed_total{outcome="no_answer"} 0`, `passed_duration_seconds_count 4`} {
		if !strings.Contains(metrics, "meshpulse_metricsapi_"+want+"\n") {
			t.Errorf("no %s in /metrics", want)
		}
	}
	other.Close()
	if got := s.refused("test", "s0-prometheus", "", http.StatusServiceUnavailable); !strings.Contains(got, "keda/metrics does not answer") {
		t.Errorf("while it is down: %s", got)
	}
	if got := s.refused("test", "prometheus-query", "query-name=rps", http.StatusServiceUnavailable); !strings.Contains(got, "no sidecar") {
		t.Errorf("while it is down ours says %s", got)
	}
	if got := s.resources(); !strings.Contains(got, "prometheus-query") {
		t.Errorf("while it is down discovery is %s", got)
	}
}

// An HPA that has just been made reaches one replica's watch before the other's.
func TestWhatAnotherReplicaKnowsIsNotPassedOn(t *testing.T) {
	c, api, other := newCrew("a", "b"), newFakeAPI(t, asks(t, "theirs", "left", istioRate)), startOtherAdapter(t)
	api.hpas.Items[0].Annotations[hpas.Serve] = "false"
	b := c.join(t, "b")
	data, err := os.ReadFile("hpas/testdata/requests-total.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b.write("hpa.yaml", string(data))
	b.discovers(discovered)
	b.sidecar("podinfo-0")
	a := startServer(t, func(o *Options) {
		other.options(t, api)(o)
		o.Replicas = &mate{c, "a"}
	})
	a.token = "hpa"
	const ofB = "query-name=processed-requests-per-second"
	a.eventually(metricPath("test", "prometheus-query", "query-name=left"), http.StatusOK)
	other.take()
	c.questions()
	if v := a.value("test", "prometheus-query", ofB); v.MetricLabels[labelReplica] != "b" {
		t.Errorf("labels %v", v.MetricLabels)
	}
	if asked := other.take(); len(asked) != 0 {
		t.Errorf("the other adapter was asked %d times", len(asked))
	}
	// What neither knows is, without a question where an HPA says whose it is.
	c.questions()
	for _, path := range []string{metricPath("test", "s0-prometheus", ""), metricPath("test", "prometheus-query", "query-name=left")} {
		if code, body := a.get(path); code != http.StatusOK || body != theirAnswer {
			t.Errorf("%s gives %d: %s", path, code, body)
		}
	}
	if asked := c.questions(); !slices.Equal(asked, []string{"a b"}) {
		t.Errorf("asked: %v", asked)
	}
	// Nor may the other replica be there, for the rest to be passed on.
	c.with(func() { c.silent["b"] = 2 * time.Second })
	if code, body := a.get(metricPath("test", "prometheus-query", ofB)); code != http.StatusOK || body != theirAnswer {
		t.Errorf("while the other replica is away: %d: %s", code, body)
	}
}

// Who may not read metrics is refused here, and nothing that a caller says of itself arrives.
func TestWhoAsksIsDecidedHere(t *testing.T) {
	api, other := newFakeAPI(t), startOtherAdapter(t)
	s := startServer(t, other.options(t, api))
	path := metricPath("test", "s0-prometheus", "")
	for token, want := range map[string]int{"": http.StatusForbidden, "nobody": http.StatusUnauthorized, "stranger": http.StatusForbidden} {
		s.token = token
		if code, body := s.get(path); code != want {
			t.Errorf("token %q gives %d, want %d: %s", token, code, want, body)
		}
	}
	s.token = "stranger" // and says to be who may
	if code := s.withHeader(path, http.Header{"X-Remote-User": {"hpa"}, "X-Remote-Group": {"system:masters"}}); code != http.StatusForbidden {
		t.Errorf("a forged X-Remote-User gives %d", code)
	}
	if asked := other.take(); len(asked) != 0 {
		t.Fatalf("the other adapter was asked %d times", len(asked))
	}
	s.token = "hpa"
	if code := s.withHeader(path, http.Header{"X-Remote-User": {"system:admin"}, "X-Remote-Group": {"system:masters"}, "Cookie": {"a=b"}, "Accept": {"application/json"}}); code != http.StatusOK {
		t.Fatalf("who may read is given %d", code)
	}
	asked := other.take()
	if len(asked) != 1 {
		t.Fatalf("asked %d times, want 1", len(asked))
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range asked[0].Header {
			if !yield(name) {
				return
			}
		}
	})
	if diff := cmp.Diff([]string{"Accept", "Accept-Encoding", "Authorization", "User-Agent", "Via"}, names); diff != "" {
		t.Errorf("headers that arrive (-want +got):\n%s", diff)
	}
	if code := s.withHeader(path, http.Header{"Via": {"1.1 meshpulse"}}); code != http.StatusServiceUnavailable || len(other.take()) != 0 {
		t.Errorf("what comes round in a circle gives %d, want 503 and no other call", code)
	}
	for _, odd := range []string{"/namespaces/test/../../../../v1/x", "/namespaces/test//x", "/namespaces/test/x/"} {
		if code, _ := s.get(apiPath + odd); code == http.StatusOK || len(other.take()) != 0 {
			t.Errorf("%s gives %d, and is passed on", odd, code)
		}
	}
}

// After a start nothing is passed on, nor answered, until HPAs have been listed: of no metric it is
// known whose it is.
func TestNothingIsPassedOnAGuess(t *testing.T) {
	for _, late := range []string{"horizontalpodautoscalers", "namespaces"} {
		t.Run(late, func(t *testing.T) {
			api, other := newFakeAPI(t, asks(t, "podinfo", "rps", istioRate, "app", otherRate)), startOtherAdapter(t)
			listed := make(chan struct{})
			api.late = map[string]chan struct{}{late: listed}
			o, _ := testOptions(t)
			other.options(t, api)(&o)
			server, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- server.Run(ctx) }()
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			s := &testServer{Server: server, t: t, token: "hpa", client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
			s.eventually("/livez", http.StatusOK)
			for range 20 {
				for _, query := range []string{"rps", "app"} {
					if got := s.refused("test", "prometheus-query", "query-name="+query, http.StatusServiceUnavailable); !strings.Contains(got, "not known yet whose it is") {
						t.Fatalf("%s: %s", query, got)
					}
				}
			}
			if asked := other.take(); len(asked) != 0 {
				t.Errorf("the other adapter was asked %d times", len(asked))
			}
			close(listed)
			s.eventually(metricPath("test", "prometheus-query", "query-name=app"), http.StatusOK)
			if got := s.refused("test", "prometheus-query", "query-name=rps", http.StatusServiceUnavailable); !strings.Contains(got, "no sidecar") {
				t.Errorf("ours says %s", got)
			}
			for _, r := range other.take() {
				if !strings.Contains(r.URL.RawQuery, "app") {
					t.Errorf("the other adapter was asked for %s", r.URL)
				}
			}
		})
	}
}

// While the API server tells nothing of HPAs it is not known of any metric whose it is.
func TestNothingIsPassedWhileTheWatchIsDeaf(t *testing.T) {
	api, other := newFakeAPI(t, asks(t, "podinfo", "rps", istioRate)), startOtherAdapter(t)
	c := new(fixture.Clock)
	s := startServer(t, func(o *Options) {
		other.options(t, api)(o)
		o.Now = c.Now
	})
	s.token = "hpa"
	s.eventually(metricPath("test", "s0-prometheus", ""), http.StatusOK)
	fresh := s.api.HPAs.Freshness()
	eventually(t, func() bool { return fresh.Age() == 0 && s.api.Namespaces.Freshness().Age() == 0 }, func() string { return "nothing is watched" })
	api.deaf.Store(true)
	api.CloseClientConnections()
	eventually(t, func() bool { return fresh.Age() > 0 }, func() string { return "nothing is refused" })
	c.Shift(time.Minute)
	other.take()
	for _, query := range []string{"s0-prometheus", "prometheus-query"} {
		if got := s.refused("test", query, "", http.StatusServiceUnavailable); !strings.Contains(got, "HPAs are not known") {
			t.Errorf("%s: %s", query, got)
		}
	}
	if asked := other.take(); len(asked) != 0 {
		t.Errorf("the other adapter was asked %d times", len(asked))
	}
}

// An annotation on the namespace leaves all its HPAs, and counts from the first answer on.
func TestANamespaceIsLeft(t *testing.T) {
	api, other := newFakeAPI(t, asks(t, "podinfo", "rps", istioRate)), startOtherAdapter(t)
	api.namespaces = []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "test", Annotations: map[string]string{hpas.Serve: "false"}}}}
	s := startServer(t, other.options(t, api))
	s.token = "hpa"
	if code, body := s.get(metricPath("test", "prometheus-query", "query-name=rps")); code != http.StatusOK || body != theirAnswer {
		t.Errorf("gives %d: %s", code, body)
	}
}

// The Service of meshpulse itself would be asked by itself.
func TestItsOwnServiceIsNoFallback(t *testing.T) {
	api, other := newFakeAPI(t), startOtherAdapter(t)
	for address, part := range map[string]string{
		"meshpulse-system/meshpulse": "meshpulse's own Service", "meshpulse-system/meshpulse:6443": "meshpulse's own Service",
		"keda": "is not NAMESPACE/SERVICE[:PORT]", "keda/metrics": "",
	} {
		o, _ := testOptions(t)
		other.options(t, api)(&o)
		o.Fallback = address
		s, err := New(o)
		if err == nil {
			_ = s.listener.Close()
		}
		if got := fmt.Sprint(err); part == "" && err != nil || !strings.Contains(got, part) {
			t.Errorf("--fallback %s: %v, want %q", address, err, part)
		}
	}
}
