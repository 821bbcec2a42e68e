package metricsapi

import (
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
)

// From a raise on the answer asks for the replicas raised to, until the new pods have two rows
// each.
func TestTheAnswerAgrees(t *testing.T) {
	of := func(a *actTest, metric int) (int64, string) {
		a.Helper()
		o := a.x.catalog.current.Load().hpas[0].offers[metric]
		v, _, refused := a.x.rules.evaluate(a.Context(), "rps", o, o.prepared, a.at)
		if refused != nil {
			a.Fatal(refused)
		}
		return v.sum(), v.reason
	}
	value := func(a *actTest) (int64, string) { return of(a, 0) }
	// raised has raised 1 to 4, and nobody surges any more.
	raised := func(t *testing.T, pods ...cluster.Pod) *actTest {
		a := newActTest(t, scaleAction)
		a.x.pods = fixedPods(pods)
		a.x.rules.holder = &holder{pods: fixedPods{}, store: a.x.store, started: a.x.store.Started(), hold: time.Minute}
		a.surge(60)
		a.look()
		a.surges["prometheus-query"].surge.Active = false
		return a
	}
	pod := func(name string, after time.Duration) cluster.Pod {
		return cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "test", Name: name, Workload: "podinfo"}, Created: time.Now().Add(2*time.Minute + after)}
	}
	t.Run("for so many seconds at most", func(t *testing.T) {
		a := raised(t)
		for range longestAgreement/(5*time.Second) - 1 {
			a.wait(5 * time.Second)
			if v, reason := value(a); v != 40_000 || !strings.Contains(reason, "raised to 4 replicas") {
				t.Errorf("%d (%s), want 40", v, reason)
			}
		}
		a.wait(5 * time.Second)
		if v, reason := value(a); v >= 10_000 || reason != "" {
			t.Errorf("then: %d (%s), want what is seen", v, reason)
		}
	})
	t.Run("until the new pods have two rows each", func(t *testing.T) {
		a := raised(t, pod("a", -time.Hour), pod("b", time.Second), pod("c", time.Second), pod("d", 2*time.Second))
		step := func(d time.Duration, want bool, flushing ...string) {
			t.Helper()
			a.wait(d)
			for _, p := range flushing {
				a.flush(p, a.at)
			}
			if _, reason := value(a); (reason != "") != want {
				t.Errorf("after %v have flushed: %q, agrees is to be %v", flushing, reason, want)
			}
		}
		step(time.Second, true)
		step(5*time.Second, true, "b", "c")
		step(time.Second, true, "d")
		step(4*time.Second, true, "b", "c")
		step(time.Second, false, "d")
	})
	t.Run("until somebody lowers the target", func(t *testing.T) {
		a := raised(t)
		a.wait(time.Second)
		a.scales.spec = 2
		if v, reason := value(a); v >= 10_000 || reason != "" {
			t.Errorf("%d (%s), want what is seen", v, reason)
		}
		a.scales.spec = 4 // by the controller, which goes by what it sees
		if v, reason := value(a); v >= 10_000 || reason != "" {
			t.Errorf("then: %d (%s), want what is seen", v, reason)
		}
	})
	t.Run("until the action yields", func(t *testing.T) {
		a := raised(t)
		a.wait(6 * time.Second)
		a.scales.spec = 2
		a.surge(15)
		a.look()
		a.scales.spec = 4
		if v, reason := value(a); v != 15_000 || reason != "" {
			t.Errorf("%d (%s), want the surge's", v, reason)
		}
	})
	t.Run("for targets of type AverageValue alone", func(t *testing.T) {
		a := newActTest(t, scaleAction, func(h *autoscalingv2.HorizontalPodAutoscaler) {
			ratio := h.Spec.Metrics[0].DeepCopy()
			ratio.External.Metric.Name = "istio-requests-per-second"
			ratio.External.Metric.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"destination_workload": "podinfo"}}
			ratio.External.Target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ratio.External.Target.AverageValue}
			h.Spec.Metrics = append(h.Spec.Metrics, *ratio)
		})
		a.x.rules.holder = &holder{pods: fixedPods{}, store: a.x.store, started: a.x.store.Started(), hold: time.Minute}
		a.surge(60)
		a.look()
		if v, reason := of(a, 0); v != 60_000 || reason != "" {
			t.Errorf("of type AverageValue: %d (%s), want the surge's", v, reason)
		}
		a.surges["prometheus-query"].surge.Active = false
		if v, _ := of(a, 0); v != 40_000 {
			t.Errorf("of type AverageValue: %d, want 40", v)
		}
		if v, reason := of(a, 1); v >= 10_000 || reason != "" {
			t.Errorf("of type Value: %d (%s), want what is seen", v, reason)
		}
	})
	t.Run("not with an answer within the tolerance of the pods that are there", func(t *testing.T) {
		a := newActTest(t, scaleAction, func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MaxReplicas = 100 })
		a.x.rules.holder = &holder{pods: fixedPods{}, store: a.x.store, started: a.x.store.Started(), hold: time.Minute}
		a.scales.spec, a.scales.status = 20, 20
		a.surge(223)
		a.look()
		a.expect("raised", []int32{23}, "podinfo SurgeScaled")
		surge := &a.surges["prometheus-query"].surge
		o := a.x.catalog.current.Load().hpas[0].offers[0]
		for _, tc := range []struct {
			status int32
			seen   float64 // of a surge, 0: none
			want   int64   // 0: no answer
		}{{20, 0, 230_000}, {21, 0, 0}, {22, 0, 0}, {23, 0, 230_000}, {24, 0, 230_000}, {21, 231, 0}, {21, 232, 232_000}, {22, 240, 0}} {
			a.scales.status, surge.Active, surge.Value, surge.Rate = tc.status, tc.seen > 0, tc.seen, tc.seen
			v, _, refused := a.x.rules.evaluate(a.Context(), "rps", o, o.prepared, a.at)
			reading := horizontal.Reading{Milli: v.sum(), Known: refused == nil}
			switch {
			case refused == nil && v.sum() != tc.want:
				t.Errorf("%+v: %d (%s)", tc, v.sum(), v.reason)
			case refused != nil && (tc.want != 0 || refused.outcome != outcomeHeld):
				t.Errorf("%+v: %v", tc, refused)
			}
			target := horizontal.Target{Spec: 23, Status: tc.status}
			if d := a.x.settings.Decide(&a.object.Spec, target, []horizontal.Reading{reading}, &horizontal.Past{}, a.at); d.Computed && d.Recommended < 23 {
				t.Errorf("%+v: the controller asks for %d", tc, d.Recommended)
			}
		}
	})
	t.Run("observing changes nothing", func(t *testing.T) {
		a := newActTest(t, "meshpulse.io/surge-action: observe")
		a.surge(60)
		a.look()
		a.surges["prometheus-query"].surge.Active = false
		if v, reason := value(a); v >= 10_000 || reason != "" {
			t.Errorf("%d (%s), want what is seen", v, reason)
		}
	})
}
