package scenario

import (
	"math"
	"slices"
	"time"
)

// Oracle is what one meshpulse by itself makes of what two are sent, at times of the lane's load.
type Oracle struct {
	// Target is the HPA's, in the metric's unit a replica.
	Target float64
	// Answers are the oracle's, without those that were none.
	Answers []Answered
	// Raises are those that the oracle would have made (surge-action: observe), Own those that the
	// two would have, in order.
	Raises, Own []Asked
}

// Answered is an answer at a time.
type Answered struct {
	At    time.Duration
	Value float64
}

// The names of the measures beside an oracle.
const (
	OracleRaises = "raises of the oracle"
	RaisesMissed = "raises of the oracle missed"
	RaisesLate   = "raise after the oracle's, latest"
	DownsAlone   = "scale-downs that the oracle has not"
)

// late is by how much later than the oracle's a raise was had: made as high, or asked for by the
// HPA itself meanwhile. It is false where it never was.
func (t Trace) late(raise Asked) (time.Duration, bool) {
	earliest, had := time.Duration(0), false
	for _, a := range slices.Concat(t.Oracle.Own, t.Asked) {
		if a.Replicas >= raise.Replicas && (!had || a.At < earliest) && a.At >= raise.At-before {
			earliest, had = a.At, true
		}
	}
	return max(0, earliest-raise.At), had
}

const (
	// before is by how much earlier than the oracle's a raise may be the same one.
	before = 30 * time.Second
	// beforeDown is how far back the oracle may have answered what a scale-down goes by: the HPA
	// has asked a moment before it was seen to want fewer, and a flush may have come to the oracle
	// meanwhile.
	beforeDown, afterDown = 6 * time.Second, 6 * time.Second
)

// downsAlone is how often the HPA wanted fewer replicas, and no answer of the oracle around that
// time asks for as few.
func (t Trace) downsAlone() int {
	n := 0
	for i := 1; i < len(t.Samples); i++ {
		s := t.Samples[i]
		if s.At < t.From || s.Desired >= t.Samples[i-1].Desired {
			continue
		}
		asks := func(a Answered) bool {
			return a.At >= s.At-beforeDown && a.At <= s.At+afterDown && max(t.Min, int(math.Ceil(a.Value/t.Oracle.Target-1e-9))) <= s.Desired
		}
		if !slices.ContainsFunc(t.Oracle.Answers, asks) {
			n++
		}
	}
	return n
}

// beside are the measures of lanes beside an oracle.
func beside(traces []Trace) []Measure {
	raises, missed, downs, seen := 0, 0, 0, false
	latest := time.Duration(0)
	for _, t := range traces {
		if t.Oracle == nil {
			continue
		}
		seen = true
		for _, r := range t.Oracle.Raises {
			raises++
			late, had := t.late(r)
			if !had {
				missed++
			}
			latest = max(latest, late)
		}
		downs += t.downsAlone()
	}
	if !seen {
		return nil
	}
	return []Measure{
		{Name: OracleRaises, Value: float64(raises), Unit: "count"},
		{Name: RaisesMissed, Value: float64(missed), Unit: "count"},
		{Name: RaisesLate, Value: latest.Seconds(), Unit: "s"},
		{Name: DownsAlone, Value: float64(downs), Unit: "count"},
	}
}
