package main

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// opening says what one will see.
const opening = `You will see real sidecars report to meshpulse, and what seven HPAs are answered, beside what the load generator saw.
A rate over [1m] climbs for a minute and stays at 27 requests a second, which asks for 3 replicas of 10 each.
Ctrl-C ends everything, and a summary with a plot says how close the answers came.`

// summed is the HPA that the summary is of: the guides' first.
const summed = "podinfo-total"

// past is what was answered and seen so far.
type past struct {
	began          time.Time
	answered, seen explain.Series
}

// note remembers a view.
func (p *past) note(v view) {
	now := time.Now()
	if p.began.IsZero() {
		p.began = now
		p.answered, p.seen = explain.Series{Title: "answered", Sign: '*'}, explain.Series{Title: "load", Sign: '.'}
	}
	if v.seen != nil {
		p.seen.Times, p.seen.Values = append(p.seen.Times, now), append(p.seen.Values, v.seen.Rate)
	}
	for _, m := range v.status.Metrics {
		if q, err := resource.ParseQuantity(m.Value); m.HPA == summed && m.Error == "" && err == nil {
			p.answered.Times, p.answered.Values = append(p.answered.Times, now), append(p.answered.Values, q.AsApproximateFloat64())
		}
	}
}

// summary is what the end says.
func (p *past) summary() string {
	if len(p.answered.Values) == 0 {
		return "\nNo HPA was answered: the first flush comes after 5 s."
	}
	last := p.answered.Values[len(p.answered.Values)-1]
	text := fmt.Sprintf("\nOver %s HPA %s was answered %d times, the last time %.2f requests a second", time.Since(p.began).Round(time.Second), summed, len(p.answered.Values), last)
	if n := len(p.seen.Values); n > 0 {
		text += fmt.Sprintf(" (*); the load generator saw %.2f (.)", p.seen.Values[n-1])
	}
	return text + "\n" + strings.Join(explain.Plot(80, 8, p.seen, p.answered), "\n")
}
