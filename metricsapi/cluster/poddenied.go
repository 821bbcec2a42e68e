package cluster

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// denyWithin is how long the API server has to say that it has no such pod: a stream's first flush
// waits for that.
const denyWithin = time.Second

// Denies asks the API server itself, and reports whether it says that there is no such pod, or that
// it has finished. What an informer does not know may be on its way. A read by name costs the API
// server 1 to 2 ms.
func (x *Pods) Denies(namespace, name string) bool {
	if x.client == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), denyWithin)
	defer cancel()
	this := fields.AndSelectors(fields.OneTermEqualSelector(metav1.ObjectNameField, name), livingPods).String()
	list, err := x.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: this}) // list is what meshpulse may do
	return err == nil && !slices.ContainsFunc(list.Items, func(p corev1.Pod) bool { return p.Name == name })
}
