package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// replicasLimit is how long a run with two replicas may take: the one that was drained has to be
// back for --retention, five minutes, before it is ready.
const replicasLimit = 20 * time.Minute

// replicasSteps are the documents' way from one replica to two and back, under the load of another
// reader's guide, and a drain of the node meanwhile.
func (r *reader) replicasSteps(under *reader) []step {
	return []step{
		{"one replica, by install.sh", func(ctx context.Context) (err error) {
			if r.before, err = r.objects(ctx); err != nil {
				return err
			}
			return r.install(ctx, false)
		}},
		under.workloadGuide()[0],
		{"guide 2, one workload: hey at 50/s, 1 -> 5 or 6 replicas", under.loaded},
		{"install.sh --replicas: two in its place, both ready on the one node; the app's replicas stay", func(ctx context.Context) error {
			return under.becomesTwo(ctx, func() error { return r.installReplicas(ctx) })
		}},
		{"a drain: one is evicted, the other held by the PodDisruptionBudget, and every question answered", under.drained},
		{"the node is back: the evicted one is ready after --retention, the app's replicas have stayed", under.undrained},
		{"one replica again: the app's replicas stay", func(ctx context.Context) error {
			return under.becomesOne(ctx, func() error { return r.install(ctx, false) })
		}},
		{"uninstall.sh leaves nothing", func(ctx context.Context) error {
			return errors.Join(under.stopLoad(), r.leavesNothing(ctx, under))
		}},
	}
}

// installReplicas types the documents' install.sh, with the flag.
func (r *reader) installReplicas(ctx context.Context) error {
	block, err := r.documented(documents.Install)
	if err != nil {
		return err
	}
	for _, c := range block.Commands {
		if strings.HasPrefix(c.Text, documents.Install) && !strings.Contains(c.Text, "--dry-run") {
			c.Text += " --replicas"
			_, err := r.typed(ctx, c)
			return err
		}
	}
	return fmt.Errorf("no document has a command with %q", documents.Install)
}

// becomesTwo installs two replicas under load. Until the first is ready nobody answers, and the
// HPA holds: what is asked meanwhile is told and not judged.
func (r *reader) becomesTwo(ctx context.Context, install func() error) error {
	then, w := r.scale.now(), r.watch(ctx)
	err := install()
	if err == nil {
		err = r.eventually(ctx, 2*time.Minute, func() error { return r.replicasReady(ctx, 2) })
	}
	return r.stays(ctx, err, then, w)
}

// becomesOne is the way back.
func (r *reader) becomesOne(ctx context.Context, install func() error) error {
	then, w := r.scale.now(), r.watch(ctx)
	err := install()
	if err == nil {
		err = r.eventually(ctx, time.Minute, func() error { _, err := r.pod(ctx); return err })
	}
	return r.stays(ctx, err, then, w)
}

// stays looks for as long as the history of the ones before would have been asked for.
func (r *reader) stays(ctx context.Context, err error, then int, w *watcher) error {
	if err == nil {
		err = r.covered(ctx, r.namespace, processed)
	}
	if err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(settled):
		}
	}
	if err = errors.Join(err, r.scale.unchangedSince(then)); err != nil {
		return err
	}
	_ = w.end()
	fmt.Printf("            %d of %d questions were not answered; scaled to %s\n", len(w.failures), w.asked, strings.TrimSpace(r.scale.all()))
	return nil
}

// replicas are meshpulse's pods.
func (n *node) replicas(ctx context.Context) ([]corev1.Pod, error) {
	text, err := n.kubectl(ctx, "--namespace="+namespace, "get", "pods", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	var pods corev1.PodList
	err = json.Unmarshal([]byte(text), &pods)
	return pods.Items, err
}

// replicasReady is an error where others than so many pods are there, or one of them is not ready.
func (n *node) replicasReady(ctx context.Context, want int) error {
	pods, err := n.replicas(ctx)
	if err != nil {
		return err
	}
	if len(pods) != want {
		return fmt.Errorf("%d pods of meshpulse and not %d", len(pods), want)
	}
	for _, p := range pods {
		if !isReady(&p) {
			return fmt.Errorf("%s is not ready", p.Name)
		}
	}
	return nil
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// drained drains the node of meshpulse. The first is evicted and finds no other node, so the second
// may not be.
func (r *reader) drained(ctx context.Context) error {
	then, w := r.scale.now(), r.watch(ctx)
	_, err := r.kubectl(ctx, "drain", nodeName, "--pod-selector=app.kubernetes.io/name=meshpulse", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=40s")
	if err == nil {
		err = errors.New("both are evicted")
	} else if strings.Contains(err.Error(), "violate the pod's disruption budget") {
		err = nil
	}
	return errors.Join(err, r.eventually(ctx, time.Minute, func() error { return r.oneWaits(ctx) }), w.end(), r.scale.unchangedSince(then))
}

// oneWaits is an error but where one replica is ready and the other waits for a node.
func (n *node) oneWaits(ctx context.Context) error {
	pods, err := n.replicas(ctx)
	if err != nil {
		return err
	}
	ready, waits := 0, 0
	for _, p := range pods {
		if isReady(&p) {
			ready++
		} else if p.Status.Phase == corev1.PodPending && p.Spec.NodeName == "" {
			waits++
		}
	}
	if ready != 1 || waits != 1 || len(pods) != 2 {
		return fmt.Errorf("%d pods, %d ready, %d without a node", len(pods), ready, waits)
	}
	return nil
}

// undrained takes the node into service again, and waits until both are ready.
func (r *reader) undrained(ctx context.Context) error {
	then, w := r.scale.now(), r.watch(ctx)
	_, err := r.kubectl(ctx, "uncordon", nodeName)
	if err == nil {
		begun := time.Now()
		err = r.eventually(ctx, 7*time.Minute, func() error { return r.replicasReady(ctx, 2) })
		fmt.Printf("            ready after %.0f s\n", time.Since(begun).Seconds())
	}
	return errors.Join(err, w.end(), r.scale.unchangedSince(then))
}
