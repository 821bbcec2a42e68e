package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

const (
	root = "../.."
	// waitLimit bounds every wait for a condition; each is over within a few flushes on an idle
	// machine.
	waitLimit = time.Minute
	// drainLimit is the contract: SIGTERM, then exit 0 within 5 s.
	drainLimit = 5 * time.Second
	// flush is the sidecars' interval here, so short that a test takes seconds.
	flush = time.Second
)

// Where TestMain builds to.
const (
	binaries  = root + "/.cache/e2e"
	meshpulse = binaries + "/meshpulse"
	demo      = binaries + "/demo"
)

func TestMain(m *testing.M) {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare() error {
	if _, err := sidecar.EnvoyBinary(); err != nil {
		return err
	}
	if err := stat("cmd", "aggregator", "envoystats", "metricsapi", "bench", "manifests/examples"); err != nil {
		return err
	}
	if err := os.MkdirAll(binaries, 0o755); err != nil {
		return err
	}
	// Without the commit in the binary a commit alone needs no new link.
	build := exec.Command("go", "build", raceFlag, "-buildvcs=false", "-o", strings.TrimPrefix(binaries, root+"/"),
		"./cmd/meshpulse", "./bench/demo")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return nil
}

// stat looks at every source of the binaries under test: go test remembers what a test looked at,
// and so does not show the cached result of another program.
func stat(folders ...string) error {
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// serve starts meshpulse with the HPA files; the end of the test stops it and checks that it drains
// in time with exit code 0.
func serve(t *testing.T, o standalone.Options) *standalone.Server {
	t.Helper()
	o.Binary, o.Dir = meshpulse, t.TempDir()
	if o.HPADir == "" {
		o.HPADir = t.TempDir()
	}
	s, err := standalone.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(t, s)
		if t.Failed() {
			t.Logf("the end of meshpulse's log:\n%s", s.Tail(30))
		}
	})
	return s
}

// stop may be called again.
func stop(t *testing.T, s *standalone.Server) {
	t.Helper()
	begin := time.Now()
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > drainLimit {
		t.Errorf("SIGTERM to exit took %v, want at most %v", took, drainLimit)
	}
}

// query writes an HPA in the guides' form whose only query is the expression, named after the HPA,.
func query(t *testing.T, dir, name, expression string) {
	t.Helper()
	writeFile(t, filepath.Join(dir, name+".yaml"), fmt.Sprintf(`apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: %[1]s
  namespace: test
  annotations:
    metric-config.external.prometheus-query.prometheus/%[1]s: |
      %[2]s
spec:
  maxReplicas: 10
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: podinfo}
  metrics:
    - type: External
      external:
        metric:
          name: prometheus-query
          selector: {matchLabels: {query-name: %[1]s}}
        target: {type: AverageValue, averageValue: "10"}
`, name, expression))
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// value asks for a query of the guides' form and adds up the answer's items, as an HPA's controller
// does.
func value(ctx context.Context, s *standalone.Server, name string) (float64, error) {
	items, err := s.Values(ctx, "test", "prometheus-query", "query-name="+name)
	if err != nil {
		return 0, err
	}
	if len(items) == 0 {
		return 0, errors.New("an answer without items")
	}
	sum := 0.0
	for _, item := range items {
		sum += item.Value.AsApproximateFloat64()
	}
	return sum, nil
}

// await asks until the condition holds: nil. Its error says what is missing.
func await(t *testing.T, what string, condition func() error) {
	t.Helper()
	limit := time.Now().Add(waitLimit)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s: after %v: %v", what, waitLimit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// awaitValue waits until a query's value is the one wanted.
func awaitValue(t *testing.T, s *standalone.Server, name string, want float64) {
	t.Helper()
	await(t, name, func() error {
		got, err := value(t.Context(), s, name)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
}

// envoy starts a real sidecar of a pod of podinfo that reports to the server.
func envoy(t *testing.T, s *standalone.Server, pod string, change func(*sidecar.Options)) *sidecar.Sidecar {
	t.Helper()
	o := sidecar.Options{
		Dir: t.TempDir(), Pod: pod, Namespace: "test", Workload: "podinfo", Address: "127.0.0.1",
		Upstreams: []string{app(t)}, Sink: s.Ingest, FlushInterval: flush,
	}
	if change != nil {
		change(&o)
	}
	e, err := sidecar.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Kill) // a test that wants the last flush stops it by itself
	return e
}

func app(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// send sends requests one after the other, with the source workload and a duration (milliseconds)
// that the sidecar takes on trust if it is told to (exactDurations).
func send(t *testing.T, e *sidecar.Sidecar, source string, milliseconds, n int) {
	t.Helper()
	for range n {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+e.Address()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-source-workload", source)
		req.Header.Set("x-duration", fmt.Sprint(milliseconds))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

func joined(o *sidecar.Options) { o.Duration = "%REQ(x-duration)%" }

func labelled(o *sidecar.Options) {
	o.Duration, o.TagsAsLabels, o.HistogramOnly, o.BatchSize = "%REQ(x-duration)%", true, true, 3
}
