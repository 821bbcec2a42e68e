package manifests

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/yaml"
)

const (
	namespace  = "meshpulse-system"
	certSecret = "meshpulse-serving-cert"
)

// base is what the kustomization gives, with the objects that everything refers to.
func base(t *testing.T) (objects []runtime.Object, deployment *appsv1.Deployment, container corev1.Container) {
	t.Helper()
	objects = renderObjects(t, "base")
	deployment = one[*appsv1.Deployment](t, objects, "meshpulse")
	if n := len(deployment.Spec.Template.Spec.Containers); n != 1 {
		t.Fatalf("%d containers, want 1", n)
	}
	return objects, deployment, deployment.Spec.Template.Spec.Containers[0]
}

func TestNamespaces(t *testing.T) {
	objects, _, _ := base(t)
	for _, object := range objects {
		m, kind := accessor(t, object), object.GetObjectKind().GroupVersionKind().Kind
		want := namespace
		switch kind {
		case "Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding":
			want = ""
		case "RoleBinding": // only there is the Role that it names
			want = "kube-system"
		}
		if m.GetNamespace() != want {
			t.Errorf("%s %s is in namespace %q, want %q", kind, m.GetName(), m.GetNamespace(), want)
		}
	}
}

func TestOneReplicaIsReplacedByItsSuccessor(t *testing.T) {
	_, d, _ := base(t)
	rolling := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || rolling == nil ||
		*rolling.MaxSurge != intstr.FromInt32(1) || *rolling.MaxUnavailable != intstr.FromInt32(0) || *d.Spec.Replicas != 1 {
		t.Errorf("replicas %d, strategy %+v: want one replica, maxSurge 1, maxUnavailable 0", *d.Spec.Replicas, d.Spec.Strategy)
	}
}

// TestPodIsRestricted holds the pod to the restricted Pod Security Standard, which its namespace
// enforces: a pod that is not is refused by the API server.
func TestPodIsRestricted(t *testing.T) {
	objects, d, c := base(t)
	if level := one[*corev1.Namespace](t, objects, namespace).Labels["pod-security.kubernetes.io/enforce"]; level != "restricted" {
		t.Errorf("namespace enforces %q, want restricted", level)
	}
	pod := d.Spec.Template.Spec
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot ||
		s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("pod security context %+v: want runAsNonRoot and seccomp RuntimeDefault", s)
	}
	s := c.SecurityContext
	if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
		s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) != 0 {
		t.Errorf("container security context %+v: want no privilege escalation, all capabilities dropped", s)
	}
	if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Error("the root filesystem can be written")
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("the pod shares a namespace of its host")
	}
}

func TestPodHasNoSidecar(t *testing.T) {
	_, d, _ := base(t)
	template := d.Spec.Template
	if template.Labels["sidecar.istio.io/inject"] != "false" || template.Annotations["sidecar.istio.io/inject"] != "false" {
		t.Errorf(`labels %v, annotations %v: want sidecar.istio.io/inject "false" in both`, template.Labels, template.Annotations)
	}
}

