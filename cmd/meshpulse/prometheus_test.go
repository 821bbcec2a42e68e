package main

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// prometheusOptions are those of a server with the Prometheus API, on free ports.
func prometheusOptions(t *testing.T, more ...string) (o serveOptions, err error) {
	t.Helper()
	f := o.flags(console{out: io.Discard, err: io.Discard})
	args := []string{"--standalone", "--hpa-dir=" + t.TempDir(), "--ingest-address=127.0.0.1:0", "--secure-port=0"}
	if err := f.Parse(append(args, more...)); err != nil {
		t.Fatal(err)
	}
	return o, o.complete()
}

func TestPrometheusFlagsThatDoNotFitAreRefused(t *testing.T) {
	for name, args := range map[string][]string{
		"have no effect without --prometheus-address": {"--prometheus-token-file=x"},
		"lets everybody read all namespaces":          {"--prometheus-address=0.0.0.0:9090"},
		"belong together":                             {"--prometheus-address=127.0.0.1:9090", "--prometheus-tls-cert-file=x"},
		"no client has a certificate":                 {"--prometheus-address=127.0.0.1:9090", "--prometheus-client-ca-file=x"},
		"with a / before":                             {"--prometheus-address=127.0.0.1:9090", "--prometheus-prefix=mesh/"},
		"give host:port":                              {"--prometheus-address=9090"},
		"what meshpulse itself listens on":            {"--prometheus-address=127.0.0.1:9090", "--profiling-address=127.0.0.1:9090"},
	} {
		if _, err := prometheusOptions(t, args...); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: %v, want one that says %q", args, err, name)
		}
	}
	for _, args := range [][]string{
		{"--prometheus-address=127.0.0.1:9090"},
		{"--prometheus-address=localhost:9090", "--prometheus-prefix=/mesh"},
		{"--prometheus-address=0.0.0.0:9090", "--prometheus-insecure"},
		{"--prometheus-address=:9090", "--prometheus-token-file=x"},
	} {
		if _, err := prometheusOptions(t, args...); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestPrometheusFilesThatCannotBeReadAreNamed(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--prometheus-token-file=" + empty},
		{"--prometheus-token-file=" + empty + "/none"},
		{"--prometheus-tls-cert-file=" + empty, "--prometheus-tls-private-key-file=" + empty},
	} {
		o, err := prometheusOptions(t, append(args, "--prometheus-address=127.0.0.1:0")...)
		if err != nil {
			t.Fatal(err)
		}
		flag, _, _ := strings.Cut(args[0], "=")
		if s, err := newServer(o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%v: %v", args, err)
			if s != nil {
				s.closeListeners()
			}
		}
	}
}

// TestPrometheusIsServedToWhoHasWhatIsAsked: over TLS, to a client with a certificate and the
// token.
func TestPrometheusIsServedToWhoHasWhatIsAsked(t *testing.T) {
	s, client := guarded(t, "--prometheus", prometheusOptions, "--prometheus-prefix=/mesh")
	ask := func(token string, certificates ...tls.Certificate) (code int, body string, err error) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certificates}} //nolint:gosec // who serves is not what is tested
		defer transport.CloseIdleConnections()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.prom.listener.Addr().String()+"/mesh/api/v1/query?query=1%2B1&time=4", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := (&http.Client{Transport: transport}).Do(r)
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), err
	}
	// What Grafana's "Save & test" asks and wants.
	if code, body, err := ask(portToken, client); code != http.StatusOK || body != `{"status":"success","data":{"resultType":"scalar","result":[4,"2"]}}` {
		t.Errorf("%d %s, %v", code, body, err)
	}
	if code, body, err := ask("wrong", client); code != http.StatusUnauthorized {
		t.Errorf("another token: %d %s, %v", code, body, err)
	}
	if code, body, err := ask(portToken); err == nil {
		t.Errorf("without a certificate: %d %s", code, body)
	}
}
