package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// The names that manifests/base gives.
const (
	namespace = "meshpulse-system"
	selector  = "--selector=app.kubernetes.io/name=meshpulse"
	externals = "/apis/external.metrics.k8s.io/v1beta1"
)

// imageName is the name that the image was made with (node.mk).
const imageName = "lab.local/meshpulse:lab"

// clusterWide are kinds of which meshpulse has objects outside its namespace.
const clusterWide = "namespaces,priorityclasses,clusterroles,clusterrolebindings,apiservices,roles,rolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations"

// installSteps are those before anything else can be done; commands are typed as the documents have
// them.
func (r *reader) installSteps() []step {
	return []step{
		{"manifests/install.sh --dry-run changes nothing", func(ctx context.Context) error {
			var err error
			if r.before, err = r.objects(ctx); err != nil {
				return err
			}
			if err := r.install(ctx, true); err != nil {
				return err
			}
			return r.sameObjects(ctx)
		}},
		{"manifests/install.sh --image NAME:TAG@DIGEST: the aggregated API answers from a pod", func(ctx context.Context) error {
			if err := r.install(ctx, false); err != nil {
				return err
			}
			if err := r.expect(ctx, "True", "get", "apiservice", "v1beta1.external.metrics.k8s.io", "-o",
				`jsonpath={.status.conditions[?(@.type=="Available")].status}`); err != nil {
				return err
			}
			return r.answers(ctx)
		}},
	}
}

