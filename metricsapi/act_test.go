package metricsapi

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestRaise(t *testing.T) {
	never := autoscalingv2.DisabledPolicySelect
	wait := int32(60)
	pods := func(n, seconds int32) autoscalingv2.HPAScalingPolicy {
		return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: n, PeriodSeconds: seconds}
	}
	condition := func(reason string) func(*autoscalingv2.HorizontalPodAutoscaler) {
		return func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Status.Conditions = []autoscalingv2.HorizontalPodAutoscalerCondition{{Type: autoscalingv2.ScalingActive, Status: corev1.ConditionFalse, Reason: reason}}
		}
	}
	highest := func(n int32) func(*autoscalingv2.HorizontalPodAutoscaler) {
		return func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MaxReplicas = n }
	}
	tests := map[string]struct {
		action       string // default scale
		change       func(*autoscalingv2.HorizontalPodAutoscaler)
		spec, status int32 // default 1
		rate         float64
		scales       func(*fakeScales)
		want         []int32
		events       []string
		outcome      string // counted once; "": none is
	}{
		"as far as a look of the controller goes":    {rate: 60, want: []int32{4}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"from there to what the rate needs":          {rate: 60, spec: 4, status: 4, want: []int32{6}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"pods that are not there yet do not count":   {rate: 60, spec: 4, status: 1, want: []int32{6}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"not beyond maxReplicas":                     {rate: 60, change: highest(3), want: []int32{3}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"not within the tolerance":                   {rate: 10.9},
		"never lower":                                {rate: 60, spec: 8, status: 8},
		"never lower, maxReplicas included":          {rate: 60, spec: 12, status: 12},
		"observed only":                              {action: "observe", rate: 60, events: []string{"podinfo SurgeObserved"}, outcome: raiseObserved},
		"a behavior that allows more":                {rate: 60, change: behavior(policies(pods(100, 15)), nil), want: []int32{6}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"a behavior for scaling down alone":          {rate: 90, change: behavior(nil, policies(pods(1, 60))), want: []int32{5}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"scale-up that is slower than the defaults":  {rate: 60, change: behavior(policies(pods(1, 15)), nil), events: []string{"podinfo SurgeNotActed"}},
		"scale-up is disabled":                       {rate: 60, change: behavior(&autoscalingv2.HPAScalingRules{SelectPolicy: &never}, nil), events: []string{"podinfo SurgeNotActed"}},
		"scale-up is stabilised":                     {rate: 60, change: behavior(&autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &wait}, nil), events: []string{"podinfo SurgeNotActed"}},
		"scale-down is disabled":                     {rate: 60, change: behavior(nil, &autoscalingv2.HPAScalingRules{SelectPolicy: &never}), events: []string{"podinfo SurgeNotActed"}},
		"observed only where it would be raised":     {action: "observe", rate: 60, change: condition("AmbiguousSelector"), events: []string{"podinfo SurgeNotActed"}},
		"the selector is ambiguous":                  {rate: 60, change: condition("AmbiguousSelector"), events: []string{"podinfo SurgeNotActed"}},
		"another condition does not matter":          {rate: 60, change: condition("FailedGetExternalMetric"), want: []int32{4}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"the HPA is disabled by 0 replicas":          {rate: 60, scales: func(f *fakeScales) { f.spec = 0 }, events: []string{"podinfo SurgeNotActed"}},
		"no permission":                              {rate: 60, scales: func(f *fakeScales) { f.forbidden = true }, events: []string{"podinfo SurgeNotActed"}, outcome: raiseForbidden},
		"a conflict is computed anew":                {rate: 60, scales: func(f *fakeScales) { f.conflicts, f.other = 1, func(int32) { f.spec = 4 } }, want: []int32{6}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"after a conflict there may be enough":       {rate: 60, scales: func(f *fakeScales) { f.conflicts, f.other = 1, func(int32) { f.spec = 7 } }},
		"two conflicts are computed anew":            {rate: 60, scales: func(f *fakeScales) { f.conflicts = 2 }, want: []int32{4}, events: []string{"podinfo SurgeScaled"}, outcome: raiseDone},
		"three conflicts end it":                     {rate: 60, scales: func(f *fakeScales) { f.conflicts = 3 }, outcome: raiseConflict},
		"the controller would not ask for more here": {rate: 10, spec: 1},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			action := "meshpulse.io/surge-action: scale"
			if tc.action != "" {
				action = "meshpulse.io/surge-action: " + tc.action
			}
			if tc.change == nil {
				tc.change = func(*autoscalingv2.HorizontalPodAutoscaler) {}
			}
			a := newActTest(t, action, tc.change)
			a.scales.spec, a.scales.status = max(1, tc.spec), max(1, tc.status)
			if tc.scales != nil {
				tc.scales(a.scales)
			}
			a.wait(time.Minute) // watched for longer than any policy of the table
			a.surge(tc.rate)
			a.look()
			a.expect("at the surge", tc.want, tc.events...)
			for _, outcome := range raiseOutcomes() {
				want := 0.0
				if outcome == tc.outcome {
					want = 1
				}
				if got := a.raises(outcome); got != want {
					t.Errorf("outcome %s is counted %v times, want %v", outcome, got, want)
				}
			}
		})
	}
}

// A controller that was started with --horizontal-pod-autoscaler-tolerance=0 tolerates nothing.
func TestNoToleranceIsTakenAsWritten(t *testing.T) {
	o, _ := testOptions(t)
	o.HPATolerance = 0
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.listener.Close() })
	a := newActTest(t, scaleAction)
	a.x.settings = s.provider.rules.actor.settings
	a.surge(10.9)
	a.look()
	a.expect("nine per cent above the target", []int32{2}, "podinfo SurgeScaled")
}

// At most one raise in a flush interval, and only after a row that is newer than the last one.
func TestRaisesFollowRows(t *testing.T) {
	a := newActTest(t, scaleAction)
	a.surge(90)
	a.look()
	a.expect("first", []int32{4}, "podinfo SurgeScaled")
	a.wait(6 * time.Second)
	a.look()
	a.expect("no newer row", nil)
	a.surge(90)
	a.look()
	a.expect("a newer row, a flush later", []int32{8}, "podinfo SurgeScaled")
	for range 40 { // forty other pods flush
		a.wait(100 * time.Millisecond)
		a.surge(500)
		a.look()
	}
	a.expect("rows within the flush interval", nil)
	a.wait(time.Second)
	a.surge(500)
	a.look()
	a.expect("the next interval", []int32{10}, "podinfo SurgeScaled")
}

// A raise waits for the first flush of the pods that the last one has brought, but not where the
// HPA's limits stop it anyway.
func TestARaiseWaitsForThePodsOfTheLast(t *testing.T) {
	begun := func(t *testing.T) *actTest {
		a := newActTest(t, scaleAction)
		var pods fixedPods
		for _, name := range []string{"b", "c", "d"} {
			pods = append(pods, cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "test", Name: name, Workload: "podinfo"}, Created: a.at.Add(time.Second)})
		}
		a.x.pods = pods
		a.surge(60)
		a.look()
		a.expect("first", []int32{4}, "podinfo SurgeScaled")
		a.wait(6 * time.Second)
		return a
	}
	a := begun(t)
	a.flush("b", a.at)
	a.flush("c", a.at)
	a.surge(45) // of 60
	a.look()
	a.expect("two of three have flushed", nil)
	a.flush("d", a.at)
	a.surge(60)
	a.look()
	a.expect("all have", []int32{6}, "podinfo SurgeScaled")

	a = begun(t)
	a.surge(75)
	a.look()
	a.expect("to the limit of a look, whoever has flushed", []int32{8}, "podinfo SurgeScaled")

	a = begun(t)
	a.wait(4 * time.Second)
	a.surge(45)
	a.look()
	a.expect("after two flushes, whoever has flushed", []int32{5}, "podinfo SurgeScaled")
}

