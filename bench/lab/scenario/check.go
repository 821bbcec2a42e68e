package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Run is one run of a scenario: with one sync period, all lanes.
type Run struct {
	Scenario Scenario
	HPASync  time.Duration
	Boot     time.Duration // how long the control plane took to start
	Traces   []Trace
	Measures []Measure
	Verdicts []Verdict
}

// Verdict is what became of a check.
type Verdict struct {
	Say string
	OK  bool
	// Seen is the evidence.
	Seen string
}

// Judge fills in the run's measures and verdicts.
func (r *Run) Judge() {
	r.Measures = append(Measures(r.Traces), BootTime(r.Boot))
	for _, c := range r.Scenario.Checks {
		if c.HPASync != nil && c.HPASync.Duration != r.HPASync {
			continue
		}
		if c.Measure != "" {
			r.Verdicts = append(r.Verdicts, r.judgeMeasure(c))
			continue
		}
		found := false
		for _, t := range r.Traces {
			if c.Lane == "" || laneOf(t.Namespace, r.Scenario.Repeat) == c.Lane {
				found = true
				r.Verdicts = append(r.Verdicts, c.judge(t))
			}
		}
		if !found {
			r.Verdicts = append(r.Verdicts, Verdict{Say: c.Say, Seen: fmt.Sprintf("no lane %q", c.Lane)})
		}
	}
}

// OK says whether every check held.
func (r *Run) OK() bool {
	return !slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return !v.OK })
}

// laneOf undoes Expanded's numbering.
func laneOf(namespace string, repeat int) string {
	if repeat > 1 {
		return namespace[:strings.LastIndexByte(namespace, '-')]
	}
	return namespace
}

func (r *Run) judgeMeasure(c Check) Verdict {
	name := c.Measure
	if c.Lane != "" {
		name = c.Lane + ": " + name
		for _, m := range Measures(slices.DeleteFunc(slices.Clone(r.Traces), func(t Trace) bool { return laneOf(t.Namespace, r.Scenario.Repeat) != c.Lane })) {
			if m.Name == c.Measure {
				m.Name = name
				r.Measures = append(r.Measures, m)
			}
		}
	}
	i := slices.IndexFunc(r.Measures, func(m Measure) bool { return m.Name == name })
	if i < 0 {
		return Verdict{Say: c.Say, Seen: fmt.Sprintf("no measure %q", name)}
	}
	m := &r.Measures[i]
	v := Verdict{Say: c.Say, OK: true, Seen: m.Text()}
	if c.AtMost != nil {
		m.Goal, m.Better = c.AtMost, "lower"
		v.OK = m.Value <= *c.AtMost
	}
	if c.AtLeast != nil {
		m.Goal, m.Better = c.AtLeast, "higher"
		v.OK = v.OK && m.Value >= *c.AtLeast
	}
	return v
}

func (c Check) judge(t Trace) Verdict {
	v := Verdict{Say: t.Namespace + ": " + c.Say}
	if c.Event != "" {
		var found []string
		for _, e := range t.Events {
			if strings.HasPrefix(e, c.Event+":") {
				found = append(found, shortEvent(e))
			}
		}
		v.OK, v.Seen = len(found) > 0 && (c.Times == 0 || len(found) == c.Times), strings.Join(found, "; ")
		if len(found) == 0 {
			v.Seen = fmt.Sprintf("%d other Warning events", len(t.Events))
		}
		return v
	}
	if c.Condition != "" {
		v.OK, v.Seen = slices.Contains(t.Conditions, c.Condition), strings.Join(t.Conditions, ", ")
		return v
	}
	to := c.To
	if to.Duration == 0 {
		to = metav1.Duration{Duration: t.Load.Duration()}
	}
	samples := t.between(c.From.Duration, to.Duration)
	if len(samples) == 0 {
		v.Seen = "no sample"
		return v
	}
	bounds, replicas := c.Desired, func(s Sample) int { return s.Desired }
	if bounds == nil {
		bounds, replicas = c.Ready, func(s Sample) int { return s.Ready }
	}
	least, most := replicas(samples[0]), replicas(samples[0])
	for _, s := range samples {
		least, most = min(least, replicas(s)), max(most, replicas(s))
	}
	v.OK = least >= bounds[0] && most <= bounds[1]
	v.Seen = fmt.Sprintf("%d to %d", least, most)
	if least == most {
		v.Seen = fmt.Sprint(least)
	}
	return v
}
