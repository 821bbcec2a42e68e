package metricsapi

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// explaining is an explanation in the making.
type explaining struct {
	*Server
	hpa     hpaState
	at, now time.Time
	// whole: pods one by one with their values, the scale and the history. Else what a list needs.
	whole bool

	e        *explain.Explanation
	readings []horizontal.Reading
	served   []int // the places among e.Metrics of those that are served
	most     int   // sidecars that report, of the metric with most
}

// fewPods is how many doubtful pods a list has of a metric.
const fewPods = 3

// explain says why an HPA's metrics have the values that they have at an instant.
func (s *Server) explain(ctx context.Context, h hpaState, at, now time.Time, whole bool) explain.Explanation {
	x := &explaining{Server: s, hpa: h, at: at, now: now, whole: whole, readings: make([]horizontal.Reading, len(h.Spec.Metrics))}
	ref := h.Spec.ScaleTargetRef
	x.e = &explain.Explanation{
		TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: "Explanation"}, ObjectMeta: metav1.ObjectMeta{Namespace: h.Namespace, Name: h.Name},
		At: at, Now: now, Standalone: s.options.Standalone, Target: ref.Kind + "/" + ref.Name, MinReplicas: h.MinReplicas(), MaxReplicas: h.Spec.MaxReplicas,
		Metrics: []explain.Metric{}, Events: slices.Clone(h.problems), Others: len(h.Spec.Metrics) - len(h.Metrics) - len(h.Unserved),
	}
	others := h.Unserved
	for i, w := range h.Metrics {
		for ; len(others) > 0 && others[0].Place < w.Place; others = others[1:] {
			x.unserved(others[0])
		}
		x.metric(ctx, w, h.offers[i])
	}
	for _, u := range others {
		x.unserved(u)
	}
	x.decide(ctx)
	x.e.Diagnose()
	if !whole {
		for i := range x.e.Metrics {
			m := &x.e.Metrics[i]
			m.Pods = slices.DeleteFunc(m.Pods, func(p explain.Pod) bool { return p.State == explain.StateReporting || p.State == explain.StateYoung })
			m.Pods, m.PodsLeftOut, m.History = m.Pods[:min(len(m.Pods), fewPods)], 0, nil
		}
	}
	return *x.e
}

func (x *explaining) unserved(u hpas.Unserved) {
	m := explain.Metric{Name: u.Metric.Name, Type: string(u.Kind), TargetType: string(u.Target.Type), Target: goalText(u.Goal()), Rule: explain.RuleRefused, Error: u.Why}
	m.Displayed = "<unknown>/" + m.Target
	x.e.Metrics = append(x.e.Metrics, m)
}

func goalText(goal *resource.Quantity) string {
	if goal == nil {
		return "<unset>"
	}
	return goal.String()
}

// metric explains one, and notes what the controller reads of it.
func (x *explaining) metric(ctx context.Context, w hpas.Metric, o *offer) {
	x.served = append(x.served, len(x.e.Metrics))
	m := explain.Metric{
		Type: string(w.Kind), Name: w.Written, Selector: w.Selector.String(), Expression: w.Expr, TargetType: string(w.Target.Type), Target: goalText(w.Goal()),
		Rule: explain.RuleRefused, Error: w.Why, Displayed: "<unknown>/" + goalText(w.Goal()),
	}
	if o == nil || !o.prepared.acquire() {
		m.Error = cmp.Or(m.Error, "the HPA has just changed: ask again")
		x.e.Metrics = append(x.e.Metrics, m)
		return
	}
	defer o.prepared.release()
	r, acc := x.provider.rules.accounted()
	m.Expression = o.prepared.Text
	v, a, refused := r.evaluate(ctx, subjectOf(w.Name, x.hpa.Namespace, o), o, o.prepared, x.at)
	x.coverage(&m, a, v)
	if acc.unseen == nil && acc.seen.items != nil {
		m.Seen = milliText(acc.seen.sum())
	}
	if m.Error = ""; refused != nil {
		m.Error = refused.message
	} else {
		m.Value, m.Rule, m.Reason = milliText(v.sum()), cmp.Or(v.rule, explain.RuleSeen), v.reason
		x.readings[w.Place] = horizontal.Reading{Milli: v.sum(), Known: true}
	}
	x.e.Events = append(x.e.Events, v.problems...)
	x.pods(ctx, &m, o.prepared, a, acc)
	m.Surge = x.surge(o.prepared, v)
	m.History = x.provider.history.of(x.hpa.HPA, w.Place)
	m.HeldSince = heldSince(m.History, m.Rule)
	m.Shadow = x.shadow.of(x.hpa.HPA, w)
	x.e.Metrics = append(x.e.Metrics, m)
	x.most = max(x.most, m.Reporting)
}

