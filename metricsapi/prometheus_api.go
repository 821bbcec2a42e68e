package metricsapi

import (
	"context"
	"errors"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Held says why an HPA whose query is the expression would get no answer at a time, or one that
// keeps its replicas; "" where it would get the expression's value, and where the expression is
// none. It reads everybody's series.
func (s *Server) Held(ctx context.Context, expr string, at time.Time) string {
	query := s.provider.catalog.adhoc.acquire("", expr)
	defer query.release()
	verdict, _, refused := s.provider.rules.evaluate(ctx, "the query", nil, query, at)
	switch unkept := (*aggregator.QueryError)(nil); {
	case errors.As(query.err, &unkept) && unkept.Unkept: // what pods tell is not all that there is
		return unkept.Error()
	case refused != nil && refused.outcome == outcomeBadQuery:
		return ""
	case refused != nil:
		return refused.message
	case verdict.held:
		return "held: " + verdict.reason
	}
	return ""
}
