package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const (
	chartFolder = "../../../manifests/chart"
	system      = "meshpulse-system"
	servingCert = "meshpulse-serving-cert"
)

// object is one as it is sent, or as it lies in a cluster.
type object = map[string]any

// fakeCluster is what Helm's lookup finds, by kind and name.
type fakeCluster map[string]object

func (c fakeCluster) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	var objects []runtime.Object
	for _, o := range c {
		objects = append(objects, &unstructured.Unstructured{Object: o})
	}
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, false, err
	}
	resource := gv.WithResource(strings.ToLower(kind) + "s")
	lists := map[schema.GroupVersionResource]string{resource: kind + "List"}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objects...)
	return client.Resource(resource), kind == "Secret" || kind == "ConfigMap", nil
}

// aCluster is one that Helm sees, and that has these objects.
func aCluster(objects ...object) fakeCluster {
	c := fakeCluster{"Namespace kube-system": {"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": "kube-system"}}}
	for _, o := range objects {
		c[key(o)] = o
	}
	return c
}

func key(o object) string {
	u := unstructured.Unstructured{Object: o}
	return u.GetKind() + " " + strings.TrimPrefix(u.GetNamespace()+"/"+u.GetName(), "/")
}

// helm renders the chart as an install into a namespace does, with values in YAML. A cluster that
// is nil is one that Helm does not see.
func helm(t *testing.T, namespace, values string, cluster fakeCluster) (objects map[string]object, notes string, err error) {
	t.Helper()
	c, err := loader.LoadDir(chartFolder)
	if err != nil {
		t.Fatal(err)
	}
	return renderChart(t, c, namespace, values, cluster)
}

func renderChart(t *testing.T, c *chart.Chart, namespace, values string, cluster fakeCluster) (objects map[string]object, notes string, err error) {
	t.Helper()
	var given map[string]any
	if err := yaml.UnmarshalStrict([]byte(values), &given); err != nil {
		t.Fatal(err)
	}
	caps := common.DefaultCapabilities.Copy()
	caps.KubeVersion = common.KubeVersion{Version: "v1.37.0", Major: "1", Minor: "37"}
	render, err := util.ToRenderValues(c, given, common.ReleaseOptions{Name: "a-release", Namespace: namespace, IsInstall: true}, caps)
	if err != nil {
		return nil, "", err
	}
	var files map[string]string
	if cluster == nil {
		files, err = engine.Render(c, render)
	} else {
		files, err = engine.RenderWithClientProvider(c, render, cluster)
	}
	if err != nil {
		return nil, "", err
	}
	objects = map[string]object{}
	for name, text := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			notes = text
			continue
		}
		for document := range strings.SplitSeq("\n"+text, "\n---\n") {
			o := decode(t, name, document)
			if o == nil {
				continue
			}
			if _, twice := objects[key(o)]; twice {
				t.Errorf("%s is there twice", key(o))
			}
			objects[key(o)] = o
		}
	}
	return objects, notes, nil
}

// decode returns a document's object, nil if it has none, after it was read strictly as what
// Kubernetes reads it.
func decode(t *testing.T, name, document string) object {
	t.Helper()
	var o object
	if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, document)
	}
	if len(o) == 0 {
		return nil
	}
	version, _, _ := unstructured.NestedString(o, "apiVersion")
	if strings.HasPrefix(version, "cert-manager.io/") || strings.HasPrefix(version, "monitoring.coreos.com/") {
		return o
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiregistration.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer().Decode([]byte(document), nil, nil); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, document)
	}
	return o
}

func mustHelm(t *testing.T, namespace, values string, cluster fakeCluster) (map[string]object, string) {
	t.Helper()
	objects, notes, err := helm(t, namespace, values, cluster)
	if err != nil {
		t.Fatal(err)
	}
	return objects, notes
}

// kustomize renders the base with components.
func kustomize(t *testing.T, components ...string) map[string]object {
	t.Helper()
	folder, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := filepath.Abs("../../../manifests")
	if err != nil {
		t.Fatal(err)
	}
	up, err := filepath.Rel(folder, manifests)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("resources: [%q]\ncomponents:\n", up+"/base")
	for _, component := range components {
		text += fmt.Sprintf("- %q\n", up+"/components/"+component)
	}
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for _, r := range resources.Resources() {
		content, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		o := decode(t, r.GetName(), string(content))
		objects[key(o)] = o
	}
	return objects
}

