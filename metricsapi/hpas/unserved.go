package hpas

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/promql/parser"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Unserved is a Pods or Object metric of an HPA that is not served: the custom metrics API has
// those, and may be another adapter's. What it says is told in the form of an External metric,
// which is.
type Unserved struct {
	Kind   autoscalingv2.MetricSourceType
	Metric autoscalingv2.MetricIdentifier
	Target autoscalingv2.MetricTarget
	Place  int // in the HPA's spec.metrics
	Why    string
}

// objectNotes are the annotations of kube-metrics-adapter for one Object metric.
type objectNotes struct {
	// queries holds the PromQL by its key: query, or the name of a query where the metric is that
	// of the legacy form.
	queries    map[string]string
	perReplica bool
}

// Goal is its quantity, whatever the target's type says.
func (u Unserved) Goal() *resource.Quantity { return anyQuantity(u.Target) }

func (a *annotated) readObject(metric, name, value string) {
	n := a.objects[metric]
	if n == nil {
		n = &objectNotes{queries: map[string]string{}}
		a.objects[metric] = n
	}
	switch {
	case name == "per-replica":
		n.perReplica = value == "true"
	case name == queryKey, strings.EqualFold(metric, legacyMetric):
		n.queries[name] = value
	}
}

// readUnserved tells of metrics that another API has. Where the HPA is configured for another
// collector, they are that one's.
func (a *Wants) readUnserved(notes annotated) {
	used := map[string]bool{}
	for place, m := range a.Spec.Metrics {
		u := Unserved{Kind: m.Type, Place: place}
		of := a.Spec.ScaleTargetRef
		switch {
		case m.Type == autoscalingv2.PodsMetricSourceType && m.Pods != nil:
			u.Metric, u.Target = m.Pods.Metric, m.Pods.Target
		case m.Type == autoscalingv2.ObjectMetricSourceType && m.Object != nil:
			u.Metric, u.Target, of = m.Object.Metric, m.Object.Target, m.Object.DescribedObject
		default:
			continue
		}
		n := notes.objects[u.Metric.Name]
		if a.words.Custom && a.readCustom(u, of, n) {
			used[u.Metric.Name] = true
			continue
		}
		switch annotated := n != nil && u.Kind == autoscalingv2.ObjectMetricSourceType; {
		case annotated:
			used[u.Metric.Name] = true
			u.Why = fmt.Sprintf("Object metric %s is not served. %s", u.Metric.Name, n.external(u.Metric.Name, &u.Target))
		case notes.others:
			continue
		default:
			why := "meshpulse serves External metrics, and leaves custom.metrics.k8s.io to another adapter"
			if a.words.Custom {
				why = "nothing says how to compute it"
			}
			u.Why = fmt.Sprintf("%s metric %s is not served: %s. %s", u.Kind, u.Metric.Name, why, a.external(u, of))
		}
		reason := ReasonObjectNotServed
		if u.Kind == autoscalingv2.PodsMetricSourceType {
			reason = ReasonPodsNotServed
		}
		a.problem(reason, "%s", u.Why)
		a.Unserved = append(a.Unserved, u)
	}
	for _, metric := range slices.Sorted(maps.Keys(notes.objects)) {
		if !used[metric] {
			a.problem(ReasonObjectNotServed, "annotation metric-config.object.%s.prometheus has no effect: the spec has no Object metric %[1]s, and those are not served. %s", metric, notes.objects[metric].external(metric, nil))
		}
	}
}

// external is the External form of an annotated Object metric, or why there is none. target is nil
// where the spec has none.
func (n *objectNotes) external(metric string, target *autoscalingv2.MetricTarget) string {
	if len(n.queries) == 0 {
		return "It has no query either. Write an External metric, with a query in the annotation metric-config.external." + metric + ".prometheus/query, and selector type: prometheus"
	}
	key := slices.Sorted(maps.Keys(n.queries))[0]
	expr, divided, err := withoutPods(n.queries[key])
	if err != nil {
		return "As an External metric its query could not be served either: " + err.Error()
	}
	of := Parse(expr).traits()
	whole := of.ratio || of.latency // dividing it by the replicas would have them follow it, whatever they do to it
	average := !whole && (n.perReplica || divided || target == nil || target.Type == autoscalingv2.AverageValueMetricType)
	var goal *resource.Quantity
	if target != nil {
		goal = anyQuantity(*target)
	}
	selector := typeKey + ": " + ourCollector
	if strings.EqualFold(metric, legacyMetric) {
		selector = queryNameKey + ": " + key
	}
	text := "Write an External metric in its place: " + externalText(metric, key, expr, selector, targetText(average, goal))
	if goal == nil {
		text += ", with N as much as one replica should have"
	}
	switch {
	case whole && (divided || n.perReplica):
		text += ". It is no sum, so nothing divides it by the replicas any more: look at the target"
	case divided && n.perReplica:
		text += ". It was divided by the pods twice, by the query and by per-replica; AverageValue divides once, and so asks for more: look at the target"
	case divided:
		text += ". AverageValue divides by the replicas, so the query does not"
	}
	return text
}

