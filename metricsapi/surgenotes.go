package metricsapi

import (
	"strconv"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

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

// acts says whether something is to be done at a surge beside answering it.
func (n surgeNotes) acts() bool {
	return !n.off && (n.action == surgeActionScale || n.action == surgeActionObserve)
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