// besideAnother has the names that the component leaves to be replaced, in lower case as a
// Service's is.
const besideAnother = "fallback: {service: other-namespace/other-service, caBundle: \"-----BEGIN CERTIFICATE-----\"}\n"

// besidePrometheus is the beginning of a URL that is compared with.
const besidePrometheus = "prometheus: {url: 'http://prometheus.monitoring"

// withoutHelms leaves out the labels that are Helm's alone.
func withoutHelms(labels object) {
	for _, name := range []string{"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"} {
		delete(labels, name)
	}
}

// named has names in place of what stands for them: the other adapter's, and more, in pairs.
func named(t *testing.T, objects map[string]object, more ...string) map[string]object {
	t.Helper()
	text, err := yaml.Marshal(objects)
	if err != nil {
		t.Fatal(err)
	}
	replaced := map[string]object{}
	pairs := append([]string{"OTHER-NAMESPACE", "other-namespace", "OTHER-SERVICE", "other-service"}, more...)
	text = []byte(strings.NewReplacer(pairs...).Replace(string(text)))
	if err := yaml.Unmarshal(text, &replaced); err != nil {
		t.Fatal(err)
	}
	return replaced
}

// TestTheChartIsTheBase: whoever installs with Helm gets what is tested with Kustomize.
func TestTheChartIsTheBase(t *testing.T) {
	tested := map[string]bool{}
	const given = "image: {tag: unset}\ncertificate: {from: %s}\napiService: {enabled: %v}\n"
	for name, test := range map[string]struct {
		components []string
		values     string
	}{
		"alone":           {nil, fmt.Sprintf(given, "secret", false)},
		"host-network":    {[]string{"host-network"}, fmt.Sprintf(given, "secret", false) + "hostNetwork: true"},
		"dns":             {[]string{"dns"}, fmt.Sprintf(given, "secret", false) + "networkPolicy: {dns: true}"},
		"mesh-namespaces": {[]string{"mesh-namespaces"}, fmt.Sprintf(given, "secret", false) + "networkPolicy: {meshNamespacesOnly: true}"},
		"own-namespaces":  {[]string{"own-namespaces"}, fmt.Sprintf(given, "secret", false) + "queryNamespaces: own"},
		"prometheus-api":  {[]string{"prometheus-api"}, fmt.Sprintf(given, "secret", false) + "prometheusAPI: {enabled: true}"},
		"keda":            {[]string{"keda"}, fmt.Sprintf(given, "secret", false) + "keda: {enabled: true}"},
		"custom-metrics":  {[]string{"custom-metrics"}, fmt.Sprintf(given, "secret", false) + "customMetrics: {enabled: true}"},
		"fallback":        {[]string{"fallback"}, fmt.Sprintf(given, "secret", false) + besideAnother},
		"fallback of custom metrics": {
			[]string{"custom-metrics", "fallback", "fallback/custom-metrics"}, fmt.Sprintf(given, "secret", false) + besideAnother + "customMetrics: {enabled: true}",
		},
		"shadow": {[]string{"shadow"}, fmt.Sprintf(given, "secret", false) + "shadow: {service: other-namespace/other-service}"},
		"shadow at its Service": {
			[]string{"shadow", "shadow/authority"}, fmt.Sprintf(given, "secret", false) + strings.Replace(besideAnother, "fallback", "shadow", 1),
		},
		"guaranteed":     {[]string{"guaranteed"}, fmt.Sprintf(given, "secret", false) + "resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {cpu: 500m, memory: 1Gi}}"},
		"surge-action":   {[]string{"surge-action"}, fmt.Sprintf(given, "secret", false) + "surgeAction: {enabled: true}"},
		"in a namespace": {[]string{"surge-action/namespaced"}, fmt.Sprintf(given, "secret", false) + "surgeAction: {namespaces: [test]}"},
		"a Prometheus of the cluster": {
			[]string{"shadow-prometheus", "shadow-prometheus/namespace"}, fmt.Sprintf(given, "secret", false) + besidePrometheus + ".svc'}",
		},
		"a Prometheus by two labels, beside another adapter": {
			[]string{"shadow-prometheus", "shadow-prometheus/namespace", "shadow-prometheus/port", "fallback"},
			fmt.Sprintf(given, "secret", false) + besideAnother + besidePrometheus + "'}",
		},
		"a Prometheus outside": {
			[]string{"shadow-prometheus", "shadow-prometheus/port"}, fmt.Sprintf(given, "secret", false) + besidePrometheus + ".example.com'}",
		},
		"cert-manager": {[]string{"apiservice", "own-api", "cert-manager"}, fmt.Sprintf(given, "cert-manager", true)},
		"replicas":     {[]string{"../replicas"}, fmt.Sprintf(given, "secret", false) + "replicas: 2"},
		"all of several replicas": {
			[]string{"prometheus-api", "keda", "fallback", "dns", "../replicas"},
			fmt.Sprintf(given, "secret", false) + besideAnother + "networkPolicy: {dns: true}\nprometheusAPI: {enabled: true}\nkeda: {enabled: true}\nreplicas: 2",
		},
		"pod-monitor": {[]string{"pod-monitor"}, fmt.Sprintf(given, "secret", false) + "podMonitor: {enabled: true}"},
		"alerts":      {[]string{"alerts"}, fmt.Sprintf(given, "secret", false) + "alerts: {enabled: true}"},
		"custom-metrics with cert-manager": {
			[]string{"custom-metrics", "custom-metrics/apiservice", "apiservice", "own-api", "cert-manager"}, fmt.Sprintf(given, "cert-manager", true) + "customMetrics: {enabled: true}",
		},
	} {
		for _, component := range test.components {
			tested[component] = true
		}
		t.Run(name, func(t *testing.T) {
			url := strings.Trim(strings.TrimRight(test.values[strings.LastIndex(test.values, "url:")+4:], "}"), " '")
			want := named(t, kustomize(t, test.components...), "PROMETHEUS-URL", url, "PROMETHEUS-NAMESPACE", "monitoring", "PROMETHEUS-PORT", "80")
			delete(want, "Namespace "+system)
			got, _ := mustHelm(t, system, test.values, nil)
			delete(got, "ConfigMap "+system+"/meshpulse-fallback-ca") // install.sh makes it where the authority is known
			delete(got, "ConfigMap "+system+"/meshpulse-shadow-ca")
			for _, o := range got {
				labels, _, _ := unstructured.NestedFieldNoCopy(o, "metadata", "labels")
				withoutHelms(labels.(object))
				if labels, ok, _ := unstructured.NestedFieldNoCopy(o, "spec", "template", "metadata", "labels"); ok {
					withoutHelms(labels.(object))
				}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("-kustomize +helm:\n%s", d)
			}
		})
	}
	components, err := filepath.Glob("../../../manifests/components/*/kustomization.yaml")
	if err != nil || len(components) == 0 {
		t.Fatalf("%d components, %v", len(components), err)
	}
	for _, c := range components {
		if name := filepath.Base(filepath.Dir(c)); !tested[name] {
			t.Errorf("component %s has no value of the chart", name)
		}
	}
}

