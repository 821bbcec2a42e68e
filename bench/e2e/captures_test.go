package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/meshpulse/meshpulse/bench/standalone"
)

// What real Envoys sent, replayed: each recording's total through the external metrics API is the
// number of requests that were sent.
func TestReplayedRecordingsGiveTheirExactTotals(t *testing.T) {
	t.Parallel()
	for _, recording := range []struct {
		folder   string
		requests float64
		args     []string
	}{
		{"a-default", 240, nil},
		{"b-labels", 240, nil},
		{"c-histogram-only-batch", 160, nil},
		{"d-eviction", 80, nil},
		{"e-stream-ended-by-receiver", 200, nil},
		{"f-envoy-restart", 111, nil},
		{"g-hostile-names", 50, nil},
		{"h-codes-and-flags", 120, nil},
		{"i-message-over-limit", 1200, nil}, // of 900 label sets, as far as the two accepted messages tell
		{"j-all-stats", 80, nil},
		{"k-counter-deltas", 120, []string{"--counters-as-deltas"}},
	} {
		t.Run(recording.folder, func(t *testing.T) {
			t.Parallel()
			hpas := t.TempDir()
			query(t, hpas, "total", total)
			s := serve(t, standalone.Options{HPADir: hpas, Args: recording.args})
			files, err := filepath.Glob(filepath.Join(root, "envoystats/testdata/captures", recording.folder, "*.pb.gz"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no recording in %s: %v", recording.folder, err)
			}
			args := append([]string{"replay", "--target", s.Ingest, "--speed", "20"}, files...)
			if out, err := exec.CommandContext(t.Context(), meshpulse, args...).CombinedOutput(); err != nil {
				t.Fatalf("replay: %v\n%s", err, out)
			}
			if got, err := value(t.Context(), s, "total"); err != nil || got != recording.requests {
				t.Errorf("total: got %v, %v, want %v", got, err, recording.requests)
			}
		})
	}
}
