// Command report runs the benchmarks and writes what they say: one table, ratios measured in one
// run on one machine.
//
// It knows processes and their CPU time as the kernel counts it. It starts itself as the sender, as
// the null sink and as what Prometheus scrapes, and meshpulse and Prometheus as they are.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: report COMMAND [flags]
  run      all benchmarks in one run, results to --results
  quantiles  the finer view and averages against what real Envoys recorded
  beside   a real Prometheus scrapes the Envoys that push to meshpulse
  surge    days of simulated traffic before the surge detector
  soak     thousands of streams with churn, then all reconnect at once
  mtls     what it costs that sidecars prove themselves
  dashboards  how long an autoscaler waits while dashboards ask
  fleet    simulated sidecars; /stats, /reconnect and /calm on the port that it tells
  sink     receives what sidecars send and throws it away
  panels   dashboards that ask a Prometheus; /stats on the port that it tells
  exposition  the same families as /stats/prometheus
  constant the library of the external metrics API with a constant answer
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("a command is missing")
	}
	run, ok := map[string]func(context.Context, []string) error{
		"run": runBenchmarks, "quantiles": runQuantiles, "beside": runBeside, "surge": runSurge, "soak": runSoak, mtlsName: runMTLS,
		dashboardsName: runDashboards, "panels": servePanels,
		"fleet": serveFleet, nullSinkName: serveSink, "constant": serveConstant, "exposition": serveExposition,
	}[args[0]]
	if !ok {
		return fmt.Errorf("unknown command %q\n%s", args[0], usage)
	}
	return run(ctx, args[1:])
}

// settings of a run.
type settings struct {
	meshpulse, prometheus, results, work string
	only                                 []string
	measure                              time.Duration
	profiles                             string
}

func (s *settings) wants(part string) bool { return len(s.only) == 0 || slices.Contains(s.only, part) }

func parseSettings(command string, args []string, more func(*flag.FlagSet)) (settings, error) {
	var s settings
	var only string
	f := flag.NewFlagSet(command, flag.ContinueOnError)
	f.StringVar(&s.meshpulse, "meshpulse", "bin/meshpulse", "the binary to measure")
	f.StringVar(&s.prometheus, "prometheus", ".cache/bench/prometheus", "Prometheus to compare with; where it is missing, its rows are")
	f.StringVar(&s.results, "results", "bench/results", "folder that takes the results")
	f.StringVar(&s.work, "work", ".cache/bench/run", "folder for logs and other passing files")
	f.StringVar(&only, "only", "", "parts to run and print, comma separated, of "+strings.Join(partNames(command), ",")+" (default all, which are kept as well)")
	f.DurationVar(&s.measure, "measure", 15*time.Second, "how long CPU time is counted for, each time")
	f.StringVar(&s.profiles, "profiles", "", "folder that takes CPU profiles of meshpulse under load")
	if more != nil {
		more(f)
	}
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if only != "" {
		s.only = strings.Split(only, ",")
		for _, name := range s.only {
			if all := partNames(command); !slices.Contains(all, name) {
				return s, fmt.Errorf("--only: no part %q: they are %s", name, strings.Join(all, ","))
			}
		}
	}
	return s, os.MkdirAll(s.work, 0o750)
}