// TestHelmRefusesWhatIsNotSupported: the chart takes the versions of Kubernetes that the documents
// name.
func TestHelmRefusesWhatIsNotSupported(t *testing.T) {
	c, err := loader.LoadDir(chartFolder)
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../../manifests/README.md")
	if err != nil {
		t.Fatal(err)
	}
	least := regexp.MustCompile(`\| Kubernetes \| (1\.\d+) to (1\.\d+), `).FindSubmatch(readme)
	if least == nil || c.Metadata.KubeVersion != ">="+string(least[1])+".0-0" {
		t.Errorf("the chart takes %s, the requirements are %q", c.Metadata.KubeVersion, least)
	}
}

func TestNothingIsLintedAway(t *testing.T) {
	for _, m := range lint.RunAll(chartFolder, map[string]any{"certificate": map[string]any{"from": "cert-manager"}}, system, lint.WithKubeVersion(&common.KubeVersion{Version: "v1.37.0", Major: "1", Minor: "37"})).Messages {
		if m.Severity > support.InfoSev {
			t.Error(m)
		}
	}
}

// The guides install with this command; the names are the same in any release and namespace, and
// what stands in it is the namespace's.
func TestTheGuidesCommandInstalls(t *testing.T) {
	objects, notes := mustHelm(t, "kube-system", "prometheus: {url: 'http://prometheus.istio-system.svc:9090'}", aCluster())
	for _, name := range []string{"Deployment kube-system/meshpulse", "Service kube-system/meshpulse-ingest", "Secret kube-system/" + servingCert, "ClusterRole meshpulse"} {
		if objects[name] == nil {
			t.Errorf("no %s among %q", name, slices.Sorted(maps.Keys(objects)))
		}
	}
	for name, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		// The URL sets the comparison, and what lets meshpulse there, and nothing else.
		compared := name == "Deployment kube-system/meshpulse"
		if bytes.Contains(text, []byte(system)) || compared != bytes.Contains(text, []byte("prometheus.istio-system")) {
			t.Errorf("%s names another namespace, or the Prometheus, or the comparison does not:\n%s", name, text)
		}
	}
	service, _, _ := unstructured.NestedString(objects["APIService v1beta1.external.metrics.k8s.io"], "spec", "service", "namespace")
	if service != "kube-system" {
		t.Errorf("the API is led to namespace %q", service)
	}
	for _, want := range []string{"meshpulse-ingest.kube-system.svc.cluster.local:15090", "spiffe://cluster.local/ns/kube-system/sa/meshpulse", "names no registry"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %s:\n%s", want, notes)
		}
	}
}

