package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
)

// runHey runs the guides' own command for each segment of the lane that asks for it. It is a closed
// loop, so its rate is at most what it says: it is reported and nothing exact is expected of it.
func (r *loop) runHey(ctx context.Context, ln *lane) {
	start := ln.start
	for i, segment := range ln.Load {
		if segment.Hey != nil {
			if err := r.heyOnce(ctx, ln, i, start); err != nil && ctx.Err() == nil {
				slog.Error("hey failed", "err", err)
			}
		}
		start = start.Add(segment.For.Duration)
	}
}

func (r *loop) heyOnce(ctx context.Context, ln *lane, i int, start time.Time) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(time.Until(start)):
	}
	segment := ln.Load[i]
	log := filepath.Join(r.dir, fmt.Sprintf("hey-%s-%d.log", ln.Namespace, i))
	p, err := process.Start(log, filepath.Join(r.lab.cache, "bin", "hey"), "-z", segment.For.Duration.String(),
		"-c", strconv.Itoa(segment.Hey.Workers), "-q", strconv.FormatFloat(segment.Hey.Rate, 'g', -1, 64), "http://"+ln.gateway.Address()+"/")
	if err != nil {
		return err
	}
	select {
	case <-p.Exited():
	case <-ctx.Done():
		p.Kill()
	case <-time.After(segment.For.Duration + 30*time.Second):
		p.Kill()
		return fmt.Errorf("hey did not end: see %s", log)
	}
	return nil
}
