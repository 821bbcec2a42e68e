package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stack is what Go's runtime adds: some forty lines, the registers last.
var stack = "\n\ngoroutine 1 [running]:" + strings.Repeat("\nmain.main()", 20) + "\ngs     0x0"

func TestStopSaysWhyAProcessHadEnded(t *testing.T) {
	for name, test := range map[string]struct {
		log, want string
	}{
		"Envoy's critical line, not the frames after it": {
			"[x][1][warning][main] deprecated\n[x][1][critical][main] cannot bind '127.0.0.1:80': Address already in use" + strings.Repeat("\n[x][1][critical][backtrace] #: [0x1]", 30),
			"cannot bind",
		},
		"Envoy's failed assertion and what came of it": {
			"[x][1][error][envoy_bug] envoy bug failure: offset" + strings.Repeat("\n[x][1][error][envoy_bug] #1 [0x1] deprecated", 30) + "\n[x][1][critical][backtrace] Caught Aborted",
			"envoy bug failure: offset\n[x][1][critical][backtrace] Caught Aborted",
		},
		"a panic, not its registers":        {"serving\npanic: index out of range" + stack, "panic: index out of range"},
		"a signal, not its registers":       {"serving\nSIGABRT: abort" + stack, "SIGABRT: abort"},
		"the runtime's own, not its stacks": {"serving\nfatal error: concurrent map writes" + stack, "fatal error: concurrent map writes"},
		"the last line where none stands out": {
			strings.Repeat("nothing of interest\n", 30) + "meshpulse: --ingest-address cannot be listened on", "meshpulse: --ingest-address",
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(log, []byte("panic: of a process before, deprecated\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			p, err := Start(log, "sh", "-c", `printf '%s\n' "$0"; exit 3`, test.log)
			if err != nil {
				t.Fatal(err)
			}
			<-p.Exited()
			err = p.Stop()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("the error does not hold %q: %v", test.want, err)
			}
			for _, noise := range []string{"gs     0x0", "deprecated"} {
				if strings.Contains(err.Error(), noise) {
					t.Errorf("the error holds %q: %v", noise, err)
				}
			}
			if lines := strings.Count(err.Error(), "\n"); lines > 10 {
				t.Errorf("%d lines: %v", lines, err)
			}
		})
	}
}

func TestUsageCountsFieldsBehindTheName(t *testing.T) {
	stat := "42 (a (strange) name) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 200"
	usage, err := parseUsage(stat, "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\nRssAnon:\t 512 kB\n", "rchar: 4096\nwchar: 1\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Usage{CPU: 3 * time.Second, Resident: 1 << 20, Peak: 2 << 20, Anonymous: 1 << 19, Received: 4096, Written: 1}); usage != want {
		t.Errorf("got %+v, want %+v", usage, want)
	}
	if _, err := parseUsage("42 (cut", "", ""); err == nil {
		t.Error("a stat that was cut is no usage")
	}
	own, err := UsageOf(os.Getpid())
	if err != nil || own.Peak == 0 || own.Received == 0 {
		t.Errorf("our own: got %+v, %v", own, err)
	}
}

func TestAwaitTellsWhyAProcessIsNotReady(t *testing.T) {
	p, err := Start(filepath.Join(t.TempDir(), "log"), "sh", "-c", "echo no such thing; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = p.Await(t.Context(), time.Minute, func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "code 3") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v, want the exit code and the end of the log", err)
	}
}

func TestAProcessIsPausedAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	p, err := Start(filepath.Join(dir, "log"), "sh", "-c", `while :; do echo x >> "$0/beats"; sleep 0.01; done`, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	beats := func() int {
		text, _ := os.ReadFile(filepath.Join(dir, "beats"))
		return len(text)
	}
	moves := func() {
		for from := beats(); beats() == from; {
			time.Sleep(time.Millisecond)
		}
	}
	moves()
	if err := p.Pause(true); err != nil {
		t.Fatal(err)
	}
	state := func() string { // as the kernel has it, once the signal has arrived
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID()), "stat"))
		if err != nil {
			return "T" // no Linux
		}
		return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))[0]
	}
	for state() != "T" {
		time.Sleep(time.Millisecond)
	}
	if err := p.Pause(false); err != nil {
		t.Fatal(err)
	}
	moves()
	p.Kill()
	if err := p.Pause(true); err == nil {
		t.Error("a process that has ended is paused")
	}
}
