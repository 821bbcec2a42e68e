package metricsapi

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	webhookerrors "k8s.io/apiserver/pkg/admission/plugin/webhook/errors"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// A raise stands on the HPA as the API server has it: the informer's may be of before it was
// deleted, changed or disabled, and nobody takes back what is raised for an HPA that is no more.
func TestARaiseStandsOnTheHPAAsItIsNow(t *testing.T) {
	hpas := schema.GroupResource{Group: "autoscaling", Resource: "horizontalpodautoscalers"}
	edit := func(change func(h *autoscalingv2.HorizontalPodAutoscaler)) func(*actTest) {
		return func(a *actTest) {
			a.newest = a.object.DeepCopy()
			change(a.newest)
		}
	}
	never := autoscalingv2.DisabledPolicySelect
	condition := func(kind autoscalingv2.HorizontalPodAutoscalerConditionType, reason string) func(*actTest) {
		return edit(func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Status.Conditions = []autoscalingv2.HorizontalPodAutoscalerCondition{{Type: kind, Status: corev1.ConditionFalse, Reason: reason}}
		})
	}
	raised := []string{"podinfo SurgeScaled"}
	refused := []string{"podinfo SurgeNotActed"}
	for name, tc := range map[string]struct {
		api     func(*actTest)
		want    []int32
		events  []string
		outcome string
	}{
		"as it was":               {api: func(*actTest) {}, want: []int32{4}, events: raised, outcome: raiseDone},
		"gone":                    {api: func(a *actTest) { a.getErr = apierrors.NewNotFound(hpas, "podinfo") }, outcome: raiseStale},
		"on its way out":          {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { now := metav1.Now(); h.DeletionTimestamp = &now }), outcome: raiseStale},
		"another one of its name": {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { h.UID = "2" }), outcome: raiseStale},
		"no annotation any more":  {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { delete(h.Annotations, "meshpulse.io/surge-action") }), outcome: raiseStale},
		"it only observes now":    {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Annotations["meshpulse.io/surge-action"] = "observe" }), outcome: raiseStale},
		"its window is off":       {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Annotations["meshpulse.io/surge-window"] = "off" }), outcome: raiseStale},
		"another query": {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Annotations["metric-config.external.prometheus-query.prometheus/rps"] = "vector(1)"
		}), outcome: raiseStale},
		"somebody else's annotation": {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Annotations["example.org/note"] = "x" }), want: []int32{4}, events: raised, outcome: raiseDone},
		"another target":             {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.ScaleTargetRef.Name = "other" }), outcome: raiseStale},
		"a higher goal": {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) {
			*h.Spec.Metrics[0].External.Target.AverageValue = resource.MustParse("30")
		}), outcome: raiseStale},
		"a lower maxReplicas": {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MaxReplicas = 2 }), want: []int32{2}, events: raised, outcome: raiseDone},
		"scale-up disabled": {api: edit(func(h *autoscalingv2.HorizontalPodAutoscaler) {
			behavior(&autoscalingv2.HPAScalingRules{SelectPolicy: &never}, nil)(h)
		}), events: refused},
		"cannot be read":                {api: func(a *actTest) { a.getErr = errors.New("the API server is away") }, outcome: raiseFailed},
		"may not be read":               {api: func(a *actTest) { a.getErr = apierrors.NewForbidden(hpas, "podinfo", errors.New("no")) }, outcome: raiseFailed},
		"its selector is ambiguous":     {api: condition(autoscalingv2.ScalingActive, "AmbiguousSelector"), events: refused},
		"it is disabled":                {api: condition(autoscalingv2.ScalingActive, "ScalingDisabled"), events: refused},
		"its selector is invalid":       {api: condition(autoscalingv2.ScalingActive, "InvalidSelector"), events: refused},
		"its scale is not there":        {api: condition(autoscalingv2.AbleToScale, "FailedGetScale"), events: refused},
		"its scale cannot be written":   {api: condition(autoscalingv2.AbleToScale, "FailedUpdateScale"), events: refused},
		"it waits after another change": {api: condition(autoscalingv2.AbleToScale, "BackoffBoth"), want: []int32{4}, events: raised, outcome: raiseDone},
	} {
		t.Run(name, func(t *testing.T) {
			a := newActTest(t, scaleAction)
			tc.api(a)
			a.surge(60)
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
			if tc.want == nil { // it is left for a flush: one question, not one with each row
				a.surge(61)
				a.look()
				if a.gets != 1 {
					t.Errorf("the API server is asked %d times", a.gets)
				}
			}
		})
	}
}

