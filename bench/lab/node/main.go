// Command node runs meshpulse the way users do, on a real Kubernetes node that needs no registry
// and leaves nothing behind: kubelet, containerd, CNI, kube-proxy, CoreDNS and kube-router in
// namespaces of their own, the image of `make image`, manifests/install.sh unchanged, and the
// guides and other commands of the documents. See ../README.md.
//
// Not real are the sidecars' injection (injector.go plays Istio's) and the Envoy, which is the
// stock one without Istio's filters.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/sidecar"
)

// limit is how long a run may take before it is ended.
const limit = 15 * time.Minute

// needs is what a disk must have free, in bytes: images and their layers once each, and logs.
const needs = 3 << 30

func main() {
	err := run(os.Args[1:])
	if err != nil && !errors.Is(err, errFailed) { // inside tells its own
		fmt.Fprintln(os.Stderr, "lab-node:", err)
	}
	if err != nil {
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: node run --root PROJECT [--istio | --only helm | --only upgrade | --only beside | --only shadow | --only replicas] [--keep]")
	}
	command, args := args[0], args[1:]
	flags := flag.NewFlagSet("node "+command, flag.ContinueOnError)
	root := flags.String("root", ".", "the project's root")
	cgroup := flags.String("cgroup", "", "inside: the folder of control groups that the run has made")
	istio := flags.Bool("istio", false, "istiod injects the sidecars, and what is checked is the mesh")
	only := flags.String("only", "", "helm, upgrade, beside, shadow or replicas: nothing else is checked")
	keep := flags.Bool("keep", false, "when all is checked, or something has failed, wait for Ctrl-C and say how to look")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := newLab(*root, *keep)
	if err != nil {
		return err
	}
	if *cgroup != "" {
		l.cgroup = *cgroup
	}
	l.istio, l.only = *istio, *only
	if only := []string{onlyHelm, onlyUpgrade, onlyBeside, onlyShadow, onlyTwo}; l.only != "" && (l.istio || !slices.Contains(only, l.only)) {
		return fmt.Errorf("--only %s: there are %s, without --istio", l.only, strings.Join(only, ", "))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch command {
	case "run":
		return l.run(ctx)
	case "init":
		return runInit(flags.Args())
	case "inside":
		return l.inside(ctx)
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

// lab is what a run needs: the programs and the folders.
type lab struct {
	root string
	// state is the run's own folder and gone after it, logs stay until the next run.
	state, logs string
	// tools is where get-tools has put what is not Go.
	tools string
	// cgroup is the folder below which the kubelet keeps its control groups, the one thing that
	// does not end with a namespace. Each run has its own, so that a machine can have several.
	cgroup string
	// istio: the node is for lab-istio.
	istio bool
	// only is what is checked, "" for all.
	only string
	keep bool
}

// What may be checked alone.
const (
	onlyHelm    = "helm"
	onlyUpgrade = "upgrade"
	onlyBeside  = "beside"
	onlyShadow  = "shadow"
	onlyTwo     = "replicas"
)

// kubeVersion is the control plane's and the node's; the binaries are keyed by it (see node.mk).
const (
	kubeVersion       = "v1.37.0"
	corednsVersion    = "v1.15.0"
	kubeRouterVersion = "v2.1.0"
)

func newLab(root string, keep bool) (*lab, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, err
	}
	cache, err := filepath.EvalSymlinks(filepath.Join(root, ".cache"))
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "lab", "node")
	return &lab{
		root: root, state: filepath.Join(dir, "state"), logs: filepath.Join(dir, "log"), tools: filepath.Join(cache, "lab", "node-tools"), keep: keep,
		cgroup: fmt.Sprintf("%s%d", cgroupPrefix, os.Getpid()),
	}, nil
}

// binary is a program that was built for the lab.
func (l *lab) binary(name string) string { return filepath.Join(l.root, ".cache", "lab", "bin", name) }

// run is a whole run as the host sees it: one process in namespaces of its own, and the host as it
// was.
func (l *lab) run(ctx context.Context) error {
	if err := l.ready(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.state), 0o755); err != nil {
		return err
	}
	release, err := proc.Lock(l.state + ".lock")
	if err != nil {
		return err
	}
	defer release()
	limit := limit
	switch {
	case l.istio:
		limit = istioLimit
	case l.only == onlyTwo:
		limit = replicasLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := l.tidyKilled(); err != nil {
		return err
	}
	before, err := l.look()
	if err != nil {
		return err
	}
	enabled, failed := l.makeCgroups(cgroups)
	if failed == nil {
		failed = l.inNamespaces(ctx)
	}
	if ctx.Err() != nil {
		failed = fmt.Errorf("ended before it was done: %w", context.Cause(ctx))
	}
	failed = errors.Join(failed, l.tidy(enabled))
	if err := errors.Join(failed, l.asItWas(before)); err != nil {
		return proc.NameFullDisk(err, filepath.Dir(l.state), needs)
	}
	fmt.Println("the host is as it was: no process, mount, interface, rule, setting, control group or folder more or less")
	return nil
}

// ready names what a run needs and does not find, with the remedy.
func (l *lab) ready() error {
	if os.Geteuid() != 0 {
		return errors.New("a node is run by root (namespaces, mounts, control groups), everything of it inside namespaces that end with it: run `sudo make lab-node`")
	}
	if _, err := sidecar.EnvoyBinary(); err != nil {
		return err
	}
	for _, name := range l.built() {
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("%w: run `make lab-node`, which builds it", err)
		}
	}
	if err := l.findTools(); err != nil {
		return err
	}
	if err := kernelHas("overlay"); err != nil {
		return err
	}
	return proc.CheckDisk(filepath.Join(l.root, ".cache"), needs)
}
