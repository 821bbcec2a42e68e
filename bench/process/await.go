package process

import (
	"context"
	"fmt"
	"time"
)

// askAgain is how long Await waits before it asks once more.
const askAgain = 20 * time.Millisecond

// Ended is an error that carries what the log says of the cause when the process has ended, else
// nil.
func (p *Process) Ended() error {
	select {
	case <-p.exited:
		return fmt.Errorf("ended with code %d; %s says:\n%s", p.ExitCode(), p.Log, p.Cause(15))
	default:
		return nil
	}
}

// Await polls ready until it answers nil. It fails early, with what the log says of the cause, when
// the process ends, and with ready's last error when ctx ends or after the timeout.
func (p *Process) Await(ctx context.Context, timeout time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if ended := p.Ended(); ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready within %s: %w (%w); the end of %s:\n%s", timeout, err, context.Cause(ctx), p.Log, p.Tail(15))
		case <-time.After(askAgain):
		}
	}
}
