package metricsapi

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// The rule for incomplete knowledge. While what is known is incomplete, the answer is the larger of
// what is seen and what keeps the replicas as they are, or none where the controller would make
// fewer of either. Scaling up stays possible, scaling down does not, and nothing has to survive a
// restart.

// pods is what the cluster says of the pods that exist.
type pods interface {
	// Each calls f with every pod of the sets, those that have left since a time among them. The
	// pods of a workload follow each other. f must not keep the pod, and must not ask for others.
	Each(sets []aggregator.Meant, since time.Time, f func(*cluster.Pod))
	// Get returns a pod that exists or has left, false if it is not known.
	Get(namespace, name string) (cluster.Pod, bool)
	// Synced says why the pods are not known, nil while they are.
	Synced() error
}

// scales reads what a target is meant to have.
type scales interface {
	// Recent returns the scale as it was within the last second. It is not the caller's alone, and
	// not to be changed.
	Recent(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error)
}

func targetOf(s *autoscalingv1.Scale) horizontal.Target {
	return horizontal.Target{Spec: s.Spec.Replicas, Status: s.Status.Replicas}
}

// holder applies the rule. A nil holder, in standalone mode, knows no pods and never holds.
type holder struct {
	pods   pods
	scales scales
	// settings are the HPA controller's.
	settings horizontal.Settings
	// status is the larger of an HPA's status.currentReplicas and status.desiredReplicas, false if
	// it is gone.
	status func(namespace, name string) (int32, bool)
	// hpasFresh and scalesFresh tell how long the HPAs and the scales have not been heard of; nil
	// where that is not asked.
	hpasFresh, scalesFresh *cluster.Freshness

	store   *aggregator.Store
	started time.Time     // when the store began to listen
	hold    time.Duration // how long a sidecar that does not report is waited for

	account *account // is told of each pod; nil where nobody asks
}

// keeping is what it takes to keep the replicas of all HPAs that ask for an offer.
type keeping struct {
	// milli is the answer that does, in the API's milli-units.
	milli int64
	// moves is not nil where that answer would move the replicas of one all the same.
	moves *refusal
	// enough: what is seen asks for at least that answer, and none of the HPAs for fewer replicas
	// than its target is to have.
	enough bool
}

// goalOf is what an HPA's metric wants of the offer, nil where it asks for another one, or wants
// nothing that replicas could follow from.
func (o *offer) goalOf(w hpas.Metric) *resource.Quantity {
	if goal := w.Goal(); w.Name == o.metric && w.Canonical == o.selector && goal != nil && goal.Sign() > 0 {
		return goal
	}
	return nil
}

// keep returns what keeps the replicas, beside what is seen: a sum in milli-units.
func (h *holder) keep(ctx context.Context, o *offer, seen int64) (kept keeping, cannot *refusal) {
	kept, by := keeping{milli: -1, enough: true}, ""
	for _, a := range o.askers {
		for _, w := range a.Metrics {
			goal := o.goalOf(w)
			if goal == nil {
				continue
			}
			n, milli := int64(1), goal.MilliValue()
			average := w.Target.Type != autoscalingv2.ValueMetricType || w.PerReplica
			var target horizontal.Target
			if average {
				var err error
				if target, err = h.replicas(ctx, a); err != nil {
					return keeping{}, refuse(outcomeHeld, "%s: %v", o, err)
				}
				n = int64(target.Spec)
			}
			if n > 0 && milli > math.MaxInt64/n {
				milli = math.MaxInt64 / n
			}
			asks := func(sum int64) int32 { return a.WithinLimits(h.settings.Asks(a.Spec.Behavior, *goal, target, sum)) }
			has := a.WithinLimits(target.Spec)
			if average && asks(milli*n) != has {
				kept.moves = refuse(outcomeHeld, "%s: incomplete, and only without an answer does HPA %s keep its %d replicas: its target has %d pods now, which the controller would ask for, since they are within its tolerance", o, a.Name, target.Spec, target.Status)
			}
			if seen < milli*n || average && asks(seen) < has {
				kept.enough = false
			}
			if kept.milli >= 0 && kept.milli != milli*n {
				return keeping{}, refuse(outcomeHeld, "%s: HPAs %s and %s ask for it and would need different values to keep their replicas: no answer until the knowledge is complete", o, by, a.Name)
			}
			kept.milli, by = milli*n, a.Name
		}
	}
	if kept.milli < 0 {
		return keeping{}, refuse(outcomeHeld, "%s: no HPA that asks for it has a target", o)
	}
	return kept, nil
}

