package manifests

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/yaml"
)

// TestCustomMetricsAreServedWhereAsked: the component adds the flag, and lets the HPA controller
// read; the API is claimed apart, once meshpulse has been reached.
func TestCustomMetricsAreServedWhereAsked(t *testing.T) {
	objects, base := renderObjects(t, overlay(t, "custom-metrics")), renderObjects(t, "base")
	args := func(of []runtime.Object) []string {
		return one[*appsv1.Deployment](t, of, "meshpulse").Spec.Template.Spec.Containers[0].Args
	}
	if got, want := args(objects), append(args(base), "--custom-metrics"); !slices.Equal(got, want) {
		t.Errorf("arguments %v, want %v", got, want)
	}
	const role = "meshpulse:custom-metrics-reader"
	want := []rbacv1.PolicyRule{{APIGroups: []string{"custom.metrics.k8s.io"}, Resources: []string{"*"}, Verbs: []string{"get", "list"}}}
	if got := one[*rbacv1.ClusterRole](t, objects, role).Rules; !reflect.DeepEqual(got, want) {
		t.Errorf("rules %+v, want %+v", got, want)
	}
	b := one[*rbacv1.ClusterRoleBinding](t, objects, "meshpulse:hpa-controller:custom-metrics-reader")
	if external := one[*rbacv1.ClusterRoleBinding](t, base, "meshpulse:hpa-controller:external-metrics-reader"); b.RoleRef.Name != role || !reflect.DeepEqual(b.Subjects, external.Subjects) {
		t.Errorf("%+v is bound to %+v", b.RoleRef, b.Subjects)
	}
	if n := len(all[*apiregistration.APIService](objects)); n != 0 {
		t.Errorf("it claims %d APIs by itself", n)
	}
	claim := one[*apiregistration.APIService](t, renderObjects(t, overlay(t, "custom-metrics/apiservice")), "v1beta2.custom.metrics.k8s.io")
	external := one[*apiregistration.APIService](t, renderObjects(t, overlay(t, "apiservice")), "v1beta1.external.metrics.k8s.io")
	if claim.Spec.InsecureSkipTLSVerify || claim.Spec.Group+"/"+claim.Spec.Version != "custom.metrics.k8s.io/v1beta2" || !reflect.DeepEqual(claim.Spec.Service, external.Spec.Service) {
		t.Errorf("spec %+v", claim.Spec)
	}
}

// TestDashboardsAreServedWhereAsked: the component serves the Prometheus API, to who bears a token,
// from namespaces that are allowed, and the base has none of it.
func TestDashboardsAreServedWhereAsked(t *testing.T) {
	objects, base := renderObjects(t, overlay(t, "prometheus-api")), renderObjects(t, "base")
	pod := func(of []runtime.Object) corev1.PodSpec {
		return one[*appsv1.Deployment](t, of, "meshpulse").Spec.Template.Spec
	}
	if got, want := pod(objects).Containers[0].Args, append(pod(base).Containers[0].Args, "--prometheus-address=0.0.0.0:9090", "--prometheus-token-file=/etc/meshpulse/prometheus/token"); !slices.Equal(got, want) {
		t.Errorf("arguments %v, want %v", got, want)
	}
	mounted := slices.ContainsFunc(pod(objects).Volumes, func(v corev1.Volume) bool {
		return v.Secret != nil && v.Secret.SecretName == "meshpulse-prometheus-token" && (v.Secret.Optional == nil || !*v.Secret.Optional)
	})
	if !mounted {
		t.Error("the token is not mounted, or need not be there")
	}
	s := one[*corev1.Service](t, objects, "meshpulse-prometheus")
	if s.Spec.Ports[0].Port != 9090 || s.Spec.Ports[0].TargetPort.StrVal != "prometheus" || !slices.ContainsFunc(pod(objects).Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == "prometheus" && p.ContainerPort == 9090 }) {
		t.Errorf("the Service leads to no port of the pod: %+v", s.Spec.Ports)
	}
	ingress := func(of []runtime.Object) []networkingv1.NetworkPolicyIngressRule {
		return one[*networkingv1.NetworkPolicy](t, of, "meshpulse").Spec.Ingress
	}
	rules, before := ingress(objects), ingress(base)
	if len(rules) != len(before)+1 || len(rules[len(before)].From) != 1 || rules[len(before)].From[0].NamespaceSelector.MatchLabels["meshpulse.io/prometheus-api"] != "allowed" {
		t.Errorf("rules %+v, want one more, from namespaces that are allowed", rules)
	}
}

