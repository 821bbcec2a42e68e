package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/web"
)

// output collects what a process prints while it runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// startDemo runs the demo without a terminal. Its processes can be told by the mark in their
// environment.
func startDemo(t *testing.T, environment ...string) (cmd *exec.Cmd, out *output, mark string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	mark = "DEMO_MARK=" + t.TempDir()
	out = &output{}
	cmd = exec.CommandContext(ctx, demo)
	cmd.Env = append(append(os.Environ(), mark), environment...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the demo's output:\n%s", out)
		}
	})
	return cmd, out, mark
}

// ended waits for the demo's end: exit code 0, and none of its processes is left.
func ended(t *testing.T, cmd *exec.Cmd, mark string) {
	t.Helper()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the demo failed: %v", err)
	}
	if left := running(t, mark); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

func TestDemoShowsLiveNumbersUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	cmd, out, mark := startDemo(t)
	await(t, "live numbers", func() error {
		for _, want := range []string{
			`s  3/3 sidecars, newest \d+\.\ds, window \d+s/60s.* \| total +\d+\.\d\d/s > [1-3] `,
			`\| latency-avg +\d+\.\d ms > 5 \|`,
			`\| load 2\d\.\d\d/s, average \d+\.\d ms, P95 \d+ ms`,
			`Warning events.*latency-avg LatencyAverageValue`,
			`curl -sk 'https://127.0.0.1:\d+/apis/external.metrics.k8s.io/v1beta1/namespaces/test/prometheus-query`,
		} {
			if !regexp.MustCompile(want).MatchString(out.String()) {
				return fmt.Errorf("the output does not match %s", want)
			}
		}
		return nil
	})
	page := regexp.MustCompile(`in a browser, with plots: (http://127\.0\.0\.1:\d+/\w+/)\n`).FindStringSubmatch(out.String())
	if page == nil {
		t.Fatal("the output has no address of the console")
	}
	shown, err := web.Get(t.Context(), http.DefaultClient, page[1])
	if err != nil || !strings.Contains(string(shown), ">podinfo-total</a>") {
		t.Errorf("the console: %v, %s", err, shown)
	}
	if n := len(running(t, mark)); n != 6 {
		t.Errorf("processes: got %d, want the demo, meshpulse, its console and three sidecars", n)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	ended(t, cmd, mark)
}

func TestDemoWithoutEnvoyFeedsRecordingsAndEndsByItself(t *testing.T) {
	t.Parallel()
	cmd, out, mark := startDemo(t, "DURATION=14s", "ENVOY_BIN="+filepath.Join(t.TempDir(), "missing"))
	ended(t, cmd, mark)
	for _, want := range []string{
		`ENVOY_BIN: .*no such file`,
		`s  1/1 sidecars, newest \d+\.\ds.* \| latency-avg +\d+\.\d ms > \d `,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("the output does not match %s", want)
		}
	}
}

// running returns the command lines of the processes whose environment holds the mark.
func running(t *testing.T, mark string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil || len(files) == 0 {
		t.Fatalf("no processes in /proc: %v", err)
	}
	var found []string
	for _, file := range files {
		environment, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(environment), mark) {
			continue // it has ended since, or it is somebody else's
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if err == nil {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
