package metricsapi

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// What is not known of a workload's pods is estimated from the pods of the same workload, and of no
// other: a service's pods are alike, a service and its neighbour in a namespace are not. Where all
// that reports is of one workload the value grows as its pods do. Else the expression is asked once
// more, with what a workload's pods add counted so many times.

// weight is how many times what a workload's pods add counts: but for some by name, which count
// once, and for others, which do not count.
type weight struct {
	cluster.Workload
	factor    float64
	but, none []string
}

// estimate takes into account what is not known of the shares, where nothing else is missing: while
// replicas are kept, only what is seen may ask for more.
func (h *holder) estimate(ctx context.Context, o *offer, k knowledge, seen verdict, p *prepared, a aggregator.Answer, at time.Time) (verdict, *refusal) {
	if len(k.shares) == 0 || k.missing != "" {
		return seen, nil
	}
	filled, err := h.fill(ctx, k, seen, p, a, at)
	// Of a workload of which nobody reports any more nothing can be said, nor where it cannot be
	// computed.
	silent := err != nil || slices.ContainsFunc(k.shares, func(t tally) bool { return t.known() == 0 })
	if o == nil || !silent && (!p.Additive() || seen.sum() == 0) {
		return filled, nil
	}
	return h.doubt(ctx, o, k, seen, filled, silent, p, a, at)
}

// fill counts mute pods as the mean of those of their workload that report, bare ones in place of
// what is left of them.
func (h *holder) fill(ctx context.Context, k knowledge, v verdict, p *prepared, a aggregator.Answer, at time.Time) (verdict, error) {
	var weights []weight
	known := 0
	for i := range k.shares {
		if t := &k.shares[i]; t.mute > 0 && t.known() > 0 {
			weights = append(weights, weight{t.Workload, float64(t.known()+t.mute) / float64(t.known()), t.unlike(), t.bare})
			known += t.known()
		}
	}
	filled, changed, err := h.weigh(ctx, k, v, weights, p, a, at)
	if changed {
		filled.rule, filled.reason = explain.RuleEstimated, fmt.Sprintf("%d sidecars have been mute for long and are counted as the mean of the %d that report", k.mute, known)
	}
	return filled, err
}

// doubt lets pods of which nothing is known keep replicas: as if they served as much as those of
// their workload do that have been there all the window and are to stay, up to what keeps the
// replicas as they are. More would be a service whose pods fail at their start and are made more
// and more. filled is what is seen with the mute pods as the mean of all that report, which is too
// little where some of those have just come or are about to go, and says nothing of workloads that
// are silent.
func (h *holder) doubt(ctx context.Context, o *offer, k knowledge, seen, filled verdict, silent bool, p *prepared, a aggregator.Answer, at time.Time) (verdict, *refusal) {
	kept, cannot := h.keep(ctx, o, filled.sum())
	switch {
	case cannot != nil && silent:
		return verdict{}, cannot
	case cannot != nil, kept.enough:
		return filled, nil
	}
	reason := fmt.Sprintf("%d sidecars have not been heard of for long, and may serve as much as the others of their workload", k.mute+k.unheard)
	if full, ok := h.full(ctx, k, seen, p, a, at); ok && full.sum() < kept.milli {
		if full.sum() <= filled.sum() {
			return filled, nil
		}
		full.held, full.rule, full.reason = true, explain.RuleHeld, "held for what these may serve: "+reason
		return full, nil
	}
	return verdict{items: []item{{milli: kept.milli}}, held: true, rule: explain.RuleHeld, reason: "held to keep the replicas: " + reason}, kept.moves
}

// full is what is seen if all pods of the shares served as much as those that last; false where
// there is none of a workload.
func (h *holder) full(ctx context.Context, k knowledge, seen verdict, p *prepared, a aggregator.Answer, at time.Time) (verdict, bool) {
	var weights []weight
	for i := range k.shares {
		t := &k.shares[i]
		if t.lasting == 0 {
			return seen, false
		}
		weights = append(weights, weight{t.Workload, float64(t.expected) / float64(t.lasting), nil, t.bare})
	}
	full, changed, err := h.weigh(ctx, k, seen, weights, p, a, at)
	return full, changed && err == nil
}

// weigh is a verdict with some workloads' parts of it counted so many times, and whether that is
// another one. An error is of an expression that cannot be computed so.
func (h *holder) weigh(ctx context.Context, k knowledge, v verdict, weights []weight, p *prepared, a aggregator.Answer, at time.Time) (verdict, bool, error) {
	alone := len(k.shares) == 1 && k.shares[0].known() >= k.known // nobody else has a part
	if len(weights) == 0 || alone && !p.Additive() {              // a mean does not grow by who is mute
		return v, false, nil
	}
	text, ok := "", false
	if !alone || len(weights[0].but)+len(weights[0].none) > 0 {
		text, ok = h.weighted(p.Text, weights, at.Add(-a.Window))
	}
	switch {
	case !ok && alone:
		return v.times(weights[0].factor), true, nil
	case !ok:
		return v, false, nil
	}
	q, err := p.query.Like(text)
	if err != nil {
		return v, false, err
	}
	more, err := q.Eval(ctx, at)
	if err != nil {
		return v, false, err
	}
	factor := sumOf(more.Values) / sumOf(a.Values)
	if math.IsNaN(factor) || math.IsInf(factor, 0) || factor <= 0 { // nothing is seen that could be counted
		return v, false, nil
	}
	return v.times(factor), true, nil
}

func sumOf(values []aggregator.Value) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v.V
	}
	return sum
}

