package metricsapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	"sigs.k8s.io/yaml"
)

// lookedAtCluster is as much of an API server as a look at a cluster asks: answers by path, each of
// a list in pages of one.
type lookedAtCluster map[string][]any

func (c lookedAtCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answers, ok := c[r.URL.Path]
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		answers = []any{metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound, Message: r.URL.Path + " is not there"}}
	}
	page := len(r.URL.Query().Get("continue"))
	body, err := json.Marshal(answers[page])
	if err != nil {
		panic(err)
	}
	if page+1 < len(answers) {
		var list map[string]any
		_ = json.Unmarshal(body, &list)
		list["metadata"] = map[string]any{"continue": strings.Repeat("x", page+1)}
		body, _ = json.Marshal(list)
	}
	_, _ = w.Write(body)
}

// kubeconfig is a way to it.
func (c lookedAtCluster) kubeconfig(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a}}]\nclusters: [{name: a, cluster: {server: '" + server.URL + "'}}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// listOf is a list as an API server gives it: its items do not say what they are.
func listOf(t *testing.T, kind, version string, texts ...string) any {
	t.Helper()
	items := []any{}
	for _, text := range texts {
		var item map[string]any
		if err := yaml.Unmarshal([]byte(text), &item); err != nil {
			t.Fatal(err)
		}
		delete(item, "kind")
		delete(item, "apiVersion")
		items = append(items, item)
	}
	return map[string]any{"kind": kind, "apiVersion": version, "items": items}
}

// podOf is a pod of a workload, whose proxy, where it has one, has that configuration.
func podOf(name, workload, proxy string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: "test", GenerateName: workload + "-1-", Labels: map[string]string{"pod-template-hash": "1"},
		OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: workload + "-1", Controller: new(true)}},
	}}
	if proxy != "" {
		p.Annotations = map[string]string{"sidecar.istio.io/status": "{}"}
		p.Spec.InitContainers = []corev1.Container{{Name: "istio-proxy", Env: []corev1.EnvVar{{Name: "PROXY_CONFIG", Value: proxy}}}}
	}
	return p
}

func TestLintSaysOfAClusterWhatItsSidecarsTell(t *testing.T) {
	const told = `{"envoyMetricsService": {"address": "meshpulse-ingest.meshpulse-system.svc:15090"}}`
	value := v1beta1.ExternalMetricValueList{Items: []v1beta1.ExternalMetricValue{{MetricLabels: map[string]string{labelCoverage: "1/2", labelReason: "held"}}}}
	value.Items[0].Value = resource.MustParse("12500m")
	rename := func(name string) string {
		return strings.Replace(strings.ReplaceAll(yamlAsking(name, soundQuery), "external.a.", "external."+name+"."), "{name: a,", "{name: "+name+",", 1)
	}
	c := lookedAtCluster{
		"/apis/autoscaling/v2/horizontalpodautoscalers": {
			listOf(t, "HorizontalPodAutoscalerList", "autoscaling/v2", rename("whole")),
			listOf(t, "HorizontalPodAutoscalerList", "autoscaling/v2", rename("half"), rename("bare"), rename("none")),
		},
		"/apis/keda.sh/v1alpha1/scaledobjects": {listOf(t, "ScaledObjectList", "keda.sh/v1alpha1", scaled("keda", prometheusTrigger(soundQuery)))},
		"/api/v1/namespaces/test/pods": {corev1.PodList{Items: []corev1.Pod{
			podOf("whole-1", "whole", told), podOf("half-1", "half", told), podOf("half-2", "half", "{}"), podOf("bare-1", "bare", ""), podOf("keda-1", "keda", "{}"),
		}}},
		"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io": {map[string]any{"spec": map[string]any{"service": map[string]any{"namespace": "meshpulse-system", "name": "meshpulse"}}}},
		"/apis/external.metrics.k8s.io/v1beta1/namespaces/test/whole":                 {value},
		"/apis/external.metrics.k8s.io/v1beta1/namespaces/test/half":                  {value},
		"/apis/external.metrics.k8s.io/v1beta1/namespaces/test/bare":                  {value},
	}
	var l Lint
	if err := l.AddCluster(t.Context(), c.kubeconfig(t)); err != nil {
		t.Fatal(err)
	}
	r, err := l.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]Finding{}
	for _, f := range r.Findings {
		found[f.Name] = f
	}
	if len(found) != 5 || r.Cluster.Server != "meshpulse-system/meshpulse" || r.Files != 0 {
		t.Fatalf("%+v", r)
	}
	for name, want := range map[string]struct {
		verdict Verdict
		told    string
		wiring  string
	}{
		"whole": {VerdictServed, "", "1 1 1 meshpulse-ingest.meshpulse-system.svc:15090"},
		"half":  {VerdictDoubtful, "1 of the 2 sidecars of Deployment half are not told where to send", "2 2 1 meshpulse-ingest.meshpulse-system.svc:15090"},
		"bare":  {VerdictDoubtful, "none of the 1 pods of Deployment bare runs a sidecar", "1 0 0 "},
		"keda":  {VerdictDoubtful, "none of the 1 sidecars of Deployment keda is told", "1 1 0 "},
		"none":  {VerdictDoubtful, "", ""}, // its metric has no value
	} {
		f, wiring := found[name], ""
		if w := f.Cluster.Wiring; w != nil {
			wiring = strings.Join([]string{string('0' + rune(w.Pods)), string('0' + rune(w.Sidecars)), string('0' + rune(w.Wired)), strings.Join(w.Services, ",")}, " ")
		}
		if f.Verdict != want.verdict || !strings.Contains(reasons(f), want.told) || wiring != want.wiring {
			t.Errorf("%s: %s, %q, wiring %q, want %+v", name, f.Verdict, reasons(f), wiring, want)
		}
	}
	if a := found["whole"].Cluster.Answers; len(a) != 1 || a[0].Value != "12500m" || a[0].Coverage != "1/2" || a[0].Reason != "held" {
		t.Errorf("answers %+v", a)
	}
	if a := found["none"].Cluster.Answers; len(a) != 1 || !strings.Contains(a[0].Error, "is not there") {
		t.Errorf("answers %+v", a)
	}
}

