package cluster

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestAFaultOfThePodsInformerIsContained(t *testing.T) {
	store, faults := fixture.FaultStore(t)
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: name, Annotations: map[string]string{"sidecar.istio.io/status": "{}"}},
		}
	}
	client := fake.NewClientset(pod("a"), pod("b"))
	fails := fixture.Once()
	x, err := NewPods(client, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	x.contain = store.Contain
	x.now = func() time.Time { fails(); return time.Now() } // it is asked when a pod goes
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { x.Run(ctx); close(done) }()
	known := func(n int) {
		t.Helper()
		eventually(t, func() bool { return x.Synced() == nil && len(podsOf(x)) == n }, func() string { return "the pods are not known" })
	}
	known(2)
	pods := client.CoreV1().Pods("test")
	if err := pods.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return faults() == 1 }, func() string { return "the handler does not fail" })
	if err := pods.Delete(ctx, "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.gone[types.NamespacedName{Namespace: "test", Name: "b"}] != nil
	}
	eventually(t, gone, func() string { return "a pod that went after the fault is not known to be gone" })
	cancel()
	<-done
}

// A pod that cannot be read is not known; the others are.
func TestAPodThatCannotBeReadIsLeftOut(t *testing.T) {
	store, faults := fixture.FaultStore(t)
	x, err := NewPods(nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	x.contain, x.leaving = store.Contain, nil // a map that cannot be written
	deleted := metav1.Now()
	object := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: "a", DeletionTimestamp: &deleted}}
	kept, err := x.Transform(object)
	if kept != any(object) || err != nil || faults() != 1 {
		t.Errorf("kept %v, %v; %v faults", kept, err, faults())
	}
	x.add(kept)
	if n := len(podsOf(x)); n != 0 {
		t.Errorf("%d pods are known", n)
	}
}

func TestAFaultOfAnEventIsContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, faults := fixture.FaultStore(t)
		client := fake.NewClientset()
		fails := fixture.Once()
		client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			fails()
			return false, nil, nil
		})
		events := newAPIEvents(client.CoreV1(), discardLog(), time.Now)
		events.contain = store.Contain
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { events.Run(ctx); close(done) }()
		for _, name := range []string{"a", "b"} {
			events.Warn(hpa(name), hpas.Problem{Reason: hpas.ReasonBadQuery, Message: "x"})
			time.Sleep(time.Second)
			synctest.Wait()
		}
		list, err := client.CoreV1().Events("test").List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 || list.Items[0].InvolvedObject.Name != "b" || faults() != 1 {
			t.Errorf("%d events, %v; %v faults", len(list.Items), err, faults())
		}
		cancel()
		<-done
	})
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// eventually waits for as long as a loaded machine may take.
func eventually(t *testing.T, ok func() bool, state func() string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(state())
		}
	}
}

// hpa is an HPA of namespace test.
func hpa(name string) hpas.HPA {
	return hpas.HPA{HorizontalPodAutoscaler: &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: name}}}
}
