package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/meshpulse/meshpulse/bench/process"
)

// line is one command of a document, with the comment behind it.
type line struct{ command, comment string }

// commands are those of the first block of a shell after the line that begins with the text.
func commands(document, begins string) ([]line, error) {
	_, rest, found := strings.Cut("\n"+document, "\n"+begins)
	if !found {
		return nil, fmt.Errorf("the document has no line that begins with %q", begins)
	}
	_, block, _ := strings.Cut(rest, "\n```sh\n")
	block, _, closed := strings.Cut(block, "\n```")
	if !closed {
		return nil, fmt.Errorf("the document has no commands below %q", begins)
	}
	var lines []line
	for text := range strings.Lines(block) {
		command, comment, _ := strings.Cut(strings.TrimRight(text, "\n"), " # ")
		lines = append(lines, line{strings.TrimSpace(command), strings.TrimSpace(comment)})
	}
	return lines, nil
}

// guide is one of those in manifests/examples: its commands and what it says that becomes of the replicas.
type guide struct {
	heading, hpa string
	// least and most are the replicas that its load asks for.
	least, most int
}

// The first replicas are asked for when a [1m] rate has seen most of the load; pods start within seconds.
const scaled = 150 * time.Second

func (n *node) guideSteps() []step {
	first := guide{"### Scale by requests", "podinfo-total", 2, 2}
	latency := guide{"### Scale by latency", "podinfo-latency-avg", 5, 5} // its maxReplicas: "any traffic asks for maxReplicas"
	second := guide{"### Scale one workload", "podinfo", 5, 6}
	var w *watcher
	var served []byte
	return []step{
		{"manifests/install.sh --rotate-cert, the API asked twice a second from here on", func(ctx context.Context) (err error) {
			if served, err = n.servedCertificate(ctx); err != nil {
				return err
			}
			w = n.watch(ctx)
			_, err = n.sh(ctx, "manifests/install.sh --rotate-cert")
			return err
		}},
		{"guide 1, by requests: hey at 20/s, 1 -> 2 replicas", func(ctx context.Context) error { return n.follow(ctx, first) }},
		{"guide 1, hey -q 15 at 30/s, 2 -> 3 replicas", func(ctx context.Context) error { return n.faster(ctx, first) }},
		{"the right to act at a surge is given as the documents say", n.mayAct},
		{"guide 1, by latency: as written any traffic asks for maxReplicas, 3 -> 5, and an event says why", func(ctx context.Context) error {
			if err := n.follow(ctx, latency); err != nil {
				return err
			}
			return n.eventSaid(ctx, latency.hpa, "MillisecondsTarget")
		}},
		{"the new certificate is served, no question was left unanswered", func(ctx context.Context) error {
			err := n.eventually(ctx, 3*time.Minute, func() error {
				now, err := n.servedCertificate(ctx)
				if err == nil && string(now) == string(served) {
					err = errors.New("meshpulse still serves its first certificate")
				}
				return err
			})
			return errors.Join(err, w.end())
		}},
		{"guide 2, one workload: hey at 50/s, 1 -> 5 or 6 replicas", func(ctx context.Context) error {
			// A user comes from elsewhere: to one replica, and no HPA that remembers more.
			if _, err := n.sh(ctx, "kubectl -n test delete hpa --all && kubectl -n test scale deployment podinfo --replicas=1"); err != nil {
				return err
			}
			if err := n.rollout(ctx, "test", "podinfo"); err != nil {
				return err
			}
			return n.follow(ctx, second)
		}},
		{"/debug/hpas with a token of the observer, as the documents say", n.observed},
	}
}

// The documents whose commands are run.
const (
	guides    = "manifests/examples/README.md"
	reference = "metricsapi/README.md"
	runbook   = "manifests/runbook.md"
)

// block are the commands below a line of a document.
func (n *node) block(document, begins string) ([]line, error) {
	content, err := os.ReadFile(filepath.Join(n.root, document))
	if err != nil {
		return nil, err
	}
	lines, err := commands(string(content), begins)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", document, err)
	}
	return lines, nil
}

// mayAct gives the right and looks whether meshpulse has it.
func (n *node) mayAct(ctx context.Context) error {
	lines, err := n.block(reference, "## Acting at a surge")
	if err != nil {
		return err
	}
	for _, l := range lines {
		if _, err := n.sh(ctx, l.command); err != nil {
			return err
		}
	}
	return n.expect(ctx, "yes", "auth", "can-i", "update", "deployments.apps", "--subresource=scale", "--namespace=test",
		"--as=system:serviceaccount:"+namespace+":meshpulse")
}

// observed reads what meshpulse says of its HPAs through a forwarded port.
func (n *node) observed(ctx context.Context) error {
	lines, err := n.block(runbook, "## Look inside")
	if err != nil {
		return err
	}
	after, err := n.block(runbook, "Afterwards take the right back")
	if err != nil {
		return err
	}
	lines = append(lines, after...)
	for _, l := range lines {
		command, beside := strings.CutSuffix(l.command, " &")
		switch {
		case beside:
			p, err := process.Start(filepath.Join(n.logs, "port-forward.log"), "sh", "-c", "exec "+command)
			if err != nil {
				return err
			}
			defer p.Kill()
		case strings.HasPrefix(command, "curl"): // once the port is forwarded
			if err := n.eventually(ctx, 30*time.Second, func() error {
				page, err := n.sh(ctx, command)
				if err == nil && !strings.Contains(page, "podinfo") {
					err = fmt.Errorf("the page does not name the HPA: %s", page)
				}
				return err
			}); err != nil {
				return err
			}
		default:
			if _, err := n.sh(ctx, command); err != nil {
				return err
			}
		}
	}
	return nil
}

