package mesh

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// KillSidecar kills the Envoy of a pod (SIGKILL) and starts it again after a while, as a kubelet
// does with a container that ended: the pod is not ready in between. It returns when the pod is
// ready again, or has to end.
func (a *Agent) KillSidecar(ctx context.Context, namespace, name string, down time.Duration) error {
	p := a.find(namespace, name)
	if p == nil || !p.crash() {
		return fmt.Errorf("pod %s/%s has no sidecar to kill", namespace, name)
	}
	a.report(p, false)
	select {
	case <-ctx.Done():
	case <-p.ending:
		return nil
	case <-p.ctx.Done():
		return nil
	case <-time.After(down):
	}
	if err := p.startSidecar(a.config, filepath.Join(a.config.Dir, namespace, name)); err != nil {
		if p.ctx.Err() != nil {
			return nil // deleted
		}
		return err
	}
	select {
	case <-p.ending: // the pod's own goroutine ends what we started
	default:
		a.report(p, true)
	}
	return nil
}

func (a *Agent) find(namespace, name string) *pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if p.object.Namespace == namespace && p.object.Name == name && p.ready {
			return p
		}
	}
	return nil
}

// crash kills the sidecar, false if there is none.
func (p *pod) crash() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sidecar == nil {
		return false
	}
	p.sidecar.Kill()
	p.sidecar = nil
	return true
}

// report tells the gateway at once whether a pod is ready, and the API server as soon as it can be
// told.
func (a *Agent) report(p *pod, ready bool) {
	a.setReady(p, ready)
	a.wg.Go(func() {
		for a.tell(p) != nil && p.wait(time.Second) {
		}
	})
}

// tell writes what is true now: what an earlier call could not write may be over.
func (a *Agent) tell(p *pod) error {
	p.telling.Lock()
	defer p.telling.Unlock()
	a.mu.Lock()
	ready := p.ready
	a.mu.Unlock()
	return a.patchStatus(p, ready)
}

// HoldBack keeps the pods of a namespace that are not ready from getting so until release is
// called.
func (a *Agent) HoldBack(namespace string) (release func()) {
	gate := make(chan struct{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heldBack[namespace] = gate
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.heldBack, namespace)
		close(gate)
	}
}

// mayGetReady waits while the pod's namespace is held back; false says that the pod has to end.
func (a *Agent) mayGetReady(p *pod) bool {
	a.mu.Lock()
	gate := a.heldBack[p.object.Namespace]
	a.mu.Unlock()
	if gate == nil {
		return true
	}
	select {
	case <-gate:
		return true
	case <-p.ending:
	case <-p.ctx.Done():
	}
	return false
}
