package cluster

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func sliceOf(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	port, called := int32(15091), PeersPort
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "meshpulse-system", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "meshpulse-peers"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &called, Port: &port}}, Endpoints: endpoints,
	}
}

func endpoint(pod, address string, ready, leaving bool) discoveryv1.Endpoint {
	always := true // as publishNotReadyAddresses has it
	return discoveryv1.Endpoint{
		Addresses: []string{address}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: pod},
		Conditions: discoveryv1.EndpointConditions{Ready: &always, Serving: &ready, Terminating: &leaving},
	}
}

func TestReplicasAreReadFromEndpoints(t *testing.T) {
	zone := "a"
	zoned := endpoint("meshpulse-1", "fd00::1", true, false)
	zoned.Zone = &zone
	nobodys := endpoint("", "10.0.0.9", true, false)
	nobodys.TargetRef = nil
	other := sliceOf("other")
	other.Ports = nil
	other.Endpoints = []discoveryv1.Endpoint{endpoint("meshpulse-7", "10.0.0.7", true, false)}
	got := replicasOf([]any{
		sliceOf("one", endpoint("meshpulse-2", "10.0.0.2", true, true), zoned, nobodys),
		sliceOf("two", endpoint("meshpulse-0", "10.0.0.1", false, false), endpoint("meshpulse-2", "10.0.0.3", false, false)),
		other,
	})
	want := []Replica{
		{Name: "meshpulse-0", Address: "10.0.0.1:15091"},
		{Name: "meshpulse-1", Address: "[fd00::1]:15091", Zone: "a", Ready: true},
		{Name: "meshpulse-2", Address: "10.0.0.3:15091"}, // its successor, not the one that leaves
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReplicasAreToldAtEachChange(t *testing.T) {
	client := fake.NewClientset(sliceOf("one", endpoint("meshpulse-0", "10.0.0.1", false, false)))
	told := make(chan []Replica, 100)
	r, err := NewReplicas(client, "meshpulse-system/meshpulse-peers", func(found []Replica) { told <- found }, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ran sync.WaitGroup
	ran.Go(func() { r.Run(ctx) })
	defer func() {
		cancel()
		ran.Wait()
	}()
	until := func(what string, is func([]Replica) bool) {
		t.Helper()
		for after := time.After(30 * time.Second); ; {
			select {
			case found := <-told:
				if is(found) {
					return
				}
			case <-after:
				t.Fatalf("not told: %s", what)
			}
		}
	}
	until("one that joins", func(found []Replica) bool { return len(found) == 1 && !found[0].Ready })
	next := sliceOf("one", endpoint("meshpulse-0", "10.0.0.1", true, false), endpoint("meshpulse-1", "10.0.0.2", false, false))
	if _, err := client.DiscoveryV1().EndpointSlices("meshpulse-system").Update(ctx, next, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until("two, of which one is ready", func(found []Replica) bool { return len(found) == 2 && found[0].Ready && !found[1].Ready })
	if err := client.DiscoveryV1().EndpointSlices("meshpulse-system").Delete(ctx, "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("none", func(found []Replica) bool { return len(found) == 0 })
}

func TestTheServiceOfReplicasHasANamespace(t *testing.T) {
	for _, service := range []string{"", "meshpulse-peers", "/meshpulse-peers", "meshpulse-system/"} {
		if _, err := NewReplicas(fake.NewClientset(), service, nil, nil); err == nil {
			t.Errorf("%q is taken", service)
		}
	}
}

func TestHowManyReplicasThereAreToBe(t *testing.T) {
	three := int32(3)
	set := func(name string, n *int32) *appsv1.StatefulSet {
		return &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: appsv1.StatefulSetSpec{Replicas: n}}
	}
	client := fake.NewClientset(set("three", &three), set("unset", nil))
	for name, want := range map[string]int32{"a/three": 3, "a/unset": 1} {
		if got, err := statefulSetReplicas(t.Context(), client, name); err != nil || got != want {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	if _, err := statefulSetReplicas(t.Context(), client, "a/gone"); err == nil {
		t.Error("one that is gone has replicas")
	}
}
