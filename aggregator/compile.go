package aggregator

import (
	"math"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// The shapes that HPAs use are evaluated straight on the rings: sums and the like of a range function over a plain
// selector, quantiles of such sums by bucket, and arithmetic between them. compile returns nil for anything else, which
// is the engine's. Both give the same on the same rings; compile_test.go and a fuzz test hold that.

// plan is a compiled expression. It keeps nothing between evaluations, so many may run at a time. It returns false where the
// series turn out to be of another kind than the shape is for (a native histogram): then the engine has to evaluate it.
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
		if vs.view == viewNative { // it has no such values
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

// fold is an aggregation in progress.
type fold struct{ v, compensation, n float64 }

func (f *fold) add(op parser.ItemType, values []float64) {
	switch op {
	case parser.SUM, parser.AVG:
		f.sum(values)
	case parser.MIN, parser.MAX:
		for i, v := range values {
			if f.n == 0 && i == 0 || op == parser.MIN && v < f.v || op == parser.MAX && v > f.v || math.IsNaN(f.v) {
				f.v = v
			}
		}
	}
	f.n += float64(len(values))
}

// sum is Neumaier's summation, as the engine does it.
func (f *fold) sum(values []float64) {
	sum, compensation := f.v, f.compensation
	for _, v := range values {
		t := sum + v
		if math.Abs(sum) >= math.Abs(v) {
			compensation += (sum - t) + v
		} else {
			compensation += (v - t) + sum
		}
		sum = t
	}
	f.v, f.compensation = sum, compensation
}

func (f *fold) result(op parser.ItemType) float64 {
	switch op {
	case parser.SUM:
		return f.v + f.compensation
	case parser.AVG:
		return (f.v + f.compensation) / f.n
	case parser.COUNT:
		return f.n
	}
	return f.v
}

// grouper keeps one accumulator a group of labels.
type grouper[T any] struct {
	single *T // of an aggregation without labels
	byKey  map[string]*T
	keys   []string
	key    []byte
}

// all returns the one group of an aggregation without labels.
func (g *grouper[T]) all() *T {
	if g.single == nil {
		g.single = new(T)
	}
	return g.single
}

// of returns the group of a series.
func (g *grouper[T]) of(by []string, c *class, p *Pod) *T {
	if len(by) == 0 {
		return g.all()
	}
	g.key = g.key[:0]
	for _, name := range by {
		g.key = append(g.key, groupLabel(name, c, p)...)
		g.key = append(g.key, 0xff) // in no UTF-8 text
	}
	if acc := g.byKey[string(g.key)]; acc != nil {
		return acc
	}
	if g.byKey == nil {
		g.byKey = map[string]*T{}
	}
	acc, key := new(T), string(g.key)
	g.byKey[key] = acc
	g.keys = append(g.keys, key)
	return acc
}

func groupLabel(name string, c *class, p *Pod) string {
	switch name {
	case labelNamespace:
		return p.Namespace
	case labelPod:
		return p.Name
	}
	return c.labels.get(name)
}

// values returns the groups with their labels.
func (g *grouper[T]) values(by []string, result func(*T) float64) []Value {
	if g.single != nil {
		return []Value{{V: result(g.single)}}
	}
	vs := make([]Value, 0, len(g.keys))
	for _, key := range g.keys {
		b := labels.NewScratchBuilder(len(by))
		at := 0
		for _, name := range by {
			end := at
			for key[end] != 0xff {
				end++
			}
			if end > at {
				b.Add(name, key[at:end])
			}
			at = end + 1
		}
		b.Sort()
		vs = append(vs, Value{b.Labels(), result(g.byKey[key])})
	}
	return vs
}

// bucketQuantile is histogram_quantile(q, sum by (le, …) (f(buckets[range]))).
type bucketQuantile struct {
	q    float64
	by   []string // without le
	over rangeVector
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

// bucketSums are a group's sums by bound; +Inf is last.
type bucketSums struct {
	bounds []float64
	sums   []fold
}

func (h *bucketQuantile) eval(s *Store, at int64) ([]Value, bool) {
	var groups grouper[bucketSums]
	var scratch [scanValues]float64
	for vs := h.over.values(s, at); vs.begin(); {
		if vs.view == viewNative {
			return nil, false
		}
		values := vs.read(scratch[:0])
		if vs.torn() {
			continue
		}
		if vs.view == viewBucket { // else a counter that is called like a histogram's view: no le, so no bucket
			p := vs.table.pod.Load()
			for i := range vs.batch[:vs.n] {
				c, each := vs.batch[i].column, vs.each(i)
				groups.of(h.by, c.class, p).add(c.layout.bounds, values[:each])
				values = values[each:]
			}
		}
		vs.done()
	}
	return groups.values(h.by, func(b *bucketSums) float64 { return b.quantile(h.q) }), true
}

// add adds a series' buckets. Series with other bounds add up bound by bound, as sum by (le) does.
func (b *bucketSums) add(bounds, values []float64) {
	if b.sums == nil {
		b.bounds, b.sums = slices.Clone(bounds), make([]fold, len(values))
	}
	if slices.Equal(b.bounds, bounds) {
		for i := range values {
			b.sums[i].sum(values[i : i+1])
		}
		return
	}
	for i, bound := range bounds {
		at, found := slices.BinarySearch(b.bounds, bound)
		if !found {
			b.bounds = slices.Insert(b.bounds, at, bound)
			b.sums = slices.Insert(b.sums, at, fold{})
		}
		b.sums[at].sum(values[i : i+1])
	}
	last := len(values) - 1
	b.sums[len(b.sums)-1].sum(values[last:])
}

func (b *bucketSums) quantile(q float64) float64 {
	buckets := make(promql.Buckets, 0, len(b.sums))
	for i := range b.sums {
		bound := math.Inf(1)
		if i < len(b.bounds) {
			bound = b.bounds[i]
		}
		buckets = append(buckets, promql.Bucket{UpperBound: bound, Count: b.sums[i].result(parser.SUM)})
	}
	v, _, _ := promql.BucketQuantile(q, buckets)
	return v
}

// orElse is PLAN or vector(k), of a plan that gives one series without labels or none.
type orElse struct {
	of    plan
	value float64
}

// orElse compiles such an expression. How the two sides are matched makes no difference: neither has labels.
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
	// Between vectors: one-to-one on all labels, which is plain where both sides group by the same. Where neither has labels it
	// makes no difference how they are matched.
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
	l, r := groupingOf(left), groupingOf(right)
	slices.Sort(l)
	slices.Sort(r)
	return slices.Equal(slices.Compact(l), slices.Compact(r))
}

func groupingOf(p plan) []string {
	switch p := p.(type) {
	case *aggregation:
		return slices.Clone(p.by)
	case *bucketQuantile:
		return slices.Clone(p.by)
	case *fineQuantile:
		return slices.Clone(p.by)
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