func TestActionsOfPoliciesWaitAndCount(t *testing.T) {
	defaults := behavior(nil, policies(autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}))
	filled := func(h *autoscalingv2.HorizontalPodAutoscaler) { // as the API server fills scaleUp in
		defaults(h)
		h.Spec.Behavior.ScaleUp = policies(
			autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15},
			autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15})
	}
	a := newActTest(t, scaleAction, filled)
	a.wait(14 * time.Second)
	a.surge(90)
	a.look()
	a.expect("watched for less than the period", nil)
	a.wait(time.Second)
	a.surge(90)
	a.look()
	a.expect("+4 in 15 s", []int32{5}, "podinfo SurgeScaled")
	a.wait(6 * time.Second)
	a.surge(90)
	a.look()
	a.expect("its own raise counts", nil)

	a.wait(10 * time.Second) // the controller takes over: 5 to 8, and its status says so
	a.controller(5, 8)
	a.scales.spec, a.scales.status = 8, 8
	a.surge(200)
	a.look()
	a.expect("the controller's raise counts: 5 + 5", []int32{10}, "podinfo SurgeScaled")
}

// What failed is not tried again with every row.
func TestAFailureIsLeftForAFlush(t *testing.T) {
	a := newActTest(t, scaleAction)
	a.scales.forbidden = true
	for range 30 { // 6 s
		a.surge(60)
		a.look()
		a.wait(200 * time.Millisecond)
	}
	if n := a.raises(raiseForbidden); n != 2 {
		t.Errorf("%v attempts in 6 s of flushes every 5 s, want 2", n)
	}
	a.expect("told once", nil, "podinfo SurgeNotActed")
}