func milliText(milli int64) string {
	return resource.NewMilliQuantity(milli, resource.DecimalSI).String()
}

func (x *explaining) coverage(m *explain.Metric, a aggregator.Answer, v verdict) {
	m.WindowSeconds, m.CoveredSeconds, m.FlushSeconds = a.Window.Seconds(), a.Covered.Seconds(), a.Flush.Seconds()
	m.Reporting, m.Expected, m.Series = a.Reporting, v.expected, a.Matched
	if !a.Newest.IsZero() {
		age := x.at.Sub(a.Newest).Seconds()
		m.AgeSeconds = &age
	}
}

func (x *explaining) surge(p *prepared, v verdict) *explain.Surge {
	if p.surge == nil {
		return nil
	}
	config := x.hpa.Surge.Config.WithDefaults()
	s := p.surge.At(x.at)
	told := &explain.Surge{
		Active: s.Active, Answered: v.surge != nil, Ready: s.Ready, Ratio: config.Ratio, WindowSeconds: config.Window.Seconds(), TailLimit: explain.TailLimit,
	}
	if x.hpa.Surge.Acts() {
		told.Action = string(x.hpa.Surge.Action)
	}
	if s.Active {
		told.Rate, told.Baseline, told.Tail, told.Since = s.Rate, s.Baseline, s.Tail, &s.Since
	}
	return told
}

