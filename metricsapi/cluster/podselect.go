package cluster

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// SelectedPod is a pod that a label selector means.
type SelectedPod struct {
	Name    string
	Created time.Time
	// Ready as an HPA controller counts it: it runs, and its condition says so.
	Ready bool
}

// SelectPods asks the API server for the pods of a namespace that a selector means, as its cache
// has them: labels are not kept here, since hardly anybody asks by them.
func SelectPods(ctx context.Context, client kubernetes.Interface, namespace, selector string) ([]SelectedPod, error) {
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector, FieldSelector: livingPods.String(), ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("pods of namespace %s with labels %q cannot be listed: %w", namespace, selector, err)
	}
	found := make([]SelectedPod, len(list.Items))
	for i := range list.Items {
		p := &list.Items[i]
		found[i] = SelectedPod{p.Name, p.CreationTimestamp.Time, p.Status.Phase == corev1.PodRunning && isReady(p)}
	}
	return found, nil
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
