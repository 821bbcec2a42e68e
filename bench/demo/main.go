// Command demo shows meshpulse at work on one machine (`make run`): three real sidecars in front of
// a small application, a load of a known rate, meshpulse standalone with HPAs of
// manifests/examples, and a live table of what the HPAs would see beside what the load generator
// saw.
//
// Where the real Envoy cannot be had it says so and feeds recorded flushes instead.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/term"
)

// settled is when a rate over [1m] has all of its minute: starting takes some seconds, the first
// flush comes 5 s later.
const settled = 90 * time.Second

func main() {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, restore)
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	meshpulse, err := enterProject()
	if err != nil {
		return err
	}
	ctx, cancel, err := bounded(ctx, os.Getenv("DURATION"))
	if err != nil {
		return err
	}
	defer cancel()
	if text := tooShort(ctx); text != "" {
		fmt.Println(text)
	}

	if err := os.MkdirAll(".cache", 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(".cache", "demo-")
	if err != nil {
		return err
	}
	d := &demo{dir: dir, meshpulse: meshpulse, say: func(format string, args ...any) {
		fmt.Printf(format+"\n", args...)
	}}
	if err := d.run(ctx); err != nil {
		return fmt.Errorf("%w\nlogs are kept in %s", err, dir)
	}
	return os.RemoveAll(dir)
}

// asked turns what comes of the context's end, which is Ctrl-C or DURATION, into success.
func asked(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// enterProject changes to the project's folder, which is above this binary's, and returns the path
// of the meshpulse that was built beside it.
func enterProject() (meshpulse string, err error) {
	executable, err := os.Executable()
	if err != nil {
		return "", err
	}
	meshpulse = filepath.Join(filepath.Dir(executable), "meshpulse")
	for dir := filepath.Dir(executable); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "manifests", "examples")); err == nil {
			return meshpulse, os.Chdir(dir)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not within the project: run `make run`", executable)
		}
	}
}

// bounded ends the context after the duration, if one is given.
func bounded(ctx context.Context, duration string) (context.Context, context.CancelFunc, error) {
	if duration == "" {
		return ctx, func() {}, nil
	}
	d, err := time.ParseDuration(duration)
	if err != nil || d <= 0 {
		return nil, nil, fmt.Errorf("DURATION=%q is not a duration such as 90s", duration)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	return ctx, cancel, nil
}

// tooShort says that the context ends before the rates have reached the load, "" if it does not.
func tooShort(ctx context.Context) string {
	end, bounded := ctx.Deadline()
	if left := time.Until(end).Round(time.Second); bounded && left < settled {
		return fmt.Sprintf("It ends after %.0f s, before a whole minute is known: a rate over [1m] only climbs until then. To see it reach the load: DURATION=%.0fs.",
			left.Seconds(), settled.Seconds())
	}
	return ""
}

// show draws until the context ends: a table that redraws every second on a terminal, else a line
// every five seconds.
func (d *demo) show(ctx context.Context) error {
	var every time.Duration
	var draw func(view)
	if out := int(os.Stdout.Fd()); term.IsTerminal(out) {
		every, draw = time.Second, func(v view) {
			width, height, err := term.GetSize(out)
			if err != nil || width <= 0 || height <= 0 {
				width, height = 80, 24 // a terminal that does not know its size
			}
			fmt.Print(v.screen(width, height))
		}
	} else {
		every, draw = 5*time.Second, d.lines()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	defer func() { d.say("%s", d.past.summary()) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.server.Exited():
			return errors.New("meshpulse has ended by itself") // why is said by its Stop
		case <-tick.C:
		}
		if err := d.sidecarEnded(); err != nil {
			return err
		}
		v, err := d.look(ctx)
		if err != nil {
			return asked(ctx, err)
		}
		draw(v)
		d.past.note(v)
	}
}

// sidecarEnded names a sidecar that has ended by itself; why is said by its Stop.
func (d *demo) sidecarEnded() error {
	for _, s := range d.sidecars {
		select {
		case <-s.Exited():
			return fmt.Errorf("sidecar %s has ended by itself", s.Options.Pod)
		default:
		}
	}
	return nil
}

// lines says how to read the lines and returns what prints one, and once what the HPAs' events are.
func (d *demo) lines() func(view) {
	d.say("%s\n%s", d.curl(), lineLegend)
	warned := false
	return func(v view) {
		fmt.Println(v.line())
		if text := v.events(); !warned && text != "" {
			warned = true
			d.say("%s", text)
		}
	}
}
