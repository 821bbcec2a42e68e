package aggregator

import (
	"context"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// QueryError is an expression that is refused: it does not parse, is neither instant vector nor scalar, or reaches
// further back than Config.MaxRetention.
type QueryError struct {
	Expr   string
	Reason string
}

func (e *QueryError) Error() string { return "query " + e.Expr + ": " + e.Reason }

// Query is a checked PromQL expression over a store. It is safe for concurrent use.
type Query struct{}

// Register checks the expression and keeps it prepared (its series are tracked as they come and go; the rings grow to
// its range) until Query.Close. It is for the expressions of HPAs. The error is a *QueryError.
func (s *Store) Register(expr string) (*Query, error) { panic("stub") }

// Query checks the expression for a single use or a few. The error is a *QueryError.
func (s *Store) Query(expr string) (*Query, error) { panic("stub") }

// Close gives up what Register prepared.
func (q *Query) Close() { panic("stub") }

// Range is how far back the expression looks: the longest range or subquery with its offset; 0 without any.
func (q *Query) Range() time.Duration { panic("stub") }

// Value is one series of an answer.
type Value struct {
	Labels labels.Labels
	V      float64 // may be NaN or infinite: what that means to an autoscaler is the caller's to say
}

// Answer is what an expression says at an instant, and what it stands on.
type Answer struct {
	// Values is the result's series; a scalar is one without labels.
	Values []Value
	// Newest is the time of the newest sample that went in, zero if there was none.
	Newest time.Time
	// Window is the expression's longest range (Query.Range).
	Window time.Duration
	// Reporting counts the pods that could have the selected series (by their series or by what their node says
	// of them) and whose newest flush is at most two flush intervals old; Silent counts those whose newest is older.
	Reporting, Silent int
	// Covered is how far back from the instant the rows of the selected pods reach: the shortest of the reporting
	// pods, never more than Window; equal to Window when the window is full.
	Covered time.Duration
	// Matched counts the series that the selectors matched; Moved says whether any of them changed within the rings.
	Matched int
	Moved   bool
}

// Eval answers the expression at the given time from the rings. The error names the expression.
func (q *Query) Eval(ctx context.Context, at time.Time) (Answer, error) { panic("stub") }

// Started is when the store began to listen; nothing is known from before.
func (s *Store) Started() time.Time { panic("stub") }
