// Command lab runs meshpulse in a closed loop with nothing simulated but the nodes: a real
// Kubernetes control plane with its HPA controller, real Envoy sidecars that push, real load. See
// README.md.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/sidecar"
)

const usage = `usage: lab run SCENARIO.yaml...   run scenarios, write their results
       lab versus SCENARIO.yaml...
                                 the same beside Prometheus with KEDA
       lab plot                  the plot of what versus has left, anew
       lab chaos --seed N,...    constant load while things go wrong, drawn from the seed
       lab attack NAME...        what one sender, author or reader can do to others (default all)
       lab coexist               meshpulse and KEDA on one APIService
       lab keda                  KEDA's ScaledObjects that ask meshpulse as their external scaler
       lab shadow                what meshpulse reports of a comparison beside what the lab saw of it
       lab mtls                  sidecars that prove themselves, and what may happen to certificates
       lab seen PART...          which alerts and events tell of troubles (default all of deaf, away, lasting)
       lab up                    boot the control plane and wait for Ctrl-C
       lab app                   the app of the lab's pods
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("no command")
	}
	command, args := args[0], args[1:]
	if command == "app" {
		return mesh.RunApp(args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if command == "attacker" {
		return runAttacker(ctx, args)
	}
	flags := flag.NewFlagSet("lab "+command, flag.ContinueOnError)
	root := flags.String("root", "../..", "the project's root")
	results := flags.String("results", "", "folder of the results (default: bench/results below root)")
	meshpulse := flags.String("meshpulse", "", "the binary under test (default: bin/meshpulse below root)")
	hpaSync := flags.Duration("hpa-sync", 15*time.Second, "up: the HPA controller's sync period")
	all := flags.Bool("all", false, "versus: every setting, as long as it takes")
	rounds := flags.Int("rounds", 2, "versus: how often the settings take turns in a scenario that repeats")
	seeds := flags.String("seed", "1", "chaos: the seeds, a run for each; attack: which are tried together")
	faults := flags.Int("faults", 0, "chaos: how many faults (default seven of each kind)")
	replicas := flags.Int("replicas", 1, "chaos: how many of meshpulse, 1 or 2")
	long := flags.Bool("long", false, "attack: at the defaults of --hold and --retention, what that matters to")
	stands := flags.Duration("stands", 2*seenTTL, "seen: how long events have to stand; after less nothing is written")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := foldersOf(*root, *results)
	if err != nil {
		return err
	}
	if command == "plot" {
		return l.plot()
	}
	release, err := l.take()
	if err != nil {
		return err
	}
	defer release()
	if *meshpulse != "" {
		l.meshpulse = *meshpulse
	}
	switch command {
	case "up":
		err = l.up(ctx, *hpaSync)
	case "versus":
		err = l.versus(ctx, *all, max(1, *rounds), flags.Args())
	case "chaos":
		var numbers []uint64
		if numbers, err = numbersIn(*seeds); err != nil {
			return fmt.Errorf("--seed: %w", err)
		}
		err = l.chaosAll(ctx, numbers, *faults, *replicas)
	case "attack":
		var numbers []uint64
		if numbers, err = numbersIn(*seeds); err != nil || len(numbers) != 1 {
			return errors.Join(errors.New("--seed: attack takes one number"), err)
		}
		err = l.attackAll(ctx, *long, numbers[0], flags.Args())
	case "mtls":
		err = l.mtls(ctx)
	case "coexist":
		err = l.coexist(ctx)
	case "keda":
		err = l.kedaScaler(ctx)
	case "shadow":
		err = l.shadow(ctx)
	case "seen":
		err = l.seenAll(ctx, *stands, flags.Args())
	case "run":
		err = l.runAll(ctx, flags.Args())
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", command)
	}
	return proc.NameFullDisk(err, l.cache, runNeeds)
}

// numbersIn reads numbers that commas or spaces part.
func numbersIn(text string) ([]uint64, error) {
	var all []uint64
	for _, field := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// lab is what every run needs: the programs and the folders.
type lab struct {
	root, cache, results string
	// controlplane, meshpulse, envoy and self (the lab) are the binaries.
	controlplane, meshpulse, envoy, self string
}

// kubeVersion is the control plane's; the binary is keyed by it (see lab.mk).
const kubeVersion = "v1.37.0"

// runNeeds is what a disk must have free for a run, in bytes: a run leaves 130 MB (two of etcd's
// logs of 64 MB, allocated at once), and those of the last five are kept.
const runNeeds = 1 << 30

// foldersOf are a lab's; results "" are the project's.
func foldersOf(root, results string) (*lab, error) {
	root, err := filepath.Abs(root)
	return &lab{
		root: root, cache: filepath.Join(root, ".cache", "lab"), results: cmp.Or(results, filepath.Join(root, "bench", "results")),
	}, err
}

// take finds the programs and takes the machine's lock; what is missing is named with its remedy.
func (l *lab) take() (release func(), err error) {
	l.controlplane = filepath.Join(l.cache, "bin", "controlplane-"+kubeVersion)
	l.meshpulse = filepath.Join(l.root, "bin", "meshpulse")
	if l.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if l.envoy, err = sidecar.EnvoyBinary(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(l.controlplane); err != nil {
		return nil, fmt.Errorf("%w: run `make lab-controlplane`", err)
	}
	if err := os.MkdirAll(l.cache, 0o755); err != nil {
		return nil, proc.NameFullDisk(err, l.root, runNeeds)
	}
	if err := proc.CheckDisk(l.cache, runNeeds); err != nil {
		return nil, err
	}
	return proc.Lock(filepath.Join(l.cache, "lock"))
}

// seen is the folder of what is only looked at of a run: too much to be kept with the project.
func (l *lab) seen() string { return filepath.Join(l.cache, "results") }

// peer is the binary of a program beside which meshpulse is measured.
func (l *lab) peer(name, version string) string {
	return filepath.Join(l.cache, "bin", name+"-"+version)
}

// withoutRoot is a text for a report, in which no path tells where the project lies.
func (l *lab) withoutRoot(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, l.root+string(filepath.Separator), ""), l.root, ".")
}

// runDir makes a new folder for a run's state and removes those of runs before the last few.
func (l *lab) runDir(name string) (string, error) {
	runs := filepath.Join(l.cache, "runs")
	dir := filepath.Join(runs, time.Now().UTC().Format("20060102-150405")+"-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	old, err := os.ReadDir(runs) // sorted by name, so by time
	if err != nil {
		return "", err
	}
	const keep = 5
	for _, entry := range old[:max(0, len(old)-keep)] {
		if err := os.RemoveAll(filepath.Join(runs, entry.Name())); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func (l *lab) up(ctx context.Context, hpaSync time.Duration) error {
	dir, err := l.runDir("up")
	if err != nil {
		return err
	}
	c, err := cluster.Boot(ctx, cluster.Config{Binary: l.controlplane, Dir: dir, HPASync: hpaSync})
	if err != nil {
		return err
	}
	defer c.Stop()
	slog.Info("control plane up", "seconds", c.BootTime.Seconds())
	fmt.Printf("export KUBECONFIG=%s\nalias kubectl='%s kubectl'\n", c.Kubeconfig, l.controlplane)
	<-ctx.Done()
	return nil
}
