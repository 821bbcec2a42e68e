package metricsapi

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// A surge is told by the store (aggregator.SurgeDetector). Here is who asks for it, and what becomes of the answer: it is only
// ever raised.

// surgeAction is what is done at a surge beside answering it.
type surgeAction string

const (
	surgeActionOff     surgeAction = "off"     // nothing, the default
	surgeActionObserve surgeAction = "observe" // everything but the write
	surgeActionScale   surgeAction = "scale"   // the target's scale is raised
)

// surgeMetric is the metric that is watched for surges without being asked.
const surgeMetric = "istio-requests-per-second"

// surgeNotes are what an HPA's annotations say of surges.
type surgeNotes struct {
	// asked: an annotation asks for it, so metrics with PromQL are watched too; off: none is.
	asked, off bool
	config     aggregator.SurgeConfig // zero fields are defaults
	action     surgeAction            // "" as surgeActionOff
}

// read takes one of the surge keys, without its prefix. want says what a value that cannot be read should be, "" if it could.
func (n *surgeNotes) read(key, value string) (want string) {
	switch key {
	case "surge-window":
		if value == "off" {
			n.off = true
			return ""
		}
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 || (aggregator.SurgeConfig{Window: d}).Validate() != nil {
			return "a duration from 1s to 30s such as 10s, or off"
		}
		n.config.Window, n.asked = d, true
	case "surge-ratio":
		f, err := strconv.ParseFloat(value, 64)
		if err != nil || f == 0 || (aggregator.SurgeConfig{Ratio: f}).Validate() != nil {
			return `a number above 1 such as "1.5"`
		}
		n.config.Ratio, n.asked = f, true
	case "surge-action":
		switch a := surgeAction(value); a {
		case surgeActionObserve, surgeActionScale:
			n.action, n.asked = a, true
		case surgeActionOff:
			n.action = a
		default:
			return "off, observe or scale"
		}
	}
	return ""
}

// of returns the settings with which a metric is watched, zero if it is not.
func (n surgeNotes) of(w wanted) aggregator.SurgeConfig {
	byDefault := w.named && w.metric == surgeMetric
	if n.off || w.expr == "" || !n.asked && !byDefault {
		return aggregator.SurgeConfig{}
	}
	return n.config.WithDefaults()
}

// adviseSurge says where a setting for surges has no effect.
func (a *autoscaler) adviseSurge() {
	switch {
	case a.surge.off && (a.surge.action == surgeActionScale || a.surge.action == surgeActionObserve):
		a.problem(ReasonSurgeNotServed, "annotation meshpulse.io/surge-action: %s has no effect with meshpulse.io/surge-window: off. Remove one of them", a.surge.action)
		return
	case a.surge.off || !a.surge.asked:
		return
	}
	for _, w := range a.metrics {
		if w.expr != "" && aggregator.CanSurge(w.expr) {
			return
		}
	}
	a.problem(ReasonSurgeNotServed, "the meshpulse.io/surge- annotations have no effect: in no metric of this HPA can a surge be told. %s", sentence(aggregator.ErrNoSurge))
}

// sentence is an error's text as one.
func sentence(err error) string {
	text := err.Error()
	if text == "" {
		return ""
	}
	return string(text[0]-'a'+'A') + text[1:]
}

// raise returns the verdict with the surge, where that asks for more than what was seen.
func (v verdict) raise(s aggregator.Surge) verdict {
	milli := math.Round(s.Value * 1000)
	if !s.Active || len(v.items) != 1 || !(milli > float64(v.items[0].milli)) || milli >= math.MaxInt64 {
		return v
	}
	v.items = []item{{labels: v.items[0].labels, milli: int64(milli)}}
	v.surge, v.reason = &s, ""
	return v
}

// describeSurge says in a label what a surge is: 60.2/s over 5s to 12:00:05Z, 2/s before.
func describeSurge(s *aggregator.Surge) string {
	return fmt.Sprintf("%s/s over %s to %s, %s/s before", number(s.Rate), s.To.Sub(s.From).Round(time.Millisecond), s.To.UTC().Format("15:04:05Z"), number(s.Baseline))
}

// SurgeStatus is what is known of a metric's surges.
type SurgeStatus struct {
	// Active: a surge is on; AnswerRaised: the value is the surge's, since it is larger than what the expression gives. Whether the
	// target was raised is in the HPA's events.
	Active       bool `json:"active"`
	AnswerRaised bool `json:"answerRaised"`
	// Ready: there is enough history to tell one, a complete minute of all pods.
	Ready bool `json:"ready"`
	// Value is the expression over the surge alone; Rate and Baseline are its counts per second, in it and before, and Tail the
	// probability of at least as many by chance. All are left out while none is active.
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
