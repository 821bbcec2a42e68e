package metricsapi

import (
	"slices"

	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

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