// Where meshpulse has the custom metrics API its metrics are read, and objects' are asked for.
func TestLintAsksForObjectsWhereMeshpulseHasThem(t *testing.T) {
	value := v1beta2.MetricValueList{Items: []v1beta2.MetricValue{{Value: resource.MustParse("7500m")}}}
	meshpulses := []any{map[string]any{"spec": map[string]any{"service": map[string]any{"namespace": "meshpulse-system", "name": "meshpulse"}}}}
	c := lookedAtCluster{
		"/apis/autoscaling/v2/horizontalpodautoscalers":                                    {listOf(t, "HorizontalPodAutoscalerList", "autoscaling/v2", objectHPA("rps", objectQuery, `type: Value, value: "10"`))},
		"/api/v1/namespaces/test/pods":                                                     {corev1.PodList{}},
		"/apis/apiregistration.k8s.io/v1/apiservices/v1beta2.custom.metrics.k8s.io":        meshpulses,
		"/apis/custom.metrics.k8s.io/v1beta2/namespaces/test/deployments.apps/podinfo/rps": {value},
	}
	var l Lint
	if err := l.AddCluster(t.Context(), c.kubeconfig(t)); err != nil {
		t.Fatal(err)
	}
	r, err := l.Report(t.Context())
	if err != nil || len(r.Findings) != 1 || r.Findings[0].Verdict != VerdictServed || len(r.Findings[0].Cluster.Answers) != 1 || r.Findings[0].Cluster.Answers[0].Value != "7500m" {
		t.Errorf("%+v, %v", r, err)
	}
}

// What another adapter answers is not taken for meshpulse's.
func TestLintAsksNoOtherAdapter(t *testing.T) {
	c := lookedAtCluster{
		"/apis/autoscaling/v2/horizontalpodautoscalers":                               {listOf(t, "HorizontalPodAutoscalerList", "autoscaling/v2", yamlAsking("whole", soundQuery))},
		"/api/v1/namespaces/test/pods":                                                {corev1.PodList{}},
		"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io": {map[string]any{"spec": map[string]any{"service": map[string]any{"namespace": "keda", "name": "keda-metrics-apiserver"}}}},
	}
	var l Lint
	if err := l.AddCluster(t.Context(), c.kubeconfig(t)); err != nil {
		t.Fatal(err)
	}
	r, err := l.Report(t.Context())
	if err != nil || len(r.Findings) != 1 || r.Findings[0].Verdict != VerdictServed || len(r.Findings[0].Cluster.Answers) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestLintSaysWhatOfAClusterItMayNotRead(t *testing.T) {
	var l Lint
	if err := l.AddCluster(t.Context(), lookedAtCluster{}.kubeconfig(t)); err == nil || !strings.Contains(err.Error(), "/apis/autoscaling/v2/horizontalpodautoscalers cannot be listed: ") {
		t.Errorf("%v", err)
	}
}
