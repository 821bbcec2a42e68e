package hpas

import (
	"fmt"
	"slices"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Metrics of the custom metrics API: type Object by an annotation's query, as kube-metrics-adapter
// has them, and type Object and Pods by the names that need no PromQL. They are read where
// Vocabulary.Custom says that they are served; elsewhere they are another adapter's (unserved.go).

// ObjectMetric is the name that stands for a metric of an object, as the custom metrics API's path
// has it: no name of an external metric has a slash.
func ObjectMetric(resource schema.GroupResource, name, metric string) string {
	return resource.String() + "/" + name + "/" + metric
}

// PodsMetric is the same for a metric of each pod of a selector.
func PodsMetric(metric string) string { return "pods/*/" + metric }

// Custom says whether the custom metrics API is asked for the metric.
func (w Metric) Custom() bool { return w.Kind != "" }

// readCustom reads a Pods or Object metric as one that is served; false where nothing says how to
// compute it.
func (a *Wants) readCustom(u Unserved, of autoscalingv2.CrossVersionObjectReference, notes *objectNotes) bool {
	w := Metric{Kind: u.Kind, Target: u.Target, Place: u.Place, Selector: labels.Everything()}
	before := len(a.Problems)
	if u.Metric.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(u.Metric.Selector)
		if err != nil {
			w.Written, w.Why = u.Metric.Name, fmt.Sprintf("the selector of metric %s cannot be read: %v", u.Metric.Name, err)
			a.problem(ReasonBadSelector, "%s", w.Why)
			w.problems = slices.Clone(a.Problems[before:])
			a.Metrics = append(a.Metrics, w)
			return true
		}
		w.Selector = selector
	}
	w.Canonical = Canonical(w.Selector)
	object := u.Kind == autoscalingv2.ObjectMetricSourceType
	if w.Name, w.Written = PodsMetric(u.Metric.Name), u.Metric.Name+" of pods"; object {
		w.Name, w.Written = ObjectMetric(resourceOf(of), of.Name, u.Metric.Name), fmt.Sprintf("%s of %s %s", u.Metric.Name, of.Kind, of.Name)
	}
	query := ""
	if object && notes != nil {
		query = notes.queries[queryKey]
	}
	switch _, named := Named(u.Metric.Name); {
	case query != "":
		w.Expr = query
		a.perReplica(&w, notes)
	case named:
		a.readCustomNamed(&w, u.Metric.Name, of)
	case a.words.Shared: // the other adapter's, and told of by nobody here
		w.Why = fmt.Sprintf("nothing says how to compute metric %s", w.Written)
	default:
		return false
	}
	if w.Expr != "" && object {
		a.advise(w)
	}
	w.problems = slices.Clone(a.Problems[before:])
	a.Metrics = append(a.Metrics, w)
	return true
}

// perReplica is kube-metrics-adapter's: the value is divided by the pods that are ready, which a
// target of type Value multiplies by again. AverageValue divides by the replicas by itself.
func (a *Wants) perReplica(w *Metric, notes *objectNotes) {
	if w.PerReplica = notes.perReplica && w.Target.Type == autoscalingv2.ValueMetricType; notes.perReplica && !w.PerReplica {
		a.problem(ReasonIgnoredAnnotation, "annotation per-replica of metric %s has no effect: a target of type AverageValue divides by the replicas by itself. Remove it", w.Written)
	}
}

func (a *Wants) readCustomNamed(w *Metric, metric string, of autoscalingv2.CrossVersionObjectReference) {
	var err error
	var unknown []string
	if w.Kind == autoscalingv2.PodsMetricSourceType {
		w.Expr, unknown, err = PodsExpression(metric, a.Namespace, w.Selector)
	} else {
		w.Expr, unknown, err = ObjectExpression(metric, a.Namespace, resourceOf(of), of.Name, w.Selector)
	}
	if err != nil {
		w.Why = fmt.Sprintf("metric %s: %v", w.Written, err)
		a.problem(ReasonBadSelector, "%s", w.Why)
		return
	}
	w.Named = true
	a.tellUnknown(w.Written, unknown)
}

// resourceOf is the resource of an object's kind, by the rule that Kubernetes' own kinds follow.
func resourceOf(of autoscalingv2.CrossVersionObjectReference) schema.GroupResource {
	gv, _ := schema.ParseGroupVersion(of.APIVersion) // what cannot be parsed has no group
	plural, _ := meta.UnsafeGuessKindToResource(gv.WithKind(of.Kind))
	return plural.GroupResource()
}

// describedLabel is the label of Istio's whose value is the name of what a resource's metric
// describes, "" where none is.
func describedLabel(r schema.GroupResource) string {
	switch r {
	case schema.GroupResource{Resource: "services"}:
		return "destination_service_name"
	case schema.GroupResource{Resource: "pods"}:
		return "pod"
	}
	switch r.Resource {
	case "deployments", "statefulsets", "daemonsets", "replicasets", "rollouts":
		return "destination_workload"
	}
	return ""
}

// ObjectExpression is the PromQL of a named metric of an object: of the requests to a Service, a
// workload or a pod. unknown are the selector's labels that Istio does not set by itself.
func ObjectExpression(metric, namespace string, resource schema.GroupResource, name string, selector labels.Selector) (expr string, unknown []string, err error) {
	label := describedLabel(resource)
	if label == "" {
		return "", nil, fmt.Errorf("no label of Istio's says which %s a request is to: describe a Service, a Deployment, a StatefulSet or a Pod", resource)
	}
	r, err := labels.NewRequirement(label, selection.Equals, []string{name})
	if err != nil {
		return "", nil, err
	}
	return NamedExpression(metric, namespace, selector.Add(*r))
}

// PodsExpression is the PromQL of a named metric of each pod of a namespace, a series for each.
func PodsExpression(metric, namespace string, selector labels.Selector) (expr string, unknown []string, err error) {
	r, err := labels.NewRequirement("namespace", selection.Equals, []string{namespace})
	if err != nil {
		return "", nil, err
	}
	expr, unknown, err = NamedExpression(metric, namespace, selector.Add(*r))
	if err != nil {
		return "", nil, err
	}
	const each = "sum by (pod) (rate("
	expr = strings.ReplaceAll(strings.ReplaceAll(expr, "sum(rate(", each), "sum("+aggregator.ProxyPrefix, "sum by (pod) ("+aggregator.ProxyPrefix)
	if errors, all, ratio := strings.Cut(expr, " or vector(0)) / "); ratio { // a 0 for each pod that has requests
		expr = errors + " or 0 * " + all + ") / " + all
	}
	return expr, unknown, nil
}
