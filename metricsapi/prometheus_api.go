package metricsapi

import (
	"context"
	"time"
)

// Held says why an HPA whose query is the expression would get no answer at a time, or one that
// keeps its replicas; "" where it would get the expression's value, and where the expression is
// none. It reads everybody's series.
func (s *Server) Held(ctx context.Context, expr string, at time.Time) string {
	query := s.provider.catalog.adhoc.acquire("", expr)
	defer query.release()
	verdict, _, refused := s.provider.rules.evaluate(ctx, "the query", nil, query, at)
	switch {
	case refused != nil && refused.outcome == outcomeBadQuery:
		return ""
	case refused != nil:
		return refused.message
	case verdict.held:
		return "held: " + verdict.reason
	}
	return ""
}
