package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
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
		{" --component own-namespaces --component guaranteed --component custom-metrics", "restricted", func(pod *corev1.Pod) bool {
			args := pod.Spec.Containers[0].Args
			return pod.Status.QOSClass == corev1.PodQOSGuaranteed && slices.Contains(args, "--query-namespaces=own") && slices.Contains(args, "--custom-metrics")
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
		claimed := "" // without the component nobody would answer
		if strings.Contains(c.components, "custom-metrics") {
			claimed = "apiservice.apiregistration.k8s.io/" + customAPI
		}
		if err := r.expect(ctx, claimed, "get", "apiservice", customAPI, "--ignore-not-found", "-o", "name"); err != nil {
			return err
		}
	}
	return nil
}

// customAPI is what install.sh and the chart claim where custom metrics are asked for.
const customAPI = "v1beta2.custom.metrics.k8s.io"
