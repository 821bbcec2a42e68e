package metricsapi

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
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

// An old raise that is told late, or one of an HPA that is not known here, changes nothing.
func TestARaiseThatIsToldLateIsNoNews(t *testing.T) {
	first, second, dies := actPair(t, scaleAction)
	first.surge(60)
	first.look()
	first.expect("the first owner", []int32{4}, "podinfo SurgeScaled")
	second.x.wasTold(raised{UID: "1", From: 1, To: 2, Ago: time.Minute, Flush: 5 * time.Second})
	second.x.wasTold(raised{UID: "gone", From: 1, To: 2})
	dies()
	second.wait(6 * time.Second)
	second.surge(90)
	second.look()
	second.expect("from there on", []int32{8}, "podinfo SurgeScaled")
}
