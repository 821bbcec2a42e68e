package metricsapi

import (
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
)

// expression is a PromQL expression that was parsed once, and what its form tells.
type expression struct {
	expr string
	// tree is nil where it does not parse, and has no parts then.
	tree parser.Expr
	// parts are its selectors, in the order in which the store has them.
	parts []part
}

func parse(expr string) expression {
	tree, err := parser.ParseExpr(expr)
	if err != nil {
		return expression{expr: expr}
	}
	return expression{expr, tree, partsOf(tree)}
}

// selects says whether it selects series; a scalar does not.
func (e expression) selects() bool { return len(e.parts) > 0 }

// waypoint says whether it asks for what waypoints report, and no sidecar does.
func (e expression) waypoint() bool { return slices.ContainsFunc(e.parts, part.waypoint) }

// additive says whether its value adds up over pods, so that one that is missing can be counted as the
// mean of the others.
func (e expression) additive() bool { return e.tree != nil && additive(e.tree) }

// irate says whether it looks at the last two samples only.
func (e expression) irate() bool { return e.traits().irate }

// namesMetrics returns an *aggregator.QueryError about the first part that names no metric, nil where
// each does.
func (e expression) namesMetrics() error {
	for _, p := range e.parts {
		if p.naming() == nil {
			return &aggregator.QueryError{Expr: e.expr, Reason: fmt.Sprintf("its selector %s names no metric, so it would read all that pods report: write the metric's name before the braces, as in %s, "+
				"and of several metrics each in a selector of its own", p, p.ofRequests())}
		}
	}
	return nil
}

// never says why parts of it will never be reported, once each.
func (e expression) never(words vocabulary) (whys []string) {
	for _, p := range e.parts {
		if why := words.never(p); why != "" && !slices.Contains(whys, why) {
			whys = append(whys, why)
		}
	}
	return whys
}
