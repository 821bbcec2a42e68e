package hpas

import (
	"encoding/json"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// The form of autoscaling/v2beta1's metrics, which k8s.io/api no longer has
// (staging/src/k8s.io/api/autoscaling/v2beta1/types.go up to Kubernetes 1.24). Everything else of
// an HPA is as in v2; behavior came with v2beta2.
type v2beta1Metric struct {
	Type              autoscalingv2.MetricSourceType `json:"type"`
	Resource          *v2beta1Source                 `json:"resource"`
	ContainerResource *v2beta1Source                 `json:"containerResource"`
	Pods              *v2beta1Source                 `json:"pods"`
	Object            *v2beta1Source                 `json:"object"`
	External          *v2beta1Source                 `json:"external"`
}

// v2beta1Source has the fields of all types of metrics. Each type has some.
type v2beta1Source struct {
	Name                     corev1.ResourceName                       `json:"name"`
	Container                string                                    `json:"container"`
	MetricName               string                                    `json:"metricName"`
	Selector                 *metav1.LabelSelector                     `json:"selector"`
	MetricSelector           *metav1.LabelSelector                     `json:"metricSelector"`
	Target                   autoscalingv2.CrossVersionObjectReference `json:"target"`
	TargetAverageUtilization *int32                                    `json:"targetAverageUtilization"`
	TargetAverageValue       *resource.Quantity                        `json:"targetAverageValue"`
	AverageValue             *resource.Quantity                        `json:"averageValue"`
	TargetValue              *resource.Quantity                        `json:"targetValue"`
}

// decodeV2beta1 converts an HPA to v2. metrics is the v2 form of spec.metrics in YAML, to show.
func decodeV2beta1(data []byte) (h *autoscalingv2.HorizontalPodAutoscaler, metrics string, err error) {
	var old struct {
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			ScaleTargetRef autoscalingv2.CrossVersionObjectReference `json:"scaleTargetRef"`
			MinReplicas    *int32                                    `json:"minReplicas"`
			MaxReplicas    int32                                     `json:"maxReplicas"`
			Metrics        []v2beta1Metric                           `json:"metrics"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return nil, "", err
	}
	h = &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: old.ObjectMeta}
	h.Spec.ScaleTargetRef, h.Spec.MinReplicas, h.Spec.MaxReplicas = old.Spec.ScaleTargetRef, old.Spec.MinReplicas, old.Spec.MaxReplicas
	if err := addMetrics(h, "spec.metrics", old.Spec.Metrics); err != nil {
		return nil, "", err
	}
	shown, err := yaml.Marshal(h.Spec.Metrics)
	if err != nil {
		return nil, "", err
	}
	return h, string(shown), nil
}

func addMetrics(h *autoscalingv2.HorizontalPodAutoscaler, where string, metrics []v2beta1Metric) error {
	for i, m := range metrics {
		spec, ok := m.toV2()
		if !ok {
			return fmt.Errorf("%s[%d] of type %q lacks the part of that name", where, i, m.Type)
		}
		h.Spec.Metrics = append(h.Spec.Metrics, spec)
	}
	return nil
}

// v1Metrics is the annotation in which autoscaling/v1 carries all metrics but the CPU, in the form
// of v2beta1.
const v1Metrics = "autoscaling.alpha.kubernetes.io/metrics"

// decodeV1 converts an HPA of autoscaling/v1, which Kubernetes serves to this day, to v2.
func decodeV1(data []byte) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	var old autoscalingv1.HorizontalPodAutoscaler
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &old); err != nil {
		return nil, err
	}
	h := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: old.ObjectMeta}
	h.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference(old.Spec.ScaleTargetRef)
	h.Spec.MinReplicas, h.Spec.MaxReplicas = old.Spec.MinReplicas, old.Spec.MaxReplicas
	if percent := old.Spec.TargetCPUUtilizationPercentage; percent != nil {
		h.Spec.Metrics = append(h.Spec.Metrics, autoscalingv2.MetricSpec{
			Type:     autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU, Target: utilisation(percent, nil)},
		})
	}
	var others []v2beta1Metric
	if text := old.Annotations[v1Metrics]; text != "" {
		if err := json.Unmarshal([]byte(text), &others); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", v1Metrics, err)
		}
	}
	return h, addMetrics(h, "annotation "+v1Metrics, others)
}

// toV2 converts one metric; it is not ok where the part that the type names is missing.
func (m v2beta1Metric) toV2() (autoscalingv2.MetricSpec, bool) {
	spec := autoscalingv2.MetricSpec{Type: m.Type}
	switch {
	case m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil:
		spec.Resource = &autoscalingv2.ResourceMetricSource{Name: m.Resource.Name, Target: utilisation(m.Resource.TargetAverageUtilization, m.Resource.TargetAverageValue)}
	case m.Type == autoscalingv2.ContainerResourceMetricSourceType && m.ContainerResource != nil:
		c := m.ContainerResource
		spec.ContainerResource = &autoscalingv2.ContainerResourceMetricSource{Name: c.Name, Container: c.Container, Target: utilisation(c.TargetAverageUtilization, c.TargetAverageValue)}
	case m.Type == autoscalingv2.PodsMetricSourceType && m.Pods != nil:
		spec.Pods = &autoscalingv2.PodsMetricSource{Metric: identifier(m.Pods.MetricName, m.Pods.Selector), Target: quantityTarget(nil, m.Pods.TargetAverageValue)}
	case m.Type == autoscalingv2.ObjectMetricSourceType && m.Object != nil:
		spec.Object = &autoscalingv2.ObjectMetricSource{DescribedObject: m.Object.Target, Metric: identifier(m.Object.MetricName, m.Object.Selector), Target: quantityTarget(m.Object.TargetValue, m.Object.AverageValue)}
	case m.Type == autoscalingv2.ExternalMetricSourceType && m.External != nil:
		spec.External = &autoscalingv2.ExternalMetricSource{Metric: identifier(m.External.MetricName, m.External.MetricSelector), Target: quantityTarget(m.External.TargetValue, m.External.TargetAverageValue)}
	default:
		return spec, false
	}
	return spec, true
}

func identifier(name string, selector *metav1.LabelSelector) autoscalingv2.MetricIdentifier {
	return autoscalingv2.MetricIdentifier{Name: name, Selector: selector}
}

func utilisation(percent *int32, average *resource.Quantity) autoscalingv2.MetricTarget {
	if percent != nil {
		return autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: percent}
	}
	return quantityTarget(nil, average)
}

// quantityTarget prefers the average, as Kubernetes' own conversion does for Object and External
// metrics.
func quantityTarget(value, average *resource.Quantity) autoscalingv2.MetricTarget {
	if average != nil || value == nil {
		return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: average}
	}
	return autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: value}
}
