package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// notReal is said wherever results are shown.
const notReal = `The Envoy is the stock one, without Istio's stats filter, which is to be had in Istio's images alone: an EnvoyFilter gives it an access
logger that counts under the filter's names and tags (` + "`bench/sidecar`" + `'s, as in the other labs). Real are injection, iptables, the bootstrap with its
sink and node, certificates and mTLS, xDS, drains; not real are the filter's numbers, metadata exchange (of a caller only what mTLS proves is known) and
ALPN, which istiod is told to leave out. What Istio's own Envoy would send is held by replaying recordings with the names of Istio's code.`

// istioResult is what a run leaves in bench/results.
type istioResult struct {
	start time.Time
	mu    sync.Mutex // of steps side by side
	// lines say what was seen, steps what was done and in what time.
	lines, steps []string
}

func (s *istioResult) say(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

// timed are the steps, whose times it notes.
func (s *istioResult) timed(steps []step) []step {
	for i, one := range steps {
		steps[i].do = func(ctx context.Context) error {
			start := time.Now()
			err := one.do(ctx)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.steps = append(s.steps, fmt.Sprintf("| %s | %.0f |", one.name, time.Since(start).Seconds()))
			return err
		}
	}
	return steps
}

func (s *istioResult) write(n *node) error {
	commit, err := output(context.Background(), 10*time.Second, "git", "-C", n.root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
	if err != nil {
		commit = "of an unknown commit" // no repository
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# lab-istio\n\n`make lab-istio`, %s; Kubernetes %s, Istio %s, %s, meshpulse %s\n\n%s\n\n", time.Now().UTC().Format("2006-01-02 15:04 MST"),
		kubeVersion, istioVersion, runtime.Version(), strings.TrimSpace(commit), notReal)
	for _, line := range s.lines {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	fmt.Fprintf(&b, "\n| step | s |\n|---|---|\n%s\n| all of it, from a node that is ready | %.0f |\n", strings.Join(s.steps, "\n"), time.Since(s.start).Seconds())
	return os.WriteFile(filepath.Join(n.root, "bench/results/lab-istio.md"), []byte(b.String()), 0o644)
}
