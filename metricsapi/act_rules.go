package metricsapi

import (
	"fmt"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// actsOn returns an HPA as one that is acted on, with the metrics that can be; false where its
// annotations do not ask for it.
func actsOn(h hpaState) (acting, bool) {
	if !h.Surge.Acts() {
		return acting{}, false
	}
	x := acting{hpaState: h}
	for i, w := range h.Metrics {
		// A value of type Value multiplies the replicas and compounds; in-flight requests are told
		// by requests that end.
		if o := h.offers[i]; o != nil && w.Target.Type == autoscalingv2.AverageValueMetricType && o.canBeActedOn() {
			x.metrics = append(x.metrics, actingMetric{o, w.Place})
		}
	}
	return x, true
}

func (o *offer) canBeActedOn() bool { return o.prepared.surge != nil && o.prepared.surge.Actable() }

func notActed(format string, args ...any) hpas.Problem {
	return hpas.Problem{Reason: hpas.ReasonSurgeNotActed, Message: "its target is not raised at a surge: " + fmt.Sprintf(format, args...)}
}

// cannotAct says why the target of an HPA that asks for it is never raised, as far as its spec and
// the other HPAs tell.
func cannotAct(h acting) []hpas.Problem {
	var ps []hpas.Problem
	no := func(format string, args ...any) { ps = append(ps, notActed(format, args...)) }
	watched := slices.ContainsFunc(h.offers, func(o *offer) bool { return o != nil && o.prepared.surge != nil })
	if len(h.metrics) == 0 && watched { // else that no surge can be told has been said already
		no("that takes a metric with a target of type AverageValue in which a surge can be told, such as istio-requests-per-second. Latencies, requests in flight and targets of type Value are left out")
	}
	for _, m := range h.metrics {
		if len(m.askers) > 1 {
			no("metric %s is asked for by other HPAs too, and the answer that keeps one of them as raised would move the others. Give each a query name or a selector of its own", m.offer)
		}
	}
	if b := h.Spec.Behavior; b != nil {
		switch up := b.ScaleUp; {
		case up != nil && disabled(up):
			no("behavior.scaleUp is Disabled")
		case up != nil && up.StabilizationWindowSeconds != nil && *up.StabilizationWindowSeconds > 0:
			no("behavior.scaleUp has a stabilization window, which is there to wait")
		case !horizontal.Permissive(&h.Spec):
			no("the policies of behavior.scaleUp are slower than Kubernetes' defaults (the larger of 4 pods and a doubling in 15 s), a limit that somebody wanted. Leave them out, or allow more")
		}
		if b.ScaleDown != nil && disabled(b.ScaleDown) {
			no("behavior.scaleDown is Disabled, so one raise too many would stay")
		}
	}
	if slices.ContainsFunc(h.problems, func(p hpas.Problem) bool { return p.Reason == hpas.ReasonSharedTarget }) {
		no("other HPAs have the same target")
	}
	return ps
}

func disabled(r *autoscalingv2.HPAScalingRules) bool {
	return r.SelectPolicy != nil && *r.SelectPolicy == autoscalingv2.DisabledPolicySelect
}

// notThere are the conditions under which the HPA controller does not get as far as scaling: its
// status tells so until it does.
func notThere(c autoscalingv2.HorizontalPodAutoscalerCondition) bool {
	switch {
	case c.Status != corev1.ConditionFalse:
		return false
	case c.Type == autoscalingv2.ScalingActive:
		return c.Reason == "AmbiguousSelector" || c.Reason == "InvalidSelector" || c.Reason == "ScalingDisabled"
	case c.Type == autoscalingv2.AbleToScale:
		return c.Reason == "FailedGetScale" || c.Reason == "FailedUpdateScale"
	}
	return false
}

// refuses says why the target is not raised now, as far as the HPA's status tells; nil if nothing
// does.
func refuses(now *autoscalingv2.HorizontalPodAutoscaler) *hpas.Problem {
	if i := slices.IndexFunc(now.Status.Conditions, notThere); i >= 0 {
		p := notActed("the HPA controller does not act either: %s", now.Status.Conditions[i].Reason)
		return &p
	}
	return nil
}

// adviseHistory tells that a rise of the load was not acted on because there was no baseline yet.
// The action is locked.
func (x *actor) adviseHistory(h acting, st *action, at time.Time) {
	now, ok := x.hpa(h.Namespace, h.Name)
	if !ok || now.Status.CurrentReplicas == 0 {
		return
	}
	n := now.Status.CurrentReplicas
	if d := x.decide(h, st, horizontal.Target{Spec: n, Status: n}, at); d.Replicas > n {
		x.catalog.warn.tell(h.HPA, notActed("the load rose before there was a baseline to tell a surge by: that takes a complete minute of flushes since the start of meshpulse"))
	}
}

// yielded is told where somebody has lowered the target below a raise.
func yielded(h acting) hpas.Problem {
	return notActed("%s %s was lowered below what it had been raised to while the surge lasted, so it is left alone for that surge and five minutes more. "+
		"If a GitOps tool did that, let it ignore spec.replicas", h.Spec.ScaleTargetRef.Kind, h.Spec.ScaleTargetRef.Name)
}