// follow runs a guide's commands and waits until its replicas are there.
func (n *node) follow(ctx context.Context, g guide) error {
	lines, err := n.block(guides, g.heading)
	if err != nil {
		return err
	}
	if err := n.stopLoad(); err != nil {
		return err
	}
	for _, l := range lines {
		if err := n.follow1(ctx, l); err != nil {
			return fmt.Errorf("%s: %w", l.command, err)
		}
	}
	return n.scales(ctx, g)
}

// follow1 runs one command. Those that the document gives a terminal of their own run on beside the next ones. What it says behind a --raw
// is held to be in the answer; a number is asked for until there is one, as it says that the first flush has to come.
func (n *node) follow1(ctx context.Context, l line) error {
	switch {
	case strings.Contains(l.command, " hey "):
		return n.startLoad(ctx, l.command)
	case strings.HasSuffix(l.command, " -w"):
		_, err := n.start("watch", "timeout", "600", "sh", "-c", l.command)
		return err
	case strings.Contains(l.command, "get --raw"):
		return n.eventually(ctx, 30*time.Second, func() error {
			answer, err := n.sh(ctx, l.command)
			if err == nil && !strings.Contains(answer, l.comment) {
				err = fmt.Errorf("the answer has no %s: %s", l.comment, answer)
			}
			return err
		})
	default:
		_, err := n.sh(ctx, l.command)
		return err
	}
}

// faster replaces the load by one of 15 a second and worker.
func (n *node) faster(ctx context.Context, g guide) error {
	lines, err := n.block(guides, g.heading)
	if err != nil {
		return err
	}
	if err := n.stopLoad(); err != nil {
		return err
	}
	for _, l := range lines {
		if strings.Contains(l.command, "-q 10") {
			if err := n.startLoad(ctx, strings.Replace(l.command, "-q 10", "-q 15", 1)); err != nil {
				return err
			}
		}
	}
	return n.scales(ctx, guide{hpa: g.hpa, least: 3, most: 3})
}

// startLoad runs the guide's hey in its pod. A user reads on while the pods start: here they are waited for.
func (n *node) startLoad(ctx context.Context, command string) error {
	for _, name := range []string{"podinfo", "loadtester"} {
		if err := n.rollout(ctx, "test", name); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(n.logs, "hey.log")); err != nil {
		return err
	}
	p, err := process.Start(filepath.Join(n.logs, "hey.log"), "sh", "-c", command)
	n.load = p
	return err
}

// stopLoad ends hey as Ctrl-C in its own terminal would, and is an error if a request of it was answered by anything but 200.
func (n *node) stopLoad() error {
	if n.load == nil {
		return nil
	}
	p := n.load
	n.load = nil
	err := processes(func(pid int, command []string) bool {
		if command[0] == "hey" {
			_ = syscall.Kill(pid, syscall.SIGINT) // one that has ended needs none
		}
		return true
	})
	if err != nil {
		return err
	}
	select {
	case <-p.Exited():
	case <-time.After(30 * time.Second):
		p.Kill()
		return errors.New("hey does not end")
	}
	report, err := os.ReadFile(p.Log)
	if err != nil {
		return err
	}
	_, codes, found := strings.Cut(string(report), "Status code distribution:")
	if !found || strings.Contains(string(report), "Error distribution") || strings.Count(codes, "[") != 1 || !strings.Contains(codes, "[200]") {
		return fmt.Errorf("hey was not answered by 200 alone:\n%s", report)
	}
	return nil
}

// scales waits until the HPA's replicas are those of the guide and ready.
func (n *node) scales(ctx context.Context, g guide) error {
	return n.eventually(ctx, scaled, func() error {
		if n.load != nil {
			if err := n.load.Ended(); err != nil {
				return fmt.Errorf("hey: %w", err)
			}
		}
		var deployment struct {
			Status struct{ ReadyReplicas, Replicas int }
		}
		text, err := n.kubectl(ctx, "--namespace=test", "get", "deployment", "podinfo", "-o", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &deployment); err != nil {
			return err
		}
		if ready := deployment.Status.ReadyReplicas; ready < g.least || ready > g.most {
			state, err := n.kubectl(ctx, "--namespace=test", "describe", "hpa", g.hpa)
			return errors.Join(err, fmt.Errorf("%d replicas are ready and not %d to %d:\n%s", ready, g.least, g.most, state))
		}
		return nil
	})
}

// eventSaid is an error when no event of the HPA has the reason.
func (n *node) eventSaid(ctx context.Context, hpa, reason string) error {
	return n.eventually(ctx, 30*time.Second, func() error {
		events, err := n.kubectl(ctx, "--namespace=test", "get", "events", "--field-selector=involvedObject.name="+hpa, "-o", "jsonpath={.items[*].reason}")
		if err == nil && !strings.Contains(events, reason) {
			err = fmt.Errorf("no event %s of HPA %s: %s", reason, hpa, events)
		}
		return err
	})
}
