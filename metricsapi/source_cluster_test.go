package metricsapi

import (
	"context"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
)

// The informer's plumbing: what comes, changes and goes reaches the catalog; a change of the status
// alone does not rebuild it. The real API server is in the lab's tests.
func TestClusterSource(t *testing.T) {
	object := func(name, query string) *autoscalingv2.HorizontalPodAutoscaler {
		return asks(t, name, "rps", query).HorizontalPodAutoscaler
	}
	first := object("a", "vector(1)")
	first.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}`)}}
	client := fake.NewClientset(first)
	hpas := client.AutoscalingV2().HorizontalPodAutoscalers("test")
	c, _ := newTestCatalog(t)
	s, err := cluster.NewHPAs(client, c.store.Contain, discardLog(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	s.Replace = c.Replace
	if s.Synced() == nil {
		t.Error("synced before anything was read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	expressions := func() string {
		var all []string
		for _, h := range c.current.Load().hpas {
			all = append(all, h.Name+"="+h.Metrics[0].Expr)
		}
		return strings.Join(all, " ")
	}
	wait := func(want string) {
		t.Helper()
		eventually(t, func() bool { return expressions() == want && s.Synced() == nil }, func() string { return "HPAs are " + expressions() + ", want " + want })
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wait("a=vector(1)")
	if h, ok := s.Known("test", "a"); !ok || h.ManagedFields != nil {
		t.Errorf("%v is kept, with what nobody reads of it", h)
	}
	must(hpas.Create(ctx, object("b", "vector(2)"), metav1.CreateOptions{}))
	wait("a=vector(1) b=vector(2)")
	must(hpas.Update(ctx, object("a", "vector(3)"), metav1.UpdateOptions{}))
	wait("a=vector(3) b=vector(2)")

	before := c.current.Load()
	scaled := object("a", "vector(3)")
	scaled.Status.CurrentReplicas = 4
	must(hpas.UpdateStatus(ctx, scaled, metav1.UpdateOptions{}))
	eventually(t, func() bool { h, ok := s.Known("test", "a"); return ok && h.Status.CurrentReplicas == 4 }, func() string { return "the status does not arrive" })
	if c.current.Load() != before {
		t.Error("a status rebuilt the catalog")
	}
	if _, ok := s.Known("test", "missing"); ok {
		t.Error("an HPA that there is not has replicas")
	}

	must(nil, hpas.Delete(ctx, "a", metav1.DeleteOptions{}))
	wait("b=vector(2)")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
