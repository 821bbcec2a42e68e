// Package process runs the child processes of demos and tests: started, watched and ended by pid,
// with their output in a file, and gone when their parent is gone.
//
// It knows nothing of what the processes are.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// killAfter is how long a process gets between SIGTERM and SIGKILL.
const killAfter = 10 * time.Second

// Process is a running child.
type Process struct {
	// Log is the file with what it wrote to stdout and stderr.
	Log string

	cmd    *exec.Cmd
	before int64         // length of the log when it was started: that of processes before it
	exited chan struct{} // closed once err is set
	err    error         // what Wait returned
}

// Start runs the command with its output appended to logFile. The child has a process group of its
// own (a Ctrl-C in the terminal reaches the parent only, which then ends the child in order) and
// dies with the parent where the system can promise that (Linux).
func Start(logFile, command string, args ...string) (*Process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", filepath.Base(command), err)
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	info, err := log.Stat()
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", filepath.Base(command), err)
	}
	cmd := exec.Command(command, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", command, err)
	}
	p := &Process{Log: logFile, cmd: cmd, before: info.Size(), exited: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed once the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitCode waits for the end and returns the exit code, -1 if a signal ended it.
func (p *Process) ExitCode() int {
	<-p.exited
	return p.cmd.ProcessState.ExitCode()
}

// Stop asks the process to end with SIGTERM, kills it if it has not within ten seconds, and waits
// until it is gone. The error says that it had to be killed or had ended badly before; a process
// that SIGTERM ends is no error.
func (p *Process) Stop() error {
	select {
	case <-p.exited:
		if p.err != nil {
			return fmt.Errorf("%s had ended: %w; %s says:\n%s", p.name(), p.err, p.Log, p.Cause(10))
		}
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name(), err)
	}
	timer := time.NewTimer(killAfter)
	defer timer.Stop()
	select {
	case <-p.exited:
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s (pid %d) was still there %v after SIGTERM and was killed", p.name(), p.PID(), killAfter)
	}
}

// Kill ends the process at once (SIGKILL) and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // the only error is that it has ended already
	<-p.exited
}

// Pause stops the process where it is (SIGSTOP), as one that gets no CPU, or lets it go on
// (SIGCONT). The error says that it has ended.
func (p *Process) Pause(on bool) error {
	signal := syscall.SIGCONT
	if on {
		signal = syscall.SIGSTOP
	}
	if err := p.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("pause %s: %w", p.name(), err)
	}
	return nil
}

// Tail returns the last lines of the log.
func (p *Process) Tail(lines int) string {
	all, err := p.Lines()
	if err != nil {
		return err.Error()
	}
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// died is the first line of what a program says when it goes down by itself: Envoy's critical log,
// and Go's runtime, after which stacks and registers follow, so that the end of the log tells
// nothing.
var died = regexp.MustCompile(`\]\[critical\]|^panic: |^fatal error: |^SIG[A-Z]+: `)

// bug is what Envoy says, at level error, of an assertion of its own that failed; where it dies of
// that, the critical line tells less.
const bug = "envoy bug failure"

// Cause returns the lines of the log that say why the process has ended: from the first on that
// only a dying program writes, else the last ones.
func (p *Process) Cause(lines int) string {
	all, err := p.Lines()
	if err != nil {
		return err.Error()
	}
	from := slices.IndexFunc(all, died.MatchString)
	if from < 0 {
		return strings.Join(all[max(0, len(all)-lines):], "\n")
	}
	cause := slices.DeleteFunc(slices.Clone(all[:from]), func(line string) bool { return !strings.Contains(line, bug) })
	cause = append(cause, all[from:]...)
	return strings.Join(cause[:min(lines, len(cause))], "\n")
}

// Lines are those of the log that this process has written.
func (p *Process) Lines() ([]string, error) {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return nil, err
	}
	b = b[min(p.before, int64(len(b))):]
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n"), nil
}

func (p *Process) name() string { return filepath.Base(p.cmd.Path) }
