package hpas

import (
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// SurgeAction is what is done at a surge beside answering it.
type SurgeAction string

const (
	SurgeOff     SurgeAction = "off"     // nothing, the default
	SurgeObserve SurgeAction = "observe" // everything but the write
	SurgeScale   SurgeAction = "scale"   // the target's scale is raised
)

// surgeMetric is the metric that is watched for surges without being asked.
const surgeMetric = "istio-requests-per-second"

// Surge are what an HPA's annotations say of surges.
type Surge struct {
	// Asked: an annotation asks for it, so metrics with PromQL are watched too; off: none is.
	Asked, Off bool
	Config     aggregator.SurgeConfig // zero fields are defaults
	Action     SurgeAction            // "" as surgeActionOff
}

// read takes one of the surge keys, without its prefix. want says what a value that cannot be read
// should be, "" if it could.
func (n *Surge) read(key, value string) (want string) {
	switch key {
	case "surge-window":
		if value == "off" {
			n.Off = true
			return ""
		}
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 || (aggregator.SurgeConfig{Window: d}).Validate() != nil {
			return "a duration from 1s to 30s such as 10s, or off"
		}
		n.Config.Window, n.Asked = d, true
	case "surge-ratio":
		f, err := strconv.ParseFloat(value, 64)
		if err != nil || f == 0 || (aggregator.SurgeConfig{Ratio: f}).Validate() != nil {
			return `a number above 1 such as "1.5"`
		}
		n.Config.Ratio, n.Asked = f, true
	case "surge-action":
		switch a := SurgeAction(value); a {
		case SurgeObserve, SurgeScale:
			n.Action, n.Asked = a, true
		case SurgeOff:
			n.Action = a
		default:
			return "off, observe or scale"
		}
	}
	return ""
}

// of returns the settings with which a metric is watched, zero if it is not.
func (n Surge) of(w Metric) aggregator.SurgeConfig {
	byDefault := w.Named && (w.Name == surgeMetric || w.Triggered && strings.HasSuffix(w.Name, "-"+surgeMetric))
	if n.Off || w.Expr == "" || !n.Asked && !byDefault {
		return aggregator.SurgeConfig{}
	}
	return n.Config.WithDefaults()
}

// Acts says whether something is to be done at a surge beside answering it.
func (n Surge) Acts() bool {
	return !n.Off && (n.Action == SurgeScale || n.Action == SurgeObserve)
}

// adviseSurge says where a setting for surges has no effect.
func (a *Wants) adviseSurge() {
	switch {
	case a.Surge.Off && (a.Surge.Action == SurgeScale || a.Surge.Action == SurgeObserve):
		a.problem(ReasonSurgeNotServed, "annotation meshpulse.io/surge-action: %s has no effect with meshpulse.io/surge-window: off. Remove one of them", a.Surge.Action)
		return
	case a.Surge.Off || !a.Surge.Asked:
		return
	}
	for _, w := range a.Metrics {
		if w.Expr != "" && !w.Custom() && aggregator.CanSurge(w.Expr) {
			return
		}
	}
	asks := "the meshpulse.io/surge- annotations have"
	if a.Scaled != nil {
		asks = "what the triggers say of surges has"
	}
	a.problem(ReasonSurgeNotServed, asks+" no effect: in no metric of this HPA can a surge be told. %s", sentence(aggregator.ErrNoSurge))
}

// sentence is an error's text as one.
func sentence(err error) string {
	text := err.Error()
	if text == "" {
		return ""
	}
	return string(text[0]-'a'+'A') + text[1:]
}