// An HPA that comes back is raised for again.
func TestARaiseFollowsAfterAnAPIServerThatWasAway(t *testing.T) {
	a := newActTest(t, scaleAction)
	a.getErr = errors.New("away")
	a.surge(60)
	a.look()
	a.expect("away", nil)
	a.getErr = nil
	a.wait(6 * time.Second)
	a.surge(60)
	a.look()
	a.expect("back", []int32{4}, "podinfo SurgeScaled")
}

// What the event says to a target of another kind than the component's role names is what helps: a
// role of its own.
func TestTheRemedyForARolloutHelps(t *testing.T) {
	a := newActTest(t, scaleAction, func(h *autoscalingv2.HorizontalPodAutoscaler) {
		h.Spec.ScaleTargetRef.APIVersion, h.Spec.ScaleTargetRef.Kind = "argoproj.io/v1alpha1", "Rollout"
	})
	a.scales.forbidden = true
	a.surge(60)
	a.look()
	message := a.events.message(hpas.ReasonSurgeNotActed)
	if strings.Contains(message, "components/surge-action") {
		t.Errorf("a role for Deployments is no help: %s", message)
	}
	resource := regexp.MustCompile(`kubectl create clusterrole \S+ --verb=get,update --resource=(\S+)`).FindStringSubmatch(message)
	if resource == nil {
		t.Fatalf("no command in: %s", message)
	}
	a.scales.granted = append(a.scales.granted, resource[1])
	a.wait(6 * time.Second)
	a.surge(60)
	a.look()
	if len(a.scales.written) != 1 {
		t.Errorf("written %v after the remedy: %s", a.scales.written, message)
	}
	if got := testutil.ToFloat64(a.x.metrics.raises.WithLabelValues(raiseForbidden)); got != 1 {
		t.Errorf("forbidden %v times", got)
	}
}

// What admission denies is no want of a right: who runs the policy is told, and no role.
func TestWhatAdmissionDeniesTakesNoRole(t *testing.T) {
	for name, denied := range map[string]error{
		"a webhook":                      webhookerrors.ToStatusErr("freeze.example.org", &metav1.Status{Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "no scaling on Fridays"}),
		"a webhook that says no more":    webhookerrors.ToStatusErr("freeze.example.org", &metav1.Status{Code: http.StatusForbidden}),
		"a policy of the API server's":   apierrors.NewForbidden(schema.GroupResource{Group: "apps", Resource: "deployments"}, "podinfo", errors.New("ValidatingAdmissionPolicy 'freeze.example.org' with binding 'all' denied request: no")),
		"a webhook that speaks of users": webhookerrors.ToStatusErr("freeze.example.org", &metav1.Status{Code: http.StatusForbidden, Message: `User "x" cannot scale on Fridays`}),
	} {
		t.Run(name, func(t *testing.T) {
			a := newActTest(t, scaleAction)
			a.scales.denied = denied
			a.surge(60)
			a.look()
			message := a.events.message(hpas.ReasonSurgeNotActed)
			if !strings.Contains(message, "freeze.example.org") || !strings.Contains(message, "policy of the cluster") || strings.Contains(message, "components/surge-action") || strings.Contains(message, "kubectl") {
				t.Errorf("told %q", message)
			}
		})
	}
}
