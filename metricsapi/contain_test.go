package metricsapi

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// What an informer's handlers and the catalog fail at does not end the process, and what comes
// after it is taken.
func TestAFaultOfTheHPAsInformerIsContained(t *testing.T) {
	store, faults := fixture.FaultStore(t)
	object := func(name, query string) *autoscalingv2.HorizontalPodAutoscaler {
		return asks(t, name, "rps", query).HorizontalPodAutoscaler
	}
	client := fake.NewClientset(object("a", "vector(1)"))
	api := client.AutoscalingV2().HorizontalPodAutoscalers("test")
	c := newCatalog(store, newWarner(func(hpas.HPA, hpas.Problem) {}, newMetrics(nil)))
	t.Cleanup(c.Close)
	followFails, scaledFails := fixture.Once(), fixture.Once()
	c.follow = func(s *snapshot) {
		if len(s.hpas) == 2 {
			followFails()
		}
	}
	s, err := cluster.NewHPAs(client, c.store.Contain, discardLog(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	s.Replace = c.Replace
	var scaled atomic.Int64
	s.Scaled = func(_, _ *autoscalingv2.HorizontalPodAutoscaler) {
		scaledFails()
		scaled.Add(1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
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
	wait("not synced", func() bool { return s.Synced() == nil })
	must(api.Create(ctx, object("b", "vector(2)"), metav1.CreateOptions{}))
	wait("the catalog does not fail", func() bool { return faults() == 1 })
	changed := object("a", "vector(3)")
	changed.ResourceVersion = "2"
	must(api.Update(ctx, changed, metav1.UpdateOptions{}))
	wait("the handler does not fail", func() bool { return faults() == 2 })
	must(api.Create(ctx, object("c", "vector(4)"), metav1.CreateOptions{}))
	wait("the HPAs that came after the faults are not known", func() bool { return len(c.current.Load().hpas) == 3 })
	changed = object("a", "vector(5)")
	changed.ResourceVersion = "3"
	must(api.Update(ctx, changed, metav1.UpdateOptions{}))
	wait("a change after the fault is not told", func() bool { return scaled.Load() > 0 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
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
	fails := fixture.Once()
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
