package hpas

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

// HPA is an HPA as a source gives it.
type HPA struct {
	*autoscalingv2.HorizontalPodAutoscaler
	// Path and doc are the file and the place in it (standalone), "" and 0 in a cluster.
	Path  string
	Place int
	// Problems are what the source found (old versions, unknown fields).
	Problems []Problem
	// Scaled is the ScaledObject that KEDA makes it of where that asks meshpulse, else nil.
	Scaled *Scaled
}

// Compare orders HPAs by age: creationTimestamp, then (files without one) the place in the files,
// then name.
func (h HPA) Compare(o HPA) int {
	if h.CreationTimestamp.IsZero() != o.CreationTimestamp.IsZero() {
		if h.CreationTimestamp.IsZero() {
			return 1
		}
		return -1
	}
	return cmp.Or(h.CreationTimestamp.Compare(o.CreationTimestamp.Time), cmp.Compare(h.Path, o.Path), cmp.Compare(h.Place, o.Place),
		cmp.Compare(h.Namespace, o.Namespace), cmp.Compare(h.Name, o.Name))
}

// ReadsAs says whether what is read from two HPAs is the same. The controller writes its status at
// every sync, which is not read.
func (h HPA) ReadsAs(o HPA) bool {
	if !h.Scaled.readsAs(o.Scaled) {
		return false
	}
	return h.HorizontalPodAutoscaler == o.HorizontalPodAutoscaler && h.Path == o.Path && h.Place == o.Place ||
		h.Path == o.Path && h.Place == o.Place && slices.Equal(h.Problems, o.Problems) && !Changed(h.HorizontalPodAutoscaler, o.HorizontalPodAutoscaler)
}

// Changed says whether an update touches what is read from an HPA. The controller writes its status
// at every sync.
func Changed(old, now *autoscalingv2.HorizontalPodAutoscaler) bool {
	return old.UID != now.UID || !SameAnnotations(old.Annotations, now.Annotations) || !equality.Semantic.DeepEqual(old.Spec, now.Spec)
}

func (h HPA) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: h.Namespace, Name: h.Name}
}

// Identity is the same as long as an HPA lives.
func (h HPA) Identity() string {
	if h.UID != "" {
		return string(h.UID)
	}
	return h.Namespace + "/" + h.Name
}

// MinReplicas are Kubernetes' default where the HPA gives none.
func (h HPA) MinReplicas() int32 {
	if h.Spec.MinReplicas == nil {
		return 1
	}
	return *h.Spec.MinReplicas
}

// WithinLimits is what the HPA's limits leave of a number of replicas.
func (h HPA) WithinLimits(n int32) int32 {
	return min(max(n, h.MinReplicas()), h.Spec.MaxReplicas)
}

// Target is what the HPA scales, as a text that is equal for equal targets.
func (h HPA) Target() string {
	ref := h.Spec.ScaleTargetRef
	group, _, _ := strings.Cut(ref.APIVersion, "/")
	return h.Namespace + "|" + group + "|" + ref.Kind + "|" + ref.Name
}

// Wants is what meshpulse reads out of an HPA by itself, without the store and without the other
// HPAs.
type Wants struct {
	HPA
	Metrics  []Metric
	Unserved []Unserved
	Surge    Surge
	Problems []Problem
	words    Vocabulary
}

// Metric is a metric that an HPA asks for and an expression that says how to compute it.
type Metric struct {
	// Kind is Pods or Object for one of the custom metrics API, whose name is that of its path
	// (PodsMetric, ObjectMetric); "" is External.
	Kind autoscalingv2.MetricSourceType
	// PerReplica: the value is divided by the pods of the HPA's target that are ready.
	PerReplica bool

	// Name is the name as Kubernetes' client asks for it, in lower case whatever the HPA says
	// (client-go's rest.Request); written is what the HPA says.
	Name, Written string
	Selector      labels.Selector
	Canonical     string // of the selector
	// Expr is "" where nothing says how to compute the metric; why says what is missing then.
	Expr, Why string
	Target    autoscalingv2.MetricTarget
	Place     int // in the HPA's spec.metrics
	// Named: the expression was made from the selector; the metric needs no annotation.
	Named bool
	// Triggered: it is of a ScaledObject's trigger, and KEDA asks for it.
	Triggered bool
	// Surge are the settings with which it is watched for surges, zero if it is not.
	Surge aggregator.SurgeConfig

	parsed   Expression
	problems []Problem // of the HPA's, those that are of this metric
}

// Read never fails: what cannot be read is a problem, and the rest counts.
func (v Vocabulary) Read(h HPA) *Wants {
	a := &Wants{HPA: h, words: v}
	notes := readAnnotations(h.Annotations)
	a.Surge, a.Problems = notes.surge, append(slices.Clone(h.Problems), notes.problems...)
	a.readTriggers()
	used := map[string]bool{} // annotations, as metric/key
	for place, m := range h.Spec.Metrics {
		if m.Type != autoscalingv2.ExternalMetricSourceType || m.External == nil {
			a.checkType(m)
			continue // Resource, ContainerResource, Pods and Object metrics are others' business
		}
		before := len(a.Problems)
		a.checkTarget(m.External)
		w, surge, ours := a.readMetric(m.External, notes, used)
		if !ours {
			continue
		}
		w.Place, w.Surge = place, surge.of(w)
		if w.Expr != "" {
			w.parsed = Parse(w.Expr)
			a.advise(w)
		}
		w.problems = slices.Clone(a.Problems[before:])
		a.Metrics = append(a.Metrics, w)
	}
	a.readUnserved(notes)
	slices.SortStableFunc(a.Metrics, func(x, y Metric) int { return cmp.Compare(x.Place, y.Place) })
	a.findUnused(notes, used)
	a.adviseSurge()
	a.adviseZero()
	return a
}

