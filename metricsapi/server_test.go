package metricsapi

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	certutil "k8s.io/client-go/util/cert"
	emv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

const discovered = `[{"name":"prometheus-query","singularName":"","namespaced":true,"kind":"ExternalMetricValueList","verbs":["get"]}]`

// The guides' HPAs one at a time: nothing before, a value after, nothing when the HPA is gone.
func TestServeTheGuides(t *testing.T) {
	s := startServer(t, nil)
	newest := s.sidecar("podinfo-1")
	for file, guide := range map[string]struct{ query, value string }{
		"requests-total.yaml":        {"processed-requests-per-second", "1"},
		"requests-per-workload.yaml": {"processed-requests-per-second", "1"},
		"latency-average.yaml":       {"latency-average", "4"},
		"latency-p95.yaml":           {"p95-latency", "4800m"},
	} {
		t.Run(file, func(t *testing.T) {
			s.t = t
			s.discovers("[]")
			s.refused("test", "prometheus-query", "query-name="+guide.query, http.StatusNotFound)
			data, err := os.ReadFile(filepath.Join("hpas", "testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			s.write(file, string(data))
			s.discovers(discovered)

			got := s.value("test", "prometheus-query", "query-name="+guide.query)
			if got.Value.String() != guide.value || got.MetricName != "prometheus-query" || got.Timestamp.Time.Sub(newest).Abs() > time.Second {
				t.Errorf("got %+v, want %s at %s", got, guide.value, newest)
			}
			labels := map[string]string{"query-name": guide.query, "meshpulse_coverage": "1/1"}
			if file == "latency-p95.yaml" {
				labels["meshpulse_window"] = got.MetricLabels["meshpulse_window"] // 1m15s or a little more of 5m
			}
			if d := cmp.Diff(labels, got.MetricLabels); d != "" {
				t.Errorf("labels (-want +got):\n%s", d)
			}
			if err := os.Remove(filepath.Join(s.dir, file)); err != nil {
				t.Fatal(err)
			}
			s.discovers("[]")
		})
	}
	s.t = t
}

func TestServeNamedMetrics(t *testing.T) {
	s := startServer(t, nil)
	s.sidecar("podinfo-1")
	s.sidecar("podinfo-2")
	for metric, want := range map[string]string{
		"istio-requests-per-second": "2", "istio-requests-in-flight": "8m", "istio-error-ratio": "0",
		"istio-request-duration-avg": "4",
		// Histograms alone, bounds exclusive: whole milliseconds from 1 to 4, evenly, in native
		// buckets 2.2 % wide.
		"istio-request-duration-p50": "2954m", "istio-request-duration-p95": "3983m",
	} {
		got := s.value("test", metric, "destination_workload=podinfo")
		if got.Value.String() != want || *got.WindowSeconds != 60 || got.MetricLabels["meshpulse_coverage"] != "2/2" {
			t.Errorf("%s is %+v, want %s over 60 s from 2/2", metric, got, want)
		}
	}
	if got := s.resources(); got != "[]" {
		t.Errorf("without an HPA there is %s", got)
	}
	if got := s.value("test", "istio-requests-per-second", "window=30s,destination_workload in (podinfo, other)"); *got.WindowSeconds != 30 || got.Value.String() != "2" {
		t.Errorf("over 30 s: %+v", got)
	}
	// The workload's sidecars report and no such request was ever counted.
	if got := s.value("test", "istio-requests-per-second", "destination_workload=podinfo,response_code=503"); got.Value.String() != "0" || got.MetricLabels["meshpulse_reason"] != "no request yet" {
		t.Errorf("no request yet: %+v", got)
	}
	for _, tc := range []struct {
		namespace, metric, selector string
		code                        int
		message                     string
	}{
		{"test", "istio-requests-per-second", "destination_workload=absent", 503, `metric istio-requests-per-second in namespace test: no series, and no sidecar`},
		{"other", "istio-requests-per-second", "destination_workload=podinfo", 503, "namespace other: no series"},
		{"test", "istio-requests-per-second", "window=2h", 400, "--max-retention"},
		{"test", "istio-requests-per-second", "reporter=nobody", 400, "a reporter is destination, source or waypoint"},
		{"test", "unheard-of", "", 404, "no HPA in namespace test has a query for metric unheard-of: check its annotations and the Warning events on it, or the log, for files that cannot be read"},
	} {
		if got := s.refused(tc.namespace, tc.metric, tc.selector, tc.code); !strings.Contains(got, tc.message) {
			t.Errorf("%s in %s with %q: %s", tc.metric, tc.namespace, tc.selector, got)
		}
	}
}

func TestServeSeveralSeries(t *testing.T) {
	s := startServer(t, nil)
	s.sidecar("podinfo-1")
	s.sidecar("podinfo-2")
	s.write("a.yaml", fixture.HPA("podinfo", `metric-config.external.per-pod.prometheus/query: "sum by (pod) (rate(istio_requests_total[1m]))"`,
		fixture.External("per-pod", "{matchLabels: {type: prometheus}}", `type: AverageValue, averageValue: "10"`)))
	body := s.eventually(metricPath("test", "per-pod", "type=prometheus"), http.StatusOK)
	var list emv1beta1.ExternalMetricValueList
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, it := range list.Items {
		got[it.MetricLabels["pod"]] = it.Value.String()
	}
	if d := cmp.Diff(map[string]string{"podinfo-1": "1", "podinfo-2": "1"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	s.get(metricPath("test", "per-pod", "type=prometheus"))
	if got := s.log.count("reason=SeveralSeries"); got != 1 {
		t.Errorf("%d events about several series", got)
	}
	m := s.Status(t.Context()).Metrics[0]
	if m.Value != "2" || len(m.Events) != 2 || m.Events[0].Reason != hpas.ReasonCallersWord || m.Events[1].Reason != hpas.ReasonSeveralSeries {
		t.Errorf("the state is %+v", m)
	}
}

func TestServeStatus(t *testing.T) {
	s := startServer(t, nil)
	newest := s.sidecar("podinfo-1")
	s.sidecar("podinfo-2")
	const legacy = "metric-config.external.prometheus-query.prometheus/"
	s.write("a.yaml", fixture.HPA("podinfo", legacy+`avg: "sum(rate(istio_requests_total[1m]))", `+legacy+`bad: "sum("`,
		fixture.External("prometheus-query", "{matchLabels: {query-name: avg}}", `type: AverageValue, averageValue: 300m`)+", "+
			fixture.External("istio-request-duration-avg", "{}", `type: Value, value: "6"`)+", "+
			fixture.External("prometheus-query", "{matchLabels: {query-name: bad}}", `type: Value, value: "6"`)+", "+
			fixture.External("unheard-of", "{}", `type: AverageValue, averageValue: "3"`)))
	var status Status
	eventually(t, func() bool {
		_, body := s.get("/debug/hpas")
		if err := json.Unmarshal([]byte(body), &status); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return len(status.Metrics) > 0
	}, func() string { return "no HPAs" })

	reasons := map[string]bool{}
	for i := range status.Metrics {
		m := &status.Metrics[i]
		for _, p := range m.Events {
			reasons[p.Reason] = true
		}
		m.Events = nil
		if m.AgeSeconds != nil {
			if most := status.Time.Sub(newest).Seconds() + 1; *m.AgeSeconds < 0 || *m.AgeSeconds > most {
				t.Errorf("the newest sample is %g s old, want at most %g", *m.AgeSeconds, most)
			}
			m.AgeSeconds = nil
		}
	}
	base := MetricStatus{Namespace: "test", HPA: "podinfo", MinReplicas: 1, MaxReplicas: 5}
	want := make([]MetricStatus, 4)
	for i := range want {
		want[i] = base
	}
	fill := func(i int, metric, selector, expr, kind, target string) *MetricStatus {
		m := &want[i]
		m.Metric, m.Selector, m.Expression, m.TargetType, m.Target = metric, selector, expr, kind, target
		return m
	}
	m := fill(0, "prometheus-query", "query-name=avg", "sum(rate(istio_requests_total[1m]))", "AverageValue", "300m")
	m.Value, m.Displayed, m.CurrentReplicas, m.DesiredReplicas = "2", "1/300m (avg)", 2, 5 // 7, but for the limit
	m.Reporting, m.Expected, m.CoveredSeconds, m.WindowSeconds = 2, 2, 60, 60
	m = fill(1, "istio-request-duration-avg", "", status.Metrics[1].Expression, "Value", "6")
	m.Value, m.Displayed, m.CurrentReplicas, m.DesiredReplicas = "4", "4/6", 2, 2 // ceil(4/6 x 2)
	m.Reporting, m.Expected, m.CoveredSeconds, m.WindowSeconds = 2, 2, 60, 60
	m = fill(2, "prometheus-query", "query-name=bad", "sum(", "Value", "6")
	m.Error, m.Displayed = status.Metrics[2].Error, "<unknown>/6"
	m = fill(3, "unheard-of", "", "", "AverageValue", "3")
	m.Error, m.Displayed = status.Metrics[3].Error, "<unknown>/3 (avg)"
	if d := cmp.Diff(want, status.Metrics); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for i, part := range map[int]string{2: "not valid PromQL", 3: "nothing says how to compute"} {
		if !strings.Contains(status.Metrics[i].Error, part) {
			t.Errorf("metric %d: error %q", i, status.Metrics[i].Error)
		}
	}
	if d := cmp.Diff(map[string]bool{hpas.ReasonBadQuery: true, hpas.ReasonNoQuery: true, hpas.ReasonLatencyStability: true, hpas.ReasonCallersWord: true}, reasons); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestServeHealthMetricsAndDocuments(t *testing.T) {
	var away atomic.Bool
	s := startServer(t, func(o *Options) {
		o.IngestReady = func() error {
			if away.Load() {
				return errors.New("not listening")
			}
			return nil
		}
	})
	for _, path := range []string{"/healthz", "/livez", "/readyz", "/readyz/hpas", "/readyz/ingest"} {
		if code, body := s.get(path); code != http.StatusOK {
			t.Errorf("%s gives %d: %s", path, code, body)
		}
	}
	away.Store(true)
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		if code, body := s.get(path); code != http.StatusInternalServerError || !strings.Contains(body, "[-]ingest failed") {
			t.Errorf("%s without ingest gives %d: %s", path, code, body)
		}
	}

	s.refused("test", "unheard-of", "", http.StatusNotFound)
	_, body := s.get("/metrics")
	for _, part := range []string{`meshpulse_metricsapi_answers_total{outcome="unknown_metric"} 1`, "meshpulse_metricsapi_answer_duration_seconds_count 1", "apiserver_request_total", "go_goroutines", "meshpulse_metricsapi_hpas 0"} {
		if !strings.Contains(body, part) {
			t.Errorf("/metrics lacks %q", part)
		}
	}
	for path, part := range map[string]string{
		"/apis": `"name":"external.metrics.k8s.io"`, "/openapi/v2": "ExternalMetricValueList", "/openapi/v3": "apis/external.metrics.k8s.io/v1beta1",
	} {
		if code, body := s.get(path); code != http.StatusOK || !strings.Contains(body, part) {
			t.Errorf("%s gives %d without %q: %.300s", path, code, part, body)
		}
	}
}

func TestServeTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte("secret,reader,1,\"a,b\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, _ := testOptions(t)
	o.TokenAuthFile = file
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := &testServer{Server: server, t: t, cancel: cancel, done: make(chan error, 1), client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
	go func() { s.done <- server.Run(ctx) }()
	defer s.stop()
	s.eventually("/readyz", http.StatusOK)
	for token, want := range map[string]int{"": http.StatusUnauthorized, "guess": http.StatusUnauthorized, "secret": http.StatusOK} {
		s.token = token
		for _, path := range []string{"/healthz", "/livez", "/readyz", "/readyz?verbose"} { // a probe has no token, and tells nobody's numbers
			if code, body := s.get(path); code != http.StatusOK {
				t.Errorf("%s with token %q gives %d: %.200s", path, token, code, body)
			}
		}
		for _, path := range []string{apiPath, ownPath, ownPath + "/v1alpha1", ownPath + "/v1alpha1/explanations", "/apis", "/debug/hpas", "/metrics", "/openapi/v2", "/version", "/healthzz"} {
			if path == "/healthzz" && token == "secret" {
				want = http.StatusNotFound
			}
			if code, body := s.get(path); code != want {
				t.Errorf("%s with token %q gives %d, want %d: %.200s", path, token, code, want, body)
			}
		}
	}
}

// An answer in flight is finished; then nobody listens any more.
func TestShutdownFinishesAnswers(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	ready := make(chan struct{}) // closed: block
	s := startServer(t, func(o *Options) {
		o.IngestReady = func() error {
			select {
			case <-ready:
				close(asked)
				<-release
			default:
			}
			return nil
		}
	})
	close(ready)
	answer := make(chan int, 1)
	go func() {
		code, _ := s.get("/healthz")
		answer <- code
	}()
	<-asked
	s.cancel()
	eventually(t, func() bool {
		c, err := net.Dial("tcp", s.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, func() string { return "the port is still open" })
	close(release)
	if code := <-answer; code != http.StatusOK {
		t.Errorf("the answer in flight is %d", code)
	}
	if took := s.stop(); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
}

func TestServerCertificates(t *testing.T) {
	dir := t.TempDir()
	cert, key, err := certutil.GenerateSelfSignedCertKey("meshpulse.example", nil, []string{"meshpulse.example"})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"tls.crt": cert, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names := func(s *testServer) []string {
		c, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.ConnectionState().PeerCertificates[0].DNSNames
	}
	given := startServer(t, func(o *Options) {
		o.TLSCertFile, o.TLSKeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	})
	if got := strings.Join(names(given), " "); !strings.Contains(got, "meshpulse.example") {
		t.Errorf("the certificate is for %s", got)
	}
	made := filepath.Join(dir, "made")
	selfMade := startServer(t, func(o *Options) { o.CertDir = made })
	if got := strings.Join(names(selfMade), " "); !strings.Contains(got, "localhost") {
		t.Errorf("the certificate is for %s", got)
	}
	if _, err := os.Stat(filepath.Join(made, "meshpulse.key")); err != nil {
		t.Errorf("--cert-dir holds no key: %v", err)
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("no,"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	port := busy.Addr().(*net.TCPAddr).Port

	tests := map[string]struct {
		change func(*Options)
		parts  []string
	}{
		"a port in use":            {func(o *Options) { o.SecurePort = port }, []string{fmt.Sprintf("127.0.0.1:%d", port), "address already in use", "--secure-port"}},
		"no HPA folder":            {func(o *Options) { o.HPADir = missing }, []string{"--hpa-dir", missing}},
		"no token file":            {func(o *Options) { o.TokenAuthFile = missing }, []string{"--token-auth-file", missing}},
		"not a token file":         {func(o *Options) { o.TokenAuthFile = garbage }, []string{"--token-auth-file", garbage, "token,user,uid"}},
		"no certificate":           {func(o *Options) { o.TLSCertFile, o.TLSKeyFile = missing, garbage }, []string{"--tls-cert-file", missing}},
		"no key":                   {func(o *Options) { o.TLSCertFile, o.TLSKeyFile = garbage, missing }, []string{"--tls-private-key-file", missing}},
		"not a certificate":        {func(o *Options) { o.TLSCertFile, o.TLSKeyFile = garbage, garbage }, []string{"--tls-cert-file", garbage}},
		"a certificate folder not": {func(o *Options) { o.CertDir = filepath.Join(garbage, "x") }, []string{"--cert-dir", garbage}},
		"no kubeconfig":            {func(o *Options) { o.Standalone, o.HPADir, o.Kubeconfig = false, "", missing }, []string{"--kubeconfig", missing}},
		"no store":                 {func(o *Options) { o.Store = nil }, []string{"store"}},

		"a certificate without key": {func(o *Options) { o.TLSCertFile = garbage }, []string{"--tls-private-key-file"}},
		"no such address":           {func(o *Options) { o.BindAddress = "localhost" }, []string{"--bind-address", "not an IP address"}},
		"no such port":              {func(o *Options) { o.SecurePort = 70000 }, []string{"--secure-port 70000"}},
		"open to all without token": {func(o *Options) { o.BindAddress = "0.0.0.0" }, []string{"--token-auth-file", "127.0.0.1"}},
		"open over IPv6":            {func(o *Options) { o.BindAddress = "::" }, []string{"--token-auth-file"}},
		"standalone without folder": {func(o *Options) { o.HPADir = "" }, []string{"--hpa-dir"}},
		"standalone and kubeconfig": {func(o *Options) { o.Kubeconfig = garbage }, []string{"--kubeconfig", "--standalone"}},
		"cluster and folder":        {func(o *Options) { o.Standalone = false }, []string{"--hpa-dir", "--standalone"}},
		"cluster and tokens":        {func(o *Options) { o.Standalone, o.HPADir, o.TokenAuthFile = false, "", garbage }, []string{"--token-auth-file"}},
		"negative reads":            {func(o *Options) { o.MaxReadsPerUser = -1 }, []string{"--max-reads-per-user"}},
		"a negative retention":      {func(o *Options) { o.Retention = -1 }, []string{"retention"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o, _ := testOptions(t)
			tc.change(&o)
			_, err := New(o)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tc.parts {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error lacks %q: %v", part, err)
				}
			}
		})
	}
	t.Run("open to all with tokens", func(t *testing.T) {
		o, _ := testOptions(t)
		o.BindAddress, o.TokenAuthFile = "0.0.0.0", garbage
		if err := o.Validate(); err != nil {
			t.Error(err)
		}
	})
}
