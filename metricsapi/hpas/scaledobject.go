package hpas

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ScaledObject is one of KEDA's, told as the HPA that would take its place.
type ScaledObject struct {
	Namespace, Name string
	// HPA has its triggers as metrics. It is nil where none of them is on Istio's metrics.
	HPA *HPA
	// Asks: a trigger is on Istio's metrics, whether or not it could be told.
	Asks bool
	// Differs says what of it the HPA has not.
	Differs []string
	// Triggers are those that the HPA has as external metrics, by the metrics' names.
	Triggers map[string]PrometheusTrigger
	// Scaler is the ScaledObject whose triggers on Istio's metrics ask meshpulse as KEDA's external
	// scaler, and whose others stay; nil where there are none, or one could not be served.
	Scaler map[string]any

	asking map[int]map[string]string // metadata for the scaler, by the trigger's place
}

// PrometheusTrigger is one of a ScaledObject.
type PrometheusTrigger struct {
	// Place is its own among the triggers.
	Place int
	// Own: the HPA's query is the trigger's.
	Own bool
}

// KEDAsMetric is what KEDA calls the external metric of a trigger on a Prometheus (kedacore/keda,
// pkg/scalers/scaler.go: GenerateMetricNameWithIndex), which it tells from others' by [KEDAsLabel].
func (t PrometheusTrigger) KEDAsMetric() string { return fmt.Sprintf("s%d-prometheus", t.Place) }

// KEDAsLabel has the ScaledObject's name.
const KEDAsLabel = "scaledobject.keda.sh/name"

// KEDAs is the HPA by the name of the one that KEDA makes, in whose place it stands.
func (o ScaledObject) KEDAs() HPA {
	h := *o.HPA
	h.HorizontalPodAutoscaler = o.HPA.DeepCopy()
	h.Name = KEDAsName(o.Name)
	return h
}

// KEDAsName is what KEDA calls the HPA that it makes of a ScaledObject.
func KEDAsName(scaledObject string) string { return "keda-hpa-" + scaledObject }

// scaledObject is what is read of keda.sh/v1alpha1.
type scaledObject struct {
	Metadata struct {
		Name              string            `json:"name"`
		Namespace         string            `json:"namespace"`
		UID               types.UID         `json:"uid"`
		Generation        int64             `json:"generation"`
		CreationTimestamp metav1.Time       `json:"creationTimestamp"`
		Annotations       map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		ScaleTargetRef   autoscalingv2.CrossVersionObjectReference `json:"scaleTargetRef"`
		IdleReplicaCount *int32                                    `json:"idleReplicaCount"`
		MinReplicaCount  *int32                                    `json:"minReplicaCount"`
		MaxReplicaCount  *int32                                    `json:"maxReplicaCount"`
		Fallback         *struct{}                                 `json:"fallback"`
		Advanced         struct {
			ScalingModifiers struct {
				Formula string `json:"formula"`
			} `json:"scalingModifiers"`
			HPA struct {
				Name     string                                         `json:"name"`
				Behavior *autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []scaledTrigger `json:"triggers"`
	} `json:"spec"`
}

type scaledTrigger struct {
	Type       string                         `json:"type"`
	Name       string                         `json:"name"`
	MetricType autoscalingv2.MetricTargetType `json:"metricType"`
	Metadata   map[string]string              `json:"metadata"`
}

// DecodeScaledObjects reads KEDA's ScaledObjects out of a file, and nothing else. refused are those
// that cannot be read.
func DecodeScaledObjects(path string, data []byte) (found []ScaledObject, refused []*FileError) {
	var c File
	c.each(path, data, func(kind metav1.TypeMeta, d document) {
		if kind.Kind != "ScaledObject" || !strings.HasPrefix(kind.APIVersion, "keda.sh/") {
			return
		}
		var s scaledObject
		err := json.Unmarshal(d.json, &s)
		if err == nil && (s.Metadata.Name == "" || s.Spec.ScaleTargetRef.Name == "") {
			err = fmt.Errorf("metadata.name or spec.scaleTargetRef.name is missing")
		}
		if err != nil {
			refused = append(refused, &FileError{d.line, fmt.Errorf("not a ScaledObject: %w", err)})
			return
		}
		o := s.told(path, len(found))
		o.Scaler = byScaler(s.Metadata.Namespace, d.json, o.asking)
		found = append(found, o)
	})
	return found, refused
}

// told is the ScaledObject with the HPA that says the same, by KEDA's defaults where it says
// nothing.
func (s scaledObject) told(path string, place int) ScaledObject {
	spec := s.Spec
	o := ScaledObject{Namespace: cmp.Or(s.Metadata.Namespace, metav1.NamespaceDefault), Name: s.Metadata.Name}
	if spec.ScaleTargetRef.Kind == "" {
		spec.ScaleTargetRef.APIVersion, spec.ScaleTargetRef.Kind = "apps/v1", "Deployment"
	}
	h := &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"},
		ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, Annotations: map[string]string{}},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: spec.ScaleTargetRef, MaxReplicas: 100, Behavior: spec.Advanced.HPA.Behavior,
		},
	}
	if spec.MaxReplicaCount != nil {
		h.Spec.MaxReplicas = *spec.MaxReplicaCount
	}
	least := int32(1)
	if spec.MinReplicaCount == nil || *spec.MinReplicaCount == 0 || spec.IdleReplicaCount != nil {
		o.Differs = append(o.Differs, "it scales to zero, which an HPA does not by a metric of sidecars: minReplicas is 1 or what is given")
	}
	if spec.MinReplicaCount != nil {
		least = max(1, *spec.MinReplicaCount)
	}
	h.Spec.MinReplicas = &least
	for _, key := range []string{"autoscaling.keda.sh/paused", "autoscaling.keda.sh/paused-replicas"} {
		if value, ok := s.Metadata.Annotations[key]; ok && value != "false" {
			o.Differs = append(o.Differs, "it is paused ("+key+"): an HPA acts as soon as it is there")
		}
	}
	if spec.Fallback != nil {
		o.Differs = append(o.Differs, "its fallback: without an answer an HPA keeps its replicas")
	}
	if spec.Advanced.ScalingModifiers.Formula != "" {
		o.Differs = append(o.Differs, "its scalingModifiers: write the formula as one query")
	}
	for i, t := range spec.Triggers {
		o.take(h, i, t)
	}
	if len(h.Annotations) > 0 {
		o.HPA = &HPA{HorizontalPodAutoscaler: h, Path: path, Place: place}
	}
	return o
}

