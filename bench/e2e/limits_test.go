package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshpulse/meshpulse/bench/standalone"
)

// A sidecar of 900 label sets, recorded from a real one, against limits of the program: it meets
// its own, one line and a counter say so, and another pod's total is exact beside it.
func TestASidecarThatMeetsItsLimitsCostsNobodyElse(t *testing.T) {
	t.Parallel()
	hpas := t.TempDir()
	query(t, hpas, "good", `sum(max_over_time(istio_requests_total{pod="podinfo-6d8f4b5c9-abcde"}[5m]))`)
	query(t, hpas, "flood", `count(max_over_time(istio_requests_total{pod="podinfo-6d8f4b5c9-iiiii"}[5m]))`)
	s := serve(t, standalone.Options{HPADir: hpas, Args: []string{"--max-series-per-pod=50"}})
	var files []string
	for _, folder := range []string{"i-message-over-limit", "a-default"} {
		files = append(files, filepath.Join(root, "envoystats/testdata/captures", folder, "stream-0.pb.gz"))
	}
	for range 3 { // the stream that meets the limit comes back
		args := append([]string{"replay", "--quiet", "--target", s.Ingest, "--speed", "50"}, files...)
		if out, err := exec.CommandContext(t.Context(), meshpulse, args...).CombinedOutput(); err != nil {
			t.Fatalf("replay: %v\n%s", err, out)
		}
		files = files[:1]
	}
	if got, err := value(t.Context(), s, "good"); err != nil || got != 240 {
		t.Errorf("the other pod's total is %v, %v, want 240", got, err)
	}
	if got, err := value(t.Context(), s, "flood"); err != nil || got < 1 || got > 50 {
		t.Errorf("%v series of requests are kept of the flood, %v, want 50 at most", got, err)
	}
	log, err := os.ReadFile(s.Log)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), `"reason":"pod_series_limit"`); n != 1 {
		t.Errorf("%d lines about the limit, want one:\n%s", n, log)
	}
}