// The NetworkPolicy lets meshpulse to the Prometheus that it is compared with, and no further: to a
// Service's pods by their namespace, else to the port; where two labels may be either, to both.
func TestThePrometheusOfTheComparisonIsLetThrough(t *testing.T) {
	egress := func(values string) (out []string) {
		objects, _ := mustHelm(t, system, values, aCluster())
		rules, _, _ := unstructured.NestedSlice(objects["NetworkPolicy "+system+"/meshpulse"], "spec", "egress")
		for _, rule := range rules {
			to, _, _ := unstructured.NestedSlice(rule.(object), "to")
			ports, _, _ := unstructured.NestedSlice(rule.(object), "ports")
			for _, port := range ports {
				where := ""
				for _, t := range to {
					where, _, _ = unstructured.NestedString(t.(object), "namespaceSelector", "matchLabels", "kubernetes.io/metadata.name")
				}
				out = append(out, fmt.Sprint(where, " ", port.(object)["port"]))
			}
		}
		return out
	}
	none := egress("")
	for url, want := range map[string][]string{
		"http://prometheus.monitoring.svc:9090":              {"monitoring <nil>"},
		"http://prometheus.monitoring.svc.cluster.local/api": {"monitoring <nil>"},
		"http://prometheus:9090":                             {system + " <nil>"},
		"http://prometheus.monitoring:9090":                  {"monitoring <nil>", " 9090"},
		"https://example.com":                                {"com <nil>", " 443"},
		"http://10.1.2.3:9091":                               {" 9091"},
		"https://[fd00::1]/":                                 {" 443"},
		"http://[fd00::1]:9091":                              {" 9091"},
		"http://prometheus.example.com":                      {" 80"},
		"http://a.b.svcx.svc:1":                              {" 1"},
	} {
		if d := cmp.Diff(slices.Concat(none, want), egress("prometheus: {url: '"+url+"'}")); d != "" {
			t.Errorf("%s: -want +got\n%s", url, d)
		}
	}
}

// A real Envoy goes by these notes (bench/e2e, which has no Helm); the address is a port of a
// Service that the chart makes.
func TestTheNotesAreThoseThatARealEnvoyGoesBy(t *testing.T) {
	objects, notes := mustHelm(t, "kube-system", "", aCluster())
	const golden = "../../e2e/testdata/notes.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(notes), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(kept), notes); d != "" {
		t.Errorf("%s is not what the chart says (go test . -update): -it +chart\n%s", golden, d)
	}
	host, port, _ := strings.Cut(regexp.MustCompile(`address: (\S+)`).FindStringSubmatch(notes)[1], ":")
	name, domain, _ := strings.Cut(host, ".kube-system.svc.")
	service := objects["Service kube-system/"+name]
	ports, _, _ := unstructured.NestedSlice(service, "spec", "ports")
	if domain != "cluster.local" || len(ports) != 1 || fmt.Sprint(ports[0].(object)["port"]) != port {
		t.Errorf("the address is %s:%s, the Service %v", host, port, service)
	}
}

var update = flag.Bool("update", false, "write what the chart says now")

// The mesh's trust domain and the end of the cluster's names are two things.
func TestIdentitiesBeginWithTheTrustDomain(t *testing.T) {
	for values, told := range map[string]bool{
		"{mtls: {trustDomain: mesh.example}, clusterDomain: cluster.example}":              true,
		"{mtls: {trustDomain: mesh.example, mode: 'off'}, clusterDomain: cluster.example}": false,
	} {
		objects, notes := mustHelm(t, system, values, aCluster())
		for _, want := range []string{"meshpulse-ingest." + system + ".svc.cluster.example:15090", "- spiffe://mesh.example/ns/" + system + "/sa/meshpulse\n", "- spiffe://mesh.example/ns/" + system + "/sa/meshpulse-relay\n"} {
			if !strings.Contains(notes, want) {
				t.Errorf("the notes do not say %s:\n%s", want, notes)
			}
		}
		text, err := yaml.Marshal(objects["Deployment "+system+"/meshpulse"])
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(text, []byte("--ingest-trust-domains=mesh.example")); got != told {
			t.Errorf("%s: the flag is there: %v", values, got)
		}
	}
}

