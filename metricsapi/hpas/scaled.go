package hpas

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// A ScaledObject whose triggers ask meshpulse is read as the HPA that KEDA makes of it, so that all
// that holds for an HPA holds for it. KEDA's HPA may not be there yet.

// Scaled is the ScaledObject that an HPA is made of.
type Scaled struct {
	Name string
	UID  types.UID
	// Generation changes with its spec.
	Generation int64
	// ToZero: KEDA may leave its target without pods.
	ToZero bool
	// Combined: its metrics are put into a formula, whose value alone the HPA has.
	Combined bool
	// Triggers are those that ask meshpulse; Others: there are more.
	Triggers []ScaledTrigger
	Others   bool
}

// ScaledTrigger is a trigger that asks meshpulse.
type ScaledTrigger struct {
	Trigger
	// Place is its own in the ScaledObject. Push: KEDA keeps a stream open for it.
	Place int
	Push  bool
	// Err is a *TriggerError where the metadata cannot be served.
	Err error

	metadata map[string]string
	target   autoscalingv2.MetricTargetType
}

// Is says whether the trigger has this metadata, as KEDA sends it.
func (t ScaledTrigger) Is(metadata map[string]string) bool {
	own := func(all map[string]string) map[string]string {
		all = maps.Clone(all)
		maps.DeleteFunc(all, func(key, _ string) bool { return strings.HasSuffix(key, fromEnv) })
		return all
	}
	return maps.Equal(own(t.metadata), own(metadata))
}

// HPAsName is the trigger's metric as KEDA's HPA names it.
func (t ScaledTrigger) HPAsName() string { return "s" + strconv.Itoa(t.Place) + "-" + t.Metric }

// Selector is that of every metric of the ScaledObject in KEDA's HPA.
func (s Scaled) Selector() labels.Selector {
	return labels.SelectorFromSet(labels.Set{kedaKey: s.Name})
}

// readsAs says whether what is read from both is the same.
func (s *Scaled) readsAs(o *Scaled) bool {
	return s == o || s != nil && o != nil && s.UID == o.UID && s.Generation == o.Generation
}

// ReadScaledObject reads one of KEDA's ScaledObjects, in JSON, as the HPA that KEDA makes of it,
// with the metrics of triggers that ask an address which is ours. ok is false where none does. The
// error is of an object that is no ScaledObject.
func ReadScaledObject(object []byte, ours func(address string) bool) (h HPA, ok bool, err error) {
	var s scaledObject
	if err := json.Unmarshal(object, &s); err != nil {
		return HPA{}, false, fmt.Errorf("not a ScaledObject: %w", err)
	}
	spec := s.Spec
	o := &Scaled{
		Name: s.Metadata.Name, UID: s.Metadata.UID, Generation: s.Metadata.Generation,
		ToZero:   spec.MinReplicaCount == nil || *spec.MinReplicaCount == 0 || spec.IdleReplicaCount != nil && *spec.IdleReplicaCount == 0,
		Combined: spec.Advanced.ScalingModifiers.Formula != "",
	}
	for i, t := range spec.Triggers {
		if t.Type != "external" && t.Type != "external-push" || !ours(t.Metadata["scalerAddress"]) {
			o.Others = true
			continue
		}
		read := ScaledTrigger{Place: i, Push: t.Type == "external-push", metadata: t.Metadata, target: cmp.Or(t.MetricType, autoscalingv2.AverageValueMetricType)}
		read.Trigger, read.Err = ReadTrigger(s.Metadata.Namespace, t.Metadata)
		o.Triggers = append(o.Triggers, read)
	}
	if len(o.Triggers) == 0 {
		return HPA{}, false, nil
	}
	least, most := int32(1), int32(100)
	if spec.MinReplicaCount != nil {
		least = max(least, *spec.MinReplicaCount)
	}
	if spec.MaxReplicaCount != nil {
		most = *spec.MaxReplicaCount
	}
	if spec.ScaleTargetRef.Kind == "" {
		spec.ScaleTargetRef.APIVersion, spec.ScaleTargetRef.Kind = "apps/v1", "Deployment"
	}
	made := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Metadata.Namespace, Name: cmp.Or(spec.Advanced.HPA.Name, KEDAsName(s.Metadata.Name)), UID: s.Metadata.UID,
			Annotations: s.Metadata.Annotations, CreationTimestamp: s.Metadata.CreationTimestamp,
		},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{ScaleTargetRef: spec.ScaleTargetRef, MinReplicas: &least, MaxReplicas: most, Behavior: spec.Advanced.HPA.Behavior},
	}
	return HPA{HorizontalPodAutoscaler: made, Scaled: o}.withTriggers(), true, nil
}

// As is the HPA of a ScaledObject where KEDA has made it.
func (h HPA) As(made *autoscalingv2.HorizontalPodAutoscaler) HPA {
	return HPA{HorizontalPodAutoscaler: made, Scaled: h.Scaled}.withTriggers()
}

