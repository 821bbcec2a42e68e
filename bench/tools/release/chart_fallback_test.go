package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	keda          = "keda/keda-operator-metrics-apiserver"
	besideKEDA    = "{fallback: {service: " + keda + "}, customMetrics: {enabled: true}}"
	externalAPI   = "APIService v1beta1.external.metrics.k8s.io"
	customAPI     = "APIService v1beta2.custom.metrics.k8s.io"
	customOlder   = "APIService v1beta1.custom.metrics.k8s.io"
	kedaAuthority = "-----BEGIN CERTIFICATE-----\nkeda\n-----END CERTIFICATE-----\n"
)

// An uninstall that comes first would delete the API that the other adapter is asked by.
func TestTheNotesSayHowTheAPIsGoBack(t *testing.T) {
	api := aCluster(kedas("v1beta1.external.metrics.k8s.io"))
	if _, notes := mustHelm(t, system, "fallback: {service: "+keda+"}", api); !strings.Contains(notes, keda+" is asked for all that is not meshpulse's") || !strings.Contains(notes, "fallback.putBack=true") {
		t.Errorf("notes:\n%s", notes)
	}
	if _, notes := mustHelm(t, system, "fallback: {service: "+keda+", putBack: true}", api); !strings.Contains(notes, keda+" has its APIs again") {
		t.Errorf("put back:\n%s", notes)
	}
}

// kedas is an APIService that leads to KEDA.
func kedas(name string) object {
	version, group, _ := strings.Cut(name, ".")
	return object{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": object{"name": name},
		"spec": object{
			"group": group, "version": version, "groupPriorityMinimum": int64(100), "versionPriority": int64(100),
			"service":  object{"namespace": "keda", "name": "keda-operator-metrics-apiserver", "port": int64(443)},
			"caBundle": base64.StdEncoding.EncodeToString([]byte(kedaAuthority)),
		},
	}
}

// The APIs of the other adapter are taken over, what was there is kept through upgrades, and goes
// back as it was, to stay.
func TestTheChartTakesTheAPIsOverAndPutsThemBack(t *testing.T) {
	external, older := kedas("v1beta1.external.metrics.k8s.io"), kedas("v1beta1.custom.metrics.k8s.io")
	cluster := aCluster(external, older)
	install := func(values string) map[string]object {
		t.Helper()
		objects, _ := mustHelm(t, system, values, cluster)
		cluster = aCluster(slices.Collect(maps.Values(objects))...)
		return objects
	}
	for range 3 { // an install and two upgrades
		objects := install(besideKEDA)
		for name, was := range map[string]object{externalAPI: external, customOlder: older, customAPI: nil} {
			if owner, _, _ := unstructured.NestedString(objects[name], "spec", "service", "namespace"); owner != system {
				t.Errorf("%s is led to %q", name, owner)
			}
			kept, _, _ := unstructured.NestedString(objects[name], "metadata", "annotations", "meshpulse.io/replaced-spec")
			var spec any
			if was == nil && kept == "" {
				continue
			}
			if err := json.Unmarshal([]byte(kept), &spec); err != nil || spec.(object)["caBundle"] != was["spec"].(object)["caBundle"] {
				t.Errorf("%s: kept is %q (%v)", name, kept, err)
			}
		}
		if ca, _, _ := unstructured.NestedString(objects["ConfigMap "+system+"/meshpulse-fallback-ca"], "data", "ca.crt"); ca != kedaAuthority {
			t.Errorf("its authority is %q", ca)
		}
	}
	if _, _, err := helm(t, system, "", cluster); err == nil || !strings.Contains(err.Error(), "answers for another adapter") {
		t.Errorf("the fallback is left out: %v", err)
	}
	for range 2 {
		objects := install("{fallback: {service: " + keda + ", putBack: true}, customMetrics: {enabled: true}}")
		for name, was := range map[string]object{externalAPI: external, customOlder: older} {
			got, _, _ := unstructured.NestedMap(objects[name], "spec")
			want, _, _ := unstructured.NestedMap(was, "spec")
			if d := cmp.Diff(asJSON(t, want), asJSON(t, got)); d != "" {
				t.Errorf("%s (-was +is):\n%s", name, d)
			}
			annotations, _, _ := unstructured.NestedStringMap(objects[name], "metadata", "annotations")
			if !maps.Equal(annotations, map[string]string{"helm.sh/resource-policy": "keep"}) {
				t.Errorf("%s has annotations %v", name, annotations)
			}
		}
		if objects[customAPI] != nil {
			t.Error("the version that was made beside the other adapter's stays")
		}
	}
}

// An upgrade leaves fields alone that it does not name: an APIService whose server's certificate
// was not checked names that beside no authority, and the API server takes only one of both.
func TestAnAPIWithoutAnAuthorityIsTakenOverAndPutBack(t *testing.T) {
	for _, certificate := range []string{"helm", "cert-manager"} {
		external := kedas("v1beta1.external.metrics.k8s.io")
		spec := external["spec"].(object)
		delete(spec, "caBundle")
		spec["insecureSkipTLSVerify"] = true
		values := func(fallback string) string {
			return fmt.Sprintf("{fallback: {service: %s, caBundle: %q, %s}, certificate: {from: %s}}", keda, kedaAuthority, fallback, certificate)
		}
		objects, _ := mustHelm(t, system, values("putBack: false"), aCluster(external))
		if skips, told, _ := unstructured.NestedBool(objects[externalAPI], "spec", "insecureSkipTLSVerify"); skips || !told {
			t.Errorf("%s: the certificate is not checked: %t, said %t", certificate, skips, told)
		}
		objects, _ = mustHelm(t, system, values("putBack: true"), aCluster(slices.Collect(maps.Values(objects))...))
		skips, _, _ := unstructured.NestedBool(objects[externalAPI], "spec", "insecureSkipTLSVerify")
		authority, told, _ := unstructured.NestedString(objects[externalAPI], "spec", "caBundle")
		if !skips || !told || authority != "" {
			t.Errorf("%s, put back: not checked %t, authority %q, said %t", certificate, skips, authority, told)
		}
	}
}

