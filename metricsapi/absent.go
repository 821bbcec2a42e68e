package metricsapi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// absentParts are the selectors of an answer that select nothing.
type absentParts map[*parser.VectorSelector]aggregator.Absent

// beside says what stands in for a part where it is missing: another part (of which something is
// there), or anything that has a value. It goes by the or above it.
func (a absentParts) beside(p hpas.Part) (part, value bool) {
	for i, node := range p.Path[:len(p.Path)-1] {
		b, ok := node.(*parser.BinaryExpr)
		if !ok || b.Op != parser.LOR {
			continue
		}
		other := b.LHS
		if p.Path[i+1] == b.LHS {
			other = b.RHS
		}
		if a.in(other) == nil {
			value = true
			part = part || hpas.Selects(other)
		}
	}
	return part, value
}

// in returns the selector for which an expression has no value, nil where it is not for one.
// scalar() of nothing is a number, as is a constant.
func (a absentParts) in(node parser.Node) *parser.VectorSelector {
	switch e := node.(type) {
	case *parser.VectorSelector:
		if _, ok := a[e]; ok {
			return e
		}
	case *parser.Call:
		if ofItsOwn(e) {
			return nil
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
	for child := range parser.ChildrenIter(node) {
		if s := a.in(child); s != nil {
			return s
		}
	}
	return nil
}

// ofItsOwn says whether a function has a value whatever there is of its argument, and no series of
// that.
func ofItsOwn(c *parser.Call) bool {
	return slices.Contains([]string{"absent", "absent_over_time", "scalar"}, c.Func.Name)
}

// inScalar returns the selector for which a scalar() has nothing to take, nil if there is none: it
// is not a number then.
func (a absentParts) inScalar(tree parser.Expr) (found *parser.VectorSelector) {
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		if c, ok := node.(*parser.Call); ok && c.Func.Name == "scalar" && found == nil {
			found = a.in(c.Args[0])
		}
		return nil
	})
	return found
}

// severalInScalar says whether a scalar() of the expression may have several series to take, of
// which it makes no number.
func severalInScalar(tree parser.Expr) (found bool) {
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		if c, ok := node.(*parser.Call); ok && c.Func.Name == "scalar" {
			sum, ok := hpas.Unwrap(c.Args[0]).(*parser.AggregateExpr)
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
		found[p.Parts[at.Selector].VectorSelector] = at
	}
	return found
}

// missing says why a part of the expression has no series and is not known to be 0, "" where there
// is no such part. certain: there can never be one, whether or not a sidecar reports.
func (r rules) missing(p *prepared, a aggregator.Answer, absent absentParts) (why string, certain bool) {
	for _, part := range p.Parts {
		at, ok := absent[part.VectorSelector]
		if !ok {
			continue
		}
		if never := r.words.Never(part); never != "" {
			return never, true
		}
		if doubt := r.doubt(part, at, a, absent); doubt != "" && why == "" {
			why = doubt
		}
	}
	return why, false
}

