package horizontal

import (
	"math/rand/v2"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// scaleUp is a behavior with these scale-up rules.
func scaleUp(change func(*autoscalingv2.HPAScalingRules)) func(*autoscalingv2.HorizontalPodAutoscalerSpec) {
	return func(s *autoscalingv2.HorizontalPodAutoscalerSpec) {
		s.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: &autoscalingv2.HPAScalingRules{}}
		change(s.Behavior.ScaleUp)
	}
}

func policies(p ...autoscalingv2.HPAScalingPolicy) func(*autoscalingv2.HorizontalPodAutoscalerSpec) {
	return scaleUp(func(r *autoscalingv2.HPAScalingRules) { r.Policies = p })
}

func pods(value, period int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: value, PeriodSeconds: period}
}

func percent(value, period int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: value, PeriodSeconds: period}
}

func TestPermissive(t *testing.T) {
	least := autoscalingv2.MinChangePolicySelect
	never := autoscalingv2.DisabledPolicySelect
	for name, tc := range map[string]struct {
		change func(*autoscalingv2.HorizontalPodAutoscalerSpec)
		want   bool
	}{
		"no behavior": {func(*autoscalingv2.HorizontalPodAutoscalerSpec) {}, true},
		"only scale-down rules": {func(s *autoscalingv2.HorizontalPodAutoscalerSpec) {
			s.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{}
		}, true},
		"the defaults, written out": {policies(pods(4, 15), percent(100, 15)), true},
		"the defaults, but the smaller": {func(s *autoscalingv2.HorizontalPodAutoscalerSpec) {
			policies(pods(4, 15), percent(100, 15))(s)
			s.Behavior.ScaleUp.SelectPolicy = &least
		}, false},
		"disabled":                               {scaleUp(func(r *autoscalingv2.HPAScalingRules) { r.SelectPolicy = &never }), false},
		"a stabilization window":                 {scaleUp(func(r *autoscalingv2.HPAScalingRules) { r.StabilizationWindowSeconds = new(int32(5)) }), false},
		"only a doubling":                        {policies(percent(100, 15)), false}, // 1 to 2, where the default goes to 5
		"only four pods":                         {policies(pods(4, 15)), false},
		"more pods than there can be":            {policies(pods(99, 600)), true},
		"one pod a minute":                       {policies(pods(1, 60)), false},
		"ten times as many in a minute":          {policies(percent(900, 60)), false}, // sixteen times by the defaults
		"a hundred times as many in a minute":    {policies(percent(9900, 60)), true},
		"the defaults, and one pod a minute":     {policies(pods(4, 15), percent(100, 15), pods(1, 60)), true},
		"five times as many in fifteen seconds":  {policies(percent(400, 15)), true},
		"almost a doubling, and many pods":       {policies(percent(99, 15), pods(50, 15)), true},
		"almost a doubling, and not enough pods": {policies(percent(99, 15), pods(40, 15)), true}, // 41 and 99 %, rounded up, are 82
	} {
		t.Run(name, func(t *testing.T) {
			if got := Permissive(spec(tc.change)); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestPermissiveRulesNeverLimitMore compares random rules with the defaults in every number of
// replicas, and where the rules are said to be permissive also after random raises.
func TestPermissiveRulesNeverLimitMore(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	pick := func(of ...int32) int32 { return of[random.IntN(len(of))] }
	said := 0
	for range 20_000 {
		s := spec(policies())
		s.MaxReplicas = pick(2, 10, 60, 250)
		s.MinReplicas = new(min(s.MaxReplicas, pick(1, 2, 5, 40)))
		for range pick(1, 2, 3) {
			p := pods(pick(1, 3, 4, 5, 9, 100, 1000), pick(1, 10, 15, 16, 60))
			if random.IntN(2) == 0 {
				p = percent(pick(50, 98, 99, 100, 133, 400, 5000), p.PeriodSeconds)
			}
			s.Behavior.ScaleUp.Policies = append(s.Behavior.ScaleUp.Policies, p)
		}
		if random.IntN(4) == 0 {
			s.Behavior.ScaleUp.SelectPolicy = new(autoscalingv2.MinChangePolicySelect)
		}
		plain := spec(scaleUp(func(*autoscalingv2.HPAScalingRules) {}))
		plain.MinReplicas, plain.MaxReplicas = s.MinReplicas, s.MaxReplicas

		at := time.Unix(1000, 0)
		limit := func(s *autoscalingv2.HorizontalPodAutoscalerSpec, replicas int32, past *Past) int32 {
			d := defaultSettings().Decide(s, Target{Spec: replicas, Status: replicas}, []Reading{{Milli: 1_000_000_000, Known: true}}, past, at)
			return d.Replicas
		}
		slower := false
		for n := *s.MinReplicas; n < s.MaxReplicas; n++ {
			slower = slower || limit(s, n, &Past{}) < limit(plain, n, &Past{})
		}
		permissive := Permissive(s)
		if permissive && slower {
			t.Fatalf("%+v of %d to %d replicas is slower than the defaults", s.Behavior.ScaleUp, *s.MinReplicas, s.MaxReplicas)
		}
		longest := int32(0)
		for _, p := range s.Behavior.ScaleUp.Policies {
			longest = max(longest, p.PeriodSeconds)
		}
		if !permissive && !slower && longest <= defaultPeriod {
			t.Fatalf("%+v of %d to %d replicas is not slower than the defaults", s.Behavior.ScaleUp, *s.MinReplicas, s.MaxReplicas)
		}
		if !permissive {
			continue
		}
		said++
		for range 20 {
			past, n := &Past{}, *s.MinReplicas
			for ago := int32(70); ago > 0 && n < s.MaxReplicas; ago -= pick(1, 5, 15, 30) {
				by := min(s.MaxReplicas-n, pick(1, 4, n))
				past.Changes = append(past.Changes, Change{at.Add(-seconds(ago)), by})
				n += by
			}
			if got, least := limit(s, n, past), limit(plain, n, past); got < least {
				t.Fatalf("%+v of %d to %d replicas, after %v: to %d, the defaults to %d", s.Behavior.ScaleUp, *s.MinReplicas, s.MaxReplicas, past.Changes, got, least)
			}
		}
	}
	if said < 1000 {
		t.Errorf("only %d permissive rules", said)
	}
}
