package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// otherPods installs meshpulse with the components that change its pod, and at last without any.
// Each time the API server has to reach the new pod, at whatever address and port it is.
func (r *reader) otherPods(ctx context.Context) error {
	for _, c := range []struct {
		components, enforced string
		is                   func(*corev1.Pod) bool
	}{
		{" --component own-namespaces --component guaranteed", "restricted", func(pod *corev1.Pod) bool {
			return pod.Status.QOSClass == corev1.PodQOSGuaranteed && slices.Contains(pod.Spec.Containers[0].Args, "--query-namespaces=own")
		}},
		{" --component host-network", "privileged", func(pod *corev1.Pod) bool {
			return pod.Spec.HostNetwork && pod.Status.PodIP == nodeIP
		}},
		{"", "restricted", func(pod *corev1.Pod) bool {
			return !pod.Spec.HostNetwork && pod.Status.QOSClass == corev1.PodQOSBurstable && pod.Status.PodIP != nodeIP
		}},
	} {
		if err := r.composed(ctx, c.components); err != nil {
			return err
		}
		if err := r.expect(ctx, c.enforced, "get", "namespace", namespace, "-o", `jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}`); err != nil {
			return err
		}
		if err := r.eventually(ctx, time.Minute, func() error { // until the old one has gone
			pod, err := r.pod(ctx)
			if err == nil && !c.is(pod) {
				err = fmt.Errorf("with install.sh%s the pod is %s at %s, on the node's network: %v, started with %q",
					c.components, pod.Status.QOSClass, pod.Status.PodIP, pod.Spec.HostNetwork, pod.Spec.Containers[0].Args)
			}
			return err
		}); err != nil {
			return err
		}
		if err := r.answers(ctx); err != nil {
			return err
		}
	}
	return nil
}
