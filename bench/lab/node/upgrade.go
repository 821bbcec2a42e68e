package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// previousImage is the image of the version before, which `make lab-upgrade` has made.
const previousImage = "lab.local/meshpulse:previous"

// previous is a file of the checkout of the version before.
func (l *lab) previous(file string) string {
	return filepath.Join(l.root, ".cache", "lab", "previous", file)
}

// upgradeSteps are the documents' way from the version before to this one and back, each with its
// own install.sh, under the load of another reader's guide.
func (r *reader) upgradeSteps(under *reader) []step {
	return []step{
		{"the version before, by its own install.sh", func(ctx context.Context) (err error) {
			if r.before, err = r.objects(ctx); err != nil {
				return err
			}
			if err := r.importArchive(ctx, r.previous("image.tar")); err != nil {
				return err
			}
			return r.installPrevious(ctx)
		}},
		under.workloadGuide()[0],
		{"guide 2, one workload: hey at 50/s, 1 -> 5 or 6 replicas", under.loaded},
		{"to this version, the API asked twice a second: every question is answered, the replicas stay", func(ctx context.Context) error {
			return under.moved(ctx, func() error { return r.install(ctx, false) })
		}},
		{"and back to the version before: the same", func(ctx context.Context) error {
			return under.moved(ctx, func() error { return r.installPrevious(ctx) })
		}},
		{"to this version once more, and uninstall.sh leaves nothing", func(ctx context.Context) error {
			if err := errors.Join(under.stopLoad(), r.install(ctx, false)); err != nil {
				return err
			}
			return r.leavesNothing(ctx, under)
		}},
	}
}

// leavesNothing types uninstall.sh, and waits until everything is as it was before the install; the
// app is that of another reader.
func (r *reader) leavesNothing(ctx context.Context, under *reader) error {
	if _, err := r.typed(ctx, documents.Command{Text: documents.Uninstall}); err != nil {
		return err
	}
	return errors.Join(under.forget(ctx), r.eventually(ctx, time.Minute, func() error { return r.sameObjects(ctx) }))
}

// loaded follows the second guide, with load for as long as all of it takes. Its query means one
// workload, all of whose sidecars report: nothing holds its answers but what an upgrade does. One
// wrong answer is to be seen, where five minutes of stabilization would hide it.
func (r *reader) loaded(ctx context.Context) error {
	block, err := r.documented(documents.OneWorkload)
	if err != nil {
		return err
	}
	r.watchScale()
	for _, c := range block.Commands {
		c.Text = strings.Replace(c.Text, "hey -z 5m", "hey -z 15m", 1)
		if _, err := r.typed(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.Text, err)
		}
	}
	if err := r.scales(ctx, guide{hpa: "podinfo", least: 5, most: 6}); err != nil {
		return err
	}
	_, err = r.kubectl(ctx, "--namespace="+r.namespace, "patch", "hpa", "podinfo", "--type=merge",
		`--patch={"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":0}}}}`)
	return err
}

// installPrevious types install.sh in the checkout of the version before.
func (r *reader) installPrevious(ctx context.Context) error {
	_, err := output(ctx, 5*time.Minute, "sh", "-c", "cd "+r.previous("")+" && manifests/install.sh --image "+previousImage)
	return err
}

// settled is how long a [1m] query takes to stand on what the new pod has heard alone, and an HPA
// controller to look at it.
const settled = 100 * time.Second

// moved installs another version under load, and looks for as long as the history of the one before
// would have been asked for.
func (r *reader) moved(ctx context.Context, install func() error) error {
	then, w := r.scale.now(), r.watch(ctx)
	err := install()
	if err == nil {
		err = r.eventually(ctx, time.Minute, func() error { _, err := r.pod(ctx); return err }) // the old one has gone
	}
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
	err = errors.Join(err, w.end(), r.scale.unchangedSince(then))
	if err == nil {
		fmt.Printf("            %d questions, every one answered; scaled to %s\n", w.asked, strings.TrimSpace(r.scale.all()))
	}
	return err
}
