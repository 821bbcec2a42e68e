package proc

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
)

func TestUsageCountsFieldsBehindTheName(t *testing.T) {
	stat := "42 (a (strange) name) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 200"
	usage, err := parseUsage(stat, "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n", "rchar: 4096\nwchar: 1\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Usage{CPU: 3, PeakRSS: 2048 * 1024, Received: 4096, Written: 1}); usage != want {
		t.Errorf("got %+v, want %+v", usage, want)
	}
	if _, err := parseUsage("42 (cut", "", ""); err == nil {
		t.Error("a stat that was cut is no usage")
	}
	own, err := UsageOf(os.Getpid())
	if err != nil || own.PeakRSS == 0 || own.Received == 0 {
		t.Errorf("our own: got %+v, %v", own, err)
	}
}

func TestAwaitTellsWhyAProcessIsNotReady(t *testing.T) {
	p, err := process.Start(filepath.Join(t.TempDir(), "log"), "sh", "-c", "echo no such thing; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = Await(t.Context(), p, time.Minute, func() error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "code 3") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v, want the exit code and the end of the log", err)
	}
}

func TestLockKeepsASecondLabOutUntilTheFirstHasEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); err == nil || !strings.Contains(err.Error(), "another lab") {
		t.Errorf("got %v, want it to name the other lab", err)
	}
	release()
	again, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
