package metricsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
	"github.com/meshpulse/meshpulse/metricsapi/pages"
)

// Whoever may read one namespace reads that one only, through the API server's own rules; queries
// read all, and take a right to all.
func TestTheOwnAPIShowsANamespaceToWhoMayReadIt(t *testing.T) {
	api := newFakeAPI(t, asks(t, "podinfo", "rps", "vector(1)"))
	s := startServer(t, func(o *Options) {
		o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig = false, "", "127.0.0.1", api.kubeconfig(t)
	})
	for path, want := range map[string]map[string]int{
		"/namespaces/test/explanations":          {"": 403, "stranger": 403, "tenant": 200, "hpa": 200},
		"/namespaces/test/explanations/podinfo":  {"stranger": 403, "tenant": 200, "hpa": 200},
		"/namespaces/test/explanations/gone":     {"tenant": 404},
		"/namespaces/test/pods":                  {"stranger": 403, "tenant": 200, "hpa": 200},
		"/namespaces/other/explanations":         {"tenant": 403, "hpa": 200},
		"/namespaces/other/explanations/podinfo": {"tenant": 403, "hpa": 404},
		"/namespaces/other/pods":                 {"tenant": 403, "hpa": 200},
		"/explanations":                          {"tenant": 403, "hpa": 200},
		"/pods":                                  {"tenant": 403, "hpa": 200},
		"/secrets":                               {"tenant": 403, "hpa": 405},
		"/namespaces/test/pods/podinfo-a":        {"tenant": 405},
	} {
		for token, code := range want {
			s.token = token
			if got, body := s.get(ownVersionPath + path); got != code {
				t.Errorf("%s with token %q gives %d, want %d: %.200s", path, token, got, code, body)
			}
		}
	}
	for token, code := range map[string]int{"": 403, "tenant": 403, "hpa": 200} {
		s.token = token
		if got, body := s.post(ownVersionPath+"/queries", `{"spec": {"query": "vector(1)"}}`); got != code {
			t.Errorf("a query with token %q gives %d, want %d: %s", token, got, code, body)
		}
	}
	s.token = "tenant"
	var list explain.List
	if _, body := s.get(ownVersionPath + "/namespaces/test/explanations"); json.Unmarshal([]byte(body), &list) != nil || len(list.Items) != 1 || list.Items[0].Name != "podinfo" {
		t.Errorf("a tenant sees %s", body)
	}
}

// pagesSource asks as the console does.
type pagesSource struct{ *testServer }

func (s pagesSource) read(path string, into any) error {
	code, body := s.get(ownVersionPath + path)
	if code != http.StatusOK {
		return fmt.Errorf("%d: %s", code, body)
	}
	return json.Unmarshal([]byte(body), into)
}

func (s pagesSource) List(context.Context) (list explain.List, err error) {
	return list, s.read("/explanations", &list)
}

func (s pagesSource) One(_ context.Context, namespace, name string, _ time.Duration) (e explain.Explanation, err error) {
	return e, s.read("/namespaces/"+namespace+"/explanations/"+name, &e)
}

// The console has the rights of who runs it and no others: a page of a namespace that its user may
// not read says so, and shows nothing of it.
func TestTheConsoleShowsANamespaceToWhoMayReadIt(t *testing.T) {
	api := newFakeAPI(t, asks(t, "podinfo", "rps", "vector(1)"))
	s := startServer(t, func(o *Options) {
		o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig = false, "", "127.0.0.1", api.kubeconfig(t)
	})
	for token, shown := range map[string]map[string]bool{
		"stranger": {"": false, "hpas/test/podinfo/": false, "hpas/other/podinfo/": false},
		"tenant":   {"": false, "hpas/test/podinfo/": true, "hpas/other/podinfo/": false},
		"hpa":      {"": true, "hpas/test/podinfo/": true, "hpas/other/podinfo/": false},
	} {
		s.token = token
		p, err := pages.New(pages.Config{Source: pagesSource{s}, Address: "127.0.0.1:1", Scope: "all namespaces"})
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range shown {
			w := httptest.NewRecorder()
			p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, p.URL()+path, nil))
			body := w.Body.String()
			if got := strings.Contains(body, "Deployment/podinfo") || strings.Contains(body, ">podinfo</a>"); got != want {
				t.Errorf("token %q, page %q: shown %t, want %t:\n%s", token, path, got, want, body)
			}
			if refused := strings.Contains(body, "nothing newer is known"); refused == want {
				t.Errorf("token %q, page %q: refused %t:\n%s", token, path, refused, body)
			}
		}
	}
}

