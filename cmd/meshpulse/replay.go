package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"google.golang.org/grpc/grpclog"

	"github.com/meshpulse/meshpulse/envoystats/replay"
)

const replayText = `Sends recorded flushes (one stream a file, gzip or not) to a running meshpulse as the sidecars that made them
would, with their timestamps moved to the present. It waits for up to 10 s until the target listens.

  meshpulse replay --target 127.0.0.1:15090 --speed 10 stream-0.pb.gz stream-1.pb.gz`

// progressEvery is the time between two lines of progress.
const progressEvery = time.Second

// reachWithin is how long the target may take to listen: it may have been started a moment ago.
const reachWithin = 10 * time.Second

// replayFiles parses the flags and sends the files. Being interrupted before the end is a failure.
func replayFiles(ctx context.Context, args []string, c console) error {
	config := replay.Config{Wait: reachWithin}
	quiet := false
	f := newFlags("replay", replayText, c)
	f.StringVar(&config.Target, "target", "", "host:port of the ingest to send to (plaintext); required")
	f.Float64Var(&config.Speed, "speed", 1, "how much faster than it was recorded")
	f.DurationVar(&config.Linger, "linger", 0, "keep the streams open for so long after the last message")
	f.BoolVar(&quiet, "quiet", false, "print no progress")
	if err := parse(f, args); err != nil {
		return err
	}
	config.Files = f.Args()
	switch {
	case config.Target == "":
		return usageError{errors.New("--target HOST:PORT is missing: where the sidecars report, such as 127.0.0.1:15090")}
	case len(config.Files) == 0:
		return usageError{errors.New("no files to send: name recordings (.pb or .pb.gz)")}
	case config.Speed == 0: // the package would take it as not given
		return usageError{errors.New("--speed 0 sends nothing, ever: leave it out for the speed of the recording")}
	}
	if err := config.Validate(); err != nil {
		return usageError{err}
	}
	progress := &replayProgress{out: c.err, now: time.Now, files: len(config.Files)}
	if !quiet {
		config.Progress = progress.update
	}
	// The error below says all that gRPC's own log would, once and with the file's name.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	if err := replay.Run(ctx, config); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}

// replayProgress prints a line when a file is done, and at most one a second in between.
type replayProgress struct {
	out   io.Writer
	now   func() time.Time
	files int

	last time.Time
	done int
}

func (p *replayProgress) update(u replay.Progress) {
	if !u.Done && p.now().Sub(p.last) < progressEvery {
		return
	}
	p.last = p.now()
	state := fmt.Sprintf("%d/%d messages", u.Sent, u.Messages)
	if u.Done {
		p.done++
		state = fmt.Sprintf("%d messages, %d bytes sent", u.Sent, u.Bytes)
	}
	file := filepath.Join(filepath.Base(filepath.Dir(u.File)), filepath.Base(u.File))
	_, _ = fmt.Fprintf(p.out, "%d/%d streams ended; %s of %s: %s\n", p.done, p.files, file, u.Node, state)
}