// serving is what the pod serves with, and whom the API server trusts.
func serving(t *testing.T, objects map[string]object) (certificate string, bundle []byte) {
	t.Helper()
	decoded := func(kind string, path ...string) []byte {
		text, _, err := unstructured.NestedString(objects[kind], path...)
		if err != nil {
			t.Fatal(err)
		}
		content, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(content) == 0 {
			t.Fatalf("%s: %v is %q (%v)", kind, path, text, err)
		}
		return content
	}
	secret := "Secret " + system + "/" + servingCert
	pair := [2][]byte{decoded(secret, "data", "tls.crt"), decoded(secret, "data", "tls.key")}
	if _, err := tls.X509KeyPair(pair[0], pair[1]); err != nil {
		t.Error(err)
	}
	return string(pair[0]), decoded("APIService v1beta1.external.metrics.k8s.io", "spec", "caBundle")
}

// verify checks a certificate as the API server does.
func verify(t *testing.T, certificate string, bundle []byte) {
	t.Helper()
	roots := x509.NewCertPool()
	block, _ := pem.Decode([]byte(certificate))
	if block == nil || !roots.AppendCertsFromPEM(bundle) {
		t.Fatalf("no certificate:\n%s%s", certificate, bundle)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "meshpulse." + system + ".svc", Roots: roots}); err != nil {
		t.Error(err)
	}
}

func TestAnUpgradeKeepsTheCertificateAndARotationTrustsBoth(t *testing.T) {
	cluster := aCluster()
	install := func(values string) (string, []byte) {
		objects, _ := mustHelm(t, system, values, cluster)
		cluster = aCluster(slices.Collect(maps.Values(objects))...)
		return serving(t, objects)
	}
	first, bundle := install("")
	verify(t, first, bundle)
	for range 2 {
		if again, b := install(""); again != first || !bytes.Equal(b, bundle) {
			t.Error("an upgrade makes another certificate")
		}
	}
	before := first
	for generation := range 2 {
		after, b := install(fmt.Sprintf("certificate: {generation: %d}", generation+2))
		if after == before {
			t.Error("the certificate is the same")
		}
		verify(t, before, b)
		verify(t, after, b)
		if n := bytes.Count(b, []byte("BEGIN CERTIFICATE")); n != 2 {
			t.Errorf("%d authorities are trusted, want the new and the last", n)
		}
		before = after
	}
}

func TestACertificateThatIsThereIsTrusted(t *testing.T) {
	ca := []byte("-----BEGIN CERTIFICATE-----\nmine\n-----END CERTIFICATE-----\n")
	mine := object{
		"apiVersion": "v1", "kind": "Secret", "metadata": object{"name": "mine", "namespace": system},
		"data": object{"ca.crt": base64.StdEncoding.EncodeToString(ca)},
	}
	for name, test := range map[string]struct {
		cluster fakeCluster
		values  string
	}{
		"by the Secret": {aCluster(mine), "certificate: {from: secret, secretName: mine}"},
		"by a value":    {nil, "certificate: {from: secret, secretName: mine, caBundle: \"" + strings.ReplaceAll(string(ca), "\n", `\n`) + "\"}"},
	} {
		objects, _ := mustHelm(t, system, test.values, test.cluster)
		bundle, _, _ := unstructured.NestedString(objects["APIService v1beta1.external.metrics.k8s.io"], "spec", "caBundle")
		if bundle != base64.StdEncoding.EncodeToString(ca) {
			t.Errorf("%s: the API server trusts %q", name, bundle)
		}
		volumes, _, _ := unstructured.NestedSlice(objects["Deployment "+system+"/meshpulse"], "spec", "template", "spec", "volumes")
		if secret, _, _ := unstructured.NestedString(volumes[0].(object), "secret", "secretName"); secret != "mine" {
			t.Errorf("%s: the pod serves with Secret %s", name, secret)
		}
		if objects["Secret "+system+"/mine"] != nil {
			t.Errorf("%s: the chart makes it", name)
		}
	}
}

