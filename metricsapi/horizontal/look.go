package horizontal

import (
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// Look is a look of the controller with everything that led to its decision.
type Look struct {
	Decision
	// Asks are what the metrics ask for, in the order of spec.metrics. Without any where they were
	// not asked.
	Asks []Ask
	// Stabilized is what the windows leave of the recommendation, before policies and limits; the
	// recommendation itself where nothing was computed.
	Stabilized int32
	// Bound says what kept the replicas from Stabilized.
	Bound Bound
}

// Ask is what one metric asks for, before windows, policies and limits.
type Ask struct {
	Replicas int32
	// Ratio is the value by its target: of type AverageValue for each of Target.Status replicas.
	Ratio float64
	// Within: the ratio is within the tolerance, so the metric asks for what there is.
	Within bool
	// OK is false for a metric without a value, or that is not of type External.
	OK bool
}

// Bound is what limits a change of the replicas.
type Bound string

const (
	BoundNone     Bound = ""            // nothing
	BoundMin      Bound = "minReplicas" // the HPA's limits
	BoundMax      Bound = "maxReplicas"
	BoundStep     Bound = "step"   // one look raises to twice the replicas at most, or 4, without a behavior
	BoundPolicies Bound = "policy" // the behavior's policies
)

// Look is [Settings.Decide], with how it was decided.
func (s Settings) Look(spec *autoscalingv2.HorizontalPodAutoscalerSpec, target Target, readings []Reading, past *Past, at time.Time) Look {
	lowest := int32(1)
	if spec.MinReplicas != nil {
		lowest = *spec.MinReplicas
	}
	switch {
	case target.Spec == 0 && !past.ScaledToZero:
		return Look{Decision: Decision{Err: ErrDisabled}}
	case target.Spec == 0: // it was the controller, so it may come back
	case target.Spec > spec.MaxReplicas:
		return Look{Decision: Decision{Replicas: spec.MaxReplicas}, Stabilized: target.Spec, Bound: BoundMax}
	case target.Spec < lowest:
		return Look{Decision: Decision{Replicas: lowest}, Stabilized: target.Spec, Bound: BoundMin}
	}
	l := Look{Asks: s.asks(spec, target, readings)}
	recommended, err := recommend(l.Asks, target)
	if err != nil {
		l.Replicas, l.Err, l.Stabilized = target.Spec, err, target.Spec
		return l
	}
	l.Recommended, l.Computed = recommended, true
	var limit int32 // what steps or policies allow, the limits aside
	why := BoundStep
	if spec.Behavior == nil {
		l.Stabilized = past.highest(recommended, target.Spec, at.Add(-s.DownscaleStabilization), at)
		limit = min(l.Stabilized, stepLimit(target.Spec))
		l.Replicas = max(lowest, min(limit, spec.MaxReplicas))
	} else {
		why = BoundPolicies
		rules := s.rules(spec.Behavior)
		l.Stabilized = past.stabilized(recommended, target.Spec, rules, at)
		l.Replicas, limit = past.limited(l.Stabilized, target.Spec, lowest, spec.MaxReplicas, rules, at)
	}
	if target.Spec == 0 {
		l.Replicas = max(l.Replicas, lowest)
	}
	switch l.Replicas { // the first that it equals
	case l.Stabilized:
	case limit:
		l.Bound = why
	case spec.MaxReplicas:
		l.Bound = BoundMax
	default:
		l.Bound = BoundMin
	}
	return l
}

// asks is what each metric asks for.
func (s Settings) asks(spec *autoscalingv2.HorizontalPodAutoscalerSpec, target Target, readings []Reading) []Ask {
	asks := make([]Ask, len(spec.Metrics))
	tolerance := s.toleranceOf(spec.Behavior)
	for i, metric := range spec.Metrics {
		if i < len(readings) && readings[i].Known && metric.External != nil {
			asks[i] = tolerance.ask(metric.External.Target, target, float64(readings[i].Milli))
		}
	}
	return asks
}

// recommend is the largest number that a metric asks for.
func recommend(asks []Ask, target Target) (int32, error) {
	recommended, known := int32(0), 0
	for _, a := range asks {
		if a.OK {
			recommended = max(recommended, a.Replicas)
			known++
		}
	}
	if known == 0 || known < len(asks) && recommended < target.Spec {
		return 0, ErrMetrics
	}
	return recommended, nil
}
