package hpas

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Part is one selector of an expression and what stands around it. What is missing is judged by
// part: or vector(0), scalar(), a sum, a count or a comparison beside it gives a number all the
// same, and that number says nothing.
type Part struct {
	*parser.VectorSelector
	Path []parser.Node // from the whole expression down to it
}

// partsOf returns the selectors of an expression, in the order in which the store has them.
func partsOf(tree parser.Expr) (parts []Part) {
	parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			parts = append(parts, Part{s, append(slices.Clone(path), s)})
		}
		return nil
	})
	return parts
}

// Metric is the metric's name where the selector gives it by equality, else "".
func (p Part) Metric() string {
	for _, m := range p.LabelMatchers {
		if m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual {
			return m.Value
		}
	}
	return ""
}

// naming is the matcher that gives the metric's name, or a list of names (a pattern that matches
// nothing else); nil where none does.
func (p Part) naming() *labels.Matcher {
	for _, m := range p.LabelMatchers {
		list := m.Type == labels.MatchRegexp && len(m.SetMatches()) > 0
		if m.Name == model.MetricNameLabel && !m.Matches("") && (m.Type == labels.MatchEqual || list) {
			return m
		}
	}
	return nil
}

// names are the metrics that the selector names; none where it may name any.
func (p Part) names() []string {
	switch m := p.naming(); {
	case m == nil:
		return nil
	case m.Type == labels.MatchRegexp:
		return m.SetMatches()
	default:
		return []string{m.Value}
	}
}

// Named is the metric's name, or the list of names, for messages; the selector where there is none.
func (p Part) Named() string {
	if m := p.naming(); m != nil {
		return m.Value
	}
	return p.String()
}

// ofRequests is the selector with the name of Istio's requests in place of what it says of names.
func (p Part) ofRequests() *parser.VectorSelector {
	s := &parser.VectorSelector{Name: "istio_requests_total"}
	for _, m := range p.LabelMatchers {
		if m.Name != model.MetricNameLabel {
			s.LabelMatchers = append(s.LabelMatchers, m)
		}
	}
	return s
}

// Istio says whether the selector may name one of the metrics of Istio's stats filter.
func (p Part) Istio() bool {
	names := istioNames()
	return slices.ContainsFunc(names[:], func(name string) bool {
		return !slices.ContainsFunc(p.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == model.MetricNameLabel && !m.Matches(name) })
	})
}

// ofProxy says whether it selects metrics of the sidecars' own.
func (p Part) ofProxy() bool { return strings.HasPrefix(p.Metric(), aggregator.ProxyPrefix) }

// SentOnceUsed says whether it selects a metric of the sidecars' own that each sends from its first
// request on: without one it is 0.
func (p Part) SentOnceUsed() bool {
	return p.Metric() == aggregator.ActiveMetric || p.Metric() == aggregator.PendingMetric
}

// mayBeIstios says whether it names a metric of Istio's, or one that is spelt like one.
func (p Part) mayBeIstios() bool { return p.Istio() || strings.HasPrefix(p.Metric(), istioPrefix) }

// reports says whether the selector leaves series of a reporter.
func (p Part) reports(reporter string) bool {
	return !slices.ContainsFunc(p.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == reporterKey && !m.Matches(reporter) })
}

// waypoint: it leaves those of waypoints alone.
func (p Part) waypoint() bool {
	return p.reports("waypoint") && !p.reports("destination") && !p.reports("source") && !p.reports("")
}

// NoReporter: its reporter is none that there is.
func (p Part) NoReporter() bool {
	return !p.reports("waypoint") && !p.reports("destination") && !p.reports("source") && !p.reports("")
}

// UnknownLabels are the labels that it demands and that neither Istio sets nor the words have.
func (p Part) UnknownLabels(words Vocabulary) (names []string) {
	if p.ofProxy() { // theirs are Envoy's, and the pod's
		return nil
	}
	for _, m := range p.LabelMatchers {
		if m.Name != model.MetricNameLabel && m.Name != model.BucketLabel && !m.Matches("") && !words.Label(m.Name) && !slices.Contains(names, m.Name) {
			names = append(names, m.Name)
		}
	}
	return names
}

// countsPods says whether it seems to be there for the number of pods that something is divided by:
// count(kube_pod_info), count(up).
func (p Part) countsPods() bool {
	divides, counted := false, strings.HasPrefix(p.Metric(), "kube_")
	for i, node := range p.Path[:len(p.Path)-1] {
		switch n := node.(type) {
		case *parser.BinaryExpr:
			divides = divides || n.Op == parser.DIV && p.Path[i+1] == n.RHS
		case *parser.AggregateExpr:
			counted = counted || n.Op == parser.COUNT
		}
	}
	return divides && counted
}

// demanded are the values of a label that the selector leaves, nil where it does not list them.
func (p Part) demanded(label string) []string {
	for _, m := range p.LabelMatchers {
		switch {
		case m.Name != label:
		case m.Type == labels.MatchEqual && m.Value != "":
			return []string{m.Value}
		case m.Type == labels.MatchRegexp && len(m.SetMatches()) > 0:
			return m.SetMatches()
		}
	}
	return nil
}

// unread are the namespaces that the selector names of which some series are not read. Those of
// calls that the callers report are: a caller's own namespace is.
func (p Part) unread(isRead func(namespace string) bool) (names []string) {
	notRead := func(of []string) (names []string) {
		return slices.DeleteFunc(slices.Clone(of), isRead)
	}
	called, reporting := p.demanded(namespaceKey), p.demanded("namespace")
	if len(called) > 0 && len(notRead(called)) == 0 || len(reporting) > 0 && len(notRead(reporting)) == 0 {
		return nil
	}
	if names = notRead(reporting); p.reports("destination") || p.reports("waypoint") {
		names = append(names, notRead(called)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Impossible are its matchers that demand a value which Istio never gives the label, each with the
// values that there are: response_code="5xx". Such a selector selects nothing, and counts as none.
// A reporter that is none is told by NoReporter.
func (p Part) Impossible() (whys []string) {
	for _, m := range p.LabelMatchers {
		values, said := valuesOf(m.Name)
		if len(values) == 0 || m.Matches("") || slices.ContainsFunc(values, m.Matches) {
			continue
		}
		whys = append(whys, fmt.Sprintf("no request has %s: %s", m, said))
	}
	return whys
}

// valuesOf are all that Istio gives a label (its stats filter's own), and what they are in words;
// none where they are not told beforehand.
func valuesOf(label string) (values []string, said string) {
	switch label {
	case "connection_security_policy":
		values = []string{"mutual_tls", "none", "unknown"}
	case "request_protocol":
		values = []string{"http", "grpc", "tcp", "unknown"}
	case "response_code":
		values = make([]string, 1000)
		for i := range values {
			values[i] = strconv.Itoa(i)
		}
		return values, "codes are numbers of three digits, as in 503 or =~\"5..\", and 0 for none"
	}
	return values, "there are " + strings.Join(values, ", ")
}