func TestAMonitorCanReadAndChecksWhoAnswers(t *testing.T) {
	objects, _ := mustHelm(t, system, "podMonitor: {enabled: true, labels: {release: prometheus}}", aCluster())
	for _, name := range []string{"PodMonitor " + system + "/meshpulse", "Secret " + system + "/meshpulse-observer", "ClusterRoleBinding meshpulse:observer"} {
		if objects[name] == nil {
			t.Fatalf("no %s among %q", name, slices.Sorted(maps.Keys(objects)))
		}
	}
	monitor := objects["PodMonitor "+system+"/meshpulse"]
	if label, _, _ := unstructured.NestedString(monitor, "metadata", "labels", "release"); label != "prometheus" {
		t.Errorf("the monitor's label is %q", label)
	}
	endpoints, _, _ := unstructured.NestedSlice(monitor, "spec", "podMetricsEndpoints")
	if name, _, _ := unstructured.NestedString(endpoints[0].(object), "tlsConfig", "serverName"); name != "meshpulse."+system+".svc" {
		t.Errorf("it checks for %q", name)
	}
}

func TestWhatCannotWorkIsRefused(t *testing.T) {
	other := aCluster(object{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": object{"name": "v1beta1.external.metrics.k8s.io"},
		"spec": object{"service": object{"namespace": "keda", "name": "keda-operator-metrics-apiserver"}},
	})
	adapter := aCluster(object{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": object{"name": "v1beta1.custom.metrics.k8s.io"},
		"spec": object{"group": "custom.metrics.k8s.io", "service": object{"namespace": "monitoring", "name": "prometheus-adapter"}},
	})
	foreign := aCluster(object{"apiVersion": "v1", "kind": "Secret", "metadata": object{"name": servingCert, "namespace": system}})
	for name, test := range map[string]struct {
		values  string
		cluster fakeCluster
		want    string
	}{
		"no cluster to look into":       {"", nil, "certificate.from"},
		"an API that is another's":      {"", other, "served by keda/keda-operator-metrics-apiserver"},
		"custom metrics of another":     {"customMetrics: {enabled: true}", adapter, "served by monitoring/prometheus-adapter (v1beta1.custom.metrics.k8s.io)"},
		"a certificate of another hand": {"", foreign, "is not of this chart"},
		"an authority that nobody says": {"certificate: {from: secret}", nil, "certificate.caBundle"},
		"three replicas":                {"replicas: 3", aCluster(), "replicas"},
		"an unknown value":              {"replicaCount: 1", aCluster(), "replicaCount"},
		"the kubelet's port":            {"{hostNetwork: true, port: 10250}", aCluster(), "port"},
		"a flag without dashes":         {"flags: [hold=5m]", aCluster(), "flags"},
		"another source":                {"certificate: {from: vault}", aCluster(), "from"},
		"a name where Helm gives it":    {"certificate: {secretName: mine}", aCluster(), "secretName"},
	} {
		if _, _, err := helm(t, system, test.values, test.cluster); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if _, _, err := helm(t, system, "apiService: {enabled: false}", other); err != nil {
		t.Errorf("beside another adapter: %v", err)
	}
	if _, _, err := helm(t, system, "", adapter); err != nil {
		t.Errorf("beside another adapter of custom metrics: %v", err)
	}
}

// TestTheReleasesChartIsWhole: the package is what Helm loads, of the release and with its image.
func TestTheReleasesChartIsWhole(t *testing.T) {
	c, err := loader.LoadArchive(bytes.NewReader(content(t, released(t, testImage), "meshpulse-1.2.3.tgz")))
	if err != nil {
		t.Fatal(err)
	}
	if c.Metadata.Version != "1.2.3" || c.Metadata.AppVersion != "1.2.3" {
		t.Errorf("versions %s and %s", c.Metadata.Version, c.Metadata.AppVersion)
	}
	objects, notes, err := renderChart(t, c, system, "", aCluster())
	if err != nil {
		t.Fatal(err)
	}
	deployment := objects["Deployment "+system+"/meshpulse"]
	containers, _, _ := unstructured.NestedSlice(deployment, "spec", "template", "spec", "containers")
	if image := containers[0].(object)["image"]; image != testImage {
		t.Errorf("image %s", image)
	}
	if version, _, _ := unstructured.NestedString(deployment, "spec", "template", "metadata", "labels", "app.kubernetes.io/version"); version != "1.2.3" {
		t.Errorf("the pod says version %q", version)
	}
	if strings.Contains(notes, "no registry") {
		t.Errorf("notes:\n%s", notes)
	}
}
