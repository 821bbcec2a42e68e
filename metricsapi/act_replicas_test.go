package metricsapi

import (
	"context"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
)

// actPair are two replicas that see the same surge and the same target; the first leads.
func actPair(t *testing.T, action string) (first, second *actTest, dies func()) {
	t.Helper()
	first, second = newActTest(t, action), newActTest(t, action)
	second.scales = first.scales
	second.x.targets = first.scales.client()
	alive := true
	first.x.leads = func(*aggregator.Query, string) bool { return true }
	second.x.leads = func(*aggregator.Query, string) bool { return !alive }
	first.x.tell = func(_ context.Context, _ *aggregator.Query, _ string, r raised) { second.x.wasTold(r) }
	return first, second, func() { alive = false }
}

func TestOneOfTwoReplicasRaises(t *testing.T) {
	first, second, dies := actPair(t, scaleAction)
	for _, a := range []*actTest{second, first} {
		a.surge(60)
		a.look()
	}
	first.expect("the first owner", []int32{4}, "podinfo SurgeScaled")
	second.expect("the second", nil)
	// The second goes on where the first ends: by what it was told, a flush after the last raise.
	dies()
	second.wait(time.Second)
	second.surge(90)
	second.look()
	second.expect("within the flush of the first's raise", nil)
	second.wait(5 * time.Second)
	second.surge(90)
	second.look()
	second.expect("after it", []int32{8}, "podinfo SurgeScaled")
}

// Two that cannot hear each other both act. The one begins where the other has ended, so they ask
// for no more than the rate does, and neither lowers what the other has raised.
func TestTwoReplicasThatDoNotHearEachOtherRaiseNoFurtherThanOne(t *testing.T) {
	first, second, dies := actPair(t, scaleAction)
	first.x.tell = func(context.Context, *aggregator.Query, string, raised) {}
	dies() // to the second's ears
	for _, rate := range []float64{60, 60, 60} {
		first.surge(rate)
		first.look()
		second.surge(rate * 0.8) // what reaches one of two
		second.look()
		for _, a := range []*actTest{first, second} {
			a.wait(6 * time.Second)
		}
	}
	first.expect("what both write", []int32{4, 5, 6}, "podinfo SurgeScaled", "podinfo SurgeScaled")
	second.expect("the second, whose write is among these", nil, "podinfo SurgeScaled")
}

func TestTheOtherReplicasAnswerAgreesWithARaise(t *testing.T) {
	first, second, _ := actPair(t, scaleAction)
	second.x.rules.holder = &holder{pods: fixedPods{}, store: second.x.store, started: second.x.store.Started(), hold: time.Minute}
	first.surge(60)
	first.look()
	o := second.x.catalog.current.Load().hpas[0].offers[0]
	v, _, refused := second.x.rules.evaluate(t.Context(), "rps", o, o.prepared, second.at)
	if refused != nil || v.sum() != 40_000 || !strings.Contains(v.reason, "raised to 4 replicas") {
		t.Errorf("%d (%s), %v: want 40", v.sum(), v.reason, refused)
	}
}

// readBefore are targets of which the other replica has read a scale just before the raise.
type readBefore struct {
	targets
	scale *autoscalingv1.Scale
}

func (r readBefore) Recent(context.Context, string, autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	return r.scale, nil
}

func TestAScaleFromBeforeARaiseDoesNotEndTheAgreement(t *testing.T) {
	first, second, _ := actPair(t, scaleAction)
	second.x.rules.holder = &holder{pods: fixedPods{}, store: second.x.store, started: second.x.store.Started(), hold: time.Minute}
	fresh := second.x.targets
	second.x.targets = readBefore{fresh, scaleOf(horizontal.Target{Spec: 1, Status: 1})}
	first.surge(60)
	first.look()
	o := second.x.catalog.current.Load().hpas[0].offers[0]
	for _, step := range []string{"at once", "by a scale that is read anew"} {
		v, _, refused := second.x.rules.evaluate(t.Context(), "rps", o, o.prepared, second.at)
		if refused != nil || v.sum() != 40_000 || !strings.Contains(v.reason, "raised to 4 replicas") {
			t.Errorf("%s: %d (%s), %v: want 40", step, v.sum(), v.reason, refused)
		}
		second.x.targets = fresh
	}
	// Who lowers the target afterwards is not contradicted.
	second.x.targets = readBefore{fresh, scaleOf(horizontal.Target{Spec: 2, Status: 2})}
	second.wait(time.Second)
	if v, _, refused := second.x.rules.evaluate(t.Context(), "rps", o, o.prepared, second.at); refused != nil || strings.Contains(v.reason, "raised") {
		t.Errorf("lowered: %d (%s), %v", v.sum(), v.reason, refused)
	}
}

// What is only observed raises nothing, so no answer agrees with it.
func TestNoAnswerAgreesWithWhatAnotherReplicaObserves(t *testing.T) {
	first, second, _ := actPair(t, "meshpulse.io/surge-action: observe")
	second.x.rules.holder = &holder{pods: fixedPods{}, store: second.x.store, started: second.x.store.Started(), hold: time.Minute}
	first.surge(60)
	first.look()
	first.expect("the first owner", nil, "podinfo SurgeObserved")
	o := second.x.catalog.current.Load().hpas[0].offers[0]
	v, _, refused := second.x.rules.evaluate(t.Context(), "rps", o, o.prepared, second.at)
	if refused != nil || v.reason != "" {
		t.Errorf("%d (%s), %v: want what is seen", v.sum(), v.reason, refused)
	}
}

// A raise of an HPA that is not known here changes nothing.
func TestARaiseOfAnHPAThatIsNotKnownIsNoNews(t *testing.T) {
	first, second, dies := actPair(t, scaleAction)
	first.surge(60)
	first.look()
	first.expect("the first owner", []int32{4}, "podinfo SurgeScaled")
	second.x.wasTold(raised{UID: "gone", From: 1, To: 2})
	dies()
	second.wait(6 * time.Second)
	second.surge(90)
	second.look()
	second.expect("from there on", []int32{8}, "podinfo SurgeScaled")
}
