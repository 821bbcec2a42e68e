package metricsapi

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
)

// sourceHPA is an HPA as a source gives it.
type sourceHPA struct {
	*autoscalingv2.HorizontalPodAutoscaler
	// path and doc are the file and the place in it (standalone), "" and 0 in a cluster.
	path string
	doc  int
	// problems are what the source found (old versions, unknown fields).
	problems []Problem
}

// compare orders HPAs by age: creationTimestamp, then (files without one) the place in the files, then name.
func (h sourceHPA) compare(o sourceHPA) int {
	if h.CreationTimestamp.IsZero() != o.CreationTimestamp.IsZero() {
		if h.CreationTimestamp.IsZero() {
			return 1
		}
		return -1
	}
	return cmp.Or(h.CreationTimestamp.Compare(o.CreationTimestamp.Time), cmp.Compare(h.path, o.path), cmp.Compare(h.doc, o.doc),
		cmp.Compare(h.Namespace, o.Namespace), cmp.Compare(h.Name, o.Name))
}

// readsAs says whether what is read from two HPAs is the same. The controller writes its status at every sync, which is not read.
func (h sourceHPA) readsAs(o sourceHPA) bool {
	return h.HorizontalPodAutoscaler == o.HorizontalPodAutoscaler && h.path == o.path && h.doc == o.doc ||
		h.path == o.path && h.doc == o.doc && slices.Equal(h.problems, o.problems) && !changed(h.HorizontalPodAutoscaler, o.HorizontalPodAutoscaler)
}

// changed says whether an update touches what is read from an HPA. The controller writes its status at every sync.
func changed(old, now *autoscalingv2.HorizontalPodAutoscaler) bool {
	return old.UID != now.UID || !sameNotes(old.Annotations, now.Annotations) || !equality.Semantic.DeepEqual(old.Spec, now.Spec)
}

func (h sourceHPA) key() types.NamespacedName {
	return types.NamespacedName{Namespace: h.Namespace, Name: h.Name}
}

// identity is the same as long as an HPA lives.
func (h sourceHPA) identity() string {
	if h.UID != "" {
		return string(h.UID)
	}
	return h.Namespace + "/" + h.Name
}

// minReplicas are Kubernetes' default where the HPA gives none.
func (h sourceHPA) minReplicas() int32 {
	if h.Spec.MinReplicas == nil {
		return 1
	}
	return *h.Spec.MinReplicas
}

// withinLimits is what the HPA's limits leave of a number of replicas.
func (h sourceHPA) withinLimits(n int32) int32 {
	return min(max(n, h.minReplicas()), h.Spec.MaxReplicas)
}

// target is what the HPA scales, as a text that is equal for equal targets.
func (h sourceHPA) target() string {
	ref := h.Spec.ScaleTargetRef
	group, _, _ := strings.Cut(ref.APIVersion, "/")
	return h.Namespace + "|" + group + "|" + ref.Kind + "|" + ref.Name
}

// autoscaler is what meshpulse reads out of an HPA by itself, without the store and without the other HPAs.
type autoscaler struct {
	sourceHPA
	metrics  []wanted
	unserved []unserved
	surge    surgeNotes
	problems []Problem
	tags     []string // that Telemetry resources add, as far as --custom-tags says
}

// wanted is an external metric that an HPA asks for and an expression that says how to compute it.
type wanted struct {
	// metric is the name as Kubernetes' client asks for it, in lower case whatever the HPA says (client-go's rest.Request); written
	// is what the HPA says.
	metric, written string
	selector        labels.Selector
	canonical       string // of the selector
	// expr is "" where nothing says how to compute the metric; why says what is missing then.
	expr, why string
	target    autoscalingv2.MetricTarget
	place     int // in the HPA's spec.metrics
	// named: the expression was made from the selector; the metric needs no annotation.
	named bool
	// surge are the settings with which it is watched for surges, zero if it is not.
	surge aggregator.SurgeConfig
}

// readHPA never fails: what cannot be read is a problem, and the rest counts. tags are labels that Telemetry resources add to Istio's.
func readHPA(h sourceHPA, tags ...string) *autoscaler {
	a := &autoscaler{sourceHPA: h, tags: tags}
	notes := readAnnotations(h.Annotations)
	a.surge, a.problems = notes.surge, append(slices.Clone(h.problems), notes.problems...)
	used := map[string]bool{} // annotations, as metric/key
	for place, m := range h.Spec.Metrics {
		if m.Type != autoscalingv2.ExternalMetricSourceType || m.External == nil {
			a.checkType(m)
			continue // Resource, ContainerResource, Pods and Object metrics are others' business
		}
		a.checkTarget(m.External)
		w, ours := a.readMetric(m.External, notes, used)
		if !ours {
			continue
		}
		w.place, w.surge = place, a.surge.of(w)
		a.metrics = append(a.metrics, w)
		if w.expr != "" {
			a.advise(w)
		}
	}
	a.readUnserved(notes)
	a.findUnused(notes, used)
	a.adviseSurge()
	return a
}

// nameOfMetric names a metric as an author knows it, a query of the legacy form by its name too. labels are
// those that its selector demands.
func nameOfMetric(metric string, labels map[string]string) string {
	if strings.EqualFold(metric, legacyMetric) && labels[queryNameKey] != "" {
		return legacyMetric + " (" + queryNameKey + ": " + labels[queryNameKey] + ")"
	}
	return metric
}

// goal is the quantity that goes with the target's type, nil if the HPA does not give it.
func (w wanted) goal() *resource.Quantity { return goalOf(w.target) }

func goalOf(t autoscalingv2.MetricTarget) *resource.Quantity {
	if t.Type == autoscalingv2.ValueMetricType {
		return t.Value
	}
	return t.AverageValue
}