// replicas are what the HPA's target is meant to have: its scale's spec.replicas. The HPA's own
// status is from before its last scaling, and only stands in where the scale may not be read or is
// not there, or no scale could be read for a minute.
func (h *holder) replicas(ctx context.Context, a *hpas.Wants) (horizontal.Target, error) {
	scale, err := h.scales.Recent(ctx, a.Namespace, a.Spec.ScaleTargetRef)
	answered := err == nil || apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || meta.IsNoMatchError(err)
	if h.scalesFresh != nil && ctx.Err() == nil {
		if answered {
			h.scalesFresh.Done(nil)
		} else {
			h.scalesFresh.Done(err)
		}
	}
	if err == nil {
		return targetOf(scale), nil
	}
	if (answered || h.scalesFresh.Stale() != nil) && h.hpasFresh.Stale() == nil {
		if n, ok := h.status(a.Namespace, a.Name); ok {
			return horizontal.Target{Spec: n, Status: n}, nil
		}
	}
	return horizontal.Target{}, fmt.Errorf("the replicas that HPA %s has to keep cannot be read: %w", a.Name, err)
}

// apply is the rule: seen is the verdict on what is known, refused why there is none.
func (h *holder) apply(ctx context.Context, o *offer, subject string, k knowledge, seen verdict, refused *refusal) (verdict, *refusal) {
	if k.missing == "" {
		return seen, refused
	}
	if o == nil {
		return verdict{}, refuse(outcomeHeld, "%s: incomplete: %s. No HPA asks for it, so there are no replicas to keep", subject, k.missing)
	}
	sum := seen.sum()
	kept, cannot := h.keep(ctx, o, sum)
	switch {
	case cannot != nil:
		return verdict{}, cannot
	case refused == nil && kept.enough && len(k.contested) == 0:
		seen.rule, seen.reason = explain.RuleMore, "incomplete, and what is seen asks for more: "+k.missing
		return seen, nil
	case kept.moves != nil:
		return verdict{}, kept.moves
	}
	was := "nothing seen"
	if refused == nil {
		was = "seen " + resource.NewMilliQuantity(sum, resource.DecimalSI).String()
	}
	return verdict{items: []item{{milli: kept.milli}}, held: true, rule: explain.RuleHeld, reason: fmt.Sprintf("held to keep the replicas, %s: %s", was, k.missing)}, nil
}

// problems are what the askers' authors should know of the pods behind an answer.
func (k knowledge) problems(o *offer) []hpas.Problem {
	var ps []hpas.Problem
	if p, ok := contestedProblem(o, k.contested); ok {
		ps = append(ps, p)
	}
	if k.mute-k.bare+k.unheard > 0 {
		ps = append(ps, hpas.Problemf(hpas.ReasonMuteSidecars, "metric %s: sidecars of pods that exist have not reported for longer than --hold. A sum counts them as the mean of the others of their workload, those younger than meshpulse that never reported only as far as that keeps replicas. "+
			"Restart the pods that were started before the wiring, and check that all reach meshpulse", o))
	}
	if len(k.unpointed) > 0 {
		var named []string
		for _, w := range k.unpointed {
			named = append(named, w.Namespace+"/"+w.Name)
		}
		ps = append(ps, hpas.Problemf(hpas.ReasonUnpointedSidecars, "metric %s: %s has sidecars that are not pointed at meshpulse: none reports, and the value stands without them. "+
			"If it is meant, set envoyMetricsService for it (manifests/istio/pod-annotation.yaml) and restart its pods; if not, name in the query the workload that is (destination_workload)", o, strings.Join(named, ", ")))
	}
	for _, what := range k.deaf {
		long, so := "20 seconds", "replicas are raised and not lowered"
		if what == "scales" {
			long, so = "a minute", "what keeps replicas is taken from the HPA's status"
		}
		ps = append(ps, hpas.Problemf(hpas.ReasonDeafWatch, "metric %s: the API server has told meshpulse nothing of %s for more than %s, so %s. "+
			"Check that its ClusterRole still grants what manifests/base/rbac.yaml does, and its log", o, what, long, so))
	}
	if k.refusing > 0 {
		ps = append(ps, hpas.Problemf(hpas.ReasonRefusedSamples, "metric %s: samples of its pods have been refused for longer than --hold, and the value stands without them (a sum counts a pod of which nothing is left as the mean of the others). "+
			"meshpulse_store_dropped_samples_total and meshpulse_ingest_dropped_samples_total tell the reason", o))
	}
	return ps
}
