package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/documents"
)

// istioLimit is how long a run with a mesh may take before it is ended.
const istioLimit = 40 * time.Minute

// istioSteps are lab-istio's: a mesh that istiod makes, STRICT, and meshpulse in it on every way of
// wiring. No pod has two ways at once.
func istioSteps(first, second *reader) []step {
	result := &istioResult{start: time.Now()}
	one := guide{documents.ByRequests, "podinfo-total", 2, 2}
	return result.timed(slices.Concat([]step{
		{"CoreDNS, kube-proxy, kube-router", first.startNetwork},
		{"istioctl install: istiod is ready", func(ctx context.Context) error { return first.istioctlInstall(ctx) }},
		{"stock Envoys count as Istio's do; STRICT mTLS for the whole mesh", first.makeStrict},
	}, first.installSteps(), []step{
		{"a Telemetry for less volume: istiod sends an Envoy of Istio's what the README says of it", first.telemetry},
		{"side by side under STRICT: guide 1 wired by annotation, guide 2 by its own bootstrap", func(ctx context.Context) error {
			return abreast(ctx, result.timed(first.annotated(one)), result.timed(second.bootstrapped(result)))
		}},
		{"a rollout of meshpulse at 30/s, without scale-down stabilisation: 3 replicas all the time, every question answered", func(ctx context.Context) error {
			return errors.Join(first.holdNothingBack(ctx, one.hpa), first.rollsUnderLoad(ctx))
		}},
		{"install.sh --rotate-cert, the API asked twice a second: every question answered, the new certificate served; without load 3 -> 1", func(ctx context.Context) error {
			err := first.rotates(ctx, one.hpa)
			// What was scaled to is looked at once a second, and may be seen last.
			went := first.eventually(ctx, 10*time.Second, func() error { return first.scale.went(2, 3, 1) })
			result.say("guide 1, replicas: " + first.scale.all() + "; the end of it waits for `--hold`, 5 minutes after meshpulse's restart: " +
				"guide 1 asks of all the namespace, and the load tester's sidecar, which nobody has wired, is older than meshpulse")
			return errors.Join(err, went)
		}},
		{"mesh-wide by istioctl install, and a gateway: all sidecars report, and the gateway what it sends out", first.meshWide},
		{"mutual TLS: all sidecars and the gateway are proven; plaintext of a namespace that is made strict is refused", func(ctx context.Context) error {
			return first.strictFor(ctx, second, result)
		}},
		{"manifests/uninstall.sh leaves nothing", func(ctx context.Context) error {
			if _, err := first.sh(ctx, documents.Uninstall); err != nil {
				return err
			}
			if _, err := first.kubectl(ctx, "delete", "namespace", theirs, elsewhere, "ingress"); err != nil {
				return err
			}
			return first.sameObjects(ctx)
		}},
		{"bench/results/lab-istio.md", func(context.Context) error { return result.write(first.node) }},
	}))
}

// annotated is the first guide up to three replicas, in pods with native sidecars that an
// annotation has wired.
func (r *reader) annotated(g guide) []step {
	return []step{
		{"guide 1, wired by annotation, native sidecars: hey at 20/s, 1 -> 2 replicas", func(ctx context.Context) error {
			r.watchScale()
			return r.follow(ctx, g)
		}},
		{"its sidecars are native, `istioctl proxy-config bootstrap` shows the sink; a call without mTLS is refused", func(ctx context.Context) error {
			return errors.Join(r.injected(ctx, true, "envoy.stat_sinks.metrics_service"), r.unwired(ctx), r.refusesPlaintext(ctx))
		}},
		{"its sidecars prove with istiod's certificates who they are: /debug/hpas", func(ctx context.Context) error {
			_, err := r.proves(ctx, theirs)
			return err
		}},
		{"guide 1, hey -q 15 at 30/s, 2 -> 3 replicas", func(ctx context.Context) error { return r.faster(ctx, g) }},
	}
}

