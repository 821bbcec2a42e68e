package hpas

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

// traits are what an expression's form tells about the number it gives.
type traits struct {
	// latency: a mean or a quantile of durations. It does not add up over pods.
	latency bool
	// ratio: one thing by another, which does not add up over pods either.
	ratio bool
	// milliseconds: a latency in milliseconds.
	milliseconds bool
	// irate: it looks at the last two samples only.
	irate bool
	// noBuckets: a quantile of buckets that an aggregation has added up, label le and all: it never
	// has a value.
	noBuckets bool
	// raw is a counter that is read as it stands, "" if there is none.
	raw string
}

// traits reads the traits off an expression; one that does not parse has none. It goes by names as
// Istio and Prometheus use them (_sum over _count, _milliseconds) and is for advice only: no answer
// depends on it.
func (e Expression) traits() traits {
	var t traits
	if e.Tree == nil {
		return t
	}
	tree := e.Tree
	seconds := false // scaled by a thousand
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.Call:
			switch n.Func.Name {
			case "irate", "idelta":
				t.irate = true
			case "histogram_quantile", "histogram_avg":
				t.latency = t.latency || selects(n, func(name string) bool { return isDuration(name) })
				t.noBuckets = t.noBuckets || n.Func.Name == "histogram_quantile" && dropsBuckets(Unwrap(n.Args[1]))
			}
		case *parser.BinaryExpr:
			mean := n.Op == parser.DIV &&
				selects(n.LHS, func(name string) bool { return isDuration(name) && strings.HasSuffix(name, "_sum") }) &&
				selects(n.RHS, func(name string) bool { return isDuration(name) && strings.HasSuffix(name, "_count") })
			t.latency = t.latency || mean
			seconds = seconds || n.Op == parser.DIV && isNumber(n.RHS, 1000) ||
				n.Op == parser.MUL && (isNumber(n.LHS, 0.001) || isNumber(n.RHS, 0.001))
		}
		return nil
	})
	t.raw, t.ratio = rawCounter(tree), !t.latency && isRatio(tree)
	t.milliseconds = t.latency && !seconds && selects(tree, func(name string) bool { return strings.Contains(name, "_milliseconds") })
	return t
}

// isRatio says whether the value of an expression is one of its series by another: of what is
// scaled by a number, clamped, rounded or has something in its place too. What is added up or
// filtered is not looked into.
func isRatio(expr parser.Expr) bool {
	switch e := Unwrap(expr).(type) {
	case *parser.BinaryExpr:
		switch left, right := Selects(e.LHS), Selects(e.RHS); {
		case e.Op == parser.LOR:
			return isRatio(e.LHS)
		case e.Op == parser.DIV && left && right:
			return !isLoad(e.LHS) && !isLoad(e.RHS)
		case e.Op == parser.MUL, e.Op == parser.DIV:
			return left && !right && isRatio(e.LHS) || right && !left && isRatio(e.RHS)
		}
	case *parser.Call:
		switch e.Func.Name {
		case "clamp", "clamp_min", "clamp_max", "round", "ceil", "floor":
			return isRatio(e.Args[0])
		}
	}
	return false
}

// isLoad says whether to divide by an expression, or it by something, gives a load times a mean
// again: requests * bytes / responses and requests / (responses / bytes) add up over pods.
func isLoad(expr parser.Expr) bool { return isProduct(expr) || isRatio(expr) }

// isProduct says whether the value of an expression is one of its series times another, scaled or
// not.
func isProduct(expr parser.Expr) bool {
	e, ok := Unwrap(expr).(*parser.BinaryExpr)
	switch {
	case !ok || e.Op != parser.MUL && e.Op != parser.DIV:
		return false
	case Selects(e.LHS) && Selects(e.RHS):
		return e.Op == parser.MUL
	}
	return isProduct(e.LHS) || isProduct(e.RHS)
}

// dropsBuckets says whether an expression aggregates classic buckets without keeping what tells
// them apart.
func dropsBuckets(expr parser.Expr) bool {
	a, ok := expr.(*parser.AggregateExpr)
	picks := ok && (a.Op == parser.TOPK || a.Op == parser.BOTTOMK || a.Op == parser.LIMITK || a.Op == parser.LIMIT_RATIO) // series as they are
	return ok && !picks && a.Without == slices.Contains(a.Grouping, model.BucketLabel) &&
		selects(a, func(name string) bool { return strings.HasSuffix(name, "_bucket") })
}

// rawCounter names the first counter whose value as it stands goes into the expression's: it only
// grows while its pods live, whatever the load is. "" if there is none.
func rawCounter(tree parser.Expr) string {
	found := ""
	if tree.Type() == parser.ValueTypeMatrix {
		return "" // no query of an instant: it is refused
	}
	parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok && found == "" && isCounter(nameOf(s)) && !readsChange(append(slices.Clone(path), s)) {
			found = nameOf(s)
		}
		return nil
	})
	return found
}

