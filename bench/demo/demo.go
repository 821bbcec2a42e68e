package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
)

const (
	sidecars = 3
	// rate is requests a second over all sidecars. Against a target of 10 it asks for three
	// replicas and, unlike 30, lies on no edge: a request more or less in a window would ask for a
	// fourth.
	rate = 27.0
)

// examples are the files of manifests/examples that are shown: the first guide's three and those
// that need no PromQL. No two name the same query.
func examples() []string {
	return []string{
		"requests-total.yaml", "latency-average.yaml", "latency-p95.yaml",
		"named-requests-per-second.yaml", "named-in-flight.yaml", "named-average.yaml", "named-p95.yaml",
	}
}

// recordings are fed where there is no Envoy: two sources that call podinfo, for a minute.
func recordings() []string {
	return []string{"envoystats/testdata/captures/a-default/stream-0.pb.gz"}
}

// demo is everything that runs.
type demo struct {
	dir       string // logs, HPAs
	meshpulse string // the binary
	say       func(format string, args ...any)

	started  time.Time
	server   *standalone.Server
	console  *process.Process
	page     string // the console's address
	sidecars []*sidecar.Sidecar
	load     *load.Generator // nil while recordings are fed
	past     past
}

// run starts everything, shows it until the context ends and leaves nothing running.
func (d *demo) run(ctx context.Context) (err error) {
	hpaDir, err := d.copyHPAs()
	if err != nil {
		return err
	}
	d.say("%s", opening)
	d.say("starting meshpulse")
	d.server, err = standalone.Start(ctx, standalone.Options{Binary: d.meshpulse, Dir: d.dir, HPADir: hpaDir})
	if err != nil {
		return asked(ctx, err)
	}
	defer func() { err = errors.Join(err, d.server.Stop()) }()
	d.started = time.Now()
	if err := d.startConsole(ctx); err != nil {
		return asked(ctx, err)
	}
	defer func() { err = errors.Join(err, d.console.Stop()) }()
	d.say("the same in a browser, with plots: %s", d.page)

	envoy, missing := sidecar.EnvoyBinary()
	if missing != nil {
		d.say("%v", missing)
		d.say("Without it recorded flushes of a real sidecar are fed, again and again.")
		return d.withRecordings(ctx)
	}
	return d.withSidecars(ctx, envoy)
}

// startConsole starts the page that shows the HPAs, and waits for its address. It has nothing of
// the kubeconfig of who runs this.
func (d *demo) startConsole(ctx context.Context) (err error) {
	none := filepath.Join(d.dir, "kubeconfig")
	if err := os.WriteFile(none, []byte("apiVersion: v1\nkind: Config\n"), 0o600); err != nil {
		return err
	}
	d.console, err = process.Start(filepath.Join(d.dir, "console.log"), d.meshpulse,
		"console", "--kubeconfig", none, "--server", d.server.URL, "--insecure-skip-tls-verify", "--all-namespaces")
	if err != nil {
		return err
	}
	err = d.console.Await(ctx, 10*time.Second, func(context.Context) error {
		lines, err := d.console.Lines()
		if err != nil || len(lines) < 2 { // its second line says that it serves
			return errors.Join(err, errors.New("it tells no address"))
		}
		d.page = lines[0]
		return nil
	})
	if err != nil {
		d.console.Kill()
		return fmt.Errorf("meshpulse console: %w", err)
	}
	return nil
}

func (d *demo) withSidecars(ctx context.Context, envoy string) (err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("the demo's application: %w", err)
	}
	app := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = app.Serve(l) }() // ends with Close below
	defer func() { _ = app.Close() }()

	defer func() {
		for _, s := range d.sidecars {
			err = errors.Join(err, s.Stop())
		}
	}()
	var targets []string
	for i := range sidecars {
		s, err := sidecar.Start(ctx, sidecar.Options{
			Binary: envoy, Dir: d.dir, Pod: fmt.Sprintf("podinfo-%d", i), Namespace: "test", Workload: "podinfo",
			Address: "127.0.0.1", Upstreams: []string{l.Addr().String()}, Sink: d.server.Ingest,
		})
		if err != nil {
			return asked(ctx, err)
		}
		d.say("sidecar %s takes requests on %s (pid %d)", s.Options.Pod, s.Address(), s.PID())
		d.sidecars = append(d.sidecars, s)
		targets = append(targets, s.Address())
	}
	d.load = load.Start(ctx, load.Options{
		Targets: targets, Profile: load.Steady(rate, load.Endless), Remember: 2 * window,
		Header: http.Header{"X-Source-Workload": {"loadtester"}, "X-Source-Namespace": {"test"}},
	})
	defer d.load.Stop()
	d.say("load: %g requests a second over %d sidecars; the first flush comes after 5 s, and a rate over [1m] has reached the load after a minute", rate, sidecars)
	return d.show(ctx)
}

// answer is the demo's application: it takes 10 to 400 ms, half of the requests less than 60, one
// in twenty more than 190.
func answer(w http.ResponseWriter, r *http.Request) {
	ms := min(max(60*math.Exp(0.7*rand.NormFloat64()), 10), 400)
	timer := time.NewTimer(time.Duration(ms * float64(time.Millisecond)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
	_, _ = fmt.Fprintln(w, "hello from podinfo") // a client that is gone needs none
}

// withRecordings feeds and shows until the context ends or one of the two fails.
func (d *demo) withRecordings(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.feed(ctx) })
	group.Go(func() error { return d.show(ctx) })
	return group.Wait()
}

// feed replays the recordings, again and again, until the context ends.
func (d *demo) feed(ctx context.Context) error {
	args := append([]string{"replay", "--quiet", "--target", d.server.Ingest}, recordings()...)
	for {
		p, err := process.Start(filepath.Join(d.dir, "replay.log"), d.meshpulse, args...)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return p.Stop()
		case <-p.Exited():
			if p.ExitCode() != 0 {
				return fmt.Errorf("replay failed:\n%s", p.Tail(5))
			}
		}
	}
}

func (d *demo) copyHPAs() (string, error) {
	dir := filepath.Join(d.dir, "hpas")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	for _, name := range examples() {
		b, err := os.ReadFile(filepath.Join("manifests", "examples", name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}
