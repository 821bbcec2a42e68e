package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// cutOff keeps the node's own processes, the API server among them, from every Service's port 443
// but the API server's own, as a firewall between control plane and pods does. The kubelet's probes
// go to the pod.
const cutOff = `nft add table inet cutoff && nft add chain inet cutoff out '{ type filter hook output priority -200; }' && ` +
	`nft add rule inet cutoff out ip daddr 10.213.96.2-10.213.111.255 tcp dport 443 drop`

// unreachedSteps install where the API server does not reach the pod, on a cluster without
// meshpulse.
func (r *reader) unreachedSteps() []step {
	return []step{{"an install whose pod the API server does not reach fails, says what is in the way, and leaves no APIService", func(ctx context.Context) error {
		if _, err := r.sh(ctx, cutOff); err != nil {
			return err
		}
		said, err := r.sh(ctx, "manifests/install.sh --image "+r.image+" 2>&1")
		_, opened := r.sh(ctx, "nft delete table inet cutoff")
		if err == nil {
			return errors.Join(opened, fmt.Errorf("it succeeds: %s", said))
		}
		for _, want := range []string{"does not reach meshpulse", "firewall", "NetworkPolicy", "host-network"} {
			if !strings.Contains(said, want) {
				return errors.Join(opened, fmt.Errorf("it does not name %s: %s", want, said))
			}
		}
		left, err := r.kubectl(ctx, "get", "apiservices", "-o", "name")
		if err == nil && (strings.Contains(left, "metrics.k8s.io") || strings.Contains(left, "meshpulse")) {
			err = fmt.Errorf("left are %s", left)
		}
		_, removed := r.sh(ctx, "manifests/uninstall.sh")
		return errors.Join(opened, err, removed)
	}}}
}
