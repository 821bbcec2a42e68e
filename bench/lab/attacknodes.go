package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/meshpulse/meshpulse/bench/attack"
)

// nodes play those that run the pods of some namespaces: a pod gets an address and is ready. There
// is nothing in it; its sidecar is one of attack's, since nothing but an exact pace tells a
// hundredth.
type nodes struct {
	client     kubernetes.Interface
	namespaces []string

	mu      sync.Mutex
	pods    map[types.UID]attack.Pod
	next    int
	started func(attack.Pod) (stop func()) // nil between attacks
	stops   map[types.UID]func()
}

// look starts what is new and ends what has to.
func (n *nodes) look(ctx context.Context) error {
	there := map[types.UID]bool{}
	for _, ns := range n.namespaces {
		list, err := n.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		for _, pod := range list.Items {
			if pod.DeletionTimestamp != nil {
				none := int64(0)
				_ = n.client.CoreV1().Pods(ns).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &none}) // again at the next look
				continue
			}
			there[pod.UID] = true
			if err := n.start(ctx, &pod); err != nil {
				return err
			}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid := range n.pods {
		if !there[uid] {
			n.stop(uid)
			delete(n.pods, uid)
		}
	}
	return nil
}

func (n *nodes) start(ctx context.Context, pod *corev1.Pod) error {
	n.mu.Lock()
	_, known := n.pods[pod.UID]
	number := n.next
	if !known {
		n.next++
	}
	n.mu.Unlock()
	if known {
		return nil
	}
	p := attack.Pod{Namespace: pod.Namespace, Name: pod.Name, Workload: workload, Address: fmt.Sprintf("127.98.%d.%d", number/200, 1+number%200)}
	if err := n.run(ctx, p.Namespace, p.Name, p.Address); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods == nil {
		n.pods, n.stops = map[types.UID]attack.Pod{}, map[types.UID]func(){}
	}
	n.pods[pod.UID] = p
	if n.started != nil {
		n.stops[pod.UID] = n.started(p)
	}
	return nil
}

// run writes what a kubelet would: the pod runs at its address.
func (n *nodes) run(ctx context.Context, namespace, name, address string) error {
	now := metav1.Now()
	status := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}, HostIP: "127.0.0.1", StartTime: &now}
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.PodScheduled, corev1.ContainersReady, corev1.PodReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = n.client.CoreV1().Pods(namespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// running are the pods of a namespace.
func (n *nodes) running(namespace string) (all []attack.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		if p.Namespace == namespace {
			all = append(all, p)
		}
	}
	return all
}

// silence ends the sidecar of a pod of a namespace, which lives on, until again is called.
func (n *nodes) silence(namespace string) (pod attack.Pod, again func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid, p := range n.pods {
		if p.Namespace != namespace || n.stops[uid] == nil {
			continue
		}
		n.stop(uid)
		return p, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.started != nil {
				n.stops[uid] = n.started(p)
			}
		}, nil
	}
	return attack.Pod{}, nil, fmt.Errorf("no pod of %s reports", namespace)
}

// report lets a sidecar of every pod report, and of those that come, until the context ends.
func (n *nodes) report(ctx context.Context, sidecars func(namespace string) *attack.Sidecars) {
	var all sync.WaitGroup
	started := func(p attack.Pod) func() {
		reporting, stop := context.WithCancel(ctx)
		all.Go(func() { sidecars(p.Namespace).Run(reporting, p) })
		return stop
	}
	n.mu.Lock()
	n.started = started
	for uid, p := range n.pods {
		n.stops[uid] = started(p)
	}
	n.mu.Unlock()
	for sleep(ctx, 500*time.Millisecond) {
		_ = n.look(ctx) // the API server is asked again
	}
	n.mu.Lock()
	n.started = nil
	for uid := range n.stops {
		n.stop(uid)
	}
	n.mu.Unlock()
	all.Wait()
}

// stop ends a pod's sidecar. The lock is held.
func (n *nodes) stop(uid types.UID) {
	if stop := n.stops[uid]; stop != nil {
		stop()
		delete(n.stops, uid)
	}
}
