package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// step is one thing that a user does or relies on, and what shows that it holds.
type step struct {
	name string
	do   func(ctx context.Context) error
}

// inside is the run within its namespaces: every step in turn, up to the first that fails.
func (l *lab) inside(ctx context.Context) error {
	start := time.Now()
	var n *node
	err := perform(ctx, []step{
		{"namespaces of its own", func(context.Context) error { return l.settle() }},
		{"kubelet " + kubeVersion + ", containerd, CNI: the node is ready", func(ctx context.Context) (err error) { n, err = l.boot(ctx); return err }},
	})
	var steps []step
	if err == nil {
		steps, err = n.steps()
	}
	if err == nil {
		err = perform(ctx, steps)
	}
	if err != nil && n != nil {
		n.showWhatIsThere()
	}
	if l.keep && n != nil {
		fmt.Printf("the node stays until Ctrl-C; to look, as root:\n  nsenter -t $(pgrep -f 'lab-node insid[e]') -a env KUBECONFIG=%s PATH=%s:$PATH kubectl get pods -A\n",
			l.kubeconfig(), filepath.Join(l.state, "bin"))
		<-ctx.Done()
	}
	if err == nil {
		fmt.Printf("all of it in %.0f s\n", time.Since(start).Seconds())
	}
	return err
}

// steps are what is checked on the ready node, in the order of a user's way; what need not wait for
// something else is done beside it.
func (n *node) steps() ([]step, error) {
	first, err := n.reader(theirs)
	if err != nil {
		return nil, err
	}
	second, err := n.reader(elsewhere)
	if err != nil {
		return nil, err
	}
	rest := []step{{"CoreDNS, kube-proxy, kube-router", n.startRest}}
	switch {
	case n.istio:
		return istioSteps(first, second), nil
	case n.only == onlyHelm:
		return append(rest, first.helmSteps()...), nil
	case n.only == onlyUpgrade:
		return append(rest, first.upgradeSteps(second)...), nil
	case n.only == onlyBeside:
		return append(append(rest, first.unreachedSteps()...), first.besideSteps()...), nil
	case n.only == onlyShadow:
		return append(rest, first.shadowSteps()...), nil
	case n.only == onlyTwo:
		return append(rest, first.replicasSteps(second)...), nil
	}
	return slices.Concat(rest, first.installSteps(), []step{
		{"side by side: guide 1, guide 2, and what else is promised", func(ctx context.Context) error {
			return abreast(ctx, first.requestsGuide(), second.workloadGuide(), slices.Concat(first.installedSteps(), first.operatorSteps()))
		}},
		{"every other command of the documents", first.rest},
		{"meshpulse's container, the most memory that it has taken", n.tellPeak},
	}, first.endSteps(second), first.unreachedSteps(), first.besideSteps(), first.shadowSteps(), first.helmSteps()), nil
}

// abreast performs several rows of steps side by side. The first that fails ends them all.
func abreast(ctx context.Context, rows ...[]step) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var wg sync.WaitGroup
	for _, row := range rows {
		wg.Go(func() {
			if err := perform(ctx, row); err != nil {
				end(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// errFailed is told by what perform has printed.
var errFailed = errors.New("a step has failed, see above")

func perform(ctx context.Context, steps []step) error {
	for _, s := range steps {
		start := time.Now()
		err := within(ctx, s.do)
		if errors.Is(context.Cause(ctx), errFailed) || errors.Is(err, errFailed) {
			return errFailed // told already: of a step beside this one, which has ended it, or of one within it
		}
		if err != nil {
			fmt.Printf("FAIL %6.1f s  %s\n%s\n", time.Since(start).Seconds(), s.name, indent(err.Error()))
			return errFailed
		}
		fmt.Printf("ok   %6.1f s  %s\n", time.Since(start).Seconds(), s.name)
	}
	return nil
}

// stepLimit is more than any step takes; one that hangs is told from the run's own end.
const stepLimit = 8 * time.Minute

func within(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("not done within %s: %w", stepLimit, ctx.Err())
	}
}

func indent(text string) string {
	return "       " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n       ")
}

func (n *node) startRest(ctx context.Context) error {
	if err := n.startRouter(); err != nil {
		return err
	}
	if err := n.startInjector(ctx); err != nil {
		return err
	}
	return errors.Join(n.startDNS(ctx), <-n.imported, n.failed())
}

// showWhatIsThere prints what helps to see why a step has failed.
func (n *node) showWhatIsThere() {
	ctx := context.Background() // also after Ctrl-C
	if err := n.failed(); err != nil {
		fmt.Println(indent(err.Error()))
	}
	if n.cluster == nil || n.cluster.Client == nil {
		return
	}
	for _, command := range []string{
		"kubectl get nodes,pods,hpa --all-namespaces --output=wide",
		"kubectl get events --all-namespaces --sort-by=.lastTimestamp --field-selector=type=Warning | tail -n 15",
		"kubectl --namespace=meshpulse-system logs --selector=app.kubernetes.io/name=meshpulse --tail=15",
	} {
		seen, err := n.sh(ctx, command)
		if err != nil {
			seen = err.Error()
		}
		fmt.Printf("       %s\n%s\n", command, indent(seen))
	}
}

// kubectl runs it as the administrator, as a user would.
func (n *node) kubectl(ctx context.Context, args ...string) (string, error) {
	return output(ctx, time.Minute, append([]string{"kubectl"}, args...)...)
}

// sh runs a command of a document from the project's root, where documents say it is run.
func (n *node) sh(ctx context.Context, command string) (string, error) {
	return output(ctx, 5*time.Minute, "sh", "-c", "cd "+n.root+" && "+command)
}

// expect is an error where a kubectl command prints something else.
func (n *node) expect(ctx context.Context, want string, args ...string) error {
	got, err := n.kubectl(ctx, args...)
	if err != nil {
		return err
	}
	if strings.TrimSpace(got) != want {
		return fmt.Errorf("kubectl %s: %q and not %q", strings.Join(args, " "), strings.TrimSpace(got), want)
	}
	return nil
}

// eventually asks again until there is no error; the last one is returned when it takes too long,
// or when a program of the node has ended.
func (n *node) eventually(ctx context.Context, timeout time.Duration, check func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if ended := n.failed(); ended != nil {
			return errors.Join(ended, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", timeout, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (n *node) rollout(ctx context.Context, namespace, name string) error {
	_, err := n.kubectl(ctx, "--namespace="+namespace, "rollout", "status", "deployment/"+name, "--timeout=55s")
	return err
}

// keepLogs moves the control plane's logs out of the state, which goes.
func (l *lab) keepLogs() error {
	logs, err := filepath.Glob(filepath.Join(l.state, "*.log"))
	if err != nil {
		return err
	}
	for _, file := range logs {
		if err := os.Rename(file, filepath.Join(l.logs, filepath.Base(file))); err != nil {
			return err
		}
	}
	return nil
}