// times multiplies the items.
func (v verdict) times(factor float64) verdict {
	v.items = slices.Clone(v.items)
	for i := range v.items {
		v.items[i].milli = int64(math.Round(float64(v.items[i].milli) * factor))
	}
	return v
}

// weighted is an expression in which what a pod adds to a sum, a mean or a count over pods counts
// so many times as its workload's weight says; false if nothing is added up over pods. The pods are
// those that there were since a time.
func (h *holder) weighted(expr string, weights []weight, since time.Time) (string, bool) {
	tree, err := parser.ParseExpr(expr)
	if err != nil {
		return "", false
	}
	w := weigher{}
	for _, each := range weights {
		var names []string
		h.pods.Each([]aggregator.Meant{{Namespace: each.Namespace, Workload: each.Name}}, since, func(p *cluster.Pod) {
			if name := p.Identity.Name; !slices.Contains(each.but, name) && !slices.Contains(each.none, name) {
				names = append(names, name)
			}
		})
		w.weigh(each.factor, each.Namespace, names)
		w.weigh(0, each.Namespace, each.none)
	}
	if ofPods(tree) {
		return w.union(tree, "%s"), true
	}
	tree = w.rewrite(tree)
	return tree.String(), w.changed
}

// The labels that every series gets from the pod that reports it.
const (
	namespaceLabel = "namespace"
	podLabel       = "pod"
)

// weigher rewrites an expression.
type weigher struct {
	parts   []weighed
	changed bool
}

// weighed is the part of a workload's pods.
type weighed struct {
	factor float64
	pods   []*labels.Matcher
}

// weigh adds a part.
func (w *weigher) weigh(factor float64, namespace string, pods []string) {
	if len(pods) == 0 {
		return
	}
	names := make([]string, len(pods))
	for i, pod := range pods {
		names[i] = regexp.QuoteMeta(pod)
	}
	w.parts = append(w.parts, weighed{factor, []*labels.Matcher{
		labels.MustNewMatcher(labels.MatchEqual, namespaceLabel, namespace),
		labels.MustNewMatcher(labels.MatchRegexp, podLabel, strings.Join(names, "|")),
	}})
}

// union is an expression of pods with a weight for each: those of the parts first, and then what is
// left. form is what is made of each value.
func (w *weigher) union(e parser.Expr, form string) string {
	var all []string
	for _, p := range w.parts {
		restricted, err := parser.ParseExpr(e.String())
		if err != nil {
			return e.String()
		}
		parser.Inspect(restricted, func(node parser.Node, _ []parser.Node) error {
			if s, ok := node.(*parser.VectorSelector); ok {
				s.LabelMatchers = append(s.LabelMatchers, p.pods...)
			}
			return nil
		})
		all = append(all, "("+fmt.Sprintf(form, "("+restricted.String()+")")+") * "+strconv.FormatFloat(p.factor, 'g', -1, 64))
	}
	return strings.Join(append(all, fmt.Sprintf(form, "("+e.String()+")")), " or ")
}

// rewrite puts the weights where pods are added up.
func (w *weigher) rewrite(e parser.Expr) parser.Expr {
	switch n := e.(type) {
	case *parser.AggregateExpr:
		if !ofPods(n.Expr) {
			n.Expr = w.rewrite(n.Expr)
			return n
		}
		return w.put(n)
	case *parser.ParenExpr:
		n.Expr = w.rewrite(n.Expr)
	case *parser.UnaryExpr:
		n.Expr = w.rewrite(n.Expr)
	case *parser.SubqueryExpr:
		n.Expr = w.rewrite(n.Expr)
	case *parser.BinaryExpr:
		n.LHS, n.RHS = w.rewrite(n.LHS), w.rewrite(n.RHS)
	case *parser.Call:
		for i := range n.Args {
			n.Args[i] = w.rewrite(n.Args[i])
		}
	}
	return e
}

// put writes an aggregation over pods anew, if it adds up or counts.
func (w *weigher) put(n *parser.AggregateExpr) parser.Expr {
	grouping := ""
	switch {
	case n.Without:
		grouping = " without (" + strings.Join(n.Grouping, ", ") + ") "
	case len(n.Grouping) > 0:
		grouping = " by (" + strings.Join(n.Grouping, ", ") + ") "
	}
	sum := func(form string) string { return "sum" + grouping + "(" + w.union(n.Expr, form) + ")" }
	text := ""
	switch n.Op {
	case parser.SUM:
		text = sum("%s")
	case parser.COUNT:
		text = sum("%s ^ 0")
	case parser.AVG:
		text = "(" + sum("%s") + " / " + sum("%s ^ 0") + ")"
	}
	weighted, err := parser.ParseExpr(text)
	if err != nil {
		return n
	}
	w.changed = true
	return weighted
}

// ofPods says whether every series of an expression is of one pod, and says of which.
func ofPods(node parser.Node) bool {
	switch n := node.(type) {
	case *parser.VectorSelector:
		return true
	case *parser.AggregateExpr:
		kept := n.Without != slices.Contains(n.Grouping, podLabel) || n.Op == parser.TOPK || n.Op == parser.BOTTOMK
		return kept && ofPods(n.Expr)
	case *parser.Call:
		if ofItsOwn(n) {
			return false
		}
	case *parser.BinaryExpr:
		m := n.VectorMatching
		if m != nil && m.On == !slices.Contains(m.MatchingLabels, podLabel) {
			return false
		}
		scalars := n.LHS.Type() == parser.ValueTypeScalar || n.RHS.Type() == parser.ValueTypeScalar
		return ofPods(n.LHS) && ofPods(n.RHS) || scalars && (ofPods(n.LHS) || ofPods(n.RHS))
	}
	return slices.ContainsFunc(parser.Children(node), ofPods)
}
