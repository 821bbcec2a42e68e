package main

import (
	"archive/tar"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/meshpulse/meshpulse/bench/documents"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

func TestASecondReaderHasANamespaceOfItsOwn(t *testing.T) {
	l := &lab{root: "../../..", state: t.TempDir()}
	r, err := (&node{lab: l}).reader("test-2")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(r.root, documents.OneWorkload))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"namespace: test-2\n", `destination_workload_namespace="test-2"`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	const command = "kubectl -n test exec deploy/loadtester -- hey http://podinfo:9898"
	if got := r.ours(command); got != strings.Replace(command, "-n test ", "-n test-2 ", 1) {
		t.Error(got)
	}
	first, err := (&node{lab: l}).reader(theirs)
	if err != nil || first.root != l.root || first.ours(command) != command {
		t.Errorf("%+v, %v", first, err)
	}
}

func TestAnInstallThatWasTypedWithMoreFlagsIsKnown(t *testing.T) {
	r := &reader{node: &node{typedAlready: map[string]bool{documents.Install + " X --component mesh-namespaces --component dns": true}}}
	for command, isNew := range map[string]bool{
		"manifests/install.sh --component mesh-namespaces": false, "manifests/install.sh --component dns": false,
		"manifests/install.sh --no-apiservice": true, "kubectl get hpa": true, "make push IMAGE=X": false, "manifests/uninstall.sh": false,
	} {
		if r.isNew(documents.Command{Text: command}) != isNew {
			t.Errorf("%s: new is not %v", command, isNew)
		}
	}
}

func TestHeysReportIsJudged(t *testing.T) {
	const fine = "Status code distribution:\n  [200]\t900 responses\n\n"
	for report, good := range map[string]bool{
		fine:                            true,
		fine + "  [503]\t1 responses\n": false,
		"":                              false,
		fine + "Error distribution:\n  [1]\tGet \"http://podinfo:9898\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)\n": true,
		fine + "Error distribution:\n  [1]\tGet \"http://podinfo:9898\": dial tcp: connection refused\n":                                               false,
	} {
		if err := answered(report); (err == nil) != good {
			t.Errorf("%s: %v", report, err)
		}
	}
}

func TestAProbeThatFailedAloneIsTold(t *testing.T) {
	since := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	event := func(pod string, seconds int, message string) corev1.Event {
		return corev1.Event{
			InvolvedObject: corev1.ObjectReference{Name: pod}, Message: message, LastTimestamp: metav1.NewTime(since.Add(time.Duration(seconds) * time.Second)),
		}
	}
	const late, refused = "Readiness probe failed: net/http: request canceled (Client.Timeout exceeded while awaiting headers)", "connection refused"
	for name, test := range map[string]struct {
		events []corev1.Event
		good   bool
	}{
		"while it started":           {[]corev1.Event{event("meshpulse", -1, refused)}, true},
		"alone":                      {[]corev1.Event{event("meshpulse", 9, late), event("coredns", 50, late)}, false},
		"as others' did":             {[]corev1.Event{event("meshpulse", 9, late), event("coredns", 12, late)}, true},
		"refused while others' late": {[]corev1.Event{event("meshpulse", 9, refused), event("coredns", 9, late)}, false},
	} {
		if err := failedProbe("meshpulse", since, test.events); (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCommandsThatLookAreTypedAgain(t *testing.T) {
	for command, want := range map[string]bool{
		"kubectl get --raw /apis": true, "kubectl -n test describe hpa x": true, "curl -sk https://x": true, "kubectl -n test rollout status deployment": true,
		"kubectl -n test rollout restart deployment": false, "kubectl apply -f x": false, "kubectl -n test delete hpa --all": false,
	} {
		if looks.MatchString(command) != want {
			t.Errorf("%s: looks is not %v", command, want)
		}
	}
}

func podOf(annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "podinfo-6fcd8c889-", Labels: map[string]string{"app": "podinfo", "pod-template-hash": "6fcd8c889"}, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "podinfo-6fcd8c889", Controller: new(true)}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name:           "podinfod",
			Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 9898}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("http")}}},
		}}},
	}
}

