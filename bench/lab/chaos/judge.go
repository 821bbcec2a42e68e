package chaos

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Lane is a workload under constant load.
type Lane struct {
	Namespace string
	// Load is what is offered, in requests a second; PerReplica what a replica is meant to take,
	// Target the same in the metric's unit.
	Load, PerReplica, Target float64
	// Action: a surge raises the workload's scale.
	Action bool
}

// Need is ceil(load / per replica): fewer replicas are wrong.
func (l Lane) Need() int { return int(math.Ceil(l.Load/l.PerReplica - 1e-9)) }

// Look is what was seen of a lane's HPA and its target at one time.
type Look struct {
	At time.Duration
	// Desired is the HPA's status.desiredReplicas, Found its status.currentReplicas: what its
	// target had when the HPA last looked, before it scaled. Spec is the target's spec.replicas.
	Desired, Found, Spec int
}

// Answer is what the metrics API said when it was asked as an HPA asks.
type Answer struct {
	At time.Duration
	// Value is NaN where there was no answer; Err is why.
	Value float64
	Held  string
	Err   string
}

// Trace is what was seen of a lane, by time.
type Trace struct {
	Lane    Lane
	Looks   []Look
	Answers []Answer
	// Raises are the events of raises that meshpulse made itself.
	Raises []string
	// Failed requests, of those Sent.
	Sent, Failed int
}

// Moment is when something went wrong, with the faults that were under way or had just been.
type Moment struct {
	At     time.Duration
	Lane   string
	What   string
	Faults []Fault
}

func (m Moment) String() string {
	return fmt.Sprintf("%.1fs %s: %s; %v", m.At.Seconds(), m.Lane, m.What, m.Faults)
}

// WrongDowns are the moments when fewer replicas were desired than the load needs.
func (t Trace) WrongDowns(from time.Duration) []Moment {
	return t.falls(from, func(before, now Look) string {
		if need := t.Lane.Need(); now.Desired < need && (now.Desired < before.Desired || before.At < from) {
			return fmt.Sprintf("%d replicas desired, %d before, %d needed", now.Desired, before.Desired, need)
		}
		return ""
	})
}

// WrongUps are the moments when more replicas were desired than the load needs, and than somebody
// had asked for by hand: that the look before has, or the HPA has found where it has looked since.
func (t Trace) WrongUps(from time.Duration) []Moment {
	return t.falls(from, func(before, now Look) string {
		if need := t.Lane.Need(); now.Desired > max(before.Desired, before.Spec, now.Found, need) {
			return fmt.Sprintf("%d replicas desired, %d before, %d needed", now.Desired, before.Desired, need)
		}
		return ""
	})
}

func (t Trace) falls(from time.Duration, wrong func(before, now Look) string) []Moment {
	var all []Moment
	for i := 1; i < len(t.Looks); i++ {
		if t.Looks[i].At < from {
			continue
		}
		if what := wrong(t.Looks[i-1], t.Looks[i]); what != "" {
			all = append(all, Moment{At: t.Looks[i].At, Lane: t.Lane.Namespace, What: what})
		}
	}
	return all
}

// keeps is what the reason of an answer begins with that keeps the replicas as they are.
const keeps = "held to keep"

// LowAnswers are the answers on which an HPA that looked just then would have scaled below what the
// load needs. One that keeps replicas which are too few already is not another.
func (t Trace) LowAnswers(from time.Duration) []Moment {
	var all []Moment
	for _, a := range t.Answers {
		if a.At < from || math.IsNaN(a.Value) || strings.HasPrefix(a.Held, keeps) {
			continue
		}
		if asked := int(math.Ceil(a.Value/t.Lane.Target - 1e-9)); asked < t.Lane.Need() {
			all = append(all, Moment{At: a.At, Lane: t.Lane.Namespace, What: fmt.Sprintf("answer %.3f (%s) asks for %d replicas, %d needed", a.Value, a.Held, asked, t.Lane.Need())})
		}
	}
	return all
}

// Silence is how long there was no answer, of how long it was asked for.
func (t Trace) Silence(from time.Duration) (silent, asked time.Duration) {
	for i := 1; i < len(t.Answers); i++ {
		if a := t.Answers[i-1]; a.At >= from {
			d := t.Answers[i].At - a.At
			asked += d
			if math.IsNaN(a.Value) {
				silent += d
			}
		}
	}
	return silent, asked
}

