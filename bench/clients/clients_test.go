package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/documents"
	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

const (
	root = "../.."
	// binaries is where the programs are built to.
	binaries = root + "/.cache/clients"
	// waitLimit bounds every wait for a condition; the longest is for a window of a minute.
	waitLimit = 3 * time.Minute
	// flush is the sidecars' interval, so short that a test takes seconds.
	flush = time.Second
	// documented is the address that the page names.
	documented = "http://meshpulse-prometheus.meshpulse-system:9090"

	canaryHash, stableHash = "7d4b9c6f58", "54d8f7c9b6"
)

// built builds a program once: that of a module of a client, or meshpulse.
var built = func() func(name string) (string, error) {
	var mu sync.Mutex
	done := map[string]error{}
	return func(name string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		folder, at := name, "."
		if name == "meshpulse" {
			folder, at = root, "./cmd/meshpulse"
		}
		path, err := filepath.Abs(filepath.Join(binaries, name))
		if err != nil {
			return "", err
		}
		if _, known := done[name]; !known {
			build := exec.Command("go", "build", "-buildvcs=false", "-o", path, at)
			build.Dir = folder
			out, err := build.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s: %w\n%s", build, err, out)
			}
			done[name] = err
		}
		return path, done[name]
	}
}()

// mesh is a meshpulse to which two real Envoys report: one of the canary's pod, one of the stable
// one's.
type mesh struct {
	*standalone.Server
	token          string
	canary, stable *sidecar.Sidecar
	// failing has the canary's app answer each fifth request with 503.
	failing atomic.Bool
}

// newMesh starts it; the Prometheus API wants the token, if there is one. Nobody sends requests.
func newMesh(t *testing.T, token string) *mesh {
	t.Helper()
	binary, err := built("meshpulse")
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{token: token}
	args := []string{"--prometheus-address=127.0.0.1:0"}
	if token != "" {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--prometheus-token-file="+file)
	}
	m.Server, err = standalone.Start(t.Context(), standalone.Options{Binary: binary, Dir: t.TempDir(), HPADir: t.TempDir(), Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	})
	var asked atomic.Int64
	m.canary = m.envoy(t, "podinfo", canaryHash, func(w http.ResponseWriter, _ *http.Request) {
		if m.failing.Load() && asked.Add(1)%5 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	m.stable = m.envoy(t, "podinfo-primary", stableHash, func(http.ResponseWriter, *http.Request) {})
	return m
}

func (m *mesh) envoy(t *testing.T, workload, hash string, app http.HandlerFunc) *sidecar.Sidecar {
	t.Helper()
	upstream := httptest.NewServer(app)
	t.Cleanup(upstream.Close)
	e, err := sidecar.Start(t.Context(), sidecar.Options{
		Dir: t.TempDir(), Pod: workload + "-" + hash + "-x7k2p", Namespace: "test", Workload: workload, Address: "127.0.0.1",
		Upstreams: []string{upstream.Listener.Addr().String()}, Sink: m.Ingest, FlushInterval: flush, Duration: "%REQ(x-duration)%",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Kill)
	return e
}

// load sends so many requests a second to a sidecar from now on, which take so many milliseconds.
func (m *mesh) load(t *testing.T, e *sidecar.Sidecar, perSecond float64, milliseconds int) {
	t.Helper()
	g := load.Start(t.Context(), load.Options{
		Targets: []string{e.Address()}, Profile: load.Steady(perSecond, load.Endless), Header: http.Header{"X-Duration": {fmt.Sprint(milliseconds)}},
	})
	t.Cleanup(g.Stop)
}

// page returns the manifests of the page's block that has the text, with this mesh's address.
func (m *mesh) page(t *testing.T, text string) string {
	t.Helper()
	page, err := os.ReadFile(root + "/metricsapi/canaries.md")
	if err != nil {
		t.Fatal(err)
	}
	block, found := documents.Fenced(string(page), text)
	if !found {
		t.Fatalf("no block of the page has %q", text)
	}
	return strings.ReplaceAll(block, documented, "http://"+m.Prometheus)
}

// ask runs a client with manifests and returns the lines of JSON that it writes.
func ask[T any](t *testing.T, client, manifests string, args ...string) (answers []T) {
	t.Helper()
	binary, err := built(client)
	if err != nil {
		t.Fatal(err)
	}
	var out, failed bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(manifests), &out, &failed
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, &failed)
	}
	for d := json.NewDecoder(&out); d.More(); {
		var a T
		if err := d.Decode(&a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	return answers
}

// await asks until the condition holds: "". Its text says what is missing.
func await(t *testing.T, what string, missing func() string) {
	t.Helper()
	limit := time.Now().Add(waitLimit)
	for {
		lacks := missing()
		if lacks == "" {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s: after %v: %s", what, waitLimit, lacks)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
