package pages

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// lookAtOne draws the page of one HPA.
func (p *Pages) lookAtOne(namespace, name string) look {
	past := newPast()
	return func(ctx context.Context, last *view) *view {
		e, err := p.config.Source.One(ctx, namespace, name, 0)
		if err != nil {
			return p.failed(last, err)
		}
		past.note(&e)
		past.fill(ctx, p.config.Source, namespace, name)
		v := newView()
		v.pieces[statusID] = p.draw(statusID, status{At: clock(e.At), Text: stands(&e)})
		add := func(id, template string, data any) {
			v.order, v.pieces[id] = append(v.order, id), p.draw(template, data)
		}
		add("troubles", "troubles", troubles(&e))
		for i := range e.Metrics {
			add(fmt.Sprintf("metric%d", i), "metric", metricOf(&e, i, past))
		}
		add("text", "text", explain.PrintableLines(e.Text()))
		return v
	}
}

// stands says what the HPA's target has and will get.
func stands(e *explain.Explanation) string {
	text := fmt.Sprintf("%s: %d replicas are asked for, %d are there", e.Target, e.Replicas.Spec, e.Replicas.Status)
	if d := e.Decision; d != nil && d.Why == "" {
		text += fmt.Sprintf(", %d are wanted", d.Replicas)
	}
	return explain.Printable(text + fmt.Sprintf("; limits %d to %d", e.MinReplicas, e.MaxReplicas))
}

// trouble is one as the page shows it.
type trouble struct{ Kind, What, Cause, Remedy string }

func troubles(e *explain.Explanation) (all []trouble) {
	for _, t := range e.Troubles {
		all = append(all, trouble{strings.ToLower(string(t.Kind)), explain.Printable(t.What), explain.Printable(t.Cause), explain.Printable(t.Remedy)})
	}
	return all
}

// metric is one of an HPA's, as the page shows it.
type metric struct {
	ID, Name, Expression string
	Value, Replicas      *plot // nil without a history
	Spans                []string
	Pods                 []pod
	More                 int // pods that are not shown
}

func metricOf(e *explain.Explanation, place int, past *past) metric {
	m := &e.Metrics[place]
	told := metric{ID: fmt.Sprintf("metric%d", place), Name: explain.Printable(m.Name), Expression: explain.Printable(m.Expression), More: m.PodsLeftOut}
	if len(m.History) > 0 {
		told.Value, told.Replicas = valuePlot(e, m), replicasPlot(e, m)
		for _, s := range spans(m.History, e.At) {
			told.Value.during(s.class, s.String(), s.from, s.to)
			told.Replicas.during(s.class, s.String(), s.from, s.to)
			if s.raised > 0 {
				told.Replicas.done(fmt.Sprintf("%s: raised to %d", clock(s.from), s.raised), s.from)
			}
			told.Spans = append(told.Spans, s.String())
		}
		told.Spans = told.Spans[max(0, len(told.Spans)-maxSpans):]
	}
	told.Pods = past.pods(m, place)
	return told
}

// maxSpans is how many of the newest spans are named in words.
const maxSpans = 5

// since is from when on a history is drawn: its first point, five minutes at least.
func since(e *explain.Explanation, history []explain.Point) time.Time {
	from := e.At.Add(-5 * time.Minute)
	if first := history[0].At; first.Before(from) {
		from = first
	}
	return from
}

// over are points of a history, of what of each gives.
func over(history []explain.Point, of func(explain.Point) float64) (points []point) {
	for _, q := range history {
		points = append(points, point{q.At, of(q)})
	}
	return points
}

func known(v *float64) float64 {
	if v == nil {
		return math.NaN()
	}
	return *v
}

func some(n int32) float64 {
	if n <= 0 {
		return math.NaN()
	}
	return float64(n)
}

// valuePlot has what was answered and seen, what there was before surges, and the value at which
// the replicas stay.
func valuePlot(e *explain.Explanation, m *explain.Metric) *plot {
	answered := over(m.History, func(q explain.Point) float64 { return known(q.Answered) })
	seen := over(m.History, func(q explain.Point) float64 { return known(q.Seen) })
	baseline := over(m.History, func(q explain.Point) float64 { return known(q.Baseline) })
	goal, name := math.NaN(), "target"
	if q, err := resource.ParseQuantity(m.Target); err == nil {
		goal = q.AsApproximateFloat64()
	}
	target := over(m.History, func(explain.Point) float64 { return goal })
	if m.TargetType == "AverageValue" {
		name = "target × replicas"
		target = over(m.History, func(q explain.Point) float64 { return goal * some(q.Replicas) })
	}
	p := newPlot("Value", since(e, m.History), e.At, answered, seen, baseline, target)
	p.add("target", name, target)
	p.add("baseline", "before the surge", baseline)
	p.add("seen", "seen", seen)
	p.add("answered", "answered", answered)
	return p
}

// replicasPlot has the replicas that the metric wants, that the HPA asks for and that are there.
func replicasPlot(e *explain.Explanation, m *explain.Metric) *plot {
	wanted := over(m.History, func(q explain.Point) float64 { return some(q.Wanted) })
	asked := over(m.History, func(q explain.Point) float64 { return some(q.Asked) })
	there := over(m.History, func(q explain.Point) float64 { return some(q.Replicas) })
	p := newPlot("Replicas", since(e, m.History), e.At, wanted, asked, there)
	p.add("there", "there", there)
	p.add("asked", "asked for by the HPA", asked)
	p.add("wanted", "wanted by the metric", wanted)
	return p
}

// span is a time in which answers followed from one rule that is not simply what is seen.
type span struct {
	class, what string
	from, to    time.Time
	raised      int32 // to how many replicas a surge has raised the target, 0 if it has not
	goesOn      bool
}

func (s span) String() string {
	if s.goesOn {
		return fmt.Sprintf("%s since %s", s.what, clock(s.from))
	}
	return fmt.Sprintf("%s from %s to %s", s.what, s.from.UTC().Format("15:04:05"), clock(s.to))
}

// spanOf is the class of a rule's spans and what they are called, "" for none.
func spanOf(r explain.Rule) (class, what string) {
	switch r {
	case explain.RuleHeld:
		return "held", "held"
	case explain.RuleEstimated:
		return "held", "mute sidecars estimated"
	case explain.RuleSurge:
		return "surge", "surge"
	case explain.RuleRaised:
		return "raised", "raised"
	case explain.RuleRefused:
		return "refused", "no answer"
	}
	return "", ""
}

// spans are those of a history, the oldest first.
func spans(history []explain.Point, now time.Time) (all []span) {
	var open *span
	end := func(at time.Time) {
		if open != nil {
			open.to = at
			all = append(all, *open)
			open = nil
		}
	}
	for i, q := range history {
		class, what := spanOf(q.Rule)
		if i > 0 && q.At.Sub(history[i-1].At) > gap { // nobody asked in between
			end(history[i-1].At.Add(time.Second))
		}
		if open != nil && open.what != what {
			end(q.At)
		}
		if open == nil && class != "" {
			open = &span{class: class, what: what, from: q.At}
			if q.Rule == explain.RuleRaised {
				open.raised = max(q.Wanted, q.Asked)
			}
		}
	}
	if open != nil && now.Sub(history[len(history)-1].At) <= gap {
		open.goesOn = true
		end(now)
	} else if open != nil {
		end(history[len(history)-1].At.Add(time.Second))
	}
	return all
}

// value is a number that an explanation has as a text, NaN where it is none.
func value(text string) float64 {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return v
}
