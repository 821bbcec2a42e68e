package aggregator

import (
	"errors"
	"fmt"

	"github.com/prometheus/prometheus/promql/parser"
)

const (
	// longestExpr is how long an expression may be, in bytes: the parser takes the square of its
	// length, half a second of the CPU for such a one of operators alone.
	longestExpr = 16 << 10
	// deepestExpr is how deep it may be nested. The engine prepares an expression in the square of
	// its depth, which no timeout ends, and its layout takes as much memory: 50,000 brackets are 5
	// GB.
	deepestExpr = 500
)

// errTooLarge is of an expression past one of the limits.
var errTooLarge = errors.New("ask in parts")

// ParseExpr reads PromQL that somebody else has written. The error is the parser's, or says that
// the expression is longer, or nested deeper, than is taken.
func ParseExpr(text string) (parser.Expr, error) {
	if len(text) > longestExpr {
		return nil, fmt.Errorf("it has %d bytes, and %d are taken: %w", len(text), longestExpr, errTooLarge)
	}
	expr, err := parser.ParseExpr(text)
	if err != nil {
		return nil, err
	}
	parser.Inspect(expr, func(_ parser.Node, path []parser.Node) error {
		if len(path) > deepestExpr {
			err = fmt.Errorf("it is nested more than %d deep: %w", deepestExpr, errTooLarge)
		}
		return err
	})
	return expr, err
}