// resource is a trigger on CPU or memory as an HPA has it.
func (t scaledTrigger) resource() (m autoscalingv2.MetricSpec, err error) {
	kind := cmp.Or(t.MetricType, autoscalingv2.MetricTargetType(t.Metadata["type"]), autoscalingv2.UtilizationMetricType)
	value, err := resource.ParseQuantity(t.Metadata["value"])
	if err != nil {
		return m, fmt.Errorf("its value %q is not a number", t.Metadata["value"])
	}
	target := autoscalingv2.MetricTarget{Type: kind}
	if kind == autoscalingv2.UtilizationMetricType {
		target.AverageUtilization = new(int32(value.Value()))
	} else {
		target.AverageValue = &value
	}
	if c := t.Metadata["containerName"]; c != "" {
		of := &autoscalingv2.ContainerResourceMetricSource{Name: corev1.ResourceName(t.Type), Container: c, Target: target}
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: of}, nil
	}
	of := &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceName(t.Type), Target: target}
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: of}, nil
}

// take adds a trigger to the HPA as an External metric, or says why it is left out.
func (o *ScaledObject) take(h *autoscalingv2.HorizontalPodAutoscaler, place int, t scaledTrigger) {
	left := func(format string, args ...any) {
		o.Differs = append(o.Differs, fmt.Sprintf("trigger %d, of type %s: ", place, t.Type)+fmt.Sprintf(format, args...))
	}
	query := strings.TrimSpace(t.Metadata["query"])
	switch t.Type {
	case "prometheus":
	case "cpu", "memory":
		if m, err := t.resource(); err != nil {
			left("%v", err)
		} else {
			h.Spec.Metrics = append(h.Spec.Metrics, m)
		}
		return
	default:
		left("not by what sidecars count, another HPA's metric or KEDA's")
		return
	}
	e := Parse(query)
	if e.Tree != nil && !slices.ContainsFunc(e.Parts, Part.mayBeIstios) {
		why := "its query names no metric"
		if len(e.Parts) > 0 {
			why = remedyForMetric(e.Parts[0].Named())
		}
		left("%s", why)
		return
	}
	own := true
	if expr, divided, err := withoutPods(query); err == nil && divided {
		own = false
		left("its query is divided by a number of pods that no sidecar tells. A target of type AverageValue divides by the replicas by itself, so the HPA's does not: look at the target")
		query = expr
	}
	o.Asks = true
	threshold, err := resource.ParseQuantity(t.Metadata["threshold"])
	if err != nil {
		left("its threshold %q is not a number", t.Metadata["threshold"])
		return
	}
	if o.asking == nil {
		o.asking = map[int]map[string]string{}
	}
	o.asking[place] = scalerMetadata(query, t.Metadata)
	name := fmt.Sprintf("%s-%d", o.Name, place)
	target := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &threshold}
	if t.MetricType == autoscalingv2.ValueMetricType {
		target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: &threshold}
	}
	if o.Triggers == nil {
		o.Triggers = map[string]PrometheusTrigger{}
	}
	o.Triggers[name] = PrometheusTrigger{place, own}
	h.Annotations["metric-config.external."+name+".prometheus/query"] = query
	h.Spec.Metrics = append(h.Spec.Metrics, autoscalingv2.MetricSpec{
		Type: autoscalingv2.ExternalMetricSourceType,
		External: &autoscalingv2.ExternalMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: name, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"type": "prometheus"}}},
			Target: target,
		},
	})
}
