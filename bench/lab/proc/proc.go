// Package proc is what the lab adds to bench/process: waiting until a process serves, what it has used, and a lock
// that keeps two labs apart. It knows processes, not what they are for.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
)

// Ended is an error that carries what the log says of the cause when the process has ended, else nil.
func Ended(p *process.Process) error {
	select {
	case <-p.Exited():
		return fmt.Errorf("ended with code %d; %s says:\n%s", p.ExitCode(), p.Log, p.Cause(8))
	default:
		return nil
	}
}

// Await polls ready until it answers nil. It fails early, with what the log says of the cause, when the process ends, and with
// ready's last error when ctx ends or after the timeout.
func Await(ctx context.Context, p *process.Process, timeout time.Duration, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if ended := Ended(p); ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready within %s: %w (%w); the end of %s:\n%s", timeout, err, ctx.Err(), p.Log, p.Tail(8))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Lock takes the lock file, which is held until the returned function is called or this process ends, however it ends.
// The lab's addresses (127.96.0.x, 127.97.x.y) are fixed, so one machine runs one lab.
func Lock(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(f) // only to name who holds it
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another lab is running (process %s): end it first, the lab's loopback addresses are fixed", strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

func writePID(f *os.File) error {
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}
