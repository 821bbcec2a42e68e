package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
)

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
