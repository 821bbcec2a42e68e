package main

import (
	"errors"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// told is what `meshpulse shadow report -o json` says of a metric, as a script reads it.
type told struct {
	Compared      int       `json:"compared"`
	Agreed        int       `json:"agreed"`
	Decisions     int       `json:"decisionsDiffered"`
	OursMissing   int       `json:"oursMissing"`
	TheirsMissing int       `json:"theirsMissing"`
	Newest        toldLook  `json:"newest"`
	Largest       *toldLook `json:"largest"`
}

// toldLook is one comparison.
type toldLook struct {
	At        time.Time `json:"at"`
	Here      *float64  `json:"here"`
	There     *float64  `json:"there"`
	HereAsks  int32     `json:"hereAsks"`
	ThereAsks int32     `json:"thereAsks"`
	Reason    string    `json:"reason"`
}

// look is what the lab saw of one comparison: what was answered here and there, nil for no value,
// and how many replicas the HPA had.
type look struct {
	at          time.Time
	here, there *float64
	replicas    int32
}

// goal is what the lab's HPAs want: so many thousandths for each replica, within limits.
type goal struct {
	each        int64
	least, most int32
}

func goalOf(hpa *autoscalingv2.HorizontalPodAutoscaler) (goal, error) {
	target := hpa.Spec.Metrics[0].External.Target.AverageValue
	if target == nil || hpa.Spec.MinReplicas == nil {
		return goal{}, fmt.Errorf("HPA %s has no averageValue or no minReplicas", hpa.Name)
	}
	return goal{each: target.MilliValue(), least: *hpa.Spec.MinReplicas, most: hpa.Spec.MaxReplicas}, nil
}

// alike is up to where two values count as the same, of the larger one, and the controller's
// tolerance.
const alike = 0.1

// asks is the controller's arithmetic, written anew: not the one that is tried.
func (g goal) asks(value float64, replicas int32) int32 {
	milli := int64(math.Round(value * 1000))
	ratio := float64(milli) / (float64(g.each) * float64(replicas))
	asked := replicas
	if ratio < 1-alike || ratio > 1+alike || math.IsNaN(ratio) {
		asked = int32((milli + g.each - 1) / g.each)
	}
	return min(max(asked, g.least), g.most)
}

// apart is the difference of two values, of the larger one.
func apart(a, b float64) float64 {
	if a == b {
		return 0
	}
	return math.Abs(a-b) / max(math.Abs(a), math.Abs(b))
}

// tally is what a report about these looks has to say, of those up to an instant.
func tally(all []look, g goal, until time.Time) (s told) {
	largest := -1.0
	for _, l := range all {
		if l.at.After(until) {
			continue
		}
		c := toldLook{At: l.at.UTC(), Here: l.here, There: l.there}
		switch {
		case l.here == nil && l.there != nil:
			s.OursMissing++
		case l.there == nil && l.here != nil:
			s.TheirsMissing++
		case l.here != nil:
			s.Compared++
			c.HereAsks, c.ThereAsks = g.asks(*l.here, l.replicas), g.asks(*l.there, l.replicas)
			if c.HereAsks != c.ThereAsks {
				s.Decisions++
			}
			d := apart(*l.here, *l.there)
			if d <= alike {
				s.Agreed++
			}
			if d > largest {
				largest, s.Largest = d, &c
			}
		}
		s.Newest = c
	}
	return s
}

// flushed is how far what is answered here may be from what the lab was answered a moment later: a
// sidecar's flush may have come between the two.
const flushed = 0.02

// differs holds a report against what the lab saw until the report's newest comparison: by how many
// its counts are off, and why its largest difference is not one.
func differs(all []look, g goal, reported *told) (counts int, largest error) {
	want := tally(all, g, reported.Newest.At)
	for _, pair := range [][2]int{
		{reported.Compared, want.Compared},
		{reported.Agreed, want.Agreed},
		{reported.Decisions, want.Decisions},
		{reported.OursMissing, want.OursMissing},
		{reported.TheirsMissing, want.TheirsMissing},
	} {
		counts += max(pair[0]-pair[1], pair[1]-pair[0])
	}
	return counts, differsMost(all, g, reported.Largest, want.Largest)
}

// differsMost says what is wrong with a report's largest difference: there has to have been that
// comparison, and none that is larger but for what a flush makes of it.
func differsMost(all []look, g goal, got, want *toldLook) error {
	switch {
	case got == nil && want == nil:
		return nil
	case got == nil || want == nil:
		return errors.New("one has a largest difference, the other none")
	case got.Here == nil || got.There == nil:
		return errors.New("a largest difference without both values")
	}
	if d, most := apart(*got.Here, *got.There), apart(*want.Here, *want.There); math.Abs(d-most) > flushed {
		return fmt.Errorf("a largest difference of %.4f, the lab saw %.4f", d, most)
	}
	for _, l := range all {
		if !l.at.Equal(got.At) || l.here == nil || l.there == nil {
			continue
		}
		switch here, there := g.asks(*got.Here, l.replicas), g.asks(*got.There, l.replicas); {
		case *got.There != *l.there:
			return fmt.Errorf("the Prometheus said %v, not %v", *l.there, *got.There)
		case apart(*got.Here, *l.here) > flushed:
			return fmt.Errorf("%v was answered here, not %v", *l.here, *got.Here)
		case got.HereAsks != here || got.ThereAsks != there:
			return fmt.Errorf("%d and %d replicas, not %d and %d", here, there, got.HereAsks, got.ThereAsks)
		}
		return nil
	}
	return fmt.Errorf("nothing was compared at %s", got.At)
}
