package horizontal

import (
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// Kubernetes' default rules (pkg/apis/autoscaling/v2/defaults.go), for what a behavior leaves open.
const (
	defaultPods    = 4   // added, whatever the percentage gives
	defaultPercent = 100 // added, or taken away
	defaultPeriod  = 15  // seconds
)

// rules are a behavior with everything filled in.
type rules struct{ up, down direction }

// direction is one half of a behavior.
type direction struct {
	window   time.Duration
	choice   autoscalingv2.ScalingPolicySelect
	policies []autoscalingv2.HPAScalingPolicy
}

func (s Settings) rules(b *autoscalingv2.HorizontalPodAutoscalerBehavior) rules {
	return rules{up: upRules(b), down: fill(direction{
		window:   s.DownscaleStabilization.Truncate(time.Second),
		choice:   autoscalingv2.MaxChangePolicySelect,
		policies: []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PercentScalingPolicy, Value: defaultPercent, PeriodSeconds: defaultPeriod}},
	}, b.ScaleDown)}
}

func upRules(b *autoscalingv2.HorizontalPodAutoscalerBehavior) direction {
	return fill(direction{
		choice: autoscalingv2.MaxChangePolicySelect,
		policies: []autoscalingv2.HPAScalingPolicy{
			{Type: autoscalingv2.PodsScalingPolicy, Value: defaultPods, PeriodSeconds: defaultPeriod},
			{Type: autoscalingv2.PercentScalingPolicy, Value: defaultPercent, PeriodSeconds: defaultPeriod},
		},
	}, b.ScaleUp)
}

// fill replaces the defaults by what the HPA says.
func fill(d direction, written *autoscalingv2.HPAScalingRules) direction {
	if written == nil {
		return d
	}
	if written.StabilizationWindowSeconds != nil {
		d.window = seconds(*written.StabilizationWindowSeconds)
	}
	if written.SelectPolicy != nil {
		d.choice = *written.SelectPolicy
	}
	if written.Policies != nil {
		d.policies = written.Policies
	}
	return d
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// stepLimit is how far one look may raise where the HPA has no behavior.
func stepLimit(replicas int32) int32 { return int32(max(2*float64(replicas), 4)) }

// raised is how far a scale-up policy lets replicas grow that were there when its period began.
func raised(p autoscalingv2.HPAScalingPolicy, replicas int32) int32 {
	if p.Type == autoscalingv2.PodsScalingPolicy {
		return replicas + p.Value
	}
	return int32(math.Ceil(float64(replicas) * (1 + float64(p.Value)/100)))
}

// lowered is the same for scale-down.
func lowered(p autoscalingv2.HPAScalingPolicy, replicas int32) int32 {
	if p.Type == autoscalingv2.PodsScalingPolicy {
		return replicas - p.Value
	}
	return int32(float64(replicas) * (1 - float64(p.Value)/100))
}

// Permissive says whether the HPA's scale-up rules never stop what Kubernetes' default rules (the
// larger of 4 pods and a doubling in 15 s, no stabilization window) would let through, from
// minReplicas to maxReplicas and whatever was raised before. Without a behavior they do not: the
// controller then limits a look, not a time.
func Permissive(spec *autoscalingv2.HorizontalPodAutoscalerSpec) bool {
	if spec.Behavior == nil {
		return true
	}
	up := upRules(spec.Behavior)
	if up.choice == autoscalingv2.DisabledPolicySelect || up.window > 0 {
		return false
	}
	lowest := int64(1)
	if spec.MinReplicas != nil {
		lowest = max(lowest, int64(*spec.MinReplicas))
	}
	// A policy falls short of the defaults on intervals of replicas. One begins at lowest, another
	// where a doubling is more than what the policy adds. Where all of several fall short is an
	// interval too, and begins where one of theirs begins.
	begins := []int64{lowest}
	for _, p := range up.policies {
		switch value := int64(p.Value); {
		case p.Type == autoscalingv2.PodsScalingPolicy:
			begins = append(begins, max(lowest, value+1))
		case value < defaultPercent:
			begins = append(begins, max(lowest, ceilDiv(100, 100-value)))
		}
	}
	for _, replicas := range begins {
		if replicas < int64(spec.MaxReplicas) && !up.keepsUp(replicas, lowest, int64(spec.MaxReplicas)) {
			return false
		}
	}
	return true
}

// keepsUp says whether the rules let that many replicas grow as far as Kubernetes' defaults would.
func (d direction) keepsUp(replicas, lowest, highest int64) bool {
	all, some := true, false
	for _, p := range d.policies {
		ok := reach(p, lowest) >= highest || // never in the way
			p.PeriodSeconds <= defaultPeriod && reach(p, replicas) >= min(highest, max(replicas+defaultPods, 2*replicas))
		all, some = all && ok, some || ok
	}
	if d.choice == autoscalingv2.MinChangePolicySelect {
		return all
	}
	return some
}

// reach is raised without overflow.
func reach(p autoscalingv2.HPAScalingPolicy, replicas int64) int64 {
	if p.Type == autoscalingv2.PodsScalingPolicy {
		return replicas + int64(p.Value)
	}
	return replicas + ceilDiv(replicas*int64(p.Value), 100)
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

// longest is the longest period that the direction's policies look back.
func (d direction) longest() time.Duration {
	var longest time.Duration
	for _, p := range d.policies {
		longest = max(longest, seconds(p.PeriodSeconds))
	}
	return longest
}