// TestOpenShiftGivesTheUser: its restricted-v2 refuses a user and a group of ours, and gives the
// pod one of the namespace's range, who must be able to read the certificate. The image's user is a
// number, so that the kubelet can tell it is not root.
func TestOpenShiftGivesTheUser(t *testing.T) {
	_, d, c := base(t)
	s := d.Spec.Template.Spec.SecurityContext
	if s.RunAsUser != nil || s.RunAsGroup != nil || s.FSGroup != nil || len(s.SupplementalGroups) > 0 || c.SecurityContext.RunAsUser != nil || c.SecurityContext.RunAsGroup != nil {
		t.Errorf("pod %+v, container %+v: want no user and no group", s, c.SecurityContext)
	}
	for _, v := range d.Spec.Template.Spec.Volumes {
		if v.Secret != nil && *v.Secret.DefaultMode != 0o444 {
			t.Errorf("volume %s has mode %o, want 444", v.Name, *v.Secret.DefaultMode)
		}
	}
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^USER [1-9]\d*:[1-9]\d*$`).Match(dockerfile) {
		t.Error("the image's user is not a number above 0")
	}
}

// TestMemoryFollowsTheLimit: the program takes nine tenths of it, and a GOMEMLIMIT here would be
// another number to keep right.
func TestMemoryFollowsTheLimit(t *testing.T) {
	_, _, c := base(t)
	if r := c.Resources; r.Limits.Memory().IsZero() || r.Requests.Memory().IsZero() || r.Limits.Cpu().IsZero() || r.Requests.Cpu().IsZero() {
		t.Errorf("resources %+v: want requests and limits of both", r)
	}
	if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "GOMEMLIMIT" }) {
		t.Error("GOMEMLIMIT is fixed")
	}
}

func TestRequestsAreLimitsWhereAsked(t *testing.T) {
	d := one[*appsv1.Deployment](t, renderObjects(t, overlay(t, "guaranteed")), "meshpulse")
	r := d.Spec.Template.Spec.Containers[0].Resources
	if !equality.Semantic.DeepEqual(r.Requests, r.Limits) || r.Limits.Memory().IsZero() || r.Limits.Cpu().IsZero() {
		t.Errorf("resources %+v: want requests that are the limits", r)
	}
}

// TestTheClassIsThere: a pod whose class is not is refused. It is ours, so that no quota of a
// cluster stands against it.
func TestTheClassIsThere(t *testing.T) {
	objects, d, _ := base(t)
	class := one[*schedulingv1.PriorityClass](t, objects, d.Spec.Template.Spec.PriorityClassName)
	if class.Value <= 0 || class.Value > 1_000_000_000 || class.GlobalDefault {
		t.Errorf("class %+v: want one above 0 that is nobody's default", class)
	}
}

// TestHostNetworkHasPortsOfItsOwn: the node's 10250 is the kubelet's, and the namespace has to
// admit such a pod.
func TestHostNetworkHasPortsOfItsOwn(t *testing.T) {
	objects := renderObjects(t, overlay(t, "host-network"))
	pod := one[*appsv1.Deployment](t, objects, "meshpulse").Spec.Template.Spec
	if !pod.HostNetwork || pod.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
		t.Errorf("host's network %v, DNS %s", pod.HostNetwork, pod.DNSPolicy)
	}
	https := containerPort(t, pod.Containers[0], "https")
	if https == 10250 || !slices.Contains(pod.Containers[0].Args, "--secure-port="+itoa(https)) {
		t.Errorf("port https is %d, the flags are %q", https, pod.Containers[0].Args)
	}
	if level := one[*corev1.Namespace](t, objects, namespace).Labels["pod-security.kubernetes.io/enforce"]; level != "privileged" {
		t.Errorf("the namespace enforces %q, which refuses the pod", level)
	}
}

func TestProbes(t *testing.T) {
	_, _, c := base(t)
	ready, alive := c.ReadinessProbe, c.LivenessProbe
	if ready == nil || ready.HTTPGet == nil || ready.HTTPGet.Path != "/readyz" ||
		ready.HTTPGet.Scheme != corev1.URISchemeHTTPS || ready.HTTPGet.Port != intstr.FromString("https") {
		t.Errorf("readiness probe is %+v: want /readyz over HTTPS on port https", ready)
	}
	// The first probe comes while the process starts, and fails. With a long period the pod is out
	// of the Service until the second one; what is slow for a while must not put it there.
	if next := ready.PeriodSeconds; next < 1 || next > 2 || next*ready.FailureThreshold < 15 {
		t.Errorf("readiness is asked for every %d s and lost after %d failures: want every 2 s at most, and lost after 15 s at the least", next, ready.FailureThreshold)
	}
	// The ingest port is accepted on from the start to the end; HTTPS is served only once the API
	// server answers.
	if alive == nil || alive.TCPSocket == nil || alive.TCPSocket.Port != intstr.FromString("ingest") {
		t.Errorf("liveness probe is %+v: want a connection to port ingest", alive)
	}
}

// containerPort is the number of the container's port with that name.
func containerPort(t *testing.T, c corev1.Container, name string) int32 {
	t.Helper()
	i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("the container has no port named %q", name)
	}
	return c.Ports[i].ContainerPort
}

func TestArgumentsAgreeWithPortsAndMounts(t *testing.T) {
	_, d, c := base(t)
	flags := map[string]string{}
	for _, arg := range c.Args {
		name, value, _ := strings.Cut(arg, "=")
		flags[name] = value
	}
	if want := "0.0.0.0:" + itoa(containerPort(t, c, "ingest")); flags["--ingest-address"] != want {
		t.Errorf("--ingest-address=%s, the port ingest wants %s", flags["--ingest-address"], want)
	}
	if want := itoa(containerPort(t, c, "https")); flags["--secure-port"] != want {
		t.Errorf("--secure-port=%s, the port https is %s", flags["--secure-port"], want)
	}
	if len(c.VolumeMounts) != 3 || len(d.Spec.Template.Spec.Volumes) != 3 {
		t.Fatalf("mounts %v, volumes %v: want the certificate, and what the mesh's authority is asked with", c.VolumeMounts, d.Spec.Template.Spec.Volumes)
	}
	mount, volume := mounted(t, d, "serving-cert")
	if volume.Secret == nil || volume.Secret.SecretName != certSecret {
		t.Errorf("mount %s of volume %+v: want Secret %s", mount.Name, volume, certSecret)
	}
	for flag, key := range map[string]string{"--tls-cert-file": "tls.crt", "--tls-private-key-file": "tls.key"} {
		if want := filepath.Join(mount.MountPath, key); flags[flag] != want {
			t.Errorf("%s=%s, the Secret is mounted as %s", flag, flags[flag], want)
		}
	}
}

// mounted returns a volume of the pod, and where the container has it.
func mounted(t *testing.T, d *appsv1.Deployment, name string) (corev1.VolumeMount, corev1.Volume) {
	t.Helper()
	pod := d.Spec.Template.Spec
	v := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	m := slices.IndexFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name })
	if v < 0 || m < 0 {
		t.Fatalf("volume %s is not there, or not mounted", name)
	}
	if !pod.Containers[0].VolumeMounts[m].ReadOnly {
		t.Errorf("%s can be written", name)
	}
	return pod.Containers[0].VolumeMounts[m], pod.Volumes[v]
}

// TestTheMeshsAuthorityIsAsked: by the address that may be reached, with a token that it takes, and
// without Istio the pod starts all the same. The files are where the program looks for them.
func TestTheMeshsAuthorityIsAsked(t *testing.T) {
	objects, d, c := base(t)
	if !slices.Contains(c.Args, "--ingest-mtls=permissive") {
		t.Errorf("arguments %v: want --ingest-mtls=permissive", c.Args)
	}
	host, port, _ := strings.Cut(strings.TrimPrefix(c.Args[slices.IndexFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--ingest-ca-address=") })], "--ingest-ca-address="), ":")
	found := false
	for _, rule := range one[*networkingv1.NetworkPolicy](t, objects, "meshpulse").Spec.Egress {
		if len(rule.To) == 1 && rule.To[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] == strings.Split(host, ".")[1] && rule.Ports[0].Port.String() == port {
			found = true
		}
	}
	if !found {
		t.Errorf("%s:%s is asked, and the NetworkPolicy does not let it through", host, port)
	}
	mount, volume := mounted(t, d, "istio-token")
	if p := volume.Projected; p == nil || len(p.Sources) != 1 || p.Sources[0].ServiceAccountToken.Audience != "istio-ca" ||
		filepath.Join(mount.MountPath, p.Sources[0].ServiceAccountToken.Path) != "/var/run/secrets/tokens/istio-token" {
		t.Errorf("the token is %+v at %s", volume.Projected, mount.MountPath)
	}
	mount, volume = mounted(t, d, "istio-ca")
	if m := volume.ConfigMap; m == nil || m.Name != "istio-ca-root-cert" || m.Optional == nil || !*m.Optional || mount.MountPath != "/var/run/secrets/istio" {
		t.Errorf("the roots are %+v at %s, want the optional ConfigMap", volume.ConfigMap, mount.MountPath)
	}
}

func TestServicesReachThePod(t *testing.T) {
	objects, d, c := base(t)
	services := map[string]struct {
		port             int32
		target           string
		publishNotReady  bool
		namePrefixNeeded string
	}{
		// Istio reads the protocol off the port's name.
		"meshpulse-ingest": {port: 15090, target: "ingest", publishNotReady: true, namePrefixNeeded: "grpc-"},
		"meshpulse":        {port: 443, target: "https", namePrefixNeeded: "https"},
	}
	if n := len(all[*corev1.Service](objects)); n != len(services) {
		t.Errorf("%d Services, want %d", n, len(services))
	}
	for name, want := range services {
		s := one[*corev1.Service](t, objects, name)
		if !selects(s.Spec.Selector, d.Spec.Template.Labels) {
			t.Errorf("Service %s selects %v, the pod has %v", name, s.Spec.Selector, d.Spec.Template.Labels)
		}
		if s.Spec.PublishNotReadyAddresses != want.publishNotReady {
			t.Errorf("Service %s: publishNotReadyAddresses %v", name, s.Spec.PublishNotReadyAddresses)
		}
		if len(s.Spec.Ports) != 1 {
			t.Fatalf("Service %s has %d ports, want 1", name, len(s.Spec.Ports))
		}
		port := s.Spec.Ports[0]
		if port.Port != want.port || port.TargetPort != intstr.FromString(want.target) || !strings.HasPrefix(port.Name, want.namePrefixNeeded) {
			t.Errorf("Service %s has port %+v, want %+v", name, port, want)
		}
		containerPort(t, c, want.target)
	}
	if !selects(d.Spec.Selector.MatchLabels, d.Spec.Template.Labels) {
		t.Errorf("the Deployment selects %v, its pods have %v", d.Spec.Selector.MatchLabels, d.Spec.Template.Labels)
	}
}

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
			out = append(out, where+string(*port.Protocol)+" "+port.Port.String())
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

// TestRightsAreLeast holds meshpulse's own role to this table: a new right has to be argued here.
func TestRightsAreLeast(t *testing.T) {
	objects, _, _ := base(t)
	want := map[string]string{ // resource: verbs
		"autoscaling/horizontalpodautoscalers": "get list watch",
		"/pods":                                "list watch",
		"*/*/scale":                            "get",
		"/events":                              "create patch",
	}
	got := map[string]string{}
	for _, rule := range one[*rbacv1.ClusterRole](t, objects, "meshpulse").Rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				got[group+"/"+resource] = strings.Join(rule.Verbs, " ")
			}
		}
		if len(rule.NonResourceURLs) > 0 || len(rule.ResourceNames) > 0 {
			t.Errorf("unexpected rule %+v", rule)
		}
	}
	for key, verbs := range want {
		if got[key] != verbs {
			t.Errorf("%s: %q, want %q", key, got[key], verbs)
		}
	}
	if len(got) != len(want) {
		t.Errorf("rights %v, want %v", got, want)
	}
}

// TestNobodyIsGivenMore looks at what is bound to whom, and at every role for verbs that change
// things.
func TestNobodyIsGivenMore(t *testing.T) {
	objects, _, _ := base(t)
	for _, role := range all[*rbacv1.ClusterRole](objects) {
		for _, rule := range role.Rules {
			for _, verb := range rule.Verbs {
				readsOnly := verb == "get" || verb == "list" || verb == "watch"
				event := slices.Equal(rule.Resources, []string{"events"}) && (verb == "create" || verb == "patch")
				query := slices.Equal(rule.Resources, []string{"queries"}) && slices.Equal(rule.APIGroups, []string{"meshpulse.io"}) && verb == "create" // it is answered, and kept nowhere
				if !readsOnly && !event && !query {
					t.Errorf("ClusterRole %s may %s %v", role.Name, verb, rule.Resources)
				}
			}
		}
	}
	const self = "meshpulse-system/meshpulse"
	want := map[string]string{ // role: to whom
		"ClusterRole meshpulse":                          self,
		"ClusterRole system:auth-delegator":              self,
		"ClusterRole meshpulse:external-metrics-reader":  "kube-system/horizontal-pod-autoscaler",
		"Role extension-apiserver-authentication-reader": self,
	}
	got := map[string]string{}
	bind := func(ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		for _, s := range subjects {
			if s.Kind != rbacv1.ServiceAccountKind {
				t.Errorf("%s %s is bound to a %s", ref.Kind, ref.Name, s.Kind)
			}
			got[ref.Kind+" "+ref.Name] += s.Namespace + "/" + s.Name
		}
	}
	for _, b := range all[*rbacv1.ClusterRoleBinding](objects) {
		bind(b.RoleRef, b.Subjects)
	}
	for _, b := range all[*rbacv1.RoleBinding](objects) {
		bind(b.RoleRef, b.Subjects)
	}
	if len(got) != len(want) {
		t.Errorf("bound are %v, want %v", got, want)
	}
	for role, subject := range want {
		if got[role] != subject {
			t.Errorf("%s is bound to %q, want %q", role, got[role], subject)
		}
	}
}

// TestQueriesReadTheirOwnNamespaceWhereAsked: the component adds the flag, and the right that it
// needs, and the base has none of it (TestRightsAreLeast).
func TestQueriesReadTheirOwnNamespaceWhereAsked(t *testing.T) {
	objects, base := renderObjects(t, overlay(t, "own-namespaces")), renderObjects(t, "base")
	args := func(of []runtime.Object) []string {
		return one[*appsv1.Deployment](t, of, "meshpulse").Spec.Template.Spec.Containers[0].Args
	}
	if got, want := args(objects), append(args(base), "--query-namespaces=own"); !slices.Equal(got, want) {
		t.Errorf("arguments %v, want %v", got, want)
	}
	rules := func(of []runtime.Object) []rbacv1.PolicyRule {
		return one[*rbacv1.ClusterRole](t, of, "meshpulse").Rules
	}
	want := append(rules(base), rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list", "watch"}})
	if got := rules(objects); !reflect.DeepEqual(got, want) {
		t.Errorf("rules %+v, want %+v", got, want)
	}
}

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

// TestSurgeActionIsBound: the component adds one right, for the account that meshpulse runs as, and
// the base has none of it (TestNobodyIsGivenMore).
func TestSurgeActionIsBound(t *testing.T) {
	const role = "meshpulse:surge-action"
	want := []rbacv1.PolicyRule{{APIGroups: []string{"apps"}, Resources: []string{"deployments/scale", "statefulsets/scale"}, Verbs: []string{"get", "update"}}}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "meshpulse", Namespace: namespace}}
	for component, where := range map[string]string{"surge-action": "", "surge-action/namespaced": "test"} {
		objects := renderObjects(t, overlay(t, component))
		if got := one[*rbacv1.ClusterRole](t, objects, role).Rules; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: rules %+v, want %+v", component, got, want)
		}
		var ref rbacv1.RoleRef
		var to []rbacv1.Subject
		if where == "" {
			b := one[*rbacv1.ClusterRoleBinding](t, objects, role)
			ref, to = b.RoleRef, b.Subjects
		} else {
			b := one[*rbacv1.RoleBinding](t, objects, role)
			ref, to = b.RoleRef, b.Subjects
			if b.Namespace != where {
				t.Errorf("%s: bound in namespace %q, want %q", component, b.Namespace, where)
			}
			if n := len(all[*rbacv1.ClusterRoleBinding](objects)) - len(all[*rbacv1.ClusterRoleBinding](renderObjects(t, "base"))); n != 0 {
				t.Errorf("%s: %d bindings for all namespaces", component, n)
			}
		}
		if ref.Kind != "ClusterRole" || ref.Name != role || !reflect.DeepEqual(to, subjects) {
			t.Errorf("%s: %+v is bound to %+v, want %+v", component, ref, to, subjects)
		}
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

// TestDockerfileCopiesWhatItBuilds compares the folders that the image is built from with those
// that the program imports.
func TestDockerfileCopiesWhatItBuilds(t *testing.T) {
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/meshpulse/meshpulse/"
	out, err := exec.Command("go", "list", "-deps", "../cmd/meshpulse").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	needed := map[string]bool{}
	for path := range strings.FieldsSeq(string(out)) {
		if rest, ok := strings.CutPrefix(path, module); ok {
			folder, _, _ := strings.Cut(rest, "/")
			needed[folder] = true
		}
	}
	if !needed["cmd"] {
		t.Fatalf("go list names no package of %s: %s", module, out)
	}
	for folder := range needed {
		if !strings.Contains(string(dockerfile), "COPY "+folder+" "+folder+"\n") {
			t.Errorf("the Dockerfile does not copy %s, which the program needs", folder)
		}
	}
}

func selects(selector, podLabels map[string]string) bool {
	return len(selector) > 0 && labels.SelectorFromSet(selector).Matches(labels.Set(podLabels))
}