// bootstrapped is the second guide, in pods whose sidecars are containers with a bootstrap of their
// own.
func (r *reader) bootstrapped(result *istioResult) []step {
	g := guide{documents.OneWorkload, "podinfo", 5, 6}
	return []step{
		r.workloadGuide()[0], // the app
		{"guide 2, own bootstrap, sidecars that are not native: hey at 50/s, 1 -> 5 or 6 replicas", func(ctx context.Context) error {
			if err := r.ownBootstrap(ctx); err != nil {
				return err
			}
			r.watchScale()
			return r.follow(ctx, g)
		}},
		{"its sidecars are containers, `istioctl proxy-config bootstrap` shows the sink", func(ctx context.Context) error {
			return r.injected(ctx, false, "emitTagsAsLabels: true")
		}},
		{"guide 2 without load: back to 1", func(ctx context.Context) error {
			if err := errors.Join(r.holdNothingBack(ctx, g.hpa), r.stopLoad()); err != nil {
				return err
			}
			err := r.scales(ctx, guide{hpa: g.hpa, least: 1, most: 1})
			result.say("guide 2, replicas: " + r.scale.all())
			return err
		}},
	}
}

// held is how long a new meshpulse waits for sidecars that are older than it (--hold): the load
// tester's has no sink, and is never back.
const held = 5 * time.Minute

// rotates replaces the certificate, and the load is gone: replicas go back to one while the API is
// asked.
func (r *reader) rotates(ctx context.Context, hpa string) error {
	served, err := r.servedCertificate(ctx)
	if err != nil {
		return err
	}
	w := r.watch(ctx)
	if err := r.stopLoad(); err != nil {
		return err
	}
	if _, err := r.sh(ctx, "manifests/install.sh --rotate-cert"); err != nil {
		return err
	}
	return errors.Join(r.scalesWithin(ctx, held+scaled, guide{hpa: hpa, least: 1, most: 1}), r.servesAnother(ctx, served), w.end())
}

// startNetwork is startRest without the lab's own injector.
func (n *node) startNetwork(ctx context.Context) error {
	if err := n.startRouter(); err != nil {
		return err
	}
	return errors.Join(n.startDNS(ctx), <-n.imported, n.failed())
}

// istioctlInstall installs Istio, with further files over the lab's own.
func (r *reader) istioctlInstall(ctx context.Context, over ...string) error {
	command := "istioctl install --skip-confirmation -f " + r.istioFile("istio.yaml")
	for _, file := range over {
		command += " -f " + file
	}
	_, err := r.sh(ctx, command)
	return err
}

// istioFile writes a file of config/istio into the run's state and returns where.
func (n *node) istioFile(name string) string {
	file := filepath.Join(n.state, name)
	text, err := config.ReadFile("config/istio/" + name)
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		panic(err) // it is part of this program
	}
	return file
}

func (n *node) apply(ctx context.Context, name string) error {
	text, err := config.ReadFile("config/istio/" + name)
	if err != nil {
		return err
	}
	return n.cluster.Apply(ctx, text)
}

func (n *node) makeStrict(ctx context.Context) error {
	return errors.Join(n.cluster.Apply(ctx, countAsIstio()), n.apply(ctx, "strict.yaml"))
}

// podinfos are the guides' pods that run.
func (r *reader) podinfos(ctx context.Context) ([]corev1.Pod, error) {
	list, err := r.cluster.Client.CoreV1().Pods(r.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=podinfo", FieldSelector: "status.phase=Running"})
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return nil, errors.New("no pod of podinfo runs")
	}
	return list.Items, nil
}

// injected looks at how istiod has injected the pods, and runs what the README of the wiring gives
// to see whether it has worked.
func (r *reader) injected(ctx context.Context, native bool, sink string) error {
	pods, err := r.podinfos(ctx)
	if err != nil {
		return err
	}
	isProxy := func(c corev1.Container) bool { return c.Name == "istio-proxy" }
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		if got := slices.ContainsFunc(pod.Spec.InitContainers, isProxy); got != native || slices.ContainsFunc(pod.Spec.Containers, isProxy) == native {
			return fmt.Errorf("pod %s: a native sidecar: %v", pod.Name, got)
		}
		seen, err := r.seesSink(ctx, pod.Name, pod.Namespace)
		if err != nil {
			return err
		}
		if !strings.Contains(seen, sink) {
			return fmt.Errorf("pod %s: its bootstrap shows no sink with %s:\n%s", pod.Name, sink, seen)
		}
	}
	return nil
}