// readsChange says whether something on the way from an expression down to a selector takes not the
// selector's value but its change, its being there, or its time.
func readsChange(path []parser.Node) bool {
	for i, node := range path[:len(path)-1] {
		switch n := node.(type) {
		case *parser.Call:
			switch n.Func.Name {
			case "rate", "irate", "increase", "delta", "idelta", "deriv", "changes", "resets", "timestamp", "absent", "absent_over_time",
				"present_over_time", "count_over_time", "stddev_over_time", "stdvar_over_time":
				return true
			}
		case *parser.AggregateExpr:
			if n.Op == parser.COUNT || n.Op == parser.GROUP {
				return true
			}
		case *parser.BinaryExpr:
			filter := (n.Op == parser.LAND || n.Op == parser.LUNLESS) && path[i+1] == n.RHS
			change := n.Op == parser.SUB && selects(n.LHS, isCounter) && selects(n.RHS, isCounter)
			if change || n.ReturnBool || filter {
				return true
			}
		}
	}
	return false
}

// isCounter goes by the name, as Prometheus' conventions have it, and knows that all of Istio's are
// counters.
func isCounter(name string) bool {
	return isIstioMetric(name) || slices.ContainsFunc([]string{"_total", "_count", "_sum", "_bucket"}, func(suffix string) bool { return strings.HasSuffix(name, suffix) })
}

// longestRange is the expression's longest range selector; 0 without any. For an answer the store's
// own Query.Range counts.
func (e Expression) longestRange() time.Duration {
	var longest time.Duration
	if e.Tree == nil {
		return 0
	}
	parser.Inspect(e.Tree, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.MatrixSelector:
			longest = max(longest, n.Range)
		case *parser.SubqueryExpr:
			longest = max(longest, n.Range)
		}
		return nil
	})
	return longest
}

func isDuration(name string) bool {
	return strings.Contains(name, "_milliseconds") || strings.Contains(name, "_seconds")
}

// selects says whether the expression selects a series by a name that fits.
func selects(expr parser.Expr, fits func(name string) bool) bool {
	found := false
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if s, ok := node.(*parser.VectorSelector); ok {
			found = found || fits(nameOf(s))
		}
		return nil
	})
	return found
}

// Selects says whether an expression selects series at all.
func Selects(expr parser.Expr) bool { return selects(expr, func(string) bool { return true }) }

// nameOf is the selector's metric name, or the pattern where it has one.
func nameOf(s *parser.VectorSelector) string {
	for _, m := range s.LabelMatchers {
		if m.Name == model.MetricNameLabel {
			return m.Value
		}
	}
	return s.Name
}

// additive says whether the value of the expression is a sum over pods: sum(…), scaled by numbers,
// or something in its place.
func additive(expr parser.Expr) bool {
	switch e := expr.(type) {
	case *parser.ParenExpr:
		return additive(e.Expr)
	case *parser.AggregateExpr:
		return e.Op == parser.SUM
	case *parser.BinaryExpr:
		_, left := Unwrap(e.LHS).(*parser.NumberLiteral)
		_, right := Unwrap(e.RHS).(*parser.NumberLiteral)
		switch e.Op {
		case parser.LOR:
			return additive(e.LHS)
		case parser.MUL:
			return left && additive(e.RHS) || right && additive(e.LHS)
		case parser.DIV:
			return right && additive(e.LHS)
		case parser.ADD:
			return additive(e.LHS) && additive(e.RHS)
		}
	}
	return false
}

// Unwrap is an expression without the parentheses around it.
func Unwrap(expr parser.Expr) parser.Expr {
	for {
		paren, ok := expr.(*parser.ParenExpr)
		if !ok {
			return expr
		}
		expr = paren.Expr
	}
}

// istioNames are the metrics of Istio's stats filter, a histogram's under all its names.
func istioNames() [19]string {
	return [...]string{
		"istio_requests_total", "istio_request_messages_total", "istio_response_messages_total",
		"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total",
		"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total",
		"istio_request_duration_milliseconds", "istio_request_duration_milliseconds_bucket",
		"istio_request_duration_milliseconds_sum", "istio_request_duration_milliseconds_count",
		"istio_request_bytes", "istio_request_bytes_bucket", "istio_request_bytes_sum", "istio_request_bytes_count",
		"istio_response_bytes", "istio_response_bytes_bucket", "istio_response_bytes_sum", "istio_response_bytes_count",
	}
}

func isIstioMetric(name string) bool {
	names := istioNames()
	return slices.Contains(names[:], name)
}

func isNumber(expr parser.Expr, value float64) bool {
	n, ok := Unwrap(expr).(*parser.NumberLiteral)
	return ok && n.Val == value
}
