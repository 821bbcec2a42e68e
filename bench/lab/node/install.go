package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
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
const clusterWide = "namespaces,clusterroles,clusterrolebindings,apiservices,roles,rolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations"

func (n *node) installSteps() []step {
	return []step{
		{"manifests/install.sh --dry-run changes nothing", func(ctx context.Context) error {
			var err error
			if n.before, err = n.objects(ctx); err != nil {
				return err
			}
			if _, err := n.sh(ctx, "manifests/install.sh --image "+n.image+" --dry-run"); err != nil {
				return err
			}
			return n.sameObjects(ctx)
		}},
		{"manifests/install.sh --image NAME:TAG@DIGEST: the aggregated API answers from a pod", n.install},
		{"a second install.sh changes nothing", func(ctx context.Context) error {
			const generation = "jsonpath={.metadata.generation}"
			if _, err := n.sh(ctx, "manifests/install.sh --image "+n.image); err != nil {
				return err
			}
			return n.expect(ctx, "1", "--namespace="+namespace, "get", "deployment", "meshpulse", "-o", generation)
		}},
		{"restricted pod security: a privileged pod is refused, meshpulse's has no right of root", n.restricted},
		{"probes: ready, never restarted, none has failed since", n.probed},
		{"EndpointSlices and ClusterIPs name the pod", n.published},
	}
}

func (n *node) install(ctx context.Context) error {
	if _, err := n.sh(ctx, "manifests/install.sh --image "+n.image); err != nil {
		return err
	}
	if err := n.expect(ctx, "True", "get", "apiservice", "v1beta1.external.metrics.k8s.io", "-o",
		`jsonpath={.status.conditions[?(@.type=="Available")].status}`); err != nil {
		return err
	}
	return n.answers(ctx)
}

// answers is an error when the API server cannot ask meshpulse, or is not answered.
func (n *node) answers(ctx context.Context) error {
	_, err := n.cluster.Client.RESTClient().Get().AbsPath(externals).Timeout(20 * time.Second).DoRaw(ctx)
	return err
}

func (n *node) objects(ctx context.Context) (string, error) {
	return n.kubectl(ctx, "get", clusterWide, "--all-namespaces", "-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
}

// sameObjects is an error that names the objects that were not there before meshpulse was installed, or are no more.
func (n *node) sameObjects(ctx context.Context) error {
	after, err := n.objects(ctx)
	if err != nil {
		return err
	}
	return picture{"the cluster": strings.Split(n.before, "\n")}.same(picture{"the cluster": strings.Split(after, "\n")})
}

// pod is meshpulse's, the only one.
func (n *node) pod(ctx context.Context) (*corev1.Pod, error) {
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
	pid := 0
	err = processes(func(p int, command []string) bool {
		if command[0] == "/meshpulse" {
			pid = p
		}
		return pid == 0
	})
	if err != nil || pid == 0 {
		return errors.Join(err, errors.New("no process /meshpulse runs on the node"))
	}
	proc := filepath.Join("/proc", fmt.Sprint(pid))
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
	return memoryLimited(proc)
}

// memoryLimited is an error when no control group holds the process to the 1 GiB of its manifest.
func memoryLimited(proc string) error {
	groups, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // number:controllers:path
		file := filepath.Join(cgroups, parts[2], "memory.max")
		if strings.Contains(parts[1], "memory") {
			file = filepath.Join(cgroups, "memory", parts[2], "memory.limit_in_bytes")
		} else if parts[1] != "" {
			continue
		}
		if limit, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(limit)) == "1073741824" {
			return nil
		}
	}
	return fmt.Errorf("no control group limits its memory to 1 GiB:\n%s", groups)
}

// probed looks at what the kubelet's probes have said since the pod was ready; before that it asks a process that is just starting.
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
	text, err := n.kubectl(ctx, "--namespace="+namespace, "get", "events", "--field-selector=reason=Unhealthy,involvedObject.name="+pod.Name, "-o", "json")
	if err != nil {
		return err
	}
	var events corev1.EventList
	if err := json.Unmarshal([]byte(text), &events); err != nil {
		return err
	}
	for _, condition := range pod.Status.Conditions {
		for _, event := range events.Items {
			if condition.Type == corev1.PodReady && event.LastTimestamp.After(condition.LastTransitionTime.Time) {
				return fmt.Errorf("ready since %s, and %s: %s", condition.LastTransitionTime, event.LastTimestamp, event.Message)
			}
		}
	}
	return nil
}

// published looks at what kube-proxy goes by: the pod's address behind both Services.
func (n *node) published(ctx context.Context) error {
	pod, err := n.pod(ctx)
	if err != nil {
		return err
	}
	for service, port := range map[string]string{"meshpulse": "6443", "meshpulse-ingest": "15090"} {
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
