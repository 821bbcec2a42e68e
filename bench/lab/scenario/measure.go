package scenario

import (
	"math"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/load"
)

// Sample is what was seen of a lane at one time.
type Sample struct {
	// At is the time since the lane's load began.
	At time.Duration
	// RPS is the rate that is sent.
	RPS float64
	// Value is the metric's answer, NaN where there was none; Held is its reason while it is held.
	Value float64
	Held  string
	// Desired is the HPA's status.desiredReplicas, Ready the pods that take traffic.
	Desired, Ready int
}

// Trace is what was seen of a lane, in order of time.
type Trace struct {
	Namespace string
	Load      load.Profile
	// PerReplica, Min and Max make the ideal of a rate.
	PerReplica float64
	Min, Max   int
	Samples    []Sample
	// From is when coverage, waste and wrong scale-downs begin to count.
	From time.Duration
	// Events are the HPA's Warning events, "Reason: message".
	Events []string
	// Conditions are the HPA's in the end, "ScalingActive=True".
	Conditions []string
	// Requests is what the load generator saw.
	Requests load.Result
}

// Ideal is the number of replicas that a rate needs, within the HPA's limits.
func (t Trace) Ideal(rps float64) int {
	need := int(math.Ceil(rps/t.PerReplica - 1e-9))
	return min(max(need, t.Min), t.Max)
}

// Reaction is how a lane followed one rise of the load.
type Reaction struct {
	At time.Duration
	// Decision is the time from the step until more replicas were desired, Enough until as many as needed were ready;
	// negative if that was not seen before the load changed again.
	Decision, Enough time.Duration
}

const notSeen = -time.Second

// Reactions are those to the steps that need more replicas than were desired.
func (t Trace) Reactions() []Reaction {
	var all []Reaction
	changes := t.Load.Changes()
	for i, change := range changes {
		end := t.Load.Duration()
		if i+1 < len(changes) {
			end = changes[i+1].At
		}
		before := t.at(change.At)
		need := t.Ideal(change.To)
		if change.At == 0 || change.To <= change.From || need <= before.Desired {
			continue // at 0 there is no steady state to react from
		}
		r := Reaction{At: change.At, Decision: notSeen, Enough: notSeen}
		for _, s := range t.between(change.At, end) {
			if r.Decision == notSeen && s.Desired > before.Desired {
				r.Decision = s.At - change.At
			}
			if r.Enough == notSeen && s.Ready >= need {
				r.Enough = s.At - change.At
			}
		}
		all = append(all, r)
	}
	return all
}

// at is the newest sample before a time.
func (t Trace) at(at time.Duration) Sample {
	var last Sample
	for _, s := range t.Samples {
		if s.At >= at {
			break
		}
		last = s
	}
	return last
}

func (t Trace) between(from, to time.Duration) []Sample {
	var some []Sample
	for _, s := range t.Samples {
		if s.At >= from && s.At < to {
			some = append(some, s)
		}
	}
	return some
}

// Coverage is the mean over time of min(ready, ideal)/ideal, Waste of max(0, ready-ideal)/ideal.
func (t Trace) Coverage() (coverage, waste float64) {
	var length float64
	for i := 1; i < len(t.Samples); i++ {
		s := t.Samples[i-1]
		if s.At < t.From {
			continue
		}
		dt := (t.Samples[i].At - s.At).Seconds()
		ideal, ready := float64(t.Ideal(s.RPS)), float64(s.Ready)
		coverage += min(ready, ideal) / ideal * dt
		waste += max(0, ready-ideal) / ideal * dt
		length += dt
	}
	if length == 0 {
		return math.NaN(), math.NaN()
	}
	return coverage / length, waste / length
}

// WrongScaleDowns is how often the desired replicas fell to fewer than the rate of that moment needs.
func (t Trace) WrongScaleDowns() int {
	n := 0
	for i := 1; i < len(t.Samples); i++ {
		s := t.Samples[i]
		if s.At >= t.From && s.Desired < t.Samples[i-1].Desired && s.Desired < t.Ideal(s.RPS) {
			n++
		}
	}
	return n
}

// Measure is one figure of a report.
type Measure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Goal and Better ("lower" or "higher") are set where a check bounds the figure.
	Goal   *float64 `json:"goal,omitempty"`
	Better string   `json:"better,omitempty"`
}

// The names of the measures that checks can bound.
const (
	FirstDecision   = "first decision, mean"
	FirstDecisionAt = "first decision, worst"
	Enough          = "enough replicas ready, mean"
	EnoughWorst     = "enough replicas ready, worst"
	CoverageMean    = "coverage"
	WasteMean       = "waste"
	WrongDowns      = "wrong scale-downs"
	FailedRequests  = "failed requests"
	SentRequests    = "requests sent"
	GeneratorLate   = "generator late, worst"
)

// Measures are the figures of a run over all its lanes. A reaction that was never seen is +Inf, so no mean hides it.
func Measures(traces []Trace) []Measure {
	var decisions, enoughs []float64
	var coverage, waste, late float64
	wrong, failed, sent := 0, 0, 0
	for _, t := range traces {
		for _, r := range t.Reactions() {
			decisions = append(decisions, secondsOrInf(r.Decision))
			enoughs = append(enoughs, secondsOrInf(r.Enough))
		}
		c, w := t.Coverage()
		coverage, waste = coverage+c, waste+w
		wrong += t.WrongScaleDowns()
		failed, sent = failed+t.Requests.Failed, sent+t.Requests.Sent
		late = max(late, t.Requests.Late.Seconds()*1000)
	}
	n := float64(len(traces))
	var all []Measure
	if len(decisions) > 0 {
		mean, worst := meanAndMax(decisions)
		enoughMean, enoughWorst := meanAndMax(enoughs)
		all = append(all,
			Measure{Name: FirstDecision, Value: mean, Unit: "s"}, Measure{Name: FirstDecisionAt, Value: worst, Unit: "s"},
			Measure{Name: Enough, Value: enoughMean, Unit: "s"}, Measure{Name: EnoughWorst, Value: enoughWorst, Unit: "s"})
	}
	return append(all,
		Measure{Name: CoverageMean, Value: coverage / n, Unit: "ratio"},
		Measure{Name: WasteMean, Value: waste / n, Unit: "ratio"},
		Measure{Name: WrongDowns, Value: float64(wrong), Unit: "count"},
		Measure{Name: SentRequests, Value: float64(sent), Unit: "count"},
		Measure{Name: FailedRequests, Value: float64(failed), Unit: "count"},
		Measure{Name: GeneratorLate, Value: late, Unit: "ms"})
}

func secondsOrInf(d time.Duration) float64 {
	if d == notSeen {
		return math.Inf(1)
	}
	return d.Seconds()
}

func meanAndMax(values []float64) (mean, largest float64) {
	for _, v := range values {
		mean += v / float64(len(values))
		largest = max(largest, v)
	}
	return mean, largest
}