// doubt says why a part that selects nothing is not known to be 0, "" where nothing says so.
func (r rules) doubt(p hpas.Part, at aggregator.Absent, a aggregator.Answer, absent absentParts) string {
	other, value := absent.beside(p)
	switch {
	case p.NoReporter():
		return "no series matches " + p.String() + ": its reporter is none of destination, source and waypoint, so nothing reports it: check the spelling"
	case at.UnknownMetric && !r.words.Metric(p) && other: // two ways to ask for the same, and one of them is there
		return ""
	case at.UnknownMetric && !r.words.Metric(p):
		return "no series matches " + p.String() + ", and it is not known to be 0: " + r.words.RemedyForMetric(p.Named())
	}
	for _, name := range p.UnknownLabels(r.words) {
		if slices.Contains(at.UnknownLabels, name) {
			return "no series matches " + p.String() + ", and it is not known to be 0: " + hpas.RemedyForLabel(name)
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

// remarks are what the authors of the HPAs that ask should know of the parts that select nothing
// though pods report that could have them.
func (r rules) remarks(o *offer, p *prepared, a aggregator.Answer) (ps []hpas.Problem) {
	absent := p.absent(a)
	if a.Reporting == 0 {
		return nil
	}
	remark := func(reason, format string, args ...any) {
		problem := hpas.Problem{Reason: reason, Message: "metric " + o.String() + ": " + fmt.Sprintf(format, args...)}
		if !slices.Contains(ps, problem) {
			ps = append(ps, problem)
		}
	}
	if otherForm(a) {
		remark(hpas.ReasonUnreadMetrics, "%s. Nothing is known of their requests", otherFormText)
	}
	if name := unsent(a); name != "" {
		remark(hpas.ReasonNotReported, "not all of its sidecars send %s: %s", name, remedyForUnsent)
	}
	var blank *parser.VectorSelector // for which the expression has no value, though others of its parts have
	if a.Matched > 0 && len(a.Values) == 0 {
		blank = absent.in(p.Tree)
	}
	for _, part := range p.Parts {
		at, ok := absent[part.VectorSelector]
		other, value := absent.beside(part)
		switch {
		case !ok, r.words.Never(part) != "", other && at.UnknownMetric:
			continue
		case part.NoReporter():
			remark(hpas.ReasonNotReported, "the reporter of %s is none of destination, source and waypoint, so nothing reports it: check the spelling", part)
		case at.UnknownMetric && !r.words.Metric(part):
			remark(hpas.ReasonNotReported, "no sidecar reports %s: %s", part, r.words.RemedyForMetric(part.Named()))
		}
		for _, name := range part.UnknownLabels(r.words) {
			if !at.UnknownMetric && slices.Contains(at.UnknownLabels, name) {
				remark(hpas.ReasonNotReported, "no sidecar reports the label %s: %s", name, hpas.RemedyForLabel(name))
			}
		}
		for _, u := range at.Unreported {
			switch {
			case u.Label == model.BucketLabel && !other:
				remark(hpas.ReasonNotReported, "no histogram has a bucket with %s: take one of the bounds that there are (of durations in milliseconds)", u.Matcher)
			case u.Own && (!value || a.Matched == 0):
				remark(hpas.ReasonUnreportedValue, "the pods that it means report requests, and none with %s, which says something of themselves: check the spelling, and whether it has changed", u.Matcher)
			case !u.Own && !value && (r.words.Label(u.Label) || !slices.Contains(at.UnknownLabels, u.Label)):
				counts := "it counts as none"
				if part.VectorSelector == blank {
					counts = "the expression has no value" + p.asNone(blank, absent)
				}
				remark(hpas.ReasonUnreportedValue, "the pods that it means report requests, and none with %s yet: %s. Check the spelling", u.Matcher, counts)
			}
		}
	}
	return ps
}

// asNone says what to write so that a selector without series counts as 0 where it is a part of
// arithmetic, as the end of a sentence; "" where nothing is known to help.
func (p *prepared) asNone(s *parser.VectorSelector, absent absentParts) string {
	i := slices.IndexFunc(p.Parts, func(part hpas.Part) bool { return part.VectorSelector == s })
	if i < 0 {
		return ""
	}
	// The innermost operation counts: around more of the expression a 0 would stand for what is
	// there as well.
	for up := len(p.Parts[i].Path) - 2; up >= 0; up-- {
		b, ok := p.Parts[i].Path[up].(*parser.BinaryExpr)
		if !ok {
			continue
		}
		empty, other := b.LHS, b.RHS
		if p.Parts[i].Path[up+1] == b.RHS {
			empty, other = b.RHS, b.LHS
		}
		switch at := empty.PositionRange(); {
		case !hpas.Selects(other), absent.in(other) != nil:
			continue
		case empty == b.RHS && (b.Op == parser.DIV || b.Op == parser.MOD):
			return ", and the rest is divided by it"
		case unlabelled(other):
			return ". Where that is to count as 0, write (… or vector(0)) around " + p.Text[at.Start:at.End]
		default: // a 0 without labels would match none of the other series
			of := other.PositionRange()
			return ". Where that is to count as 0, write (… or 0 * " + p.Text[of.Start:of.End] + ") around " + p.Text[at.Start:at.End]
		}
	}
	return ""
}

// unlabelled says whether the series of an expression are known to have no labels, as those of
// vector(0) have none.
func unlabelled(expr parser.Expr) bool {
	switch e := hpas.Unwrap(expr).(type) {
	case *parser.NumberLiteral:
		return true
	case *parser.AggregateExpr:
		return !e.Without && len(e.Grouping) == 0 && e.Op != parser.TOPK && e.Op != parser.BOTTOMK && e.Op != parser.LIMITK && e.Op != parser.LIMIT_RATIO && e.Op != parser.COUNT_VALUES
	case *parser.BinaryExpr:
		return unlabelled(e.LHS) && unlabelled(e.RHS)
	}
	return false
}