// Metrics that are not acted on are left out and do not stop the others.
func TestOtherMetricsOfTheHPA(t *testing.T) {
	a := newActTest(t, scaleAction, func(h *autoscalingv2.HorizontalPodAutoscaler) {
		other := h.Spec.Metrics[0].DeepCopy()
		other.External.Metric.Name = "istio-request-duration-p95"
		other.External.Metric.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"destination_workload": "podinfo"}}
		value := *other.External.Target.AverageValue
		other.External.Target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: &value}
		flying := other.DeepCopy()
		flying.External.Metric.Name = "istio-requests-in-flight"
		flying.External.Target = *h.Spec.Metrics[0].External.Target.DeepCopy()
		cpu := autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType}
		h.Spec.Metrics = []autoscalingv2.MetricSpec{cpu, *other, *flying, h.Spec.Metrics[0]}
	})
	a.events.take() // the latency is unstable, which is not the matter here
	in := a.surges["istio-requests-in-flight"]
	in.surge.Active, in.surge.Value = true, 1000
	a.look()
	a.expect("in flight alone", nil)
	a.surge(35)
	a.look()
	a.expect("requests", []int32{4}, "podinfo SurgeScaled")
}

// Two metrics of an HPA may ask the same, at targets of their own: a look at their query is one
// look at the HPA.
func TestMetricsThatShareAQuery(t *testing.T) {
	a := newActTest(t, scaleAction+`, metric-config.external.prometheus-query.prometheus/again: '`+actQuery+`'`, func(h *autoscalingv2.HorizontalPodAutoscaler) {
		again := h.Spec.Metrics[0].DeepCopy()
		again.External.Metric.Selector.MatchLabels["query-name"] = "again"
		h.Spec.Metrics = append(h.Spec.Metrics, *again)
	})
	acting := a.x.catalog.current.Load().acting
	if len(acting) != 1 {
		t.Errorf("%d queries are acted on, want 1", len(acting))
	}
	for _, hpas := range acting {
		if len(hpas) != 1 || len(hpas[0].metrics) != 2 {
			t.Errorf("%d HPAs are looked at, want one with both metrics: %v", len(hpas), hpas)
		}
	}
}

