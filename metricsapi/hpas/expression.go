package hpas

import (
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Expression is a PromQL expression that was parsed once, and what its form tells.
type Expression struct {
	Text string
	// Tree is nil where it does not parse, and has no parts then.
	Tree parser.Expr
	// Parts are its selectors, in the order in which the store has them.
	Parts []Part
}

// Parse takes any text: of one that is no PromQL only the text is known.
func Parse(expr string) Expression {
	tree, err := aggregator.ParseExpr(expr)
	if err != nil {
		return Expression{Text: expr}
	}
	return Expression{expr, tree, partsOf(tree)}
}

// Selects says whether it selects series; a scalar does not.
func (e Expression) Selects() bool { return len(e.Parts) > 0 }

// Waypoint says whether it asks for what waypoints report, and no sidecar does.
func (e Expression) Waypoint() bool { return slices.ContainsFunc(e.Parts, Part.waypoint) }

// Additive says whether its value adds up over pods, so that one that is missing can be counted as
// the mean of the others.
func (e Expression) Additive() bool { return e.Tree != nil && additive(e.Tree) }

// Irate says whether it looks at the last two samples only.
func (e Expression) Irate() bool { return e.traits().irate }

// NamesMetrics returns an *aggregator.QueryError about the first part that names no metric, nil
// where each does.
func (e Expression) NamesMetrics() error {
	for _, p := range e.Parts {
		if p.naming() == nil {
			return &aggregator.QueryError{Expr: e.Text, Reason: fmt.Sprintf("its selector %s names no metric, so it would read all that pods report: write the metric's name before the braces, as in %s, "+
				"and of several metrics each in a selector of its own", p, p.ofRequests())}
		}
	}
	return nil
}

// Never says why parts of it will never be reported, once each.
func (e Expression) Never(words Vocabulary) (whys []string) {
	for _, p := range e.Parts {
		if why := words.Never(p); why != "" && !slices.Contains(whys, why) {
			whys = append(whys, why)
		}
	}
	return whys
}

// Unread are the namespaces that its parts name, other than those that are read: of the pods that
// report, or of who is called where that is reported by the pods that are.
func (e Expression) Unread(isRead func(namespace string) bool) (names []string) {
	for _, p := range e.Parts {
		for _, name := range p.unread(isRead) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// OfNamespace says whether every part demands one namespace: of the pods that report, or of those
// that requests go to.
func (e Expression) OfNamespace(namespace string) bool {
	return e.Selects() && !slices.ContainsFunc(e.Parts, func(p Part) bool {
		return !slices.ContainsFunc([]string{"namespace", namespaceKey, "destination_service_namespace"}, func(label string) bool {
			return slices.Equal(p.demanded(label), []string{namespace})
		})
	})
}

// OneReporter says whether a part counts requests at one of their ends alone.
func (e Expression) OneReporter() bool {
	return slices.ContainsFunc(e.Parts, func(p Part) bool { return !p.reports("source") || !p.reports("destination") })
}
