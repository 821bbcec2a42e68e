package aggregator

import (
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// The shapes that HPAs use are evaluated straight on the rings: sums and the like of a range
// function over a plain selector, quantiles of such sums by bucket, and arithmetic between them.
// compile returns nil for anything else, which is the engine's. Both give the same on the same
// rings; compile_test.go and a fuzz test hold that.

// plan is a compiled expression. It keeps nothing between evaluations, so many may run at a time.
// It returns false where the series turn out to be of another kind than the shape is for (a native
// histogram): then the engine has to evaluate it.
type plan interface {
	eval(s *Store, at int64) ([]Value, bool)
}

// compiler knows the selectors of the expression that it compiles.
type compiler map[*parser.VectorSelector]*selector

func (c compiler) compile(e parser.Expr) plan {
	switch e := unparen(e).(type) {
	case *parser.NumberLiteral:
		return constant(e.Val)
	case *parser.AggregateExpr:
		return c.aggregate(e)
	case *parser.Call:
		return c.quantile(e)
	case *parser.BinaryExpr:
		if e.Op == parser.LOR {
			return c.orElse(e)
		}
		return c.binary(e)
	}
	return nil
}

func unparen(e parser.Expr) parser.Expr {
	for {
		switch p := e.(type) {
		case *parser.ParenExpr:
			e = p.Expr
		case *parser.StepInvariantExpr:
			e = p.Expr
		default:
			return e
		}
	}
}

// rangeVector compiles f(selector[range]).
func (c compiler) rangeVector(e parser.Expr) (rangeVector, bool) {
	call, ok := unparen(e).(*parser.Call)
	if !ok || len(call.Args) != 1 {
		return rangeVector{}, false
	}
	f, known := rangeFuncs[call.Func.Name]
	m, ok := unparen(call.Args[0]).(*parser.MatrixSelector)
	if !known || !ok {
		return rangeVector{}, false
	}
	vs, ok := m.VectorSelector.(*parser.VectorSelector)
	if !ok || vs.OriginalOffset != 0 || vs.Timestamp != nil || vs.StartOrEnd != 0 || vs.Anchored || vs.Smoothed {
		return rangeVector{}, false
	}
	sel := c[vs]
	if sel.name == "" || len(sel.onBucket) > 0 {
		return rangeVector{}, false
	}
	return rangeVector{f, sel, m.Range.Milliseconds()}, true
}

// constant is a scalar.
type constant float64

func (k constant) eval(*Store, int64) ([]Value, bool) { return []Value{{V: float64(k)}}, true }

// aggregation is OP by (…) (f(selector[range])).
type aggregation struct {
	op   parser.ItemType
	by   []string
	over rangeVector
}

func (c compiler) aggregate(e *parser.AggregateExpr) plan {
	switch e.Op {
	case parser.SUM, parser.AVG, parser.MIN, parser.MAX, parser.COUNT:
	default:
		return nil
	}
	over, ok := c.rangeVector(e.Expr)
	if !ok || !groupable(e) || slices.Contains(e.Grouping, labels.BucketLabel) {
		return nil
	}
	return &aggregation{e.Op, distinct(e.Grouping), over}
}

// distinct returns each label once.
func distinct(grouping []string) []string {
	names := slices.Clone(grouping)
	slices.Sort(names)
	return slices.Compact(names)
}

// groupable reports whether the grouping is by labels that a class or its pod has.
func groupable(e *parser.AggregateExpr) bool {
	return !e.Without && !slices.Contains(e.Grouping, model.MetricNameLabel)
}

func (a *aggregation) eval(s *Store, at int64) ([]Value, bool) {
	var groups grouper[fold]
	var scratch [scanValues]float64
	for vs := a.over.values(s, at); vs.begin(); {
		if vs.view == viewNative || vs.view == viewGauge { // the one has no such values, the other may fall
			return nil, false
		}
		values := vs.read(scratch[:0])
		if vs.torn() {
			continue
		}
		if len(a.by) == 0 && vs.n > 0 {
			groups.all().add(a.op, values)
		} else if vs.n > 0 {
			p, each := vs.table.pod.Load(), 0
			for i := range vs.batch[:vs.n] {
				each = vs.each(i)
				groups.of(a.by, vs.batch[i].column.class, p).add(a.op, values[:each])
				values = values[each:]
			}
		}
		vs.done()
	}
	return groups.values(a.by, func(g *fold) float64 { return g.result(a.op) }), true
}

func (c compiler) quantile(e *parser.Call) plan {
	if e.Func.Name != "histogram_quantile" {
		return nil
	}
	q, ok := unparen(e.Args[0]).(*parser.NumberLiteral)
	if !ok || !(q.Val >= 0 && q.Val <= 1) {
		return nil
	}
	sum, ok := unparen(e.Args[1]).(*parser.AggregateExpr)
	if !ok || sum.Op != parser.SUM || !groupable(sum) {
		return nil
	}
	over, ok := c.rangeVector(sum.Expr)
	if !ok {
		return nil
	}
	if !slices.Contains(sum.Grouping, labels.BucketLabel) {
		return &fineQuantile{q.Val, distinct(sum.Grouping), over}
	}
	by := slices.DeleteFunc(distinct(sum.Grouping), func(l string) bool { return l == labels.BucketLabel })
	return &bucketQuantile{q.Val, by, over}
}

// orElse is PLAN or vector(k), of a plan that gives one series without labels or none.
type orElse struct {
	of    plan
	value float64
}

// orElse compiles such an expression. How the two sides are matched makes no difference: neither
// has labels.
func (c compiler) orElse(e *parser.BinaryExpr) plan {
	vector, ok := unparen(e.RHS).(*parser.Call)
	if !ok || vector.Func.Name != "vector" {
		return nil
	}
	value, ok := unparen(vector.Args[0]).(*parser.NumberLiteral)
	of := c.compile(e.LHS)
	if !ok || of == nil || len(groupingOf(of)) > 0 {
		return nil
	}
	return &orElse{of, value.Val}
}

func (o *orElse) eval(s *Store, at int64) ([]Value, bool) {
	values, ok := o.of.eval(s, at)
	if ok && len(values) == 0 {
		values = []Value{{V: o.value}}
	}
	return values, ok
}

// binary is arithmetic between two plans: of one series each, or one of them a constant.
type binary struct {
	op                    parser.ItemType
	left, right           plan
	leftConst, rightConst bool
}

func (c compiler) binary(e *parser.BinaryExpr) plan {
	switch e.Op {
	case parser.ADD, parser.SUB, parser.MUL, parser.DIV:
	default:
		return nil
	}
	left, right := c.compile(e.LHS), c.compile(e.RHS)
	if left == nil || right == nil {
		return nil
	}
	b := &binary{op: e.Op, left: left, right: right}
	_, b.leftConst = left.(constant)
	_, b.rightConst = right.(constant)
	switch {
	case b.leftConst && b.rightConst:
		return constant(b.apply(float64(left.(constant)), float64(right.(constant))))
	case b.leftConst, b.rightConst:
		return b
	}
	// Between vectors: one-to-one on all labels, which is plain where both sides group by the same.
	// Where neither has labels it makes no difference how they are matched.
	m := e.VectorMatching
	if len(groupingOf(left)) == 0 && len(groupingOf(right)) == 0 {
		return b
	}
	if m == nil || m.Card != parser.CardOneToOne || m.On || len(m.MatchingLabels) > 0 || !sameGrouping(left, right) {
		return nil
	}
	return b
}

// sameGrouping reports whether both plans give their groups the same label names.
func sameGrouping(left, right plan) bool {
	return slices.Equal(groupingOf(left), groupingOf(right))
}

// groupingOf returns the label names that a plan groups by, sorted, each once.
func groupingOf(p plan) []string {
	switch p := p.(type) {
	case *aggregation:
		return p.by
	case *bucketQuantile:
		return p.by
	case *fineQuantile:
		return p.by
	case *binary:
		if p.leftConst {
			return groupingOf(p.right)
		}
		return groupingOf(p.left)
	}
	return nil
}

func (b *binary) eval(s *Store, at int64) ([]Value, bool) {
	left, ok := b.left.eval(s, at)
	if !ok {
		return nil, false
	}
	right, ok := b.right.eval(s, at)
	switch {
	case !ok:
		return nil, false
	case b.leftConst:
		for i := range right {
			right[i].V = b.apply(left[0].V, right[i].V)
		}
		return right, true
	case b.rightConst:
		for i := range left {
			left[i].V = b.apply(left[i].V, right[0].V)
		}
		return left, true
	}
	matched := left[:0]
	for _, l := range left {
		for _, r := range right {
			if labels.Equal(l.Labels, r.Labels) {
				matched = append(matched, Value{l.Labels, b.apply(l.V, r.V)})
			}
		}
	}
	return matched, true
}

func (b *binary) apply(l, r float64) float64 {
	switch b.op {
	case parser.ADD:
		return l + r
	case parser.SUB:
		return l - r
	case parser.MUL:
		return l * r
	}
	return l / r
}