// pods tells of each pod that the metric means, the doubtful ones first.
func (x *explaining) pods(ctx context.Context, m *explain.Metric, p *prepared, a aggregator.Answer, acc *account) {
	if p.query == nil { // it is no PromQL, or not taken, and means none
		return
	}
	reports := map[string]aggregator.Report{}
	for _, r := range p.query.Reports(x.at) {
		reports[podName(r.PodState)] = r
		if x.provider.rules.holder == nil {
			acc.pods = append(acc.pods, accountedPod{PodState: r.PodState, state: stateOf(r.PodState, since(a, x.at))})
		}
	}
	proven := 0
	for _, pod := range acc.pods {
		told := explain.Pod{Namespace: cmp.Or(pod.Identity.Namespace, pod.Namespace), Name: cmp.Or(pod.Identity.Name, pod.Name), Workload: pod.Identity.Workload, State: pod.state}
		r, reported := reports[told.Namespace+"/"+told.Name]
		if told.Workload == "" {
			told.Workload = r.Pod.Workload
		}
		if !pod.Newest.IsZero() {
			told.LastFlush = &pod.Newest
		}
		if !pod.Created.IsZero() {
			told.Created = &pod.Created
		}
		if x.options.Proves && reported {
			told.Proven = &r.Proven
			if r.Proven && r.Reporting {
				proven++
			}
		}
		told.Why = r.RefusedWhy
		if pod.Rivals != nil {
			told.State, told.Why = explain.StateContested, "from "+pod.Rivals.Counts+" and from "+pod.Rivals.Other
		}
		m.Pods = append(m.Pods, told)
	}
	if x.options.Proves {
		m.Proven = &proven
	}
	states := explain.States()
	slices.SortFunc(m.Pods, func(a, b explain.Pod) int {
		return cmp.Or(slices.Index(states, a.State)-slices.Index(states, b.State), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	if n := len(m.Pods); n > explain.MaxPods {
		m.Pods, m.PodsLeftOut = m.Pods[:explain.MaxPods], n-explain.MaxPods
	}
	for i := range m.Pods {
		if pod := &m.Pods[i]; x.whole && pod.LastFlush != nil {
			pod.Value = valueOf(ctx, p, pod.Namespace, pod.Name, x.at)
		}
	}
}

// stateOf is what the store alone knows of a pod, where nobody knows which there are.
func stateOf(s aggregator.PodState, from time.Time) explain.State {
	switch {
	case !s.Reporting:
		return explain.StateSilent
	case !s.Refused.IsZero():
		return explain.StateRefused
	case !s.GapTo.IsZero():
		return explain.StatePartial
	case s.Oldest.After(from):
		return explain.StateYoung
	}
	return explain.StateReporting
}

// valueOf is the expression over one pod alone, "" where it has none.
func valueOf(ctx context.Context, p *prepared, namespace, pod string, at time.Time) string {
	q, err := p.query.Like(ofPod(p.Text, namespace, pod))
	if err != nil {
		return ""
	}
	a, err := q.Eval(ctx, at)
	if err != nil || len(a.Values) == 0 {
		return ""
	}
	return strconv.FormatFloat(sumOf(a.Values), 'g', 4, 64)
}

// ofPod is an expression over the series of one pod.
func ofPod(expr, namespace, pod string) string {
	tree, err := parser.ParseExpr(expr)
	if err != nil {
		return expr
	}
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			s.LabelMatchers = append(s.LabelMatchers, labels.MustNewMatcher(labels.MatchEqual, namespaceLabel, namespace), labels.MustNewMatcher(labels.MatchEqual, podLabel, pod))
		}
		return nil
	})
	return tree.String()
}

// decide tells the replicas, and what the controller makes of the metrics.
func (x *explaining) decide(ctx context.Context) {
	settings := x.settings()
	target := x.target(ctx)
	x.e.Replicas.Spec, x.e.Replicas.Status = target.Spec, target.Status
	average := func(m autoscalingv2.MetricTarget) bool { return m.Type != autoscalingv2.ValueMetricType }
	spec := x.hpa.Spec.DeepCopy()
	spec.Metrics = nil
	var readings []horizontal.Reading
	places := map[int]*explain.Metric{} // of the metrics that are ours, in the order of the spec
	for range x.hpa.Unserved {
		spec.Metrics, readings = append(spec.Metrics, autoscalingv2.MetricSpec{}), append(readings, horizontal.Reading{})
	}
	for i, w := range x.hpa.Metrics {
		m := &x.e.Metrics[x.served[i]]
		places[len(spec.Metrics)] = m
		// One of the custom metrics API is compared as an external one is.
		as := autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{Target: w.Target}}
		if n := int64(target.Ready); w.PerReplica && n > 0 {
			x.readings[w.Place].Milli /= n
		}
		spec.Metrics, readings = append(spec.Metrics, as), append(readings, x.readings[w.Place])
		x.display(m, w, average(w.Target), x.readings[w.Place])
	}
	look := settings.Look(spec, target, readings, x.past(settings, target), x.at)
	for i, ask := range look.Asks {
		if m := places[i]; m != nil && ask.OK {
			m.Asks = &explain.Asks{Replicas: ask.Replicas, Ratio: ask.Ratio, WithinTolerance: ask.Within}
		}
	}
	down, up := settings.ToleranceOf(spec.Behavior)
	d := &explain.Decision{
		Replicas: look.Replicas, Recommended: look.Recommended, Stabilized: look.Stabilized, Bound: string(look.Bound),
		ToleranceDown: down, ToleranceUp: up, DownscaleSeconds: downscaleWindow(settings, spec).Seconds(),
	}
	switch {
	case len(spec.Metrics) == 0: // nothing of it is ours
		return
	case errors.Is(look.Err, horizontal.ErrMetrics):
		d.Why = "a metric has no value, so the replicas stay, or only grow"
	case look.Err != nil:
		d.Why = look.Err.Error()
	case !look.Computed:
		d.Why = "the replicas are outside of the HPA's limits, so no metric is asked"
	}
	x.e.Decision = d
}