func asJSON(t *testing.T, o object) string {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWhatIsNoFallbackIsRefused(t *testing.T) {
	operator := func(args ...any) object {
		return object{
			"apiVersion": "apps/v1", "kind": "Deployment", "metadata": object{"name": "keda-operator", "namespace": "keda"},
			"spec": object{"template": object{"spec": object{"containers": []any{object{"name": "a", "args": args}}}}},
		}
	}
	api := kedas("v1beta1.external.metrics.k8s.io")
	bare := kedas("v1beta1.external.metrics.k8s.io")
	unstructured.RemoveNestedField(bare, "spec", "caBundle")
	for name, test := range map[string]struct {
		values  string
		cluster fakeCluster
		want    string
	}{
		"another one has the API":         {"fallback: {service: a/b}", aCluster(api), "served by " + keda},
		"meshpulse itself":                {"fallback: {service: " + system + "/meshpulse}", aCluster(), "own Service"},
		"no Service":                      {"fallback: {service: keda}", aCluster(), "fallback"},
		"nobody tells whom to trust":      {"fallback: {service: " + keda + "}", aCluster(bare), "fallback.caBundle"},
		"nothing is seen":                 {"{certificate: {from: cert-manager}, fallback: {service: " + keda + "}}", nil, "fallback.caBundle"},
		"KEDA takes it back":              {besideKEDA, aCluster(api, operator("--enable-cert-rotation=true")), "--enable-apiservice-patching=false"},
		"put back without another":        {"fallback: {putBack: true}", aCluster(), "putBack"},
		"KEDA leaves it alone":            {besideKEDA, aCluster(api, operator("--enable-cert-rotation=true", "--enable-apiservice-patching=false")), ""},
		"KEDA with certificates of yours": {besideKEDA, aCluster(api, operator("--enable-cert-rotation=false")), ""},
	} {
		_, _, err := helm(t, system, test.values, test.cluster)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// The adapter that has the API keeps it while it is compared with.
func TestTheChartComparesBesideAnother(t *testing.T) {
	api := kedas("v1beta1.external.metrics.k8s.io")
	objects, notes := mustHelm(t, system, "{apiService: {enabled: false}, shadow: {service: "+keda+"}}", aCluster(api))
	if objects[externalAPI] != nil || !strings.Contains(notes, keda+" goes on serving them") {
		t.Errorf("notes:\n%s", notes)
	}
	for want, values := range map[string]string{
		"apiService.enabled=false": "shadow: {service: " + keda + "}",
		"own Service":              "{apiService: {enabled: false}, shadow: {service: " + system + "/meshpulse}}",
		"neither fallback.service": "{apiService: {enabled: false}, shadow: {service: " + keda + "}, fallback: {service: " + keda + "}}",
		"nor prometheus.url":       "{apiService: {enabled: false}, shadow: {service: " + keda + "}, prometheus: {url: \"http://p:9090\"}}",
		"shadow.caBundle":          "{apiService: {enabled: false}, shadow: {service: a/b}}",
	} {
		if _, _, err := helm(t, system, values, aCluster(api)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", values, err, want)
		}
	}
}

// What the Prometheus is shown comes from Secrets, and so never into the release.
func TestTheChartTakesTheComparisonsSecrets(t *testing.T) {
	objects, _ := mustHelm(t, system, "prometheus: {url: 'https://p.monitoring.svc', caSecret: authority, tokenSecret: bearer}", aCluster())
	pod := decodePod(t, objects["Deployment "+system+"/meshpulse"])
	for _, part := range []struct{ flag, secret, file string }{{"ca", "authority", "ca.crt"}, {"token", "bearer", "token"}} {
		if flag := "--shadow-prometheus-" + part.flag + "-file=/etc/meshpulse/shadow-prometheus/" + part.flag + "/" + part.file; !slices.Contains(pod.Containers[0].Args, flag) {
			t.Errorf("no %s in %q", flag, pod.Containers[0].Args)
		}
		name := "shadow-prometheus-" + part.flag
		if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool {
			return v.Name == name && v.Secret != nil && v.Secret.SecretName == part.secret
		}) {
			t.Errorf("no Secret %s in %+v", part.secret, pod.Volumes)
		}
		if !slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == name && m.MountPath == "/etc/meshpulse/shadow-prometheus/"+part.flag && m.ReadOnly
		}) {
			t.Errorf("%s is not mounted: %+v", name, pod.Containers[0].VolumeMounts)
		}
	}
	for _, name := range []string{"tokenSecret", "caSecret"} {
		for _, url := range []string{"http://p.monitoring.svc:9090", ""} {
			if _, _, err := helm(t, system, "prometheus: {url: '"+url+"', "+name+": a}", aCluster()); err == nil || !strings.Contains(err.Error(), "prometheus."+name) {
				t.Errorf("%s for %q: %v", name, url, err)
			}
		}
	}
}

// decodePod is the template of a Deployment's pods.
func decodePod(t *testing.T, deployment object) corev1.PodSpec {
	t.Helper()
	var d appsv1.Deployment
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(deployment, &d); err != nil {
		t.Fatal(err)
	}
	return d.Spec.Template.Spec
}
