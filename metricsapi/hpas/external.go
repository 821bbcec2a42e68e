package hpas

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// ScalerAddress is where a trigger of KEDA's finds meshpulse, as its manifests install it.
	ScalerAddress = "meshpulse-keda.meshpulse-system:9091"
	// ScalerAuthentication is the TriggerAuthentication of KEDA's certificate, which is the
	// author's to make.
	ScalerAuthentication = "meshpulse-keda"
)

// scalerMetadata is what an external trigger says in place of one of type prometheus.
func scalerMetadata(query string, of map[string]string) map[string]string {
	m := map[string]string{"scalerAddress": ScalerAddress, TriggerQuery: query, TriggerThreshold: of["threshold"]}
	if activation := of["activationThreshold"]; activation != "" {
		m[TriggerActivation] = activation
	}
	return m
}

// byScaler is a ScaledObject, in JSON, with some of its triggers asking meshpulse: what of it is
// not read here stays as it is. It is nil where there are none, or meshpulse would refuse one.
func byScaler(namespace string, object []byte, asking map[int]map[string]string) map[string]any {
	var o map[string]any
	if len(asking) == 0 || json.Unmarshal(object, &o) != nil {
		return nil
	}
	spec, _ := o["spec"].(map[string]any)
	triggers, _ := spec["triggers"].([]any)
	for place, metadata := range asking {
		if _, err := ReadTrigger(cmp.Or(namespace, metav1.NamespaceDefault), metadata); err != nil || place >= len(triggers) {
			return nil
		}
		was, _ := triggers[place].(map[string]any)
		told := map[string]any{}
		for key, value := range metadata {
			told[key] = value
		}
		trigger := map[string]any{"type": "external-push", "metadata": told, "authenticationRef": map[string]any{"name": ScalerAuthentication}}
		for _, key := range []string{"name", "metricType", "useCachedMetrics"} {
			if value, ok := was[key]; ok {
				trigger[key] = value
			}
		}
		triggers[place] = trigger
	}
	delete(o, "status")
	o["metadata"] = written(o["metadata"])
	return o
}

// written are the metadata that an author writes.
func written(metadata any) map[string]any {
	m, _ := metadata.(map[string]any)
	maps.DeleteFunc(m, func(key string, _ any) bool {
		return !slices.Contains([]string{"name", "namespace", "labels", "annotations"}, key)
	})
	if annotations, ok := m["annotations"].(map[string]any); ok {
		delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
	}
	return m
}
