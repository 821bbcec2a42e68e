package aggregator

import (
	"errors"
	"strings"
	"testing"
)

// What an author writes is parsed, prepared and laid out whole before any limit of time or samples
// holds, so what would take long is refused by its look.
func TestExpressionsPastTheLimitsOfTheirTextAreRefused(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	const selector = "istio_requests_total"
	for name, tc := range map[string]struct {
		expr, says string
	}{
		"long":           {selector + strings.Repeat("+1", longestExpr/2), "bytes, and 16384 are taken: ask in parts"},
		"deep":           {strings.Repeat("abs(", deepestExpr+1) + selector + strings.Repeat(")", deepestExpr+1), "nested more than 500 deep: ask in parts"},
		"neither of it":  {strings.Repeat("abs(", deepestExpr/2) + selector + strings.Repeat(")", deepestExpr/2), ""},
		"a syntax error": {"sum(", "it is not valid PromQL"},
	} {
		_, err := s.Register(tc.expr)
		var refused *QueryError
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.says != "" && (!errors.As(err, &refused) || !strings.Contains(refused.Reason, tc.says)):
			t.Errorf("%s: %v, want one that says %q", name, err, tc.says)
		}
	}
}