// seesSink runs the command that manifests/istio/README.md answers "Did it work?" with.
func (r *reader) seesSink(ctx context.Context, pod, namespace string) (string, error) {
	readme, err := os.ReadFile(filepath.Join(r.root, "manifests/istio/README.md"))
	if err != nil {
		return "", err
	}
	for _, block := range documents.Parse(string(readme)) {
		if block.Names("istioctl proxy-config bootstrap") {
			command, err := documents.Fill(block.Commands[0].Text, "POD", pod, "NAMESPACE", namespace)
			if err != nil {
				return "", err
			}
			return r.sh(ctx, command)
		}
	}
	return "", errors.New("manifests/istio/README.md has no command `istioctl proxy-config bootstrap …`")
}

// unwired is an error when the same command shows a sink of a pod that nobody has wired, the load
// tester's.
func (r *reader) unwired(ctx context.Context) error {
	pod, err := r.kubectl(ctx, "--namespace="+r.namespace, "get", "pods", "--selector=app=loadtester", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return err
	}
	seen, _ := r.seesSink(ctx, pod, r.namespace) // grep ends with an error when it finds nothing
	if strings.TrimSpace(seen) != "" {
		return fmt.Errorf("pod %s has no sink, and is shown to have one:\n%s", pod, seen)
	}
	return nil
}

// telemetry applies the README's Telemetry beside a pod and looks at what istiod has for its Envoy:
// inbound the filter without sizes, outbound none. The stock one refuses that, so the pod is never
// ready.
func (r *reader) telemetry(ctx context.Context) error {
	commands, err := r.commandsIn("manifests/istio/telemetry-less-volume.yaml")
	if err != nil {
		return err
	}
	if err := r.apply(ctx, "telemetry.yaml"); err != nil {
		return err
	}
	for _, command := range commands {
		if _, err := r.sh(ctx, strings.Replace(command, "-n test", "-n telemetry", 1)); err != nil {
			return err
		}
	}
	err = r.eventually(ctx, time.Minute, func() error {
		dump, err := r.sh(ctx, "istioctl x internal-debug 'config_dump?proxyID=web.telemetry'")
		if err != nil {
			return err
		}
		return lessVolume([]byte(dump))
	})
	_, gone := r.kubectl(ctx, "delete", "namespace", "telemetry")
	return errors.Join(err, gone)
}

// lessVolume is an error where a listener's filter still counts sizes, or where one that is not
// inbound has the filter at all.
func lessVolume(dump []byte) error {
	var all struct {
		Configs []struct {
			DynamicListeners []struct {
				Name        string
				ActiveState json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(dump, &all); err != nil {
		return fmt.Errorf("istiod's dump: %w", err)
	}
	found := 0
	for _, config := range all.Configs {
		for _, listener := range config.DynamicListeners {
			var compact bytes.Buffer
			if err := json.Compact(&compact, listener.ActiveState); err != nil {
				return err
			}
			filters := strings.Count(compact.String(), `/stats.PluginConfig"`)
			if filters > 0 && listener.Name != "virtualInbound" {
				return fmt.Errorf("listener %s counts what goes out", listener.Name)
			}
			if n := strings.Count(compact.String(), `"metrics":[{"name":"request_bytes","drop":true},{"name":"response_bytes","drop":true}]`); n != filters {
				return fmt.Errorf("listener %s: %d of %d filters leave the sizes out", listener.Name, n, filters)
			}
			found += filters
		}
	}
	if found == 0 {
		return errors.New("no listener has the stats filter (yet)")
	}
	return nil
}

// refusesPlaintext calls the app's port as one outside the mesh.
func (r *reader) refusesPlaintext(ctx context.Context) error {
	pods, err := r.podinfos(ctx)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+pods[0].Status.PodIP+":9898/", nil)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Do(request)
	if err == nil {
		_ = response.Body.Close()
		return fmt.Errorf("a call without mTLS is answered: %s", response.Status)
	}
	return nil
}

// holdNothingBack takes the HPA's scale-down stabilisation away, behind which a wrong answer could
// hide.
func (r *reader) holdNothingBack(ctx context.Context, hpa string) error {
	_, err := r.kubectl(ctx, "--namespace="+r.namespace, "patch", "hpa", hpa, "--type=merge", "--patch", `{"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":0}}}}`)
	return err
}

// afterRestart is how long the replicas are looked at after a restart: the queries' minute, and two
// looks of the HPA.
const afterRestart = 90 * time.Second

// rollsUnderLoad replaces meshpulse's pod while hey runs, and looks on until the new one knows all
// of a query's window.
func (r *reader) rollsUnderLoad(ctx context.Context) error {
	from := r.scale.now()
	w := r.watch(ctx)
	_, err := r.kubectl(ctx, "--namespace="+namespace, "rollout", "restart", "deployment/meshpulse")
	if err == nil {
		err = r.rollout(ctx, namespace, "meshpulse")
	}
	if err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(afterRestart):
		}
	}
	return errors.Join(err, w.end(), r.scale.unchangedSince(from))
}

