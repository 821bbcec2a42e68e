package horizontal

import (
	"errors"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// What the controller does without flags of its own.
const (
	// DefaultTolerance is its --horizontal-pod-autoscaler-tolerance.
	DefaultTolerance = 0.1
	// DefaultDownscaleStabilization is its --horizontal-pod-autoscaler-downscale-stabilization.
	DefaultDownscaleStabilization = 5 * time.Minute
)

// Why a look leaves the replicas alone whatever the metrics' values are.
var (
	// ErrDisabled: the target has 0 replicas and it was not the controller that scaled it to zero.
	ErrDisabled = errors.New("scaling is disabled while the target has 0 replicas")
	// ErrMetrics: no metric has a value, or one has none and the others would scale down.
	ErrMetrics = errors.New("metrics without a value")
)

// Settings are the controller's own flags.
type Settings struct {
	// Tolerance is how far value/target may be from 1 without an effect, where the HPA sets none. 0
	// is none at all.
	Tolerance float64
	// DownscaleStabilization is the scale-down window of HPAs that set none: the highest
	// recommendation within it counts.
	DownscaleStabilization time.Duration
}

// Target is an HPA's target at one instant, as the controller reads it.
type Target struct {
	// Spec and Status are spec.replicas and status.replicas of its scale. Metrics of type
	// AverageValue go by Status (with the tolerance), everything else, the limits included, by
	// Spec.
	Spec, Status int32
	// Pods match the scale's selector, Ready of them run and are ready. Only metrics of type Value
	// ask: they have no recommendation where Pods is 0.
	Pods, Ready int32
}

// Reading is what the controller got for one metric.
type Reading struct {
	// Milli is the sum of the answer's items in thousandths, at most math.MaxInt64.
	Milli int64
	// Known is false where the metrics API gave an error, or where the metric is to be left out:
	// one that is left out stops the others from scaling down, not from scaling up.
	Known bool
}

// Decision is what a look leads to.
type Decision struct {
	// Replicas is what the scale's spec.replicas become: Target.Spec if they stay.
	Replicas int32
	// Recommended is what the metrics ask for, before windows, policies and limits. Computed is
	// false where they were not asked: Target.Spec is 0 or outside of the HPA's limits.
	Recommended int32
	Computed    bool
	// Err is ErrDisabled or ErrMetrics where the replicas stay for that reason, nil otherwise.
	Err error
}

// Decide is one look of the controller at an HPA, at an instant. readings are in the order of
// spec.metrics; a metric that has none, or is not of type External, counts as one without a value.
// past is not changed: [Past.Note] does that.
//
// The spec may be as written or as the API server filled it in. As in the controller, numbers of
// replicas beyond int32 are capped, and policies so large that a limit leaves int32 overflow.
func (s Settings) Decide(spec *autoscalingv2.HorizontalPodAutoscalerSpec, target Target, readings []Reading, past *Past, at time.Time) Decision {
	return s.Look(spec, target, readings, past, at).Decision
}

// Ask is what a metric of type External asks for, before windows, policies and limits.
func (s Settings) Ask(b *autoscalingv2.HorizontalPodAutoscalerBehavior, goal autoscalingv2.MetricTarget, target Target, milli int64) Ask {
	return s.toleranceOf(b).ask(goal, target, float64(milli))
}

// ToleranceOf is how far below and above 1 value/target may be without an effect.
func (s Settings) ToleranceOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior) (down, up float64) {
	t := s.toleranceOf(b)
	return t.down, t.up
}

// Asks is how many replicas a metric of type External with a target of type AverageValue asks for,
// before windows, policies and limits. Within the tolerance that is Target.Status, which is not
// Target.Spec while pods come or go.
func (s Settings) Asks(b *autoscalingv2.HorizontalPodAutoscalerBehavior, each resource.Quantity, target Target, milli int64) int32 {
	return s.toleranceOf(b).ask(autoscalingv2.MetricTarget{AverageValue: &each}, target, float64(milli)).Replicas
}

// tolerance is how far below and above 1 value/target has no effect.
type tolerance struct{ down, up float64 }

func (s Settings) toleranceOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior) tolerance {
	t := tolerance{down: s.Tolerance, up: s.Tolerance}
	if b != nil && b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
		t.down = b.ScaleDown.Tolerance.AsApproximateFloat64()
	}
	if b != nil && b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
		t.up = b.ScaleUp.Tolerance.AsApproximateFloat64()
	}
	return t
}

func (t tolerance) covers(ratio float64) bool { return 1.0-t.down <= ratio && ratio <= 1.0+t.up }

// ask is what one metric asks for. The order of the divisions is the controller's, so that an edge
// falls to the same side.
func (t tolerance) ask(goal autoscalingv2.MetricTarget, target Target, milli float64) Ask {
	switch {
	case goal.AverageValue != nil:
		each := float64(goal.AverageValue.MilliValue())
		ratio := milli / (each * float64(target.Status)) // 0 replicas: infinite or not a number, never covered
		if t.covers(ratio) {
			return Ask{Replicas: target.Status, Ratio: ratio, Within: true, OK: true}
		}
		return Ask{Replicas: ceil(milli / each), Ratio: ratio, OK: true}
	case goal.Value != nil:
		ratio := milli / float64(goal.Value.MilliValue())
		switch {
		case target.Spec == 0: // no pod to multiply with
			return Ask{Replicas: ceil(ratio), Ratio: ratio, OK: true}
		case t.covers(ratio):
			return Ask{Replicas: target.Spec, Ratio: ratio, Within: true, OK: true}
		case target.Pods == 0:
			return Ask{Ratio: ratio}
		}
		return Ask{Replicas: ceil(ratio * float64(target.Ready)), Ratio: ratio, OK: true}
	}
	return Ask{}
}

// ceil rounds up to a number of replicas.
func ceil(v float64) int32 { return int32(math.Ceil(min(v, math.MaxInt32))) }
