package metricsapi

import (
	"fmt"
	"math"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// A surge is told by the store (aggregator.SurgeDetector). Here is who asks for it, and what
// becomes of the answer: it is only ever raised.

// raise returns the verdict with the surge, where that asks for more than what was seen.
func (v verdict) raise(s aggregator.Surge) verdict {
	milli := math.Round(s.Value * 1000)
	if !s.Active || len(v.items) != 1 || !(milli > float64(v.items[0].milli)) || milli >= math.MaxInt64 {
		return v
	}
	v.items = []item{{labels: v.items[0].labels, milli: int64(milli)}}
	v.surge, v.rule, v.reason = &s, explain.RuleSurge, ""
	return v
}

// describeSurge says in a label what a surge is: 60.2/s over 5s to 12:00:05Z, 2/s before.
func describeSurge(s *aggregator.Surge) string {
	return fmt.Sprintf("%s/s over %s to %s, %s/s before", number(s.Rate), s.To.Sub(s.From).Round(time.Millisecond), s.To.UTC().Format("15:04:05Z"), number(s.Baseline))
}

// SurgeStatus is what is known of a metric's surges.
type SurgeStatus struct {
	// Active: a surge is on; AnswerRaised: the value is the surge's, since it is larger than what
	// the expression gives. Whether the target was raised is in the HPA's events.
	Active       bool `json:"active"`
	AnswerRaised bool `json:"answerRaised"`
	// Ready: there is enough history to tell one, a complete minute of all pods.
	Ready bool `json:"ready"`
	// Value is the expression over the surge alone; Rate and Baseline are its counts per second, in
	// it and before, and Tail the probability of at least as many by chance. All are left out while
	// none is active.
	Value    float64    `json:"value,omitempty"`
	Rate     float64    `json:"rate,omitempty"`
	Baseline float64    `json:"baseline,omitempty"`
	Tail     float64    `json:"tail,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	From     *time.Time `json:"from,omitempty"`
	To       *time.Time `json:"to,omitempty"`
}

func toSurgeStatus(s aggregator.Surge, raised bool) *SurgeStatus {
	status := &SurgeStatus{Active: s.Active, AnswerRaised: raised, Ready: s.Ready}
	if s.Active {
		status.Value, status.Rate, status.Baseline, status.Tail = s.Value, s.Rate, s.Baseline, s.Tail
		status.Since, status.From, status.To = &s.Since, &s.From, &s.To
	}
	return status
}
