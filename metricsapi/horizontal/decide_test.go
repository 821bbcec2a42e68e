package horizontal

import (
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// defaultSettings are those of a controller without flags.
func defaultSettings() Settings {
	return Settings{Tolerance: DefaultTolerance, DownscaleStabilization: DefaultDownscaleStabilization}
}

// spec is an HPA from 1 to 100 replicas with a target of 10 on average.
func spec(change ...func(*autoscalingv2.HorizontalPodAutoscalerSpec)) *autoscalingv2.HorizontalPodAutoscalerSpec {
	each := resource.MustParse("10")
	s := &autoscalingv2.HorizontalPodAutoscalerSpec{MaxReplicas: 100, Metrics: []autoscalingv2.MetricSpec{{
		Type:     autoscalingv2.ExternalMetricSourceType,
		External: &autoscalingv2.ExternalMetricSource{Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &each}},
	}}}
	for _, c := range change {
		c(s)
	}
	return s
}

// TestLooksInARow shows a step of load as the contract tells it: without a behavior the controller
// climbs to 4 and doubles from there, and comes down once the scale-down window has passed.
func TestLooksInARow(t *testing.T) {
	var past Past
	hpa, at, replicas := spec(), time.Unix(0, 0), int32(1)
	for i, look := range []struct {
		load int64
		want int32
	}{{2, 1}, {120, 4}, {120, 8}, {120, 12}, {115, 12}, {30, 12}, {30, 12}} {
		at = at.Add(15 * time.Second)
		target := Target{Spec: replicas, Status: replicas, Pods: replicas, Ready: replicas}
		d := defaultSettings().Decide(hpa, target, []Reading{{Milli: 1000 * look.load, Known: true}}, &past, at)
		if d.Replicas != look.want || d.Err != nil {
			t.Fatalf("look %d: %+v, want %d replicas", i, d, look.want)
		}
		past.Note(defaultSettings(), hpa, target, d, at)
		replicas = d.Replicas
	}
	d := defaultSettings().Decide(hpa, Target{Spec: 12, Status: 12}, []Reading{{Milli: 30_000, Known: true}}, &past, at.Add(5*time.Minute))
	if d.Replicas != 3 {
		t.Errorf("after the window: %+v, want 3 replicas", d)
	}
}

// TestBackFromZero covers what the table cannot: minReplicas was raised while the controller had
// scaled the target to zero.
func TestBackFromZero(t *testing.T) {
	hpa := spec(func(s *autoscalingv2.HorizontalPodAutoscalerSpec) { s.MinReplicas = new(int32(3)) })
	idle := []Reading{{Known: true}}
	if d := defaultSettings().Decide(hpa, Target{}, idle, &Past{ScaledToZero: true}, time.Unix(0, 0)); d.Replicas != 3 {
		t.Errorf("scaled to zero by the controller: %+v, want 3 replicas", d)
	}
	if d := defaultSettings().Decide(hpa, Target{}, idle, &Past{}, time.Unix(0, 0)); d.Replicas != 0 || d.Err != ErrDisabled {
		t.Errorf("scaled to zero by someone else: %+v, want ErrDisabled", d)
	}
}