// install types the documents' install.sh, those of its commands that change nothing or the other.
func (r *reader) install(ctx context.Context, dry bool) error {
	block, err := r.documented(documents.Install)
	if err != nil {
		return err
	}
	for _, c := range block.Commands {
		if strings.HasPrefix(c.Text, documents.Install) && strings.Contains(c.Text, "--dry-run") == dry {
			if _, err := r.typed(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// installedSteps hold what install.sh promises of the pod.
func (r *reader) installedSteps() []step {
	return []step{
		{"a second install.sh changes nothing", func(ctx context.Context) error {
			const generation = "jsonpath={.metadata.generation}"
			if err := r.install(ctx, false); err != nil {
				return err
			}
			return r.expect(ctx, "1", "--namespace="+namespace, "get", "deployment", "meshpulse", "-o", generation)
		}},
		{"restricted pod security: a privileged pod is refused, meshpulse's has no right of root", r.restricted},
		{"probes: ready, never restarted, none has failed since", r.probed},
		{"EndpointSlices and ClusterIPs name the pod", r.published},
	}
}

// answers is an error when the API server cannot ask meshpulse, or is not answered. It waits as
// long as an API server does: how long an answer takes says how busy the machine is.
func (n *node) answers(ctx context.Context) error {
	_, err := n.cluster.Client.RESTClient().Get().AbsPath(externals).Timeout(time.Minute).DoRaw(ctx)
	return err
}

func (n *node) objects(ctx context.Context) (string, error) {
	return n.kubectl(ctx, "get", clusterWide, "--all-namespaces", "-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
}

// sameObjects is an error that names the objects that were not there before meshpulse was
// installed, or are no more.
func (n *node) sameObjects(ctx context.Context) error {
	after, err := n.objects(ctx)
	if err != nil {
		return err
	}
	return picture{"the cluster": strings.Split(n.before, "\n")}.same(picture{"the cluster": strings.Split(after, "\n")})
}

// pod is meshpulse's, the only one.
func (n *node) pod(ctx context.Context) (*corev1.Pod, error) { return n.podIn(ctx, namespace) }

// podIn is the same where it is installed elsewhere.
func (n *node) podIn(ctx context.Context, namespace string) (*corev1.Pod, error) {
	text, err := n.kubectl(ctx, "--namespace="+namespace, "get", "pods", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	var pods corev1.PodList
	if err := json.Unmarshal([]byte(text), &pods); err != nil {
		return nil, err
	}
	if len(pods.Items) != 1 {
		return nil, fmt.Errorf("%d pods of meshpulse and not one", len(pods.Items))
	}
	return &pods.Items[0], nil
}

// restricted looks at what the namespace admits, then at what the kernel lets the process do.
func (n *node) restricted(ctx context.Context) error {
	_, err := n.kubectl(ctx, "--namespace="+namespace, "run", "root", "--image="+imageName, "--restart=Never")
	if err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted`) {
		return fmt.Errorf("a pod that asks for nothing and so for too much is not refused: %v", err)
	}
	proc, err := meshpulseProcess()
	if err != nil {
		return err
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return err
	}
	for _, line := range []string{
		"Uid:\t65532\t65532\t65532\t65532", "Gid:\t65532\t65532\t65532\t65532", "CapEff:\t0000000000000000",
		"CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(string(status), "\n"+line+"\n") {
			return fmt.Errorf("the kernel does not say %q of meshpulse's process:\n%s", line, status)
		}
	}
	mounts, err := os.ReadFile(filepath.Join(proc, "mounts"))
	if err != nil {
		return err
	}
	if !strings.Contains(string(mounts), " / overlay ro,") {
		return fmt.Errorf("its root is not mounted read-only:\n%s", mounts)
	}
	if err := memoryLimited(proc); err != nil {
		return err
	}
	log, err := n.kubectl(ctx, "--namespace="+namespace, "logs", "deployment/meshpulse")
	if limit := fmt.Sprintf("gomemlimit=%d", 1<<30/10*9); err == nil && !strings.Contains(log, limit) {
		err = fmt.Errorf("its log does not say %s, nine tenths of what the control group has:\n%s", limit, log)
	}
	return err
}

// anotherUser runs meshpulse as OpenShift's restricted-v2 does: a user of the namespace's range, of
// group 0, whom the image does not know.
func (n *node) anotherUser(ctx context.Context) error {
	const user = 1000730000
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"securityContext":{"runAsUser":%d,"runAsGroup":0}}}}}`, user)
	for _, step := range []struct {
		change []string
		line   string
	}{
		{[]string{"patch", "deployment", "meshpulse", "--patch=" + patch}, fmt.Sprintf("Uid:\t%d\t", user)},
		{[]string{"rollout", "undo", "deployment/meshpulse"}, "Uid:\t65532\t"},
	} {
		if _, err := n.kubectl(ctx, append([]string{"--namespace=" + namespace}, step.change...)...); err != nil {
			return err
		}
		if err := n.rollout(ctx, namespace, "meshpulse"); err != nil {
			return err
		}
		if err := n.eventually(ctx, time.Minute, func() error { // until the old one has gone
			proc, err := meshpulseProcess()
			if err != nil {
				return err
			}
			status, err := os.ReadFile(filepath.Join(proc, "status"))
			if err == nil && !strings.Contains(string(status), "\n"+step.line) {
				err = fmt.Errorf("the kernel does not say %q of meshpulse's process:\n%s", step.line, status)
			}
			return err
		}); err != nil {
			return err
		}
		if err := n.answers(ctx); err != nil {
			return err
		}
	}
	return nil
}

// meshpulseProcess is the folder in /proc of the one that runs in the pod.
func meshpulseProcess() (string, error) {
	pid := 0
	err := processes(func(p int, command []string) bool {
		if command[0] == "/meshpulse" {
			pid = p
		}
		return pid == 0
	})
	if err == nil && pid == 0 {
		err = errors.New("no process /meshpulse runs on the node")
	}
	return filepath.Join("/proc", fmt.Sprint(pid)), err
}

// memoryLimited is an error when no control group holds the process to the 1 GiB of its manifest.
func memoryLimited(proc string) error {
	limit, err := memoryOf(proc, "memory.max", "memory.limit_in_bytes")
	if err == nil && limit != 1<<30 {
		err = fmt.Errorf("its control group limits its memory to %d bytes and not to 1 GiB", limit)
	}
	return err
}

// memoryOf reads a number of the process' control group: its file has one name with version 2,
// another with version 1.
func memoryOf(proc, two, one string) (int64, error) {
	groups, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // number:controllers:path
		file := filepath.Join(cgroups, parts[2], two)
		if slices.Contains(strings.Split(parts[1], ","), "memory") {
			file = filepath.Join(cgroups, "memory", parts[2], one)
		} else if parts[1] != "" {
			continue
		}
		if value, err := os.ReadFile(file); err == nil {
			return strconv.ParseInt(strings.TrimSpace(string(value)), 10, 64)
		}
	}
	return 0, fmt.Errorf("no control group tells its memory (%s, %s):\n%s", two, one, groups)
}

// tellPeak prints the most memory that meshpulse's container has taken so far, page cache included:
// what its limit is held against.
func (n *node) tellPeak(context.Context) error {
	proc, err := meshpulseProcess()
	if err != nil {
		return err
	}
	peak, err := memoryOf(proc, "memory.peak", "memory.max_usage_in_bytes")
	if err != nil {
		return err
	}
	fmt.Printf("            %.0f MiB of 1024\n", float64(peak)/(1<<20))
	return nil
}

// probed looks at what the kubelet's probes have said since the pod was ready; before that it asks
// a process that is just starting.
func (n *node) probed(ctx context.Context) error {
	pod, err := n.pod(ctx)
	if err != nil {
		return err
	}
	for _, container := range pod.Status.ContainerStatuses {
		if !container.Ready || container.RestartCount != 0 {
			return fmt.Errorf("container %s: ready %v, restarted %d times", container.Name, container.Ready, container.RestartCount)
		}
	}
	text, err := n.kubectl(ctx, "get", "events", "--all-namespaces", "--field-selector=reason=Unhealthy", "-o", "json")
	if err != nil {
		return err
	}
	var events corev1.EventList
	if err := json.Unmarshal([]byte(text), &events); err != nil {
		return err
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return failedProbe(pod.Name, condition.LastTransitionTime.Time, events.Items)
		}
	}
	return fmt.Errorf("pod %s has no condition %s", pod.Name, corev1.PodReady)
}

// failedProbe is an error when a probe of the pod has failed since. One that timed out while other
// pods' probes did as well is the machine's fault, which was busy with something else.
func failedProbe(pod string, since time.Time, events []corev1.Event) error {
	timedOut := func(e corev1.Event) bool { return strings.Contains(strings.ToLower(e.Message), "timeout") }
	for _, event := range events {
		if event.InvolvedObject.Name != pod || !event.LastTimestamp.After(since) {
			continue
		}
		if timedOut(event) && slices.ContainsFunc(events, func(e corev1.Event) bool {
			return e.InvolvedObject.Name != pod && timedOut(e) && e.LastTimestamp.Sub(event.LastTimestamp.Time).Abs() < 30*time.Second
		}) {
			continue
		}
		return fmt.Errorf("ready since %s, and %s: %s", since.Format(time.TimeOnly), event.LastTimestamp.Format(time.TimeOnly), event.Message)
	}
	return nil
}

// published looks at what kube-proxy goes by: the pod's address behind both Services.
func (n *node) published(ctx context.Context) error {
	pod, err := n.pod(ctx)
	if err != nil {
		return err
	}
	for service, port := range map[string]string{"meshpulse": "10250", "meshpulse-ingest": "15090"} {
		if err := n.expect(ctx, pod.Status.PodIP+" "+port, "--namespace="+namespace, "get", "endpointslices", "--selector=kubernetes.io/service-name="+service,
			"-o", "jsonpath={.items[*].endpoints[*].addresses[*]} {.items[*].ports[*].port}"); err != nil {
			return err
		}
	}
	return nil
}

// watcher asks meshpulse through the API server twice a second and remembers each failure.
type watcher struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	// asked and failures are read after end.
	asked    int
	failures []error
}

func (n *node) watch(ctx context.Context) *watcher {
	w := &watcher{}
	ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx)) // beyond the step that starts it
	w.wg.Go(func() {
		for ctx.Err() == nil {
			start := time.Now()
			if err := n.answers(ctx); err != nil && ctx.Err() == nil {
				w.failures = append(w.failures, fmt.Errorf("%s: %w", start.Format(time.TimeOnly), err))
			}
			w.asked++
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	})
	return w
}

// end stops asking and is an error when a question was not answered.
func (w *watcher) end() error {
	w.stop()
	w.wg.Wait()
	if len(w.failures) > 0 {
		return fmt.Errorf("%d of %d questions to the API were not answered: %w", len(w.failures), w.asked, errors.Join(w.failures...))
	}
	return nil
}
