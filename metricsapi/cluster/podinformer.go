package cluster

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// OnAdd, OnUpdate and OnDelete take the informer's news of pods, as transform has left them.
func (x *Pods) OnAdd(o any, _ bool) {
	x.contain.run("pods", "one that comes", func() { x.add(o) })
}

// OnUpdate is of one that has changed.
func (x *Pods) OnUpdate(o, now any) {
	x.contain.run("pods", "one that changes", func() { x.replace(o, now) })
}

// OnDelete is of one that is gone.
func (x *Pods) OnDelete(o any) {
	x.contain.run("pods", "one that goes", func() { x.forget(o) })
}

// Freshness tells how long ago the pods were last in step with the API server.
func (x *Pods) Freshness() *Freshness { return x.fresh }

// Store has what the informer has.
func (x *Pods) Store() cache.Store { return x.informer.GetStore() }

// Transform is keep, which a fault does not let the informer fail: a pod of which nothing can be
// kept is not one that is known.
func (x *Pods) Transform(object any) (kept any, err error) {
	if !x.contain.run("pods", "one that was read", func() { kept, err = x.keep(object) }) {
		return object, nil
	}
	return kept, err
}

// Run keeps the index in step with the API server until the context ends.
func (x *Pods) Run(ctx context.Context) { x.informer.RunWithContext(ctx) }

// Fresh reports whether all pods are known now.
func (x *Pods) Fresh() bool { return x.Synced() == nil }

// Synced says why the pods are not known, nil while they are.
func (x *Pods) Synced() error {
	if err := x.Read(); err != nil {
		return err
	}
	return x.fresh.Stale()
}

// Read says why the pods have never been known, nil once they have.
func (x *Pods) Read() error {
	if !x.informer.HasSynced() || !x.indexed.HasSynced() {
		return errors.New("the pods have not been read from the API server yet")
	}
	return nil
}

// keep is what the informer keeps of a pod. Its deletion began when it was first said to: when the
// kubelet has its containers ended, the API server sets the time anew, to that moment
// (k8s.io/apiserver pkg/registry/rest/delete.go), long after the sidecar's last flush.
func (x *Pods) keep(object any) (any, error) {
	kept, err := keepIdentity(object)
	c, ok := kept.(*cachedPod)
	if !ok || c.left == 0 {
		return kept, err
	}
	key := types.NamespacedName{Namespace: c.namespace(), Name: c.name}
	x.mu.Lock()
	defer x.mu.Unlock()
	if was, ok := x.leaving[key]; ok && was.created == c.created {
		c.left = min(c.left, was.left)
	}
	x.leaving[key] = leaving{c.created, c.left}
	return c, err
}
