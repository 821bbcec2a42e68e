package hpas

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// advise says what is known to go wrong with a metric that is served all the same.
func (a *Wants) advise(w Metric) {
	const better = "Better: istio-requests-per-second or istio-requests-in-flight with AverageValue, which add up over pods"
	what := w.Written
	if name := Demanded(w.Selector)[queryNameKey]; w.Name == legacyMetric {
		what = "query " + name
	}
	e := w.expression()
	t := e.traits()
	if t.latency && w.Target.Type == autoscalingv2.AverageValueMetricType {
		a.problem(ReasonLatencyAverage, "%s is a latency, and AverageValue divides it by the replicas: it asks for replicas in proportion to the latency, whatever they do to it. %s; for a latency, a target of type Value", what, better)
	}
	if t.ratio && w.Target.Type == autoscalingv2.AverageValueMetricType {
		a.problem(ReasonRatioAverage, "%s is a ratio, and AverageValue divides it by the replicas: it asks for replicas in proportion to the ratio, whatever the load is. %s; for a ratio, a target of type Value", what, better)
	}
	if t.latency && w.Target.Type == autoscalingv2.ValueMetricType {
		window, stable := e.longestRange(), a.scaleUpStabilisation()
		if stable < window {
			a.problem(ReasonLatencyStability, "%s is a latency over %s and scale-up is stabilised for %s: while the window still remembers the past, every look multiplies the replicas again. "+
				"Set behavior.scaleUp.stabilizationWindowSeconds to %d or more. %s", what, window, stable, int64(window.Seconds()), better)
		}
	}
	if goal := w.Goal(); t.milliseconds && goal != nil && goal.Sign() > 0 && goal.AsApproximateFloat64() < 1 {
		a.problem(ReasonMilliseconds, "%s is in milliseconds and its target is %s: any traffic asks for maxReplicas. If seconds were meant, the target is %s", what, goal.String(), milliseconds(*goal))
	}
	if t.irate {
		a.problem(ReasonNoisyRate, "%s uses irate, which looks at the last two samples: sidecars flush every 5 s, so it is noisier than at a scrape interval of 15 s. Better: rate over [1m]", what)
	}
	if t.noBuckets {
		a.problem(ReasonNoBuckets, "%s is a quantile of buckets that its aggregation adds up without their label le, so it never has a value: aggregate by (le)", what)
	}
	if t.raw != "" {
		a.problem(ReasonRawCounter, "%s reads the counter %s as it stands: it only grows while its pods live, whatever the load is, and so asks for maxReplicas in the end. Take rate(%s{…}[1m])", what, t.raw, t.raw)
	}
	a.adviseOnCallers(what, w, e.calledBy())
}

// adviseOnCallers says whose word a metric takes that others could give.
func (a *Wants) adviseOnCallers(what string, w Metric, parts []Part) {
	if len(parts) == 0 {
		return
	}
	better := "take " + parts[0].byThemselves(a.Namespace)
	switch {
	case w.Triggered && !parts[0].reports("destination"): // its target may have no pods to speak for themselves
		better = "add namespace, that of the callers, to its selector"
	case w.Named && parts[0].namesCallers():
		better = "add namespace: " + a.Namespace + " to the selector, or the namespace of the callers"
	case w.Named:
		better = "leave " + reporterKey + ": source out of the selector"
	}
	a.problem(ReasonCallersWord, "%s counts what callers say of others, so any pod that reports can add to it: %s, where each pod speaks for itself alone", what, better)
}

// scaleUpStabilisation is 0 without a setting: the controller's own default.
func (a *Wants) scaleUpStabilisation() time.Duration {
	if b := a.Spec.Behavior; b != nil && b.ScaleUp != nil && b.ScaleUp.StabilizationWindowSeconds != nil {
		return time.Duration(*b.ScaleUp.StabilizationWindowSeconds) * time.Second
	}
	return 0
}

func milliseconds(seconds resource.Quantity) string {
	return resource.NewMilliQuantity(int64(math.Round(seconds.AsApproximateFloat64()*1e6)), resource.DecimalSI).String()
}

// calledBy are the selectors of Istio's metrics that take the word of callers: with
// reporter="source", and without a reporter, a sidecar says of others what they received, and
// whoever may report as any pod may say it. A pod speaks for itself alone where its own side
// reports, or where the pods that report are limited by their namespace or name.
func (e Expression) calledBy() (parts []Part) {
	for _, p := range e.Parts {
		if p.Istio() && p.reports("source") && !p.limited() {
			parts = append(parts, p)
		}
	}
	return parts
}

// limited: it names the pods that report, by the labels that come from the node and not from the
// metric.
func (p Part) limited() bool {
	return slices.ContainsFunc(p.LabelMatchers, func(m *labels.Matcher) bool {
		return (m.Name == "namespace" || m.Name == "pod") && m.Type == labels.MatchEqual && m.Value != ""
	})
}

// byThemselves is the selector in the form in which each pod speaks for itself: of the pods of one
// namespace where it names the callers, else of those that are called. The namespace is that of the
// callers where it is named, else the HPA's.
func (p Part) byThemselves(namespace string) string {
	s := *p.VectorSelector
	s.LabelMatchers = slices.DeleteFunc(slices.Clone(s.LabelMatchers), func(m *labels.Matcher) bool { return m.Name == reporterKey })
	add := func(name, value string) {
		s.LabelMatchers = append(s.LabelMatchers, labels.MustNewMatcher(labels.MatchEqual, name, value))
	}
	if !p.namesCallers() {
		add(reporterKey, "destination")
		return s.String()
	}
	for _, m := range s.LabelMatchers {
		if m.Name == "source_workload_namespace" && m.Type == labels.MatchEqual {
			namespace = m.Value
		}
	}
	add(reporterKey, "source")
	add("namespace", namespace)
	return s.String()
}

func (p Part) namesCallers() bool {
	return slices.ContainsFunc(p.LabelMatchers, func(m *labels.Matcher) bool {
		return strings.HasPrefix(m.Name, "source_") && !m.Matches("")
	})
}