// Whoever lowers the target in a surge ends the action for it and five minutes more.
func TestNoFights(t *testing.T) {
	a := newActTest(t, scaleAction)
	step := func(d time.Duration, rate float64) {
		a.wait(d)
		if rate > 0 {
			a.surge(rate)
		} else {
			a.surges["prometheus-query"].surge.Active = false
		}
		a.look()
	}
	step(0, 90)
	a.expect("raised", []int32{4}, "podinfo SurgeScaled")
	a.scales.spec, a.scales.status = 2, 2
	step(6*time.Second, 90)
	a.expect("lowered: left alone", nil, "podinfo SurgeNotActed")
	step(6*time.Second, 90)
	step(6*time.Second, 90)
	a.expect("for as long as the surge lasts", nil)
	step(time.Minute, 0)
	step(4*time.Minute, 90)
	a.expect("and five minutes more", nil)
	step(time.Minute, 90)
	a.expect("then no longer", []int32{4}, "podinfo SurgeScaled")
	step(time.Minute, 0)
	a.scales.spec, a.scales.status = 1, 1
	step(time.Minute, 90)
	a.expect("lowered after the surge, which is nobody's fight", []int32{4}, "podinfo SurgeScaled")
	if n := a.raises(raiseYielded); n != 1 {
		t.Errorf("%v surges were left alone, want 1", n)
	}
}

// The controller had read the target before a raise and has written after it, to raise it less far:
// that is nobody who lowers it.
func TestAControllerThatWritesLateIsNoFight(t *testing.T) {
	begun := func(t *testing.T) *actTest {
		a := newActTest(t, scaleAction)
		a.surge(90)
		a.look()
		a.expect("raised", []int32{4}, "podinfo SurgeScaled")
		a.scales.spec, a.scales.status = 2, 2
		return a
	}
	next := func(a *actTest, d time.Duration) {
		a.wait(d)
		a.surge(90)
		a.look()
	}
	t.Run("told by its status", func(t *testing.T) {
		a := begun(t)
		a.wait(2 * time.Second)
		a.controller(1, 2)
		next(a, 4*time.Second)
		a.expect("raised again", []int32{4}, "podinfo SurgeScaled")
		a.scales.spec, a.scales.status = 2, 2
		next(a, 6*time.Second)
		a.expect("lowered to the same by somebody else", nil, "podinfo SurgeNotActed")
	})
	t.Run("its status has not come yet", func(t *testing.T) {
		a := begun(t)
		a.surges["prometheus-query"].surge.Flush = time.Second
		next(a, 2*time.Second)
		a.expect("not judged", nil)
		a.controller(1, 2)
		next(a, time.Second)
		a.expect("raised again", []int32{4}, "podinfo SurgeScaled")
	})
	t.Run("somebody else, long before it", func(t *testing.T) {
		a := begun(t)
		a.scales.spec = 1
		a.wait(6 * time.Second)
		a.controller(1, 2)
		a.scales.spec = 2
		next(a, time.Second)
		a.expect("left alone", nil, "podinfo SurgeNotActed")
	})
	t.Run("it lowers the target", func(t *testing.T) {
		a := begun(t)
		a.controller(4, 2)
		next(a, 6*time.Second)
		a.expect("left alone", nil, "podinfo SurgeNotActed")
	})
}

// A raise that hangs, since the API server does, bars its own HPA only.
func TestRaisesThatHangHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newActTest(t, scaleAction)
		var list []hpas.HPA
		for i := range 50 {
			h := hpas.HPA{HorizontalPodAutoscaler: a.object.DeepCopy()}
			h.Name, h.UID, h.Spec.ScaleTargetRef.Name = fmt.Sprintf("a-%d", i), types.UID(fmt.Sprint(i)), fmt.Sprintf("hanging-%d", i)
			query := fmt.Sprintf("rps-%d", i)
			h.Annotations["metric-config.external.prometheus-query.prometheus/"+query] = actQuery
			h.Spec.Metrics[0].External.Metric.Selector.MatchLabels["query-name"] = query
			list = append(list, h)
		}
		last := hpas.HPA{HorizontalPodAutoscaler: a.object.DeepCopy()}
		last.Name, last.UID = "podinfo", "last"
		a.x.catalog.Replace(append(list, last))
		a.fake()
		a.events.take()
		a.x.targets = hangingTargets{a.scales.client()}
		a.surge(60)
		began := time.Now()
		for range 3 { // whoever hangs is asked for once
			for q := range a.x.catalog.current.Load().acting {
				a.x.evaluate(a.Context(), q)
			}
		}
		synctest.Wait()
		if waited := time.Since(began); waited > 0 {
			t.Errorf("evaluated after %s", waited)
		}
		a.expect("the last of them", []int32{4}, "podinfo SurgeScaled")
		a.x.raising.Wait()
		if n := a.raises(raiseFailed); n != 50 {
			t.Errorf("%v raises failed, want each of 50 once", n)
		}
	})
}