func TestASidecarTakesTheAppsPortByName(t *testing.T) {
	wiring, err := os.ReadFile("../../../manifests/istio/pod-annotation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, config, _ := strings.Cut(string(wiring), "proxy.istio.io/config: |\n")
	pod := podOf(map[string]string{proxyConfig: config})
	if err := inject(pod, "test"); err != nil {
		t.Fatal(err)
	}
	app, proxy := pod.Spec.Containers[0], pod.Spec.Containers[1]
	if app.ReadinessProbe.HTTPGet.Port != intstr.FromInt32(9898) || app.Ports[0].Name != "" {
		t.Errorf("the app's port and probe: %+v, %+v", app.Ports, app.ReadinessProbe.HTTPGet)
	}
	if want := []corev1.ContainerPort{{Name: "http", ContainerPort: inboundPort}}; !cmp.Equal(want, proxy.Ports) {
		t.Errorf("the sidecar's ports: %+v", proxy.Ports)
	}
	env := map[string]string{}
	for _, variable := range proxy.Env {
		env[variable.Name] = variable.Value
	}
	if env["SINK"] != "meshpulse-ingest.meshpulse-system.svc.cluster.local:15090" || env["WORKLOAD"] != "podinfo" || env["APP_PORT"] != "9898" {
		t.Errorf("the sidecar is told %v", env)
	}
	if !meshpod.HasEnvoy(&pod.ObjectMeta) {
		t.Error("the pod does not count as one of the mesh")
	}
}

func TestAPodWithoutASinkKeepsItsPort(t *testing.T) {
	pod := podOf(nil)
	if err := inject(pod, "test"); err != nil {
		t.Fatal(err)
	}
	if len(pod.Spec.Containers) != 2 || pod.Spec.Containers[0].Ports[0].Name != "http" {
		t.Errorf("%+v", pod.Spec.Containers)
	}
	if err := inject(podOf(map[string]string{proxyConfig: "{"}), "test"); err == nil {
		t.Error("an annotation that is no YAML is taken")
	}
}

func TestAnImageHoldsItsFiles(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "image.tar")
	if err := (image{"lab.local/x:lab", map[string]string{"bin/program": program}, []string{"/bin/program"}, "1:1"}).write(file); err != nil {
		t.Fatal(err)
	}
	blobs := untar(t, file)
	type descriptor struct{ Digest string }
	var index struct {
		Manifests []struct {
			descriptor
			Annotations map[string]string
		}
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	decode := func(name string, into any) {
		t.Helper()
		if err := json.Unmarshal(blobs[name], into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	blob := func(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }
	decode("index.json", &index)
	if got := index.Manifests[0].Annotations["io.containerd.image.name"]; got != "lab.local/x:lab" {
		t.Errorf("named %q", got)
	}
	decode(blob(index.Manifests[0].descriptor), &manifest)
	layer := filepath.Join(dir, "layer.tar")
	if err := os.WriteFile(layer, blobs[blob(manifest.Layers[0])], 0o600); err != nil {
		t.Fatal(err)
	}
	if got := string(untar(t, layer)["bin/program"]); got != "content" {
		t.Errorf("the layer's file holds %q", got)
	}
}

func untar(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	found := map[string][]byte{}
	r := tar.NewReader(f)
	for {
		header, err := r.Next()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		if found[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatHasChangedOnAHostIsNamed(t *testing.T) {
	before := picture{"mounts": {"a", "b"}, "settings": {"x = 1"}}
	if err := before.same(picture{"mounts": {"b", "a"}, "settings": {"x = 1"}}); err != nil {
		t.Error(err)
	}
	err := before.same(picture{"mounts": {"a", "c"}, "settings": {"x = 1"}, "processes": {"1 kubelet"}})
	for _, want := range []string{"gone from the host, of mounts: b", "left on the host, in mounts: c", "left on the host, in processes: 1 kubelet"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func TestAControlGroupInWhichSomethingRunsIsNotANodes(t *testing.T) {
	group := t.TempDir()
	if err := os.MkdirAll(filepath.Join(group, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		file, content string
		want          bool
	}{{"cgroup.procs", "", false}, {"below/cgroup.procs", "", false}, {"below/cgroup.procs", "7\n", true}} {
		if err := os.WriteFile(filepath.Join(group, test.file), []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := occupied(group); got != test.want {
			t.Errorf("%s holds %q: occupied %v", test.file, test.content, got)
		}
	}
}

func TestControllersReachTheKubeletsFolderAndNoLonger(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reach := func() string {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	write("cgroup.controllers", "cpuset cpu memory pids\n")
	write("cgroup.subtree_control", "cpu pids\n")
	l := &lab{cgroup: cgroupPrefix + "1"}
	enabled, err := l.makeCgroups(root)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(root, l.cgroup)); err != nil || !info.IsDir() {
		t.Errorf("no folder for the kubelet: %v", err)
	}
	if got := reach(); got != "+cpuset +memory" { // what a kernel would be told
		t.Errorf("told %q", got)
	}
	if err := subtree(root, "-", enabled); err != nil || reach() != "-cpuset -memory" {
		t.Errorf("%v, taken back %q", err, reach())
	}
	if _, err := l.makeCgroups(t.TempDir()); err == nil {
		t.Error("a machine without control groups gives no error")
	}
}