func (s *testServer) post(path, body string) (int, string) {
	s.t.Helper()
	request, err := http.NewRequest(http.MethodPost, "https://"+s.Addr().String()+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if s.token != "" {
		request.Header.Set("Authorization", "Bearer "+s.token)
	}
	response, err := s.client.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(answer)
}

// Standalone, sidecars stand in for pods and replicas; instants and ranges can be asked for.
func TestTheOwnAPIOfFiles(t *testing.T) {
	s := startServer(t, nil)
	s.write("hpa.yaml", fixture.HPA("podinfo", "", fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: podinfo}}", averageTen)))
	s.sidecar("podinfo-1")
	read := func(path string, into any) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.eventually(ownVersionPath+path, http.StatusOK)), into); err != nil {
			t.Fatal(err)
		}
	}
	var e explain.Explanation
	read("/namespaces/test/explanations/podinfo", &e)
	if !e.Standalone || e.Replicas != (explain.Replicas{Spec: 1, Status: 1, From: "sidecars"}) || len(e.Metrics[0].Pods) != 1 || e.Metrics[0].Pods[0].Name != "podinfo-1" {
		t.Errorf("%+v", e)
	}
	read("/namespaces/test/explanations/podinfo?at=-10s", &e)
	if ago := e.Now.Sub(e.At); ago != 10*time.Second {
		t.Errorf("10 s ago is %s ago", ago)
	}
	for _, at := range []string{"10s", "yesterday", "-10m", "2999-01-01T00:00:00Z"} {
		if code, body := s.get(ownVersionPath + "/namespaces/test/explanations/podinfo?at=" + at); code != http.StatusBadRequest || !strings.Contains(body, at) {
			t.Errorf("at %s gives %d: %s", at, code, body)
		}
	}
	var pods explain.Sidecars
	read("/namespaces/test/pods", &pods)
	if len(pods.Items) != 1 || pods.Items[0].FlushSeconds != 5 || pods.Items[0].Series == 0 || pods.Items[0].Bytes == 0 || strings.Join(pods.Items[0].HPAs, " ") != "test/podinfo" || pods.Items[0].Security != "plaintext" {
		t.Errorf("%+v", pods)
	}
	query := func(spec string, code int) (q explain.Query) {
		t.Helper()
		got, body := s.post(ownVersionPath+"/queries", spec)
		if err := json.Unmarshal([]byte(body), &q); err != nil || got != code {
			t.Fatalf("%s gives %d: %s", spec, got, body)
		}
		return q
	}
	q := query(`{"spec": {"query": "sum by (response_code) (rate(istio_requests_total[30s]))", "rangeSeconds": 20, "stepSeconds": 5}}`, http.StatusOK)
	if q.Status == nil || len(q.Status.Series) != 1 || len(q.Status.Series[0].Points) != 5 || q.Status.Series[0].Labels["response_code"] != "200" {
		t.Fatalf("%+v", q.Status)
	}
	if v, err := strconv.ParseFloat(q.Status.Series[0].Points[0].Value, 64); err != nil || math.Abs(v-1) > 0.01 {
		t.Errorf("%+v, want 1 a second", q.Status.Series[0].Points)
	}
	for _, wrong := range []string{`{`, `{"spec": {}}`, `{"spec": {"query": "sum("}}`, `{"spec": {"query": "x", "rangeSeconds": 10}}`, `{"spec": {"query": "x", "rangeSeconds": 100000, "stepSeconds": 1}}`, `{"spec": {"query": "x", "agoSeconds": -1}}`, strings.Repeat(" ", maxQueryBytes+1)} {
		if code, body := s.post(ownVersionPath+"/queries", wrong); code < 400 || code >= 500 || !strings.Contains(body, `"Status"`) {
			t.Errorf("%.60s gives %d: %s", wrong, code, body)
		}
	}
}
