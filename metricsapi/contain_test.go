package metricsapi

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshpulse/meshpulse/aggregator"
)

// newFaultStore is a store and what it counts as faults of a part.
func newFaultStore(t *testing.T) (s *aggregator.Store, faults func() float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	s, err := aggregator.New(aggregator.Config{Registerer: registry, Logger: discardLog()})
	if err != nil {
		t.Fatal(err)
	}
	return s, func() float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := 0.0
		for _, f := range families {
			for _, m := range f.Metric {
				if f.GetName() == "meshpulse_faults_total" {
					n += m.GetCounter().GetValue()
				}
			}
		}
		return n
	}
}

// once panics at its first call.
func once() func() {
	var done atomic.Bool
	return func() {
		if done.CompareAndSwap(false, true) {
			panic("a defect")
		}
	}
}

// What an informer's handlers and the catalog fail at does not end the process, and what comes after it is taken.
func TestAFaultOfTheHPAsInformerIsContained(t *testing.T) {
	store, faults := newFaultStore(t)
	object := func(name, query string) *autoscalingv2.HorizontalPodAutoscaler {
		return asks(t, name, "rps", query).HorizontalPodAutoscaler
	}
	client := fake.NewClientset(object("a", "vector(1)"))
	hpas := client.AutoscalingV2().HorizontalPodAutoscalers("test")
	c := newCatalog(store, newWarner(func(sourceHPA, Problem) {}, newMetrics(nil)))
	t.Cleanup(c.Close)
	followFails, scaledFails := once(), once()
	c.follow = func(s *snapshot) {
		if len(s.hpas) == 2 {
			followFails()
		}
	}
	s, err := newClusterSource(client, c, discardLog(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var scaled atomic.Int64
	s.scaled = func(_, _ *autoscalingv2.HorizontalPodAutoscaler) {
		scaledFails()
		scaled.Add(1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	wait := func(what string, ok func() bool) {
		t.Helper()
		eventually(t, ok, func() string { return what })
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wait("not synced", func() bool { return s.synced() == nil })
	must(hpas.Create(ctx, object("b", "vector(2)"), metav1.CreateOptions{}))
	wait("the catalog does not fail", func() bool { return faults() == 1 })
	changed := object("a", "vector(3)")
	changed.ResourceVersion = "2"
	must(hpas.Update(ctx, changed, metav1.UpdateOptions{}))
	wait("the handler does not fail", func() bool { return faults() == 2 })
	must(hpas.Create(ctx, object("c", "vector(4)"), metav1.CreateOptions{}))
	wait("the HPAs that came after the faults are not known", func() bool { return len(c.current.Load().hpas) == 3 })
	changed = object("a", "vector(5)")
	changed.ResourceVersion = "3"
	must(hpas.Update(ctx, changed, metav1.UpdateOptions{}))
	wait("a change after the fault is not told", func() bool { return scaled.Load() > 0 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAFaultOfThePodsInformerIsContained(t *testing.T) {
	store, faults := newFaultStore(t)
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: name, Annotations: map[string]string{"sidecar.istio.io/status": "{}"}},
		}
	}
	client := fake.NewClientset(pod("a"), pod("b"))
	fails := once()
	x, err := newPodIndex(client, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	x.contain = store.Contain
	x.now = func() time.Time { fails(); return time.Now() } // it is asked when a pod goes
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { x.run(ctx); close(done) }()
	known := func(n int) {
		t.Helper()
		eventually(t, func() bool { return x.synced() == nil && len(podsOf(x)) == n }, func() string { return "the pods are not known" })
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
		return x.gone[podKey{"test", "b"}] != nil
	}
	eventually(t, gone, func() string { return "a pod that went after the fault is not known to be gone" })
	cancel()
	<-done
}

// A pod that cannot be read is not known; the others are.
func TestAPodThatCannotBeReadIsLeftOut(t *testing.T) {
	store, faults := newFaultStore(t)
	x, err := newPodIndex(nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	x.contain, x.leaving = store.Contain, nil // a map that cannot be written
	deleted := metav1.Now()
	object := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: "a", DeletionTimestamp: &deleted}}
	kept, err := x.transform(object)
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
		store, faults := newFaultStore(t)
		client := fake.NewClientset()
		fails := once()
		client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			fails()
			return false, nil, nil
		})
		events := newAPIEvents(client.CoreV1(), discardLog(), time.Now)
		events.contain = store.Contain
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { events.run(ctx); close(done) }()
		for _, name := range []string{"a", "b"} {
			events.deliver(asks(t, name, "rps", "vector(1)"), Problem{ReasonBadQuery, "x"})
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

// A raise that fails in the middle leaves nothing locked: the next row raises.
func TestAFaultOfARaiseIsContained(t *testing.T) {
	a := newActTest(t, scaleAction)
	status, fresh := a.x.hpa, a.x.fresh
	for what, fails := range map[string]func(){
		"the HPA is read": func() {
			a.x.fresh = func(context.Context, string, string) (*autoscalingv2.HorizontalPodAutoscaler, error) {
				panic("a defect")
			}
		},
		"it is computed": func() { a.x.rules = nil },
	} {
		rules := a.x.rules
		fails()
		a.wait(10 * time.Second)
		a.surge(60)
		a.look()
		a.expect("a fault while "+what, nil)
		a.x.fresh, a.x.hpa, a.x.rules = fresh, status, rules
	}
	a.wait(10 * time.Second)
	a.surge(60)
	a.look()
	a.expect("after the faults", []int32{4}, "podinfo SurgeScaled")
}

// What a fault has kept from the catalog is tried again when the folder is next looked at.
func TestAFaultOfTheFilesIsContained(t *testing.T) {
	d := newHPADir(t)
	d.write("a.yaml", minimalHPA("a"))
	fails := once()
	d.catalog.follow = func(s *snapshot) {
		if len(s.hpas) == 2 {
			fails()
		}
	}
	d.start()
	d.wait("a")
	d.write("b.yaml", minimalHPA("b"))
	d.wait("a b")
}