func TestOtherHPAsStopTheAction(t *testing.T) {
	a := newActTest(t, scaleAction)
	second := func(target string) hpas.HPA {
		h := hpaFrom(t, fixture.HPA("podinfo", "", fixture.External("prometheus-query", "{matchLabels: {query-name: rps}}", `type: AverageValue, averageValue: "5"`)))
		h.Name, h.UID, h.Spec.ScaleTargetRef.Name = "other", "2", target
		h.CreationTimestamp = metav1.Now()
		return h
	}
	for target, want := range map[string][]string{
		"other":   {"podinfo SurgeNotActed"},
		"podinfo": {"podinfo SurgeNotActed"},
	} {
		first := hpas.HPA{HorizontalPodAutoscaler: a.object.DeepCopy()}
		first.CreationTimestamp = metav1.NewTime(time.Now().Add(-time.Hour))
		a.x.catalog.Replace([]hpas.HPA{first, second(target)})
		if n := len(a.x.catalog.current.Load().acting); n != 0 {
			t.Errorf("target %s: %d queries are acted on", target, n)
		}
		var got []string
		for _, e := range a.events.take() {
			if strings.Contains(e, hpas.ReasonSurgeNotActed) && len(got) == 0 {
				got = append(got, e)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("target %s: %s", target, d)
		}
		a.x.catalog.Replace(nil)
	}
}

// Without a baseline no surge can be told; that is worth an event only where the load asked for
// more.
func TestNoBaselineYet(t *testing.T) {
	a := newActTest(t, scaleAction)
	a.surges["prometheus-query"].surge.Ready = false
	a.look()
	a.expect("the load fits", nil)
	for d := time.Minute; d <= 2*time.Minute; d += 5 * time.Second {
		a.flush("b", a.x.store.Started().Add(d))
		a.flush("c", a.x.store.Started().Add(d))
	}
	a.look()
	a.look()
	a.expect("15 requests a second", nil, "podinfo SurgeNotActed")
}

// Standalone there is no scale: whatever the annotation says, it is observed, and the reporting
// sidecars stand in for the replicas.
func TestStandaloneObserves(t *testing.T) {
	a := newActTest(t, scaleAction)
	a.x.targets, a.x.pods, a.x.fresh = nil, nil, nil
	a.surge(60)
	a.look()
	a.expect("one sidecar", nil, "podinfo SurgeObserved")
}

// The raise is what the controller would decide at that instant, for a grid of loads and replicas.
func TestRaiseIsTheControllersOwn(t *testing.T) {
	for _, rate := range []float64{8, 25, 33.3, 60, 99} {
		for replicas := int32(1); replicas <= 10; replicas++ {
			t.Run(fmt.Sprintf("rate=%g/replicas=%d", rate, replicas), func(t *testing.T) {
				a := newActTest(t, scaleAction)
				a.scales.spec, a.scales.status = replicas, replicas
				a.surge(rate)
				a.look()
				target := horizontal.Target{Spec: replicas, Status: replicas}
				d := horizontal.Settings{Tolerance: horizontal.DefaultTolerance}.Decide(&a.object.Spec, target, []horizontal.Reading{{Milli: int64(rate * 1000), Known: true}}, &horizontal.Past{}, a.at)
				if want := max(d.Replicas, replicas); a.scales.spec != want {
					t.Errorf("%d replicas, want %d", a.scales.spec, want)
				}
			})
		}
	}
}
