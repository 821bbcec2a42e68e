package hpas

import (
	"fmt"
	"strings"
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

const requests = "sum(rate(istio_requests_total{destination_workload=\"a\"}[1m]))"

// scaled is a ScaledObject with lines of its spec, and a trigger on Istio's requests.
func scaled(spec, trigger string) string {
	return fmt.Sprintf(`apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: a, namespace: test}
spec:
  scaleTargetRef: {name: a}
%s
  triggers:
  - {type: prometheus, metadata: {serverAddress: "http://p:9090", query: %q, threshold: "10"%s}
`, spec, requests, trigger)
}

func TestAScaledObjectIsToldAsAnHPA(t *testing.T) {
	found, refused := DecodeScaledObjects("f.yaml", []byte(scaled("  minReplicaCount: 2\n  maxReplicaCount: 7", "}")))
	if len(found) != 1 || len(refused) > 0 || found[0].HPA == nil || len(found[0].Differs) > 0 {
		t.Fatalf("%+v, refused %v", found, refused)
	}
	h := found[0].HPA
	if h.Name != "a" || h.Namespace != "test" || h.MinReplicas() != 2 || h.Spec.MaxReplicas != 7 || h.Spec.ScaleTargetRef.Kind != "Deployment" {
		t.Errorf("%+v", h)
	}
	read := Vocabulary{}.Read(*h)
	if len(read.Metrics) != 1 || read.Metrics[0].Expr != requests || read.Metrics[0].Target.Type != autoscalingv2.AverageValueMetricType || read.Metrics[0].Goal().String() != "10" {
		t.Errorf("it is read as %+v, problems %v", read.Metrics, read.Problems)
	}
}

func TestWhatAnHPAHasNotOfAScaledObjectIsTold(t *testing.T) {
	for name, test := range map[string]struct {
		text    string
		want    string
		metrics int
	}{
		"scaling to zero":      {scaled("  minReplicaCount: 0", "}"), "scales to zero", 1},
		"to zero, by default":  {scaled("", "}"), "scales to zero", 1},
		"idle at zero":         {scaled("  minReplicaCount: 2\n  idleReplicaCount: 0", "}"), "scales to zero", 1},
		"a fallback":           {scaled("  minReplicaCount: 2\n  fallback: {failureThreshold: 3, replicas: 6}", "}"), "fallback", 1},
		"a formula":            {scaled("  minReplicaCount: 2\n  advanced: {scalingModifiers: {formula: a+b}}", "}"), "one query", 1},
		"a timetable":          {scaled("  minReplicaCount: 2", "}}\n  - {type: cron, metadata: {start: x}"), "trigger 1, of type cron", 1},
		"an application's":     {scaled("  minReplicaCount: 2", "}}\n  - {type: prometheus, metadata: {query: queue_depth, threshold: \"1\"}"), "trigger 1, of type prometheus: Istio does not set the metric queue_depth", 1},
		"a recording rule's":   {scaled("  minReplicaCount: 2", "}}\n  - {type: prometheus, metadata: {query: 'ns:requests:rate', threshold: \"1\"}"), "is of a recording rule", 1},
		"a share of CPU":       {scaled("  minReplicaCount: 2", "}}\n  - {type: cpu, metricType: Utilization, metadata: {value: \"70\"}"), "", 2},
		"as much memory":       {scaled("  minReplicaCount: 2", "}}\n  - {type: memory, metadata: {type: AverageValue, value: 1Gi, containerName: app}"), "", 2},
		"CPU in words":         {scaled("  minReplicaCount: 2", "}}\n  - {type: cpu, metadata: {value: much}"), `its value "much" is not a number`, 1},
		"a division by pods":   {strings.Replace(scaled("  minReplicaCount: 2", "}"), "[1m]))", "[1m])) / count(kube_pod_info)", 1), "divided by a number of pods", 1},
		"that it is paused":    {strings.Replace(scaled("  minReplicaCount: 2", "}"), "namespace: test", `namespace: test, annotations: {autoscaling.keda.sh/paused-replicas: "3"}`, 1), "it is paused", 1},
		"a threshold in words": {strings.Replace(scaled("  minReplicaCount: 2", "}"), `threshold: "10"`, `threshold: "ten"`, 1), `"ten" is not a number`, 0},
		"no threshold":         {strings.Replace(scaled("  minReplicaCount: 2", "}"), `threshold: "10"`, `other: "10"`, 1), "is not a number", 0},
	} {
		found, refused := DecodeScaledObjects("f.yaml", []byte(test.text))
		if len(found) != 1 || len(refused) > 0 {
			t.Errorf("%s: %v, refused %v\n%s", name, found, refused, test.text)
			continue
		}
		metrics := 0
		if h := found[0].HPA; h != nil {
			metrics = len(h.Spec.Metrics)
		}
		told := strings.Join(found[0].Differs, "\n")
		if metrics != test.metrics || len(found[0].Differs) > 1 || (told == "") != (test.want == "") || !strings.Contains(told, test.want) {
			t.Errorf("%s: %d metrics, told %q, want %q", name, metrics, found[0].Differs, test.want)
		}
	}
}

func TestAValueStaysAValue(t *testing.T) {
	text := strings.Replace(scaled("  minReplicaCount: 2", "}"), "{type: prometheus,", "{type: prometheus, metricType: Value,", 1)
	found, _ := DecodeScaledObjects("f.yaml", []byte(text))
	if target := found[0].HPA.Spec.Metrics[0].External.Target; target.Type != autoscalingv2.ValueMetricType || target.Value.String() != "10" || target.AverageValue != nil {
		t.Errorf("%+v", target)
	}
}

func TestOnlyScaledObjectsAreRead(t *testing.T) {
	for text, want := range map[string]string{
		"kind: Deployment\napiVersion: apps/v1":                                 "0 0",
		"kind: ScaledObject\napiVersion: other.example/v1":                      "0 0",
		"kind: ScaledObject\napiVersion: keda.sh/v1alpha1":                      "0 1",
		"kind: ScaledObject\napiVersion: keda.sh/v1alpha1\nspec: {triggers: 5}": "0 1",
		"[": "0 0", // Decode refuses it
		"kind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(scaled("", "}")), "\n", "\n  "): "1 0",
	} {
		found, refused := DecodeScaledObjects("f.yaml", []byte(text))
		if got := fmt.Sprint(len(found), " ", len(refused)); got != want {
			t.Errorf("%q: %s, want %s: %v", text, got, want, refused)
		}
	}
}

func FuzzDecodeScaledObjects(f *testing.F) {
	f.Add([]byte(scaled("  minReplicaCount: 2", "}")))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, _ := DecodeScaledObjects("f.yaml", data)
		for _, o := range found {
			if o.HPA != nil {
				Vocabulary{}.Read(*o.HPA)
			}
		}
	})
}
