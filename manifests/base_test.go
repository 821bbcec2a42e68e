package manifests

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
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

// containerPort is the number of the container's port with that name.
func containerPort(t *testing.T, c corev1.Container, name string) int32 {
	t.Helper()
	i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("the container has no port named %q", name)
	}
	return c.Ports[i].ContainerPort
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