func downscaleWindow(s horizontal.Settings, spec *autoscalingv2.HorizontalPodAutoscalerSpec) time.Duration {
	if b := spec.Behavior; b != nil && b.ScaleDown != nil && b.ScaleDown.StabilizationWindowSeconds != nil {
		return time.Duration(*b.ScaleDown.StabilizationWindowSeconds) * time.Second
	}
	return s.DownscaleStabilization
}

// display is the form of kubectl get hpa.
func (x *explaining) display(m *explain.Metric, w hpas.Metric, average bool, r horizontal.Reading) {
	shown := "<unknown>"
	switch n := int64(x.e.Replicas.Status); {
	case !r.Known:
	case !average:
		shown = m.Value
	case n > 0:
		shown = milliText((r.Milli + n - 1) / n)
	}
	m.Displayed = shown + "/" + goalText(w.Goal())
	if average {
		m.Displayed += " (avg)"
	}
}

func (s *Server) settings() horizontal.Settings {
	return horizontal.Settings{Tolerance: s.options.HPATolerance, DownscaleStabilization: horizontal.DefaultDownscaleStabilization}
}

// target is what the HPA's target has: by its scale for one HPA, by the HPAs' statuses for a list,
// which is as much as one read, and by the sidecars that report where there is neither.
func (x *explaining) target(ctx context.Context) horizontal.Target {
	if h := x.provider.rules.holder; h != nil && x.whole {
		if scale, err := h.scales.Recent(ctx, x.hpa.Namespace, x.hpa.Spec.ScaleTargetRef); err == nil {
			x.e.Replicas.From = "scale"
			t := targetOf(scale)
			t.Pods, t.Ready = t.Status, t.Status
			return t
		}
	}
	n := int32(x.most)
	x.e.Replicas.From = "sidecars"
	if now, known := x.source.Known(x.hpa.Namespace, x.hpa.Name); known {
		x.e.Replicas.From, n = "status", now.Status.CurrentReplicas
	}
	return horizontal.Target{Spec: n, Status: n, Pods: n, Ready: n}
}

// past is what the controller remembers, as far as the decisions of the last hour tell.
func (x *explaining) past(settings horizontal.Settings, target horizontal.Target) *horizontal.Past {
	past := &horizontal.Past{}
	wanted := map[time.Time]int32{}
	replicas := map[time.Time]int32{}
	for _, m := range x.e.Metrics {
		for _, p := range m.History {
			if p.Wanted > 0 && p.At.Before(x.at) {
				wanted[p.At], replicas[p.At] = max(wanted[p.At], p.Wanted), p.Replicas
			}
		}
	}
	var times []time.Time
	for at := range wanted {
		times = append(times, at)
	}
	slices.SortFunc(times, time.Time.Compare)
	before := int32(0)
	for _, at := range times {
		then := horizontal.Target{Spec: replicas[at], Status: replicas[at]}
		past.Note(settings, &x.hpa.Spec, then, horizontal.Decision{Replicas: then.Spec, Recommended: wanted[at], Computed: true}, at)
		if by := then.Spec - before; before > 0 && by != 0 {
			past.Changes = append(past.Changes, horizontal.Change{At: at, By: by})
		}
		before = then.Spec
	}
	return past
}

// heldSince is when the held answers began that go on, nil where the newest is none.
func heldSince(history []explain.Point, rule explain.Rule) *time.Time {
	if rule != explain.RuleHeld {
		return nil
	}
	var since *time.Time
	for _, p := range slices.Backward(history) {
		if p.Rule != explain.RuleHeld {
			break
		}
		since = &p.At
	}
	return since
}
