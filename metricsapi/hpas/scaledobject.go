package hpas

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ScaledObject is one of KEDA's, told as the HPA that would take its place.
type ScaledObject struct {
	Namespace, Name string
	// HPA has its Prometheus triggers on Istio's metrics. It is nil where there are none.
	HPA *HPA
	// Differs says what of it the HPA has not.
	Differs []string
}

// scaledObject is what is read of keda.sh/v1alpha1.
type scaledObject struct {
	Metadata struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
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
		found = append(found, s.told(path, len(found)))
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
	if spec.Fallback != nil {
		o.Differs = append(o.Differs, "its fallback: without an answer an HPA keeps its replicas")
	}
	if spec.Advanced.ScalingModifiers.Formula != "" {
		o.Differs = append(o.Differs, "its scalingModifiers: write the formula as one query")
	}
	for i, t := range spec.Triggers {
		o.take(h, i, t)
	}
	if len(h.Spec.Metrics) > 0 {
		o.HPA = &HPA{HorizontalPodAutoscaler: h, Path: path, Place: place}
	}
	return o
}

// take adds a trigger to the HPA as an External metric, or says why it is left out.
func (o *ScaledObject) take(h *autoscalingv2.HorizontalPodAutoscaler, place int, t scaledTrigger) {
	left := func(format string, args ...any) {
		o.Differs = append(o.Differs, fmt.Sprintf("trigger %d, of type %s: ", place, t.Type)+fmt.Sprintf(format, args...))
	}
	query := strings.TrimSpace(t.Metadata["query"])
	if t.Type != "prometheus" {
		left("not by what sidecars count, another HPA's metric or KEDA's")
		return
	}
	if e := Parse(query); e.Tree != nil && !slices.ContainsFunc(e.Parts, Part.Istio) {
		left("its query names none of Istio's metrics")
		return
	}
	threshold, err := resource.ParseQuantity(t.Metadata["threshold"])
	if err != nil {
		left("its threshold %q is not a number", t.Metadata["threshold"])
		return
	}
	name := fmt.Sprintf("%s-%d", o.Name, place)
	target := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &threshold}
	if t.MetricType == autoscalingv2.ValueMetricType {
		target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: &threshold}
	}
	h.Annotations["metric-config.external."+name+".prometheus/query"] = query
	h.Spec.Metrics = append(h.Spec.Metrics, autoscalingv2.MetricSpec{
		Type: autoscalingv2.ExternalMetricSourceType,
		External: &autoscalingv2.ExternalMetricSource{
			Metric: autoscalingv2.MetricIdentifier{Name: name, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"type": "prometheus"}}},
			Target: target,
		},
	})
}
