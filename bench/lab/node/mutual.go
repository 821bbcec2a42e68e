package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// proves waits until meshpulse says of every HPA of the namespaces that all sidecars which report
// to it have shown a certificate of istiod's that is theirs.
func (r *reader) proves(ctx context.Context, namespaces ...string) (said string, err error) {
	err = r.observed(ctx, func(status string) error {
		said = ""
		for _, namespace := range namespaces {
			proven, reporting, err := provenIn(status, namespace)
			if err != nil {
				return err
			}
			if reporting == 0 || proven != reporting {
				return fmt.Errorf("in namespace %s %d of %d sidecars have proven who they are: %s", namespace, proven, reporting, status)
			}
			said += fmt.Sprintf(" %s %d/%d", namespace, proven, reporting)
		}
		return nil
	})
	return said, err
}

// provenIn adds up how many sidecars have proven who they are, and report, over the HPAs of a
// namespace in a /debug/hpas.
func provenIn(status, namespace string) (proven, reporting int, err error) {
	var all struct {
		Metrics []struct{ Namespace, Proven string }
	}
	if err := json.Unmarshal([]byte(status), &all); err != nil {
		return 0, 0, fmt.Errorf("/debug/hpas: %w: %s", err, status)
	}
	for _, m := range all.Metrics {
		if m.Namespace != namespace {
			continue
		}
		var p, of int
		if _, err := fmt.Sscanf(m.Proven, "%d/%d", &p, &of); err != nil {
			return 0, 0, fmt.Errorf("/debug/hpas does not say who is proven in namespace %s: %s", namespace, status)
		}
		proven, reporting = proven+p, reporting+of
	}
	return proven, reporting, nil
}

// strictFor goes the documents' way to its end for one namespace: its sidecars, whose own bootstrap
// is plaintext, are taken until the namespace is strict, and refused from then on, while all others
// go on proving themselves, by istiod's certificates.
func (r *reader) strictFor(ctx context.Context, plain *reader, result *istioResult) error {
	proven, err := r.proves(ctx, theirs, "ingress")
	if err != nil {
		return err
	}
	if err := r.observed(ctx, func(status string) error {
		proven, reporting, err := provenIn(status, plain.namespace)
		if err == nil && (proven != 0 || reporting == 0) {
			err = fmt.Errorf("in namespace %s %d of %d sidecars are proven, and none should: %s", plain.namespace, proven, reporting, status)
		}
		return err
	}); err != nil {
		return err
	}
	patch := fmt.Sprintf(`[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--ingest-strict-namespaces=%s"}]`, plain.namespace)
	if _, err := r.kubectl(ctx, "--namespace="+namespace, "patch", "deployment", "meshpulse", "--type=json", "--patch="+patch); err != nil {
		return err
	}
	if err := r.rollout(ctx, namespace, "meshpulse"); err != nil {
		return err
	}
	if err := r.eventually(ctx, time.Minute, func() error { _, err := r.pod(ctx); return err }); err != nil { // the old one has gone
		return err
	}
	refused := plain.eventSaid(ctx, "podinfo", "RefusedSender")
	after, err := r.proves(ctx, theirs, "ingress")
	result.say(fmt.Sprintf("proven by istiod's certificates, of the sidecars that report:%s; with `--ingest-strict-namespaces=%s`, "+
		"whose sidecar's plaintext is refused:%s", proven, plain.namespace, after))
	_, gone := r.sh(ctx, "kubectl delete clusterrolebinding meshpulse-observer")
	return errors.Join(refused, err, gone)
}
