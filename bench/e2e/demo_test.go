package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The demo without a terminal, as `DURATION=12s make run` runs it: live numbers, exit 0, nothing left.
func TestDemoShowsLiveNumbersAndLeavesNothingRunning(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, demo)
	cmd.Env = append(os.Environ(), "DURATION=12s")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`processed-requests-per-second: [0-9.]+m?, [0-9.]+m?/10 \(avg\), [1-5] replicas, newest \d+\.\ds, 3/3 sidecars, \d+s/60s`,
		`The load generator drives 30 requests/s; over the last 1\ds it saw [23]\d\.\d\d/s`,
		`curl -sk 'https://127.0.0.1:\d+/apis/external.metrics.k8s.io/v1beta1/namespaces/test/prometheus-query`,
	} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("the output does not match %s", want)
		}
	}
	left, err := running(".cache/demo-")
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
	if t.Failed() {
		t.Logf("output:\n%s", out)
	}
}

// running returns the command lines (Linux) that hold the text.
func running(text string) ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended since
		}
		if line := strings.ReplaceAll(string(b), "\x00", " "); strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found, err
}