// withoutPods is an expression without divisions by what no sidecar reports, which is the number of
// pods where they are from, and in the parser's own form. The error says why it cannot be served
// all the same.
func withoutPods(query string) (expr string, divided bool, err error) {
	tree, err := aggregator.ParseExpr(query)
	if err != nil {
		return "", false, fmt.Errorf("it is not valid PromQL: %w", err)
	}
	foreign := func(p Part) bool { return !p.Istio() }
	for {
		b, ok := Unwrap(tree).(*parser.BinaryExpr)
		if !ok || b.Op != parser.DIV {
			break
		}
		if parts := partsOf(b.RHS); len(parts) == 0 || slices.ContainsFunc(parts, Part.Istio) {
			break
		}
		tree, divided = b.LHS, true
	}
	parts := partsOf(tree)
	if i := slices.IndexFunc(parts, foreign); i >= 0 {
		return "", divided, fmt.Errorf("%s", remedyForMetric(parts[i].Metric()))
	}
	return tree.String(), divided, nil
}

func externalText(metric, key, expr, selector, target string) string {
	return fmt.Sprintf("annotation metric-config.external.%s.prometheus/%s: '%s' and metric %s", metric, key, strings.ReplaceAll(expr, "'", "''"), metricText(metric, selector, target))
}

func metricText(metric, selector, target string) string {
	return fmt.Sprintf("{type: External, external: {metric: {name: %s, selector: {matchLabels: {%s}}}, target: %s}}", metric, selector, target)
}

func targetText(average bool, q *resource.Quantity) string {
	text := "N"
	if q != nil {
		text = q.String()
	}
	if average {
		return fmt.Sprintf("{type: AverageValue, averageValue: %q}", text)
	}
	return fmt.Sprintf("{type: Value, value: %q}", text)
}

// anyQuantity is a target's quantity, whatever its type says.
func anyQuantity(t autoscalingv2.MetricTarget) *resource.Quantity {
	if t.AverageValue != nil {
		return t.AverageValue
	}
	return t.Value
}

// quantileInName is where a metric's name says which quantile it is.
var quantileInName = regexp.MustCompile(`p(50|90|95|99)(?:_|$)|(?:^|_)(50|90|95|99)(?:th|p)`)

// external is the External form of a Pods or Object metric of an adapter's own making, as far as
// its name tells what it is.
func (a *Wants) external(u Unserved, of autoscalingv2.CrossVersionObjectReference) string {
	name := strings.ToLower(strings.ReplaceAll(u.Metric.Name, "-", "_"))
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(name, p) })
	}
	q := u.Goal()
	switch {
	case has("latency", "duration"):
		quantile := "p95"
		if m := quantileInName.FindStringSubmatch(name); m != nil {
			quantile = "p" + m[1] + m[2]
		} else if has("avg", "average", "mean") {
			quantile = "avg"
		}
		if q != nil && !has("_ms", "milli") && q.AsApproximateFloat64() < 10 { // seconds
			ms := resource.MustParse(milliseconds(*q))
			q = &ms
		}
		return a.inPlace("istio-request-duration-"+quantile, of, targetText(false, q)) + ". It is in milliseconds, with behavior.scaleUp.stabilizationWindowSeconds: 60 or more"
	case has("error", "5xx", "fail"):
		expr := "sum(rate(istio_requests_total{" + a.matchers(of) + `,response_code=~"5.."}[1m]))`
		return "If it counts responses of 5xx write in its place: " + externalText("istio-errors-per-second", queryKey, expr, typeKey+": "+ourCollector, targetText(true, q))
	case has("in_flight", "inflight", "concurren", "active_requests", "rq_active"):
		return a.inPlace("istio-requests-in-flight", of, targetText(true, q))
	case has("requests", "request_rate", "rps", "qps"):
		if q != nil && has("per_min") {
			q = resource.NewMilliQuantity(q.MilliValue()/60, resource.DecimalSI)
		}
		return a.inPlace("istio-requests-per-second", of, targetText(true, q))
	}
	return "If it is made of Istio's metrics, write its PromQL in an annotation metric-config.external." + u.Metric.Name + ".prometheus/query, and an External metric of this name with selector type: prometheus"
}

// inPlace is the External form of a metric that needs no PromQL, but for gateways: their requests
// are others', which they report as callers.
func (a *Wants) inPlace(metric string, of autoscalingv2.CrossVersionObjectReference, target string) string {
	const intro = "If it is made of Istio's metrics write in its place: "
	if !a.gateway() {
		label, value := a.described(of)
		return intro + metricText(metric, label+": "+value, target)
	}
	template, _ := Named(metric)
	expr := strings.ReplaceAll(strings.ReplaceAll(template, "W]", defaultWindow+"]"), "{M", "{"+a.matchers(of))
	return intro + externalText("gateway-"+strings.TrimPrefix(metric, "istio-"), queryKey, expr, typeKey+": "+ourCollector, target)
}

func (a *Wants) gateway() bool { return strings.Contains(a.Spec.ScaleTargetRef.Name, "gateway") }

// described is the label whose value an Object metric is of; a Pods metric is of the target's pods.
func (a *Wants) described(of autoscalingv2.CrossVersionObjectReference) (label, value string) {
	switch of.Kind {
	case "Service":
		return "destination_service_name", of.Name
	case "Deployment", "StatefulSet", "DaemonSet", "Rollout":
		return "destination_workload", of.Name
	}
	return "destination_workload", a.Spec.ScaleTargetRef.Name
}

// matchers select its requests in PromQL.
func (a *Wants) matchers(of autoscalingv2.CrossVersionObjectReference) string {
	if a.gateway() {
		return fmt.Sprintf("source_workload=%q,source_workload_namespace=%q,reporter=\"source\",namespace=%[2]q", a.Spec.ScaleTargetRef.Name, a.Namespace)
	}
	label, value := a.described(of)
	return fmt.Sprintf("%s=%q,%s=%q,reporter=\"destination\"", label, value, namespaceKey, a.Namespace)
}