// checkType tells of what an API server would refuse; files are not checked by one.
func (a *autoscaler) checkType(m autoscalingv2.MetricSpec) {
	switch m.Type {
	case autoscalingv2.ExternalMetricSourceType:
		a.problem(ReasonBadMetric, "a metric of type External has no field external: name the metric and its target there")
	case autoscalingv2.ResourceMetricSourceType, autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ObjectMetricSourceType:
	default:
		a.problem(ReasonBadMetric, "there is no metric type %q: write External, Resource, ContainerResource, Pods or Object", m.Type)
	}
}

// checkTarget tells of a target that an API server would refuse, or that is another kind of metric's.
func (a *autoscaler) checkTarget(m *autoscalingv2.ExternalMetricSource) {
	const better = "set target.type AverageValue with averageValue, or Value with value, above 0"
	name, target := m.Metric.Name, m.Target
	if m.Metric.Selector != nil {
		name = nameOfMetric(name, m.Metric.Selector.MatchLabels)
	}
	switch goal := goalOf(target); {
	case target.Type != autoscalingv2.AverageValueMetricType && target.Type != autoscalingv2.ValueMetricType:
		a.problem(ReasonBadMetric, "external metric %s has target.type %q, which is none of an External metric: %s", name, target.Type, better)
	case goal == nil || goal.Sign() <= 0:
		a.problem(ReasonBadMetric, "external metric %s has no target that replicas could follow from: %s", name, better)
	case target.Value != nil && target.AverageValue != nil:
		a.problem(ReasonBadMetric, "external metric %s has both target.value and target.averageValue: leave out the one that is not of its target.type %s", name, target.Type)
	}
}

func (a *autoscaler) problem(reason, format string, args ...any) {
	a.problems = append(a.problems, Problem{Reason: reason, Message: fmt.Sprintf(format, args...)})
}

// readMetric finds the expression of a metric. ours is false for a metric that another collector is configured for.
func (a *autoscaler) readMetric(source *autoscalingv2.ExternalMetricSource, notes annotated, used map[string]bool) (w wanted, ours bool) {
	w = wanted{metric: strings.ToLower(source.Metric.Name), written: source.Metric.Name, target: source.Target, selector: labels.Everything()}
	if source.Metric.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(source.Metric.Selector)
		if err != nil {
			w.why = fmt.Sprintf("the selector of metric %s cannot be read: %v", w.written, err)
			a.problem(ReasonBadSelector, "%s", w.why)
			return w, true
		}
		w.selector = selector
	}
	w.canonical = canonicalSelector(w.selector)
	labels := demanded(w.selector)
	annotated, isNew := notes.query(w.written)
	_, isNamed := namedMetrics(w.metric)
	switch {
	case w.metric == legacyMetric:
		a.readLegacy(&w, labels[queryNameKey], notes, used)
	case isNew:
		w.expr = notes.queries[annotated]
		used[annotated+"/"+queryKey] = true
	case isNamed:
		a.readNamed(&w)
	case notes.foreign[w.metric], labels[kedaKey] != "", labels[typeKey] != "" && labels[typeKey] != ourCollector:
		return w, false
	default:
		w.why = fmt.Sprintf("nothing says how to compute metric %s: add the annotation metric-config.external.%s.prometheus/query with a PromQL expression, "+
			"or use a metric that needs none (istio-requests-per-second, istio-requests-in-flight, istio-request-duration-p95, …)", w.written, w.written)
		a.problem(ReasonNoQuery, "%s", w.why)
	}
	return w, true
}

func (a *autoscaler) readLegacy(w *wanted, name string, notes annotated, used map[string]bool) {
	if name == "" {
		w.why = fmt.Sprintf("metric %s needs a selector with %s: X, and the annotation metric-config.external.%s.prometheus/X with the PromQL", legacyMetric, queryNameKey, legacyMetric)
		a.problem(ReasonBadSelector, "%s", w.why)
		return
	}
	expr, ok := notes.legacy[name]
	if !ok {
		w.why = fmt.Sprintf("metric %s with %s: %s has no query: add the annotation metric-config.external.%s.prometheus/%s with a PromQL expression", legacyMetric, queryNameKey, name, legacyMetric, name)
		a.problem(ReasonNoQuery, "%s", w.why)
		return
	}
	w.expr = expr
	used[legacyMetric+"/"+name] = true
}

func (a *autoscaler) readNamed(w *wanted) {
	expr, unknown, err := namedExpression(w.metric, a.Namespace, w.selector)
	if err != nil {
		w.why = fmt.Sprintf("metric %s: %v", w.written, err)
		a.problem(ReasonBadSelector, "%s", w.why)
		return
	}
	w.expr, w.named = expr, true
	for _, name := range unknown {
		if !slices.Contains(a.tags, name) {
			a.problem(ReasonUnknownLabel, "metric %s selects by %s, which is not a label that Istio sets: unless a Telemetry resource adds it, nothing matches", w.written, name)
		}
	}
}

func (a *autoscaler) findUnused(notes annotated, used map[string]bool) {
	for _, name := range slices.Sorted(maps.Keys(notes.legacy)) {
		if !used[legacyMetric+"/"+name] {
			a.problem(ReasonUnusedQuery, "annotation metric-config.external.%s.prometheus/%s is not used: no external metric %s of the spec has the selector %s: %s", legacyMetric, name, legacyMetric, queryNameKey, name)
		}
	}
	for _, metric := range slices.Sorted(maps.Keys(notes.queries)) {
		if !used[metric+"/"+queryKey] {
			a.problem(ReasonUnusedQuery, "annotation metric-config.external.%s.prometheus/query is not used: the spec has no external metric %s", metric, metric)
		}
	}
}