// withTriggers adds the triggers' metrics that the HPA does not have (yet).
func (h HPA) withTriggers() HPA {
	metrics := h.Spec.Metrics
	for _, t := range h.Scaled.Triggers {
		has := func(m autoscalingv2.MetricSpec) bool {
			return m.External != nil && m.External.Metric.Name == t.HPAsName() && m.External.Metric.Selector != nil
		}
		if t.Err != nil || slices.ContainsFunc(metrics, has) {
			continue
		}
		metrics = append(slices.Clip(metrics), autoscalingv2.MetricSpec{
			Type: autoscalingv2.ExternalMetricSourceType,
			External: &autoscalingv2.ExternalMetricSource{
				Metric: autoscalingv2.MetricIdentifier{Name: t.HPAsName(), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{kedaKey: h.Scaled.Name}}},
				Target: t.targetOf(t.Threshold),
			},
		})
	}
	if len(metrics) > len(h.Spec.Metrics) {
		with := *h.HorizontalPodAutoscaler
		with.Spec.Metrics = metrics
		h.HorizontalPodAutoscaler = &with
	}
	return h
}

func (t ScaledTrigger) targetOf(threshold resource.Quantity) autoscalingv2.MetricTarget {
	if t.target == autoscalingv2.ValueMetricType {
		return autoscalingv2.MetricTarget{Type: t.target, Value: &threshold}
	}
	return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &threshold}
}

// readTriggers tells what is wrong with a ScaledObject's metadata, and takes from it what else
// would be in an HPA's annotations.
func (a *Wants) readTriggers() {
	if a.Scaled == nil {
		return
	}
	for _, t := range a.Scaled.Triggers {
		if t.Err != nil {
			a.problem(ReasonBadTrigger, "trigger %d: %v", t.Place, t.Err)
			continue
		}
		a.Surge = a.Surge.with(t.Surge)
	}
	if a.Scaled.Combined { // no metric of its own has replicas that follow from it
		a.Surge.Action = SurgeOff
	}
}

// with is what holds for an HPA whose triggers say one thing and another: of actions the most
// careful.
func (n Surge) with(o Surge) Surge {
	if n.Off = false; o.Asked { // each metric has its own settings
		n.Asked, n.Config = true, o.Config
	}
	careful := []SurgeAction{SurgeOff, SurgeObserve, SurgeScale}
	if n.Action == "" || o.Action != "" && slices.Index(careful, o.Action) < slices.Index(careful, n.Action) {
		n.Action = o.Action
	}
	return n
}

// readTrigger reads a metric of KEDA's HPA; false where it is not one of a trigger that asks
// meshpulse.
func (a *Wants) readTrigger(w *Metric) (surge Surge, ok bool) {
	if a.Scaled == nil || Demanded(w.Selector)[kedaKey] != a.Scaled.Name {
		return Surge{}, false
	}
	i := slices.IndexFunc(a.Scaled.Triggers, func(t ScaledTrigger) bool { return t.Err == nil && t.HPAsName() == w.Name })
	if i < 0 {
		return Surge{}, false
	}
	t := a.Scaled.Triggers[i]
	w.Expr, w.Named, w.Triggered = t.Expr, t.named, true
	if a.Scaled.Combined {
		w.Target = autoscalingv2.MetricTarget{Type: w.Target.Type}
	}
	a.tellUnknown(t.Metric, t.unknown)
	return t.Surge, true
}

// adviseZero tells of a ScaledObject that would never be woken: what has no pod reports nothing,
// and of requests that find none callers know no workload.
func (a *Wants) adviseZero() {
	if a.Scaled == nil || !a.Scaled.ToZero || a.Scaled.Others {
		return
	}
	wakes := func(w Metric) bool { return slices.ContainsFunc(w.expression().Parts, Part.findsNoPod) }
	if len(a.Metrics) > 0 && !slices.ContainsFunc(a.Metrics, wakes) {
		a.problem(ReasonNeverWakes, "without a pod it is never woken: no trigger counts the requests that find none, which callers report with their service and no workload. "+
			"Add one with reporter=\"source\" and destination_service_name (and namespace, that of the callers), or set minReplicaCount: 1")
	}
}

// findsNoPod says whether the selector may select what callers report of requests that found no
// pod.
func (p Part) findsNoPod() bool {
	if !p.reports("source") {
		return false
	}
	for _, m := range p.LabelMatchers {
		of, ok := unknownWithoutPod(m.Name)
		if ok && !m.Matches(of) {
			return false
		}
	}
	return true
}

// unknownWithoutPod is the value of a label of the destination's pod where there was none.
func unknownWithoutPod(label string) (value string, ok bool) {
	switch label {
	case "destination_workload", namespaceKey, "destination_principal", "destination_app", "destination_version", "destination_canonical_service", "destination_cluster":
		return "unknown", true
	case "destination_canonical_revision":
		return "latest", true
	}
	return "", false
}
