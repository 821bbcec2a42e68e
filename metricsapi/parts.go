package metricsapi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
)

// part is one selector of an expression and what stands around it. What is missing is judged by part: or vector(0), scalar(), a sum, a
// count or a comparison beside it gives a number all the same, and that number says nothing.
type part struct {
	*parser.VectorSelector
	path []parser.Node // from the whole expression down to it
}

// partsOf returns the selectors of an expression, in the order in which the store has them.
func partsOf(tree parser.Expr) (parts []part) {
	parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			parts = append(parts, part{s, append(slices.Clone(path), s)})
		}
		return nil
	})
	return parts
}

// metric is the metric's name where the selector gives it by equality, else "".
func (p part) metric() string {
	for _, m := range p.LabelMatchers {
		if m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual {
			return m.Value
		}
	}
	return ""
}

// naming is the matcher that gives the metric's name, or a list of names (a pattern that matches nothing else); nil where none does.
func (p part) naming() *labels.Matcher {
	for _, m := range p.LabelMatchers {
		list := m.Type == labels.MatchRegexp && len(m.SetMatches()) > 0
		if m.Name == model.MetricNameLabel && !m.Matches("") && (m.Type == labels.MatchEqual || list) {
			return m
		}
	}
	return nil
}

// named is the metric's name, or the list of names, for messages; the selector where there is none.
func (p part) named() string {
	if m := p.naming(); m != nil {
		return m.Value
	}
	return p.String()
}

// namesMetrics returns an *aggregator.QueryError about the first part that names no metric, nil where each does.
func namesMetrics(expr string, parts []part) error {
	for _, p := range parts {
		if p.naming() == nil {
			return &aggregator.QueryError{Expr: expr, Reason: fmt.Sprintf("its selector %s names no metric, so it would read all that pods report: write the metric's name before the braces, as in %s, "+
				"and of several metrics each in a selector of its own", p, p.ofRequests())}
		}
	}
	return nil
}

// ofRequests is the selector with the name of Istio's requests in place of what it says of names.
func (p part) ofRequests() *parser.VectorSelector {
	s := &parser.VectorSelector{Name: "istio_requests_total"}
	for _, m := range p.LabelMatchers {
		if m.Name != model.MetricNameLabel {
			s.LabelMatchers = append(s.LabelMatchers, m)
		}
	}
	return s
}

// istio says whether the selector may name one of the metrics of Istio's stats filter.
func (p part) istio() bool {
	names := istioNames()
	return slices.ContainsFunc(names[:], func(name string) bool {
		return !slices.ContainsFunc(p.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == model.MetricNameLabel && !m.Matches(name) })
	})
}

// reports says whether the selector leaves series of a reporter.
func (p part) reports(reporter string) bool {
	return !slices.ContainsFunc(p.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == reporterKey && !m.Matches(reporter) })
}

// waypoint: it leaves those of waypoints alone.
func (p part) waypoint() bool {
	return p.reports("waypoint") && !p.reports("destination") && !p.reports("source") && !p.reports("")
}

// nobodys: its reporter is none that there is.
func (p part) nobodys() bool {
	return !p.reports("waypoint") && !p.reports("destination") && !p.reports("source") && !p.reports("")
}

// unknownLabels are the labels that it demands and that neither Istio sets nor the words have.
func (p part) unknownLabels(words vocabulary) (names []string) {
	for _, m := range p.LabelMatchers {
		if m.Name != model.MetricNameLabel && m.Name != model.BucketLabel && !m.Matches("") && !words.label(m.Name) && !slices.Contains(names, m.Name) {
			names = append(names, m.Name)
		}
	}
	return names
}

// countsPods says whether it seems to be there for the number of pods that something is divided by: count(kube_pod_info), count(up).
func (p part) countsPods() bool {
	divides, counted := false, strings.HasPrefix(p.metric(), "kube_")
	for i, node := range p.path[:len(p.path)-1] {
		switch n := node.(type) {
		case *parser.BinaryExpr:
			divides = divides || n.Op == parser.DIV && p.path[i+1] == n.RHS
		case *parser.AggregateExpr:
			counted = counted || n.Op == parser.COUNT
		}
	}
	return divides && counted
}

// beside says what stands in for the part where it is missing: another part (of which something is there), or anything that has a
// value. It goes by the or above it.
func (p part) beside(absent absentParts) (part, value bool) {
	for i, node := range p.path[:len(p.path)-1] {
		b, ok := node.(*parser.BinaryExpr)
		if !ok || b.Op != parser.LOR {
			continue
		}
		other := b.LHS
		if p.path[i+1] == b.LHS {
			other = b.RHS
		}
		if absent.in(other) == nil {
			value = true
			part = part || selects(other, func(string) bool { return true })
		}
	}
	return part, value
}

