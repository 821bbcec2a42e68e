package horizontal

import (
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// Past is what the controller remembers of an HPA from one look to the next. It is empty after its
// start. The zero value is ready for use.
type Past struct {
	// Changes are what counts against policies, in any order. The controller knows only its own;
	// someone else who scales the same target adds theirs.
	Changes []Change
	// ScaledToZero: the last scaling was the controller's own, to zero (the HPA's condition of that
	// name).
	ScaledToZero bool

	recommendations []recommendation // the oldest first
	begun           bool             // there has been a look
}

// Change is one scaling of a target.
type Change struct {
	At time.Time
	By int32 // replicas, negative where it took some away
}

// recommendation is what the metrics asked for at a look.
type recommendation struct {
	at       time.Time
	replicas int32
}

// Note remembers a look and that its decision was carried out.
func (p *Past) Note(s Settings, spec *autoscalingv2.HorizontalPodAutoscalerSpec, target Target, d Decision, at time.Time) {
	window := s.DownscaleStabilization
	if spec.Behavior != nil {
		r := s.rules(spec.Behavior)
		window = max(r.up.window, r.down.window)
	}
	p.recommendations = slices.DeleteFunc(slices.Clone(p.recall(target.Spec, at)), func(r recommendation) bool { return r.at.Before(at.Add(-window)) })
	p.begun = true
	if d.Computed {
		p.recommendations = append(p.recommendations, recommendation{at, d.Recommended})
	}
	by := d.Replicas - target.Spec
	if by == 0 {
		return
	}
	p.ScaledToZero = d.Replicas == 0
	if spec.Behavior != nil {
		direction := s.rules(spec.Behavior).up
		if by < 0 {
			direction = s.rules(spec.Behavior).down
		}
		p.change(Change{at, by}, at.Add(-direction.longest()))
	}
}

// change adds a change, in the place of one of the same direction that is older than the
// direction's own policies look back. The other direction's may look back further and then miss
// what was there: so does the controller.
func (p *Past) change(c Change, outdated time.Time) {
	for i, old := range slices.Backward(p.Changes) {
		if old.At.Before(outdated) && (old.By > 0) == (c.By > 0) {
			p.Changes[i] = c
			return
		}
	}
	p.Changes = append(p.Changes, c)
}

// recall is what was recommended before a look. Where there was no look yet, the replicas that the
// controller finds count as a recommendation of the moment before.
func (p *Past) recall(replicas int32, at time.Time) []recommendation {
	if p.begun {
		return p.recommendations
	}
	return []recommendation{{at.Add(-1), replicas}}
}

// highest is the recommendation within the scale-down window: the highest since a time.
func (p *Past) highest(recommended, replicas int32, since, at time.Time) int32 {
	for _, r := range p.recall(replicas, at) {
		if !r.at.Before(since) {
			recommended = max(recommended, r.replicas)
		}
	}
	return recommended
}

// stabilized is the recommendation within a behavior's windows: the replicas that there are, raised
// to the lowest recommendation of the scale-up window and lowered to the highest of the scale-down
// window.
func (p *Past) stabilized(recommended, replicas int32, r rules, at time.Time) int32 {
	lowest, highest := recommended, recommended
	for _, then := range p.recall(replicas, at) {
		if then.at.After(at.Add(-r.up.window)) {
			lowest = min(lowest, then.replicas)
		}
		if then.at.After(at.Add(-r.down.window)) {
			highest = max(highest, then.replicas)
		}
	}
	return min(max(replicas, lowest), highest)
}

// limited keeps a change within the policies and the HPA's limits, and says what the policies alone
// leave.
func (p *Past) limited(wanted, replicas, lowest, highest int32, r rules, at time.Time) (limited, policies int32) {
	switch {
	case wanted > replicas:
		limit := p.limit(r.up, replicas, at, raised, func(a, b int32) bool { return a < b })
		policies = max(limit, replicas)
		return min(wanted, highest, policies), policies
	case wanted < replicas:
		limit := p.limit(r.down, replicas, at, lowered, func(a, b int32) bool { return a > b })
		policies = min(limit, replicas)
		return max(wanted, lowest, policies), policies
	}
	return wanted, wanted
}

// limit is how far a direction's policies let the replicas go. Each counts from what there was when
// its period began; Min takes the policy that changes least, anything else the one that changes
// most.
func (p *Past) limit(d direction, replicas int32, at time.Time, apply func(autoscalingv2.HPAScalingPolicy, int32) int32, changesLess func(a, b int32) bool) int32 {
	if d.choice == autoscalingv2.DisabledPolicySelect {
		return replicas
	}
	var limit int32
	for i, policy := range d.policies {
		began := replicas
		for _, c := range p.Changes {
			if c.At.After(at.Add(-seconds(policy.PeriodSeconds))) {
				began -= c.By
			}
		}
		proposed := apply(policy, began)
		if i == 0 || changesLess(proposed, limit) == (d.choice == autoscalingv2.MinChangePolicySelect) {
			limit = proposed
		}
	}
	return limit
}