// plainPod starts the app anew without annotations, from which each way of wiring begins.
func (r *reader) plainPod(ctx context.Context) error {
	_, err := r.kubectl(ctx, "--namespace="+r.namespace, "patch", "deployment", "podinfo", "--type=json", "--patch",
		`[{"op": "remove", "path": "/spec/template/metadata/annotations"}]`)
	return err
}

// ownBootstrap wires the app as the two files of the own bootstrap say, in pods whose sidecar is a
// container.
func (r *reader) ownBootstrap(ctx context.Context) error {
	if err := r.plainPod(ctx); err != nil {
		return err
	}
	for _, file := range []string{"bootstrap-override.yaml", "bootstrap-annotation.yaml"} {
		commands, err := r.commandsIn("manifests/istio/" + file)
		if err != nil {
			return err
		}
		for _, command := range commands {
			if _, err := r.sh(ctx, r.ours(command)); err != nil {
				return err
			}
		}
	}
	_, err := r.kubectl(ctx, "--namespace="+r.namespace, "patch", "deployment", "podinfo", "--patch",
		`{"spec":{"template":{"metadata":{"annotations":{"sidecar.istio.io/nativeSidecar":"false"}}}}}`)
	if err != nil {
		return err
	}
	return r.rollout(ctx, r.namespace, "podinfo")
}

// commandsIn are the commands in the comment that a file begins with.
func (n *node) commandsIn(file string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(n.root, file))
	if err != nil {
		return nil, err
	}
	found := regexp.MustCompile(`(?m)^#   (\w.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(found) == 0 {
		return nil, fmt.Errorf("%s says no command", file)
	}
	var commands []string
	for _, match := range found {
		commands = append(commands, match[1])
	}
	return commands, nil
}

// meshWide wires all of the mesh as its file says, restarts what runs, and sends requests through a
// gateway.
func (r *reader) meshWide(ctx context.Context) error {
	commands, err := r.commandsIn("manifests/istio/mesh-wide-istiooperator.yaml")
	if err != nil {
		return err
	}
	for _, command := range commands {
		command = strings.Replace(command, "YOURS.yaml", r.istioFile("istio.yaml"), 1)
		if _, err := r.sh(ctx, "cd manifests/istio && "+command+" --skip-confirmation"); err != nil {
			return err
		}
	}
	if err := r.plainPod(ctx); err != nil {
		return err
	}
	if _, err := r.sh(ctx, "kubectl -n test rollout restart deployment"); err != nil {
		return err
	}
	if err := r.apply(ctx, "gateway.yaml"); err != nil {
		return err
	}
	for _, deployment := range []string{"test/podinfo", "test/loadtester", "ingress/gateway"} {
		namespace, name, _ := strings.Cut(deployment, "/")
		if err := r.rollout(ctx, namespace, name); err != nil {
			return err
		}
	}
	if err := r.startLoad(ctx, "kubectl -n test exec deploy/loadtester -c loadtester -- hey -z 5m -c 1 -q 8 http://gateway.ingress"); err != nil {
		return err
	}
	err = r.eventually(ctx, 2*time.Minute, func() error {
		answer, err := r.kubectl(ctx, "get", "--raw", externals+"/namespaces/ingress/prometheus-query?labelSelector=query-name%3Dsent-out")
		if err == nil && !regexp.MustCompile(`"value":"[1-9][0-9]*("|[0-9]{3}m")`).MatchString(answer) {
			err = fmt.Errorf("the gateway sends out less than a request a second: %s", answer)
		}
		return err
	})
	return errors.Join(err, r.stopLoad(), r.covered(ctx, "ingress", "sent-out"), r.covered(ctx, theirs, processed))
}