// absentParts are the selectors of an answer that select nothing.
type absentParts map[*parser.VectorSelector]aggregator.Absent

// in returns the selector for which an expression has no value, nil where it is not for one. scalar() of nothing is a number, as is a
// constant.
func (a absentParts) in(expr parser.Expr) *parser.VectorSelector {
	switch e := expr.(type) {
	case *parser.VectorSelector:
		if _, ok := a[e]; ok {
			return e
		}
	case *parser.MatrixSelector:
		return a.in(e.VectorSelector)
	case *parser.SubqueryExpr:
		return a.in(e.Expr)
	case *parser.ParenExpr:
		return a.in(e.Expr)
	case *parser.UnaryExpr:
		return a.in(e.Expr)
	case *parser.StepInvariantExpr:
		return a.in(e.Expr)
	case *parser.AggregateExpr:
		return a.in(e.Expr)
	case *parser.Call:
		switch e.Func.Name {
		case "absent", "absent_over_time", "scalar":
			return nil
		}
		for _, arg := range e.Args {
			if s := a.in(arg); s != nil {
				return s
			}
		}
	case *parser.BinaryExpr:
		left, right := a.in(e.LHS), a.in(e.RHS)
		switch {
		case e.Op == parser.LOR && (left == nil || right == nil):
			return nil
		case left != nil || e.Op == parser.LUNLESS:
			return left
		}
		return right
	}
	return nil
}

// inScalar returns the selector for which a scalar() has nothing to take, nil if there is none: it is not a number then.
func (a absentParts) inScalar(tree parser.Expr) (found *parser.VectorSelector) {
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		if c, ok := node.(*parser.Call); ok && c.Func.Name == "scalar" && found == nil {
			found = a.in(c.Args[0])
		}
		return nil
	})
	return found
}

// severalInScalar says whether a scalar() of the expression may have several series to take, of which it makes no number.
func severalInScalar(tree parser.Expr) (found bool) {
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		if c, ok := node.(*parser.Call); ok && c.Func.Name == "scalar" {
			sum, ok := unwrap(c.Args[0]).(*parser.AggregateExpr)
			found = found || !ok || sum.Without || len(sum.Grouping) > 0
		}
		return nil
	})
	return found
}

// absent returns the parts that select nothing.
func (p *prepared) absent(a aggregator.Answer) absentParts {
	if len(a.Absent) == 0 {
		return nil
	}
	found := absentParts{}
	for _, at := range a.Absent {
		found[p.parts[at.Selector].VectorSelector] = at
	}
	return found
}

// vocabulary is what sidecars can send, as far as settings tell.
type vocabulary struct {
	// keeps says which metrics ingest keeps; nil: all.
	keeps func(metric string) bool
	// tags are labels that Telemetry resources add.
	tags []string
}

// dropped says whether ingest keeps no series of the selector's metric: there is none, whatever the sidecars send.
func (v vocabulary) dropped(p part) bool {
	name := p.metric()
	return v.keeps != nil && name != "" && !v.keeps(name) && !v.keeps(baseOf(name))
}

// metric says whether the selector may name a metric of Istio's, or one that somebody asked to be kept: who keeps all, or all that begins
// as Istio's do, has named none.
func (v vocabulary) metric(p part) bool {
	asked := func(name string) bool {
		return v.keeps(name) && !v.keeps("") && (!strings.HasPrefix(name, istioPrefix) || !v.keeps(istioPrefix))
	}
	name := p.metric()
	return p.istio() || v.keeps != nil && name != "" && (asked(name) || asked(baseOf(name)))
}

// label says whether the label is Istio's, or one that somebody said is added.
func (v vocabulary) label(name string) bool {
	return isIstioLabel(name) || slices.Contains(v.tags, name)
}

// istioPrefix is what the names of Istio's metrics begin with.
const istioPrefix = "istio_"

// baseOf is a histogram's name without the part of it that is asked for.
func baseOf(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok {
			return base
		}
	}
	return name
}

// missing says why a part of the expression has no series and is not known to be 0, "" where there is no such part. certain: there can
// never be one, whether or not a sidecar reports.
func (r rules) missing(p *prepared, a aggregator.Answer, absent absentParts) (why string, certain bool) {
	for _, part := range p.parts {
		at, ok := absent[part.VectorSelector]
		if !ok {
			continue
		}
		if r.words.dropped(part) {
			return r.words.neverOf(part), true
		}
		if doubt := r.doubt(part, at, a, absent); doubt != "" && why == "" {
			why = doubt
		}
	}
	return why, false
}

// neverOf says of a part whose metric is not kept what to write instead.
func (v vocabulary) neverOf(p part) string {
	if p.istio() {
		return "metric " + p.metric() + " is not kept, so it is not known to be 0: widen --keep"
	}
	why := "no sidecar reports " + p.String() + " here, and none will: " + v.remedyForMetric(p.metric())
	if p.countsPods() {
		why += ". " + remedyForPods
	}
	return why
}

