package scenario

import (
	"math"
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/bench/load"
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
	// Asked is when the target's spec.replicas were changed, and to what, whoever did it; the first
	// is what it began with.
	Asked []Asked
	// Raises are the events that tell of meshpulse's own raises of the target.
	Raises []string
	// Requests is what the load generator saw.
	Requests load.Seen
	// Oracle is what one meshpulse by itself answered and would have raised, nil without one.
	Oracle *Oracle
}

// Asked is a number of replicas that a target was told to have.
type Asked struct {
	At       time.Duration
	Replicas int
}

// Ideal is the number of replicas that a rate needs, within the HPA's limits.
func (t Trace) Ideal(rps float64) int {
	need := int(math.Ceil(rps/t.PerReplica - 1e-9))
	return min(max(need, t.Min), t.Max)
}

// Reaction is how a lane followed one rise of the load.
type Reaction struct {
	At time.Duration
	// Decision is the time from the step until more replicas were desired, Enough until as many as
	// needed were ready; negative if that was not seen before the load changed again. Decision goes
	// by what the HPA desires; Raise and All by what the target was told to have: more than before,
	// and all that is needed.
	Decision, Enough time.Duration
	Raise, All       time.Duration
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
		asked := t.askedAt(change.At)
		r := Reaction{
			At: change.At, Decision: notSeen, Enough: notSeen,
			Raise: t.askedFor(asked+1, change.At, end), All: t.askedFor(max(asked+1, need), change.At, end),
		}
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

// askedAt is what the target was told to have at a time.
func (t Trace) askedAt(at time.Duration) int {
	replicas := 0
	for i, a := range t.Asked {
		if i == 0 || a.At < at {
			replicas = a.Replicas
		}
	}
	return replicas
}

// askedFor is the time from `from` until at least so many replicas were asked for.
func (t Trace) askedFor(replicas int, from, to time.Duration) time.Duration {
	for _, a := range t.Asked {
		if a.At >= from && a.At < to && a.Replicas >= replicas {
			return a.At - from
		}
	}
	return notSeen
}

// Return is how a lane followed one fall of the load.
type Return struct {
	// Highest is the most that was asked for since the load rose; Back is the time from the fall
	// until no more was asked for than the load needs, negative if that was not seen before the
	// load changed again.
	Highest int
	Back    time.Duration
}

// Returns are those from the steps down.
func (t Trace) Returns() []Return {
	var all []Return
	changes := t.Load.Changes()
	for i, change := range changes {
		if change.To >= change.From {
			continue
		}
		begin, end := time.Duration(0), t.Load.Duration()
		if i > 0 {
			begin = changes[i-1].At
		}
		if i+1 < len(changes) {
			end = changes[i+1].At
		}
		r := Return{Highest: t.askedAt(begin), Back: notSeen}
		if t.askedAt(change.At) <= t.Ideal(change.To) {
			r.Back = 0
		}
		for _, a := range t.Asked {
			if a.At < begin || a.At >= end {
				continue
			}
			r.Highest = max(r.Highest, a.Replicas)
			switch enough := a.Replicas <= t.Ideal(change.To); {
			case a.At < change.At:
			case !enough:
				r.Back = notSeen // raised once more, after the load had fallen
			case r.Back == notSeen:
				r.Back = a.At - change.At
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
	return t.coverageWhere(func(Sample) bool { return true })
}

// HighCoverage is Coverage of the times at which the load is at its highest.
func (t Trace) HighCoverage() (coverage, waste float64) {
	highest := 0.0
	for _, s := range t.Samples {
		if s.At >= t.From {
			highest = max(highest, s.RPS)
		}
	}
	return t.coverageWhere(func(s Sample) bool { return s.RPS == highest })
}

func (t Trace) coverageWhere(counts func(Sample) bool) (coverage, waste float64) {
	var length float64
	for i := 1; i < len(t.Samples); i++ {
		s := t.Samples[i-1]
		// After its load a lane only waits for the others.
		if s.At < t.From || s.At >= t.Load.Duration() || !counts(s) {
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

// WrongScaleDowns is how often the desired replicas fell to fewer than the rate of that moment
// needs.
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
	FirstRaise      = "first raise, mean"
	FirstRaise90    = "first raise, p90"
	AllAsked        = "all replicas asked for, mean"
	AllAsked90      = "all replicas asked for, p90"
	Highest         = "highest replicas asked for, mean"
	Back            = "taken back after, mean"
	HighCoverage    = "coverage of the high phases"
	CoverageMean    = "coverage"
	WasteMean       = "waste"
	WrongDowns      = "wrong scale-downs"
	FailedRequests  = "failed requests"
	SentRequests    = "requests sent"
	GeneratorLate   = "generator late, worst"
)

// BootTime is how long a control plane took from its first process to an API server that is ready
// and controllers that run.
func BootTime(took time.Duration) Measure {
	goal := 10.0
	return Measure{Name: "control plane booted", Value: took.Seconds(), Unit: "s", Goal: &goal, Better: "lower"}
}

// Measures are the figures of a run over all its lanes. A reaction that was never seen is +Inf, so
// no mean hides it.
func Measures(traces []Trace) []Measure {
	var decisions, enoughs, raises, alls, highest, backs []float64
	var coverage, waste, high, late float64
	wrong, failed, sent := 0, 0, 0
	for _, t := range traces {
		for _, r := range t.Reactions() {
			decisions = append(decisions, secondsOrInf(r.Decision))
			enoughs = append(enoughs, secondsOrInf(r.Enough))
			raises = append(raises, secondsOrInf(r.Raise))
			alls = append(alls, secondsOrInf(r.All))
		}
		for _, r := range t.Returns() {
			highest = append(highest, float64(r.Highest))
			backs = append(backs, secondsOrInf(r.Back))
		}
		h, _ := t.HighCoverage()
		high += h
		c, w := t.Coverage()
		coverage, waste = coverage+c, waste+w
		wrong += t.WrongScaleDowns()
		failed, sent = failed+t.Requests.Failed, sent+t.Requests.Requests
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
		raise, _ := meanAndMax(raises)
		asked, _ := meanAndMax(alls)
		all = append(all,
			Measure{Name: FirstRaise, Value: raise, Unit: "s"}, Measure{Name: FirstRaise90, Value: quantile90(raises), Unit: "s"},
			Measure{Name: AllAsked, Value: asked, Unit: "s"}, Measure{Name: AllAsked90, Value: quantile90(alls), Unit: "s"},
			Measure{Name: HighCoverage, Value: high / n, Unit: "ratio"})
	}
	if len(backs) > 0 {
		most, _ := meanAndMax(highest)
		back, _ := meanAndMax(backs)
		all = append(all, Measure{Name: Highest, Value: most, Unit: "replicas"}, Measure{Name: Back, Value: back, Unit: "s"})
	}
	all = append(all, beside(traces)...)
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

// quantile90 is the smallest value that nine tenths of them do not exceed.
func quantile90(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*9+9)/10-1]
}

func meanAndMax(values []float64) (mean, largest float64) {
	for _, v := range values {
		mean += v / float64(len(values))
		largest = max(largest, v)
	}
	return mean, largest
}
