package hpas

import (
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
)

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