// doubt says why a part that selects nothing is not known to be 0, "" where nothing says so.
func (r rules) doubt(p part, at aggregator.Absent, a aggregator.Answer, absent absentParts) string {
	other, value := p.beside(absent)
	switch {
	case p.nobodys():
		return "no series matches " + p.String() + ": its reporter is none of destination, source and waypoint, so nothing reports it: check the spelling"
	case at.UnknownMetric && !r.words.metric(p) && other: // two ways to ask for the same, and one of them is there
		return ""
	case at.UnknownMetric && !r.words.metric(p):
		return "no series matches " + p.String() + ", and it is not known to be 0: " + r.words.remedyForMetric(p.named())
	}
	for _, name := range p.unknownLabels(r.words) {
		if slices.Contains(at.UnknownLabels, name) {
			return "no series matches " + p.String() + ", and it is not known to be 0: " + remedyForLabel(name)
		}
	}
	if other {
		return ""
	}
	for _, u := range at.Unreported {
		switch {
		case u.Label == model.BucketLabel:
			return "no histogram of " + p.String() + " has such a bucket: there are those with le " + strings.Join(u.Values, ", ")
		case u.Own && (!value || a.Matched == 0): // else it is said to count as that, beside what is there
			return "no series matches " + p.String() + ", and it is not known to be 0: its pods report other requests, " + reported(u)
		}
	}
	return ""
}

// reported says what there is in place of a value that nobody reports.
func reported(u aggregator.Unreported) string {
	if len(u.Values) == 0 {
		return "and none with the label " + u.Label + " (" + u.Matcher + ")"
	}
	return "and none with " + u.Matcher + " but " + u.Label + " " + strings.Join(u.Values, ", ")
}

// never says which parts no sidecar will ever report.
func (v vocabulary) never(parts []part) (whys []string) {
	for _, p := range parts {
		if why := v.neverOf(p); v.dropped(p) && !slices.Contains(whys, why) {
			whys = append(whys, why)
		}
	}
	return whys
}

// remarks are what the authors of the HPAs that ask should know of the parts that select nothing though pods report that could have them.
func (r rules) remarks(o *offer, p *prepared, a aggregator.Answer) (ps []Problem) {
	absent := p.absent(a)
	if a.Reporting == 0 {
		return nil
	}
	remark := func(reason, format string, args ...any) {
		problem := Problem{reason, "metric " + o.String() + ": " + fmt.Sprintf(format, args...)}
		if !slices.Contains(ps, problem) {
			ps = append(ps, problem)
		}
	}
	if otherForm(a) {
		remark(ReasonUnreadMetrics, "%s. Nothing is known of their requests", otherFormText)
	}
	var blank *parser.VectorSelector // for which the expression has no value, though others of its parts have
	if a.Matched > 0 && len(a.Values) == 0 {
		blank = absent.in(p.tree)
	}
	for _, part := range p.parts {
		at, ok := absent[part.VectorSelector]
		other, value := part.beside(absent)
		switch {
		case !ok, r.words.dropped(part), other && at.UnknownMetric:
			continue
		case part.nobodys():
			remark(ReasonNotReported, "the reporter of %s is none of destination, source and waypoint, so nothing reports it: check the spelling", part)
		case at.UnknownMetric && !r.words.metric(part):
			remark(ReasonNotReported, "no sidecar reports %s: %s", part, r.words.remedyForMetric(part.named()))
		}
		for _, name := range part.unknownLabels(r.words) {
			if !at.UnknownMetric && slices.Contains(at.UnknownLabels, name) {
				remark(ReasonNotReported, "no sidecar reports the label %s: %s", name, remedyForLabel(name))
			}
		}
		for _, u := range at.Unreported {
			switch {
			case u.Label == model.BucketLabel && !other:
				remark(ReasonNotReported, "no histogram has a bucket with %s: take one of the bounds that there are (of durations in milliseconds)", u.Matcher)
			case u.Own && (!value || a.Matched == 0):
				remark(ReasonUnreportedValue, "the pods that it means report requests, and none with %s, which says something of themselves: check the spelling, and whether it has changed", u.Matcher)
			case !u.Own && !value && (r.words.label(u.Label) || !slices.Contains(at.UnknownLabels, u.Label)):
				counts := "it counts as none"
				if part.VectorSelector == blank {
					counts = "the expression has no value" + p.asNone(blank, absent)
				}
				remark(ReasonUnreportedValue, "the pods that it means report requests, and none with %s yet: %s. Check the spelling", u.Matcher, counts)
			}
		}
	}
	return ps
}
