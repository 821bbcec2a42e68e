// Command meshpulse takes Istio's request metrics straight from the sidecars and answers
// Kubernetes' external metrics API from memory.
//
// The package knows flags, wiring, signals and exit codes. It must not know metrics: what flags
// mean is the packages' own to say and to check.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

const usage = `meshpulse: Istio's request metrics, from the sidecars to the HPA, without a Prometheus in between.

Usage:
  meshpulse serve [flags]           take flushes in and answer the external metrics API
  meshpulse replay [flags] FILE...  send recorded flushes to a running meshpulse
  meshpulse lint [flags] FILE...    say of HPAs and ScaledObjects, in files or a cluster, what would become of them
  meshpulse leave [flags]           wait before one of several replicas ends: its preStop hook
  meshpulse top [flags]             show every HPA at a glance, the worst first
  meshpulse console [flags]         serve a page on this machine that shows the same, live, with plots
  meshpulse explain [flags] HPA     say why an HPA's metrics are what they are: cause and remedy first
  meshpulse shadow report [flags]   show how far HPAs' metrics are from another's
  meshpulse pods [flags]            show every sidecar that reports, or should
  meshpulse query [flags] PROMQL    evaluate PromQL over what is kept
  meshpulse version                 print the version

Each command has --help. Exit codes: 0 ended as asked, 1 failed, 2 called wrongly.
`

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a call that cannot work as it is written; Unwrap gives what is wrong with it.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// console is where a command writes to and reads from.
type console struct {
	out, err io.Writer
	in       io.Reader
}

func main() {
	limitMemory(os.DirFS(controlGroups))
	// The first signal drains; with the context's end the signals are Go's again, so that a second
	// one ends at once.
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, restore)
	os.Exit(run(ctx, os.Args[1:], console{os.Stdout, os.Stderr, os.Stdin}))
}

// run is meshpulse with its arguments, until the context ends.
func run(ctx context.Context, args []string, c console) (code int) {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	var err error
	switch command {
	case "serve":
		err = serve(ctx, args[1:], c)
	case "replay":
		err = replayFiles(ctx, args[1:], c)
	case "lint":
		err = lint(ctx, args[1:], c)
	case "leave":
		err = leave(ctx, args[1:], c)
	case "top":
		err = top(ctx, args[1:], c)
	case "console":
		err = webConsole(ctx, args[1:], c)
	case "explain":
		err = explainHPA(ctx, args[1:], c)
	case "query":
		err = query(ctx, args[1:], c)
	case "shadow":
		err = shadowReport(ctx, args[1:], c)
	case "pods":
		err = pods(ctx, args[1:], c)
	case "version", "--version":
		if len(args) > 1 {
			err = usageError{fmt.Errorf("%s takes nothing more, not %q: leave it out", command, args[1])}
			break
		}
		_, err = fmt.Fprintln(c.out, "meshpulse", version())
	case "help", "--help", "-h":
		_, err = io.WriteString(c.out, usage)
	case "":
		err = usageError{errors.New("a command is missing: serve, replay, lint, leave, top, console, explain, shadow, pods, query or version")}
	default:
		err = usageError{fmt.Errorf("%q is not a command: there are serve, replay, lint, leave, top, console, explain, shadow, pods, query and version", command)}
	}
	switch {
	case err == nil || errors.Is(err, pflag.ErrHelp):
		return exitOK
	case errors.As(err, new(usageError)):
		help := "meshpulse --help"
		if slices.Contains([]string{"serve", "replay", "lint", "leave", "top", "console", "explain", "shadow", "pods", "query"}, command) {
			help = "meshpulse " + command + " --help"
		}
		_, _ = fmt.Fprintf(c.err, "meshpulse: %v\nSee: %s\n", err, help)
		return exitUsage
	default:
		_, _ = fmt.Fprintf(c.err, "meshpulse: %s\n", explain.PrintableLines(err.Error()))
		return exitFailed
	}
}

// newFlags returns a flag set whose --help prints the text and the flags to the console.
func newFlags(name, text string, c console) *pflag.FlagSet {
	f := pflag.NewFlagSet("meshpulse "+name, pflag.ContinueOnError)
	f.SortFlags = false
	f.SetOutput(io.Discard) // run prints the error, once
	f.Usage = func() { _, _ = fmt.Fprintf(c.out, "%s\n\nFlags:\n%s", text, f.FlagUsagesWrapped(120)) }
	return f
}

// parse reads the flags; an error other than pflag.ErrHelp is a usageError.
func parse(f *pflag.FlagSet, args []string) error {
	if i := slices.IndexFunc(args, func(a string) bool { return len(a) > 2 && strings.HasPrefix(a, "-h") }); i >= 0 { // pflag takes it for -h
		return usageError{fmt.Errorf("%s is not known: flags take two dashes", args[i])}
	}
	err := f.Parse(args)
	if unknown := (*pflag.NotExistError)(nil); errors.As(err, &unknown) {
		err = fmt.Errorf("%w%s", err, hint(f, unknown))
	}
	if wrong := (*pflag.InvalidValueError)(nil); errors.As(err, &wrong) {
		if form := expected(wrong.GetFlag()); form != "" {
			err = fmt.Errorf("--%s %q cannot be read: give %s", wrong.GetFlag().Name, wrong.GetValue(), form)
		}
	}
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		return usageError{err}
	}
	return err
}

// release and commit are set by the linker (Makefile, manifests/Dockerfile): the Go tool stamps
// none where it does not see the repository, as in an image's build, or may not look at it.
var release, commit string

// version is this binary's.
func version() string {
	v, c := builtAs()
	if c != "" {
		v += ", commit " + c
	}
	return fmt.Sprintf("%s (%s %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// buildInfo is a metric that is 1 and says by its labels which meshpulse runs.
func buildInfo() prometheus.Collector {
	v, c := builtAs()
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "meshpulse_build_info", Help: "1; the labels say which version, of which commit, runs.",
		ConstLabels: prometheus.Labels{"version": v, "revision": c, "goversion": runtime.Version()},
	}, func() float64 { return 1 })
}

// builtAs is this binary's version and commit.
func builtAs() (string, string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(info, release, commit)
}

// versionOf is the release, else the module's version, "devel" where there is neither, and the
// commit, "" where none is known.
func versionOf(info *debug.BuildInfo, release, commit string) (string, string) {
	if release == "" && info.Main.Version != "(devel)" {
		release = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && commit == "" {
			commit = s.Value[:min(12, len(s.Value))]
		}
	}
	return cmp.Or(release, "devel"), commit
}
