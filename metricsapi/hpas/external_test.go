package hpas

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// askingUs are the triggers of a ScaledObject that asks meshpulse itself, and what its metadata and
// status are then.
func askingUs(t *testing.T, text string) (triggers []any, object map[string]any) {
	t.Helper()
	found, refused := DecodeScaledObjects("f.yaml", []byte(text))
	if len(found) != 1 || len(refused) > 0 {
		t.Fatalf("%v, refused %v\n%s", found, refused, text)
	}
	if found[0].Scaler == nil {
		return nil, nil
	}
	return found[0].Scaler["spec"].(map[string]any)["triggers"].([]any), found[0].Scaler
}

func TestTheScalerTakesTheTriggersOnIstiosMetrics(t *testing.T) {
	text := scaled("  minReplicaCount: 0\n  cooldownPeriod: 60", `, activationThreshold: "2", ignoreNullValues: "false"}, name: rps, metricType: Value, authenticationRef: {name: prometheus}}
  - {type: cron, metadata: {start: 0 8 * * *}}
  - {type: prometheus, metadata: {query: queue_depth, threshold: "1"}`)
	text = strings.Replace(text, "namespace: test", "namespace: test, uid: x, labels: {a: b}, annotations: {kubectl.kubernetes.io/last-applied-configuration: x, c: d}", 1) + "status: {hpaName: x}\n"
	triggers, object := askingUs(t, text)
	var want []any
	if err := yaml.Unmarshal([]byte(`
- type: external-push
  name: rps
  metricType: Value
  authenticationRef: {name: meshpulse-keda}
  metadata: {scalerAddress: "meshpulse-keda.meshpulse-system:9091", query: `+quoted(requests)+`, threshold: "10", activationThreshold: "2"}
- {type: cron, metadata: {start: 0 8 * * *}}
- {type: prometheus, metadata: {query: queue_depth, threshold: "1"}}
`), &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, triggers); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]any{"name": "a", "namespace": "test", "labels": map[string]any{"a": "b"}, "annotations": map[string]any{"c": "d"}}, object["metadata"]); d != "" {
		t.Error(d)
	}
	spec := object["spec"].(map[string]any)
	if object["status"] != nil || spec["cooldownPeriod"] != 60.0 || spec["minReplicaCount"] != 0.0 {
		t.Errorf("%v", object)
	}
}

// What lint writes is what a server takes.
func TestWhatTheScalerIsToldIsRead(t *testing.T) {
	triggers, _ := askingUs(t, strings.Replace(scaled("", "}"), "[1m]))", "[1m])) / count(kube_pod_info)", 1))
	metadata := map[string]string{}
	for key, value := range triggers[0].(map[string]any)["metadata"].(map[string]any) {
		metadata[key] = value.(string)
	}
	read, err := ReadTrigger("test", maps.Clone(metadata))
	if err != nil || read.Expr != requests || read.Threshold.String() != "10" {
		t.Errorf("%v is read as %+v, %v", metadata, read, err)
	}
}

func TestWhatTheScalerWouldRefuseIsNotWritten(t *testing.T) {
	for name, text := range map[string]string{
		"no trigger on Istio's metrics": strings.Replace(scaled("", "}"), "istio_requests_total", "queue_depth", 1),
		"no threshold":                  strings.Replace(scaled("", "}"), `threshold: "10"`, `other: "10"`, 1),
		"a threshold of 0":              strings.Replace(scaled("", "}"), `threshold: "10"`, `threshold: "0"`, 1),
		"a query that is none":          strings.Replace(scaled("", "}"), "sum(", "sum((", 1),
		"an activation in words":        scaled("", `, activationThreshold: some}`),
	} {
		if triggers, _ := askingUs(t, text); triggers != nil {
			t.Errorf("%s: %v", name, triggers)
		}
	}
}

func quoted(text string) string {
	q, _ := json.Marshal(text)
	return string(q)
}
