// Package manifests holds no code: its tests render what an operator applies, decode it strictly
// into the types that will read it (Kubernetes', Istio's, Envoy's), and check what has to agree
// between files. They know no cluster and must not need one; that the API server takes these
// objects is for the lab to show.
package manifests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// decoder refuses fields that Kubernetes does not know and fields that are given twice.
func decoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiregistration.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}

// decode returns the object of one YAML document.
func decode(t *testing.T, name string, doc []byte) runtime.Object {
	t.Helper()
	object, _, err := decoder(t).Decode(doc, nil, nil)
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, doc)
	}
	return object
}

// decodeFile returns the objects of a file of YAML documents.
func decodeFile(t *testing.T, path string) []runtime.Object {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var objects []runtime.Object
	for i, doc := range bytes.Split(content, []byte("\n---\n")) {
		objects = append(objects, decode(t, fmt.Sprintf("%s, document %d", path, i+1), doc))
	}
	return objects
}

// render returns the YAML documents that a kustomization gives, as kubectl apply -k would send
// them.
func render(t *testing.T, folder string) [][]byte {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatalf("render %s: %v", folder, err)
	}
	var docs [][]byte
	for _, resource := range resources.Resources() {
		doc, err := resource.AsYAML()
		if err != nil {
			t.Fatalf("render %s: %v", folder, err)
		}
		docs = append(docs, doc)
	}
	return docs
}

// renderObjects is render, decoded.
func renderObjects(t *testing.T, folder string) []runtime.Object {
	t.Helper()
	var objects []runtime.Object
	for _, doc := range render(t, folder) {
		objects = append(objects, decode(t, folder, doc))
	}
	return objects
}

// overlay writes a kustomization that puts components of this folder over the base, and returns its
// folder.
func overlay(t *testing.T, components ...string) string {
	t.Helper()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	folder, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	up, err := filepath.Rel(folder, here)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "resources:\n  - %s\ncomponents:\n", filepath.Join(up, "base"))
	for _, component := range components {
		fmt.Fprintf(&text, "  - %s\n", filepath.Join(up, "components", component))
	}
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return folder
}

// all returns the objects of one type.
func all[T runtime.Object](objects []runtime.Object) []T {
	var found []T
	for _, object := range objects {
		if o, ok := object.(T); ok {
			found = append(found, o)
		}
	}
	return found
}

// one returns the object of a type that has the given name.
func one[T runtime.Object](t *testing.T, objects []runtime.Object, name string) T {
	t.Helper()
	found := slices.DeleteFunc(all[T](objects), func(o T) bool { return accessor(t, o).GetName() != name })
	if len(found) != 1 {
		var want T
		t.Fatalf("%d objects of type %T are named %s, want 1", len(found), want, name)
	}
	return found[0]
}

func accessor(t *testing.T, object runtime.Object) metav1.Object {
	t.Helper()
	m, err := meta.Accessor(object)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEveryKustomizationIsRendered fails when a kustomization is added that no test below decodes.
func TestEveryKustomizationIsRendered(t *testing.T) {
	rendered := []string{
		"base",
		"components/alerts",       // TestAlertsFire
		"components/apiservice",   // TestAPIService
		"components/cert-manager", // TestCertManager
		"components/custom-metrics/apiservice",
		"components/custom-metrics",          // TestCustomMetricsAreServedWhereAsked
		"components/dns",                     // TestNamesAreResolvedWhereAsked
		"components/fallback/custom-metrics", // TestCustomMetricsAreReadOfTheOtherAdapterOnlyWhereServed
		"components/fallback",                // TestWhatAFallbackMay
		"components/guaranteed",              // TestRequestsAreLimitsWhereAsked
		"components/host-network",            // TestHostNetworkHasPortsOfItsOwn
		"components/keda",                    // TestScaledObjectsAreAnsweredWhereAsked
		"components/mesh-namespaces",         // TestMeshNamespacesAloneReport
		"components/own-api",                 // TestTheOwnAPIIsLedToTheServiceOfTheMetrics
		"components/own-namespaces",          // TestQueriesReadTheirOwnNamespaceWhereAsked
		"components/pod-monitor",             // TestThePodMonitorScrapesWhatThePodServes
		"components/prometheus-api",          // TestDashboardsAreServedWhereAsked
		"components/shadow/authority",        // TestWhatAShadowMay
		"components/shadow",
		"components/shadow-prometheus", // TestThePrometheusOfTheComparisonIsLetThrough
		"components/shadow-prometheus/namespace",
		"components/shadow-prometheus/port",
		"components/surge-action", // TestSurgeActionIsBound
		"components/surge-action/namespaced",
		"components/surge-action/role",
		"examples/app", // TestExampleApp
		"replicas",     // TestTwoReplicasAreASetOfTheBase
	}
	var found []string
	err := filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if filepath.Base(path) == "kustomization.yaml" {
			found = append(found, filepath.ToSlash(filepath.Dir(path)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(found, rendered) {
		t.Errorf("kustomizations %v, tested are %v", found, rendered)
	}
}