// NameOf names a metric as an author knows it, a query of the legacy form by its name too. labels
// are those that its selector demands.
func NameOf(metric string, labels map[string]string) string {
	if strings.EqualFold(metric, legacyMetric) && labels[queryNameKey] != "" {
		return legacyMetric + " (" + queryNameKey + ": " + labels[queryNameKey] + ")"
	}
	return metric
}

// Goal is the quantity that goes with the target's type, nil if the HPA does not give it.
func (w Metric) Goal() *resource.Quantity { return goalOf(w.Target) }

func goalOf(t autoscalingv2.MetricTarget) *resource.Quantity {
	if t.Type == autoscalingv2.ValueMetricType {
		return t.Value
	}
	return t.AverageValue
}

// checkType tells of what an API server would refuse; files are not checked by one.
func (a *Wants) checkType(m autoscalingv2.MetricSpec) {
	switch m.Type {
	case autoscalingv2.ExternalMetricSourceType:
		a.problem(ReasonBadMetric, "a metric of type External has no field external: name the metric and its target there")
	case autoscalingv2.ResourceMetricSourceType, autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ObjectMetricSourceType:
	default:
		a.problem(ReasonBadMetric, "there is no metric type %q: write External, Resource, ContainerResource, Pods or Object", m.Type)
	}
}

// checkTarget tells of a target that an API server would refuse, or that is another kind of
// metric's.
func (a *Wants) checkTarget(m *autoscalingv2.ExternalMetricSource) {
	const better = "set target.type AverageValue with averageValue, or Value with value, above 0"
	name, target := m.Metric.Name, m.Target
	if m.Metric.Selector != nil {
		name = NameOf(name, m.Metric.Selector.MatchLabels)
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

func (a *Wants) problem(reason, format string, args ...any) {
	a.Problems = append(a.Problems, Problemf(reason, format, args...))
}

// readMetric finds the expression of a metric, and what is said of its surges. ours is false for a
// metric that another collector is configured for.
func (a *Wants) readMetric(source *autoscalingv2.ExternalMetricSource, notes annotated, used map[string]bool) (w Metric, surge Surge, ours bool) {
	surge = a.Surge
	w = Metric{Name: strings.ToLower(source.Metric.Name), Written: source.Metric.Name, Target: source.Target, Selector: labels.Everything()}
	if source.Metric.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(source.Metric.Selector)
		if err != nil {
			w.Why = fmt.Sprintf("the selector of metric %s cannot be read: %v", w.Written, err)
			a.problem(ReasonBadSelector, "%s", w.Why)
			return w, surge, true
		}
		w.Selector = selector
	}
	w.Canonical = Canonical(w.Selector)
	labels := Demanded(w.Selector)
	annotated, isNew := notes.query(w.Written)
	_, isNamed := Named(w.Name)
	switch {
	case w.Name == legacyMetric:
		a.readLegacy(&w, labels[queryNameKey], notes, used)
	case isNew:
		w.Expr = notes.queries[annotated]
		used[annotated+"/"+queryKey] = true
	case isNamed:
		a.readNamed(&w)
	case labels[kedaKey] != "":
		surge, ours = a.readTrigger(&w)
		return w, surge, ours
	case notes.foreign[w.Name], labels[typeKey] != "" && labels[typeKey] != ourCollector:
		return w, surge, false
	default:
		w.Why = fmt.Sprintf("nothing says how to compute metric %s: add the annotation metric-config.external.%s.prometheus/query with a PromQL expression, "+
			"or use a metric that needs none (istio-requests-per-second, istio-requests-in-flight, istio-request-duration-p95, …)", w.Written, w.Written)
		a.problem(ReasonNoQuery, "%s", w.Why)
	}
	return w, surge, true
}

func (a *Wants) readLegacy(w *Metric, name string, notes annotated, used map[string]bool) {
	if name == "" {
		w.Why = fmt.Sprintf("metric %s needs a selector with %s: X, and the annotation metric-config.external.%s.prometheus/X with the PromQL", legacyMetric, queryNameKey, legacyMetric)
		a.problem(ReasonBadSelector, "%s", w.Why)
		return
	}
	expr, ok := notes.legacy[name]
	if !ok {
		w.Why = fmt.Sprintf("metric %s with %s: %s has no query: add the annotation metric-config.external.%s.prometheus/%s with a PromQL expression", legacyMetric, queryNameKey, name, legacyMetric, name)
		a.problem(ReasonNoQuery, "%s", w.Why)
		return
	}
	w.Expr = expr
	used[legacyMetric+"/"+name] = true
}

func (a *Wants) readNamed(w *Metric) {
	expr, unknown, err := NamedExpression(w.Name, a.Namespace, w.Selector)
	if err != nil {
		w.Why = fmt.Sprintf("metric %s: %v", w.Written, err)
		a.problem(ReasonBadSelector, "%s", w.Why)
		return
	}
	w.Expr, w.Named = expr, true
	a.tellUnknown(w.Written, unknown)
}

// tellUnknown tells of labels in a named metric's selector that nothing is known to set.
func (a *Wants) tellUnknown(metric string, unknown []string) {
	for _, name := range unknown {
		if !slices.Contains(a.words.Tags, name) {
			a.problem(ReasonUnknownLabel, "metric %s selects by %s, which is not a label that Istio sets: unless a Telemetry resource adds it, nothing matches", metric, name)
		}
	}
}

func (a *Wants) findUnused(notes annotated, used map[string]bool) {
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