// TestScaledObjectsAreAnsweredWhereAsked: the component serves KEDA's external scaler, over TLS to
// who has a certificate, from namespaces that are allowed, and lets meshpulse read ScaledObjects;
// the base has none of it.
func TestScaledObjectsAreAnsweredWhereAsked(t *testing.T) {
	objects, base := renderObjects(t, overlay(t, "keda")), renderObjects(t, "base")
	pod := func(of []runtime.Object) corev1.PodSpec {
		return one[*appsv1.Deployment](t, of, "meshpulse").Spec.Template.Spec
	}
	const at = "/etc/meshpulse/keda/"
	want := append(pod(base).Containers[0].Args, "--keda-address=0.0.0.0:9091", "--keda-tls-cert-file="+at+"tls.crt", "--keda-tls-private-key-file="+at+"tls.key", "--keda-client-ca-file="+at+"ca.crt")
	if got := pod(objects).Containers[0].Args; !slices.Equal(got, want) {
		t.Errorf("arguments %v, want %v", got, want)
	}
	if !slices.ContainsFunc(pod(objects).Volumes, func(v corev1.Volume) bool {
		return v.Secret != nil && v.Secret.SecretName == "meshpulse-keda-tls" && (v.Secret.Optional == nil || !*v.Secret.Optional)
	}) {
		t.Error("the certificate is not mounted, or need not be there")
	}
	s := one[*corev1.Service](t, objects, "meshpulse-keda")
	if s.Spec.Ports[0].Port != 9091 || s.Spec.Ports[0].TargetPort.StrVal != "keda" || !slices.ContainsFunc(pod(objects).Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == "keda" && p.ContainerPort == 9091 }) {
		t.Errorf("the Service leads to no port of the pod: %+v", s.Spec.Ports)
	}
	rules, before := one[*networkingv1.NetworkPolicy](t, objects, "meshpulse").Spec.Ingress, one[*networkingv1.NetworkPolicy](t, base, "meshpulse").Spec.Ingress
	if len(rules) != len(before)+1 || len(rules[len(before)].From) != 1 || rules[len(before)].From[0].NamespaceSelector.MatchLabels["meshpulse.io/keda"] != "allowed" {
		t.Errorf("rules %+v, want one more, from namespaces that are allowed", rules)
	}
	role, was := one[*rbacv1.ClusterRole](t, objects, "meshpulse").Rules, one[*rbacv1.ClusterRole](t, base, "meshpulse").Rules
	if added := role[len(was):]; len(added) != 1 || !slices.Equal(added[0].APIGroups, []string{"keda.sh"}) || !slices.Equal(added[0].Resources, []string{"scaledobjects"}) || !slices.Equal(added[0].Verbs, []string{"get", "list", "watch"}) {
		t.Errorf("rights %+v beyond the base's", added)
	}
}

func TestAPIService(t *testing.T) {
	objects := renderObjects(t, overlay(t, "apiservice"))
	a := one[*apiregistration.APIService](t, objects, "v1beta1.external.metrics.k8s.io")
	if a.Spec.InsecureSkipTLSVerify {
		t.Error("the API server would not check who answers")
	}
	if a.Spec.Group != "external.metrics.k8s.io" || a.Spec.Version != "v1beta1" || a.Spec.Service == nil {
		t.Fatalf("spec %+v", a.Spec)
	}
	s := one[*corev1.Service](t, objects, a.Spec.Service.Name)
	if s.Namespace != a.Spec.Service.Namespace || a.Spec.Service.Port == nil || s.Spec.Ports[0].Port != *a.Spec.Service.Port {
		t.Errorf("the APIService points to %+v, the Service is %s with %+v", a.Spec.Service, s.Namespace, s.Spec.Ports)
	}
	if n := len(all[*apiregistration.APIService](renderObjects(t, "base"))); n != 0 {
		t.Errorf("the base claims %d APIs, want none", n)
	}
}

// TestTheOwnAPIIsLedToTheServiceOfTheMetrics: who serves one serves the other.
func TestTheOwnAPIIsLedToTheServiceOfTheMetrics(t *testing.T) {
	objects := renderObjects(t, overlay(t, "apiservice", "own-api"))
	a, own := one[*apiregistration.APIService](t, objects, "v1beta1.external.metrics.k8s.io"), one[*apiregistration.APIService](t, objects, "v1alpha1.meshpulse.io")
	if own.Spec.Group != "meshpulse.io" || own.Spec.Version != "v1alpha1" || own.Spec.InsecureSkipTLSVerify || !reflect.DeepEqual(own.Spec.Service, a.Spec.Service) {
		t.Errorf("%+v", own.Spec)
	}
}

// TestCertManager checks what the component's objects say of each other; cert-manager's types are
// not decoded here.
func TestCertManager(t *testing.T) {
	found := map[string]unstructured.Unstructured{}
	for _, doc := range render(t, overlay(t, "apiservice", "cert-manager")) {
		var u unstructured.Unstructured
		if err := yaml.UnmarshalStrict(doc, &u.Object); err != nil {
			t.Fatal(err)
		}
		found[u.GetKind()+" "+u.GetName()] = u
	}
	certificate := found["Certificate "+certSecret]
	for path, want := range map[string]string{
		"spec.secretName":     certSecret,
		"metadata.namespace":  namespace,
		"spec.issuerRef.name": "meshpulse-ca",
	} {
		if got, _, err := unstructured.NestedString(certificate.Object, strings.Split(path, ".")...); err != nil || got != want {
			t.Errorf("Certificate: %s is %q (%v), want %q", path, got, err, want)
		}
	}
	names, _, err := unstructured.NestedStringSlice(certificate.Object, "spec", "dnsNames")
	if want := []string{"meshpulse." + namespace + ".svc"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("Certificate: names %v (%v), the API server checks %v", names, err, want)
	}
	ca, authority := found["Issuer meshpulse-ca"], found["Certificate meshpulse-ca"]
	issuing, _, _ := unstructured.NestedString(ca.Object, "spec", "ca", "secretName")
	made, _, _ := unstructured.NestedString(authority.Object, "spec", "secretName")
	if issuing == "" || issuing != made {
		t.Errorf("the issuer signs with Secret %q, the authority is in %q", issuing, made)
	}
	a := found["APIService v1beta1.external.metrics.k8s.io"]
	if got, want := a.GetAnnotations()["cert-manager.io/inject-ca-from"], namespace+"/"+certSecret; got != want {
		t.Errorf("the APIService's authority comes from %q, want %q", got, want)
	}
}
