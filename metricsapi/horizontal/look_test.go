package horizontal

import (
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// TestALookSaysWhatLedToIt names the bound of each kind; that the decision is the controller's is
// for the table to show.
func TestALookSaysWhatLedToIt(t *testing.T) {
	least := autoscalingv2.MinChangePolicySelect
	ten := Target{Spec: 10, Status: 10, Pods: 10, Ready: 10}
	for name, tc := range map[string]struct {
		change func(*autoscalingv2.HorizontalPodAutoscalerSpec)
		target Target
		load   int64
		want   Look
	}{
		"within the tolerance": {nil, ten, 105, Look{Decision: Decision{Replicas: 10, Recommended: 10, Computed: true}, Stabilized: 10}},
		"asked for":            {nil, ten, 150, Look{Decision: Decision{Replicas: 15, Recommended: 15, Computed: true}, Stabilized: 15}},
		"the largest step":     {nil, ten, 500, Look{Decision: Decision{Replicas: 20, Recommended: 50, Computed: true}, Stabilized: 50, Bound: BoundStep}},
		"the upper limit": {
			func(s *autoscalingv2.HorizontalPodAutoscalerSpec) { s.MaxReplicas = 12 },
			ten, 500,
			Look{Decision: Decision{Replicas: 12, Recommended: 50, Computed: true}, Stabilized: 50, Bound: BoundMax},
		},
		"the lower limit": {
			func(s *autoscalingv2.HorizontalPodAutoscalerSpec) { s.MinReplicas = new(int32(2)) },
			Target{Spec: 2, Status: 2, Pods: 2, Ready: 2},
			3,
			Look{Decision: Decision{Replicas: 2, Recommended: 1, Computed: true}, Stabilized: 2},
		},
		"the scale-down window": {nil, ten, 20, Look{Decision: Decision{Replicas: 10, Recommended: 2, Computed: true}, Stabilized: 10}},
		"a policy": {
			scaleUp(func(r *autoscalingv2.HPAScalingRules) {
				r.SelectPolicy, r.Policies = &least, []autoscalingv2.HPAScalingPolicy{pods(1, 60)}
			}),
			ten, 500,
			Look{Decision: Decision{Replicas: 11, Recommended: 50, Computed: true}, Stabilized: 50, Bound: BoundPolicies},
		},
		"no value": {nil, ten, -1, Look{Decision: Decision{Replicas: 10, Err: ErrMetrics}, Stabilized: 10}},
		"disabled": {nil, Target{}, 20, Look{Decision: Decision{Err: ErrDisabled}}},
		"outside of the limits": {
			func(s *autoscalingv2.HorizontalPodAutoscalerSpec) { s.MaxReplicas = 5 },
			ten, 20,
			Look{Decision: Decision{Replicas: 5}, Stabilized: 10, Bound: BoundMax},
		},
	} {
		t.Run(name, func(t *testing.T) {
			hpa := spec()
			if tc.change != nil {
				hpa = spec(tc.change)
			}
			reading := Reading{Milli: 1000 * tc.load, Known: tc.load >= 0}
			got := defaultSettings().Look(hpa, tc.target, []Reading{reading}, &Past{}, time.Unix(1000, 0))
			if got.Decision != tc.want.Decision || got.Stabilized != tc.want.Stabilized || got.Bound != tc.want.Bound {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
			if got.Computed != (len(got.Asks) == 1 && got.Asks[0].OK) {
				t.Errorf("what the metrics ask for: %+v", got.Asks)
			}
		})
	}
}
