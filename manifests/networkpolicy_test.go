package manifests

import (
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func TestNetworkPolicyNamesAllTraffic(t *testing.T) {
	objects, d, c := base(t)
	p := one[*networkingv1.NetworkPolicy](t, objects, "meshpulse")
	if !selects(p.Spec.PodSelector.MatchLabels, d.Spec.Template.Labels) {
		t.Errorf("the policy selects %v, the pod has %v", p.Spec.PodSelector.MatchLabels, d.Spec.Template.Labels)
	}
	if !slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) || !slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		t.Errorf("policy types %v: without both, the other way is open", p.Spec.PolicyTypes)
	}
	var in []string
	for _, rule := range p.Spec.Ingress {
		for _, port := range rule.Ports {
			containerPort(t, c, port.Port.StrVal)
			in = append(in, port.Port.StrVal)
			if port.Port.StrVal == "ingest" && (len(rule.From) != 1 || rule.From[0].NamespaceSelector == nil) {
				t.Errorf("ingest is open to %v, want the cluster's namespaces", rule.From)
			}
		}
		if len(rule.Ports) == 0 {
			t.Errorf("a rule opens every port: %+v", rule)
		}
	}
	slices.Sort(in)
	if !slices.Equal(in, []string{"https", "ingest"}) {
		t.Errorf("ports %v may be reached, want https and ingest", in)
	}
	if got, want := egress(p), []string{"TCP 443", "TCP 6443", "istio-system TCP 15012", "kube-system TCP 53", "kube-system UDP 53"}; !slices.Equal(got, want) {
		t.Errorf("%v may be asked, want %v: the API server, the mesh's authority by its name, and nothing else", got, want)
	}
}

// egress are the ports that a policy lets out, "everything" for a rule without any.
func egress(p *networkingv1.NetworkPolicy) []string {
	var out []string
	for _, rule := range p.Spec.Egress {
		where := ""
		for _, to := range rule.To {
			where = to.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] + " "
		}
		for _, port := range rule.Ports {
			number := "any"
			if port.Port != nil {
				number = port.Port.String()
			}
			out = append(out, where+string(*port.Protocol)+" "+number)
		}
		if len(rule.Ports) == 0 {
			out = append(out, "everything")
		}
	}
	slices.Sort(out)
	return out
}

func TestNamesAreResolvedWhereAsked(t *testing.T) {
	p := one[*networkingv1.NetworkPolicy](t, renderObjects(t, overlay(t, "dns")), "meshpulse")
	if got, want := egress(p), []string{"TCP 443", "TCP 53", "TCP 6443", "UDP 53", "istio-system TCP 15012", "kube-system TCP 53", "kube-system UDP 53"}; !slices.Equal(got, want) {
		t.Errorf("%v may be asked, want %v", got, want)
	}
}

// TestMeshNamespacesAloneReport asks of namespaces, by their labels, whether the policy lets their
// pods reach the ingest port.
func TestMeshNamespacesAloneReport(t *testing.T) {
	policies := map[string]*networkingv1.NetworkPolicy{}
	for name, folder := range map[string]string{"base": "base", "component": overlay(t, "mesh-namespaces"), "both": overlay(t, "dns", "mesh-namespaces")} {
		policies[name] = one[*networkingv1.NetworkPolicy](t, renderObjects(t, folder), "meshpulse")
	}
	for _, test := range []struct {
		what   string
		labels labels.Set
		meshed bool
	}{
		{"injected", labels.Set{"istio-injection": "enabled"}, true},
		{"injected by a revision", labels.Set{"istio.io/rev": "canary"}, true},
		{"in ambient mode", labels.Set{"istio.io/dataplane-mode": "ambient"}, true},
		{"without labels", nil, false},
		{"not injected", labels.Set{"istio-injection": "disabled"}, false},
		{"not in ambient mode", labels.Set{"istio.io/dataplane-mode": "none"}, false},
	} {
		for name, p := range policies {
			want := test.meshed || name == "base"
			if got := mayReach(t, p, "ingest", test.labels); got != want {
				t.Errorf("%s: a namespace %s reaches ingest: %v, want %v", name, test.what, got, want)
			}
			if !mayReach(t, p, "https", test.labels) {
				t.Errorf("%s: a namespace %s does not reach https, where the API server may be", name, test.what)
			}
		}
	}
}

// mayReach tells whether pods of a namespace with these labels get through to the port.
func mayReach(t *testing.T, p *networkingv1.NetworkPolicy, port string, namespace labels.Set) bool {
	t.Helper()
	for _, rule := range p.Spec.Ingress {
		if !slices.ContainsFunc(rule.Ports, func(r networkingv1.NetworkPolicyPort) bool { return r.Port.StrVal == port }) {
			continue
		}
		if len(rule.From) == 0 {
			return true
		}
		for _, from := range rule.From {
			selector, err := metav1.LabelSelectorAsSelector(from.NamespaceSelector)
			if err != nil || from.PodSelector != nil || from.IPBlock != nil {
				t.Fatalf("%+v (%v) is not judged here", from, err)
			}
			if selector.Matches(namespace) {
				return true
			}
		}
	}
	return false
}