// Gap is a time without an answer, and what the API said instead.
type Gap struct {
	At, For time.Duration
	Err     string
}

// Gaps are the times without an answer, one for each time that it was asked in vain.
func (t Trace) Gaps(from time.Duration) []Gap {
	var all []Gap
	for i := 1; i < len(t.Answers); i++ {
		if a := t.Answers[i-1]; a.At >= from && math.IsNaN(a.Value) {
			all = append(all, Gap{At: a.At, For: t.Answers[i].At - a.At, Err: a.Err})
		}
	}
	return all
}

// back is how long the API server takes to look at an extension again that was away.
const back = 5 * time.Second

// nobodyThere says whether nobody can answer at a time, whatever meshpulse does: the API server was
// away, or one replica by itself was, or had begun while it could not read what there is to answer
// for.
func nobodyThere(s Schedule, at time.Duration) bool {
	faults := s.Faults
	deaf := func(begun time.Duration) bool {
		return slices.ContainsFunc(faults, func(f Fault) bool {
			return f.Kind == DeafWatches && f.At <= begun && begun <= f.End() && at <= f.End()+back
		})
	}
	return slices.ContainsFunc(faults, func(f Fault) bool {
		away := f.Kind == KillMeshpulse && s.Replicas < 2 || f.Kind == KillAPIServer
		return away && f.At <= at && (at <= f.End()+back || f.Kind == KillMeshpulse && deaf(f.End()))
	})
}

// avoidable is how long there was no answer though there could have been.
func avoidable(gaps []Gap, s Schedule) (sum time.Duration) {
	for _, g := range gaps {
		if !nobodyThere(s, g.At) {
			sum += g.For
		}
	}
	return sum
}

// Blame is how much of the time without an answer a kind of fault has to answer for, and what the
// API said most of that time.
type Blame struct {
	Silent time.Duration
	Err    string
}

// blame shares each gap out equally between the faults that are under way; where none is, between
// those that have just been.
func blame(gaps []Gap, faults []Fault) map[Kind]Blame {
	silent := map[Kind]map[string]time.Duration{}
	for _, g := range gaps {
		struck := slices.DeleteFunc(Around(faults, g.At), func(f Fault) bool { return g.At > f.End() })
		if len(struck) == 0 {
			struck = Around(faults, g.At)
		}
		for _, f := range struck {
			if silent[f.Kind] == nil {
				silent[f.Kind] = map[string]time.Duration{}
			}
			silent[f.Kind][withoutNumbers(g.Err)] += g.For / time.Duration(len(struck))
		}
	}
	all := map[Kind]Blame{}
	for kind, errs := range silent {
		var b Blame
		var most time.Duration
		for _, text := range slices.Sorted(maps.Keys(errs)) {
			b.Silent += errs[text]
			if errs[text] > most {
				most, b.Err = errs[text], text
			}
		}
		all[kind] = b
	}
	return all
}

// withoutNumbers lets errors that differ by a time or a count be one.
func withoutNumbers(text string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return '#'
		}
		return r
	}, text)
}

// Recovered says whether the lane's last answers were right again, within a twentieth of the
// offered load and not held, and what they were. A metric whose unit is not requests a second is
// held against its need.
func (t Trace) Recovered() (bool, string) {
	if len(t.Answers) == 0 {
		return false, "no answer"
	}
	last := t.Answers[len(t.Answers)-1]
	seen := fmt.Sprintf("%.3f %s%s", last.Value, last.Held, last.Err)
	if t.Lane.Target != t.Lane.PerReplica {
		return last.Held == "" && int(math.Ceil(last.Value/t.Lane.Target)) == t.Lane.Need(), seen
	}
	return last.Held == "" && math.Abs(last.Value/t.Lane.Load-1) <= 0.05, seen
}

// aftermath is how long after its end a fault can still be the reason: what it spoilt leaves the
// queries' range.
const aftermath = 75 * time.Second

// Around are the faults that can be the reason for what was seen at a time.
func Around(faults []Fault, at time.Duration) []Fault {
	return slices.DeleteFunc(slices.Clone(faults), func(f Fault) bool { return at < f.At || at > f.End()+aftermath })
}
