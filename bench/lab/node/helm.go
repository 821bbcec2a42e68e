package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// The guides' command, and what it makes of the image and the namespace: the chart names an image
// without a registry, which the nodes have.
const (
	helmVersion = "v4.3.0"
	guidesHelm  = "install asm-custom-metrics"
	chartImage  = "docker.io/library/meshpulse:0.0.0-dev"
	helmed      = "kube-system"
	// release upgrades what that command has made.
	release = "helm -n kube-system upgrade asm-custom-metrics ./manifests/chart --reuse-values"
)

// helmSteps are the documents' way with Helm, on a cluster without meshpulse.
func (r *reader) helmSteps() []step {
	var w *watcher
	var notes string
	return []step{
		{"helm install by the guides' command: the API answers from kube-system", func(ctx context.Context) (err error) {
			if _, err = output(ctx, time.Minute, "ctr", "--namespace", "k8s.io", "images", "tag", imageName, chartImage); err != nil {
				return err
			}
			if r.before, err = r.objects(ctx); err != nil {
				return err
			}
			if notes, err = r.helmInstall(ctx); err != nil {
				return err
			}
			if err := r.rollout(ctx, helmed, "meshpulse"); err != nil {
				return err
			}
			_, err = r.sh(ctx, "kubectl wait --for=condition=Available --timeout=60s apiservice/v1beta1.external.metrics.k8s.io")
			return errors.Join(err, r.answers(ctx))
		}},
		{"a sidecar that is told the address in the notes reports", func(ctx context.Context) error { return r.reportsBy(ctx, notes) }},
		{"two helm upgrades, the second with another pod, and a rotation: no question is left unanswered", func(ctx context.Context) error {
			served, err := r.servedIn(ctx, helmed)
			if err != nil {
				return err
			}
			w = r.watch(ctx)
			for _, change := range []string{"", " --set resources.requests.memory=300Mi,customMetrics.enabled=true", " --set certificate.generation=2"} {
				if _, err := r.sh(ctx, release+change); err != nil {
					return err
				}
				if err := r.rollout(ctx, helmed, "meshpulse"); err != nil {
					return err
				}
			}
			return errors.Join(r.servesAnotherIn(ctx, helmed, served), w.end())
		}},
		{"custom metrics, which the second upgrade asked for: each of the app's pods is answered for", func(ctx context.Context) error {
			const each = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/test/pods/*/istio-requests-per-second?labelSelector=app%3Dpodinfo"
			return r.eventually(ctx, 2*time.Minute, func() error { // until a minute of it is known to the new pod
				answer, err := r.kubectl(ctx, "get", "--raw", each)
				if err == nil && !strings.Contains(answer, `"describedObject":{"kind":"Pod","namespace":"test","name":"podinfo-`) {
					err = fmt.Errorf("not of a pod: %s", answer)
				}
				return err
			})
		}},
		{"helm uninstall leaves nothing", func(ctx context.Context) error {
			if _, err := r.sh(ctx, "helm -n kube-system uninstall asm-custom-metrics --wait"); err != nil {
				return err
			}
			return errors.Join(r.forget(ctx), r.eventually(ctx, time.Minute, func() error { return r.sameObjects(ctx) }),
				r.expect(ctx, "", "--namespace="+helmed, "get", "all,secrets,networkpolicies,serviceaccounts", "--selector=app.kubernetes.io/part-of=meshpulse", "-o", "name"))
		}},
	}
}

// helmInstall types the guides' command and returns the notes.
func (r *reader) helmInstall(ctx context.Context) (string, error) {
	for _, block := range r.documents {
		for _, c := range block.Commands {
			if strings.Contains(c.Text, guidesHelm) {
				r.remember(c.Text)
				return r.sh(ctx, c.Text)
			}
		}
	}
	return "", fmt.Errorf("no document has a command with %q", guidesHelm)
}

var notesAddress = regexp.MustCompile(`Sidecars report to +(\S+)`)

// reportsBy starts the guides' app with a sidecar whose sink is the notes', and waits until
// meshpulse has heard of it.
func (r *reader) reportsBy(ctx context.Context, notes string) error {
	address := notesAddress.FindStringSubmatch(notes)
	if address == nil {
		return fmt.Errorf("the notes tell no address:\n%s", notes)
	}
	file := filepath.Join(r.state, "by-notes.yaml")
	patch := fmt.Sprintf("spec: {template: {metadata: {annotations: {proxy.istio.io/config: 'envoyMetricsService: {address: %q}'}}}}\n", address[1])
	if err := os.WriteFile(file, []byte(patch), 0o600); err != nil {
		return err
	}
	if _, err := r.sh(ctx, "kubectl apply -k manifests/examples/app && kubectl -n test patch deployment podinfo --patch-file "+file+" && kubectl apply -f "+documents.OneWorkload); err != nil {
		return err
	}
	if err := r.rollout(ctx, theirs, "podinfo"); err != nil {
		return err
	}
	return r.covered(ctx, theirs, processed)
}
