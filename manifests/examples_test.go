package manifests

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

func itoa(n int32) string { return strconv.Itoa(int(n)) }

// examples returns the HPAs of the folder by file name.
func examples(t *testing.T) map[string]*autoscalingv2.HorizontalPodAutoscaler {
	t.Helper()
	paths, err := filepath.Glob("examples/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	hpas := map[string]*autoscalingv2.HorizontalPodAutoscaler{}
	for _, path := range paths {
		objects := decodeFile(t, path)
		hpa, ok := objects[0].(*autoscalingv2.HorizontalPodAutoscaler)
		if !ok || len(objects) != 1 {
			t.Fatalf("%s: want one HorizontalPodAutoscaler of autoscaling/v2 and nothing else, or --hpa-dir cannot read the folder", path)
		}
		hpas[filepath.Base(path)] = hpa
	}
	return hpas
}

func TestExamplesNameWhatIsThere(t *testing.T) {
	app := renderObjects(t, "examples/app")
	target := one[*appsv1.Deployment](t, app, "podinfo")
	names := map[string]string{}
	for file, hpa := range examples(t) {
		if other, taken := names[hpa.Name]; taken {
			t.Errorf("%s and %s are both named %s", file, other, hpa.Name)
		}
		names[hpa.Name] = file
		ref := hpa.Spec.ScaleTargetRef
		if hpa.Namespace != target.Namespace || ref.Name != target.Name || ref.Kind != "Deployment" || ref.APIVersion != "apps/v1" {
			t.Errorf("%s scales %s %s in %s, the application is Deployment %s in %s", file, ref.Kind, ref.Name, hpa.Namespace, target.Name, target.Namespace)
		}
		if hpa.Spec.MinReplicas == nil || *hpa.Spec.MinReplicas < 1 || hpa.Spec.MaxReplicas <= *hpa.Spec.MinReplicas {
			t.Errorf("%s: replicas from %v to %d", file, hpa.Spec.MinReplicas, hpa.Spec.MaxReplicas)
		}
	}
}

// TestExamplesSayWhatTheyAskFor: the query that a metric's selector names must be there, and a
// named metric needs none.
func TestExamplesSayWhatTheyAskFor(t *testing.T) {
	for file, hpa := range examples(t) {
		for _, metric := range hpa.Spec.Metrics {
			external := metric.External
			if external == nil || external.Metric.Selector == nil {
				t.Errorf("%s: want external metrics with a selector, got %+v", file, metric)
				continue
			}
			name, match := external.Metric.Name, external.Metric.Selector.MatchLabels
			key := ""
			switch {
			case strings.HasPrefix(file, "named-"):
				if !strings.HasPrefix(name, "istio-") || match["destination_workload"] != "podinfo" {
					t.Errorf("%s: metric %s selects %v", file, name, match)
				}
				continue
			case match["query-name"] != "":
				key = "metric-config.external." + name + ".prometheus/" + match["query-name"]
			case match["type"] == "prometheus":
				key = "metric-config.external." + name + ".prometheus/query"
			}
			if strings.TrimSpace(hpa.Annotations[key]) == "" {
				t.Errorf("%s: metric %s selects %v, and there is no annotation %q", file, name, match, key)
			}
		}
	}
}

// TestGuidesAreUnchanged: those who come from the guides bring these four files. That they work as
// they are is the promise, so they may not be improved.
func TestGuidesAreUnchanged(t *testing.T) {
	for file, want := range map[string]string{
		"latency-average.yaml":       "542e84d2f95dc73a6bc8ff0e9d311e2afc1b8194bd326cf31cc3f385efc2aa2d",
		"latency-p95.yaml":           "cb8495eaecd1302385caadf767c288218ac34904893e5f13b49d08b2a2ad5820",
		"requests-per-workload.yaml": "a3f807c776239fd008889283c7321f2f6d1cb9e7e2adee4381064bae1b92365c",
		"requests-total.yaml":        "1dd27ceb17730c7af8e113275902086acd8bd9f42a6d03644361871c84eec02b",
	} {
		content, err := os.ReadFile(filepath.Join("examples", file))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(content)
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Errorf("%s has changed: %s, want %s", file, got, want)
		}
	}
}

func TestExampleApp(t *testing.T) {
	app := renderObjects(t, "examples/app")
	ns := one[*corev1.Namespace](t, app, "test")
	if ns.Labels["istio-injection"] != "enabled" {
		t.Errorf("namespace labels %v: its pods would get no sidecar", ns.Labels)
	}
	d, s := one[*appsv1.Deployment](t, app, "podinfo"), one[*corev1.Service](t, app, "podinfo")
	if !selects(s.Spec.Selector, d.Spec.Template.Labels) || !selects(d.Spec.Selector.MatchLabels, d.Spec.Template.Labels) {
		t.Errorf("Service %v, Deployment %v, pods %v", s.Spec.Selector, d.Spec.Selector, d.Spec.Template.Labels)
	}
	// The guides' P95 asks for destination_canonical_service="podinfo", which Istio takes from this
	// label.
	if d.Spec.Template.Labels["app"] != "podinfo" {
		t.Errorf("pod labels %v", d.Spec.Template.Labels)
	}
	if d.Spec.Replicas != nil {
		t.Error("the Deployment sets replicas, which are the HPA's")
	}
	one[*appsv1.Deployment](t, app, "loadtester")
}
