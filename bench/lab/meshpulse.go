package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/web"
)

// meshpulse is the program under test, outside a pod but with its own manifests: its Service, its
// APIService, its service account and no more rights than those, and the flags of its Deployment.
type meshpulse struct {
	lab     *lab
	cluster *cluster.Cluster
	dir     string
	args    []string
	base    []string // the Deployment's flags
	ingest  string   // host:port
	options meshpulseOptions

	mu      sync.Mutex
	process *process.Process // nil while it is restarted
}

// meshpulseOptions are how a run's meshpulse differs from what the base starts.
type meshpulseOptions struct {
	// components of the manifests beside the base and the APIService.
	components []string
	// flags go behind the Deployment's, and win.
	flags []string
	// apiServer is the URL at which it reaches the API server, "" for the cluster's own.
	apiServer string
	// memory is its GOMEMLIMIT in bytes, 0 for none.
	memory int64
	// host is where its API listens, "" for the Service's own address.
	host string
	// oracle starts one more beside two, which gets all that sidecars send to either.
	oracle bool
	// within is the command that starts it in other circumstances, nil if there are none.
	within func(command ...string) []string
}

const (
	systemNamespace = "meshpulse-system"
	// serverName is what the API server expects in the certificate, as in production.
	serverName = "meshpulse." + systemNamespace + ".svc"
	// serviceIP is the clusterIP of meshpulse's Service and where the process listens, with the
	// Service's port: that is how the API server reaches an aggregated API that runs outside a pod.
	serviceIP = "127.96.0.20"
	// overlay is the base with components, as the manifests' own install script composes it with
	// the APIService.
	overlay = `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [base]
components: [%s]
`
)

// installMeshpulse applies the manifests and starts the process; it returns when the process is
// ready.
func installMeshpulse(ctx context.Context, l *lab, c *cluster.Cluster, dir string, options meshpulseOptions) (*meshpulse, error) {
	m, err := prepareMeshpulse(ctx, l, c, dir, options)
	if err != nil {
		return nil, err
	}
	if err := m.start(ctx); err != nil {
		m.stop()
		return nil, err
	}
	return m, nil
}

// prepareMeshpulse applies the manifests and configures the process, which launch starts.
func prepareMeshpulse(ctx context.Context, l *lab, c *cluster.Cluster, dir string, options meshpulseOptions) (*meshpulse, error) {
	m := &meshpulse{lab: l, cluster: c, dir: filepath.Join(dir, "meshpulse"), options: options}
	objects, err := m.render(ctx, append([]string{"apiservice"}, options.components...))
	if err != nil {
		return nil, err
	}
	flags, err := adapt(objects, c.CA.PEM)
	if err != nil {
		return nil, err
	}
	// The namespace first: everything else lives in it.
	for _, wave := range []bool{true, false} {
		var documents []string
		for _, o := range objects {
			if (o.GetKind() == "Namespace") == wave {
				text, err := yaml.Marshal(o.Object)
				if err != nil {
					return nil, err
				}
				documents = append(documents, string(text))
			}
		}
		if err := c.Apply(ctx, []byte(strings.Join(documents, "---\n"))); err != nil {
			return nil, fmt.Errorf("apply the manifests: %w", err)
		}
	}
	m.base = flags
	return m, m.configure(ctx, flags)
}

// another is one more process of the manifests that are applied, with a folder of its own.
func (m *meshpulse) another(ctx context.Context, dir string, options meshpulseOptions) (*meshpulse, error) {
	o := &meshpulse{lab: m.lab, cluster: m.cluster, dir: dir, options: options, base: m.base}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return o, o.configure(ctx, m.base)
}

// render is `kubectl kustomize` over a copy of the manifests with the overlay in it.
func (m *meshpulse) render(ctx context.Context, components []string) ([]*unstructured.Unstructured, error) {
	overlayDir := filepath.Join(m.dir, "manifests")
	parts := []string{"base"}
	for _, c := range components {
		parts = append(parts, "components/"+c)
	}
	for _, part := range parts {
		if _, err := os.Stat(filepath.Join(overlayDir, part)); err == nil {
			continue // it came with the folder around it
		}
		if err := os.CopyFS(filepath.Join(overlayDir, part), os.DirFS(filepath.Join(m.lab.root, "manifests", part))); err != nil {
			return nil, err
		}
	}
	text := fmt.Sprintf(overlay, strings.Join(parts[1:], ", "))
	if err := os.WriteFile(filepath.Join(overlayDir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		return nil, err
	}
	rendered, err := m.cluster.Kubectl(ctx, nil, "kustomize", overlayDir)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for document := range strings.SplitSeq(rendered, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			return nil, fmt.Errorf("rendered manifests: %w", err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// adapt changes what differs outside a pod, and nothing else: the Service leads to the process, the
// APIService trusts the lab's authority, the Deployment starts no pod. It returns the container's
// flags.
func adapt(objects []*unstructured.Unstructured, ca []byte) (flags []string, err error) {
	found := 0
	for _, o := range objects {
		switch o.GetKind() + "/" + o.GetName() {
		case "Service/meshpulse":
			found++
			err = errors.Join(unstructured.SetNestedField(o.Object, "NodePort", "spec", "type"),
				unstructured.SetNestedField(o.Object, serviceIP, "spec", "clusterIP"))
		case "APIService/v1beta2.custom.metrics.k8s.io", "APIService/v1alpha1.meshpulse.io": // where it is asked for
			err = unstructured.SetNestedField(o.Object, base64.StdEncoding.EncodeToString(ca), "spec", "caBundle")
		case "APIService/v1beta1.external.metrics.k8s.io":
			found++
			err = unstructured.SetNestedField(o.Object, base64.StdEncoding.EncodeToString(ca), "spec", "caBundle")
		case "Deployment/meshpulse":
			found++
			var d appsv1.Deployment
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
				return nil, err
			}
			flags = d.Spec.Template.Spec.Containers[0].Args
			err = unstructured.SetNestedField(o.Object, int64(0), "spec", "replicas")
		}
		if err != nil {
			return nil, fmt.Errorf("manifest of %s: %w", o.GetName(), err)
		}
	}
	if found != 3 {
		return nil, errors.New("the manifests lack the Deployment, the Service or the APIService of meshpulse")
	}
	return flags, nil
}

// configure makes the certificate, the kubeconfig with the service account's token, and the flags:
// the Deployment's, then the lab's own, of which the last one of a name counts.
func (m *meshpulse) configure(ctx context.Context, flags []string) error {
	if err := m.cluster.CA.WriteFiles(m.dir, "serving", serverName, nil, m.names()); err != nil {
		return err
	}
	kubeconfig := filepath.Join(m.dir, "kubeconfig")
	server := cmp.Or(m.options.apiServer, m.cluster.Server)
	if err := m.cluster.ServiceAccountKubeconfig(ctx, kubeconfig, server, systemNamespace, "meshpulse"); err != nil {
		return err
	}
	ports, err := cluster.FreePorts(1)
	if err != nil {
		return err
	}
	m.ingest = "127.0.0.1:" + strconv.Itoa(ports[0])
	m.args = append(slices.Clone(flags),
		"--kubeconfig="+kubeconfig, "--ingest-address="+m.ingest,
		"--bind-address="+m.host(), "--secure-port=443",
		"--tls-cert-file="+filepath.Join(m.dir, "serving.crt"), "--tls-private-key-file="+filepath.Join(m.dir, "serving.key"))
	m.args = append(m.args, m.options.flags...)
	return nil
}

// host is where its API listens.
func (m *meshpulse) host() string { return cmp.Or(m.options.host, serviceIP) }

// names are what its certificate is issued to.
func (m *meshpulse) names() []string {
	names := []string{serverName, serviceIP, "127.0.0.1"}
	if m.options.host != "" {
		names = append(names, m.options.host)
	}
	return names
}

// launch starts the process and does not wait for it.
func (m *meshpulse) launch() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	command := append([]string{m.lab.meshpulse}, m.args...)
	if m.options.memory > 0 {
		command = append([]string{"env", "GOMEMLIMIT=" + memoryText(m.options.memory)}, command...)
	}
	if m.options.within != nil {
		command = m.options.within(command...)
	}
	var err error
	m.process, err = process.Start(filepath.Join(m.dir, "meshpulse.log"), command[0], command[1:]...)
	return err
}

// memoryText is a number of bytes as Go reads it.
func memoryText(bytes int64) string { return strconv.FormatInt(bytes>>20, 10) + "MiB" }

// start starts the process and returns when it listens.
func (m *meshpulse) start(ctx context.Context) error {
	if err := m.launch(); err != nil {
		return err
	}
	return m.answered(ctx)
}

// answered returns when the API server is answered.
func (m *meshpulse) answered(ctx context.Context) error {
	p := m.current()
	err := p.Await(ctx, 30*time.Second, func(ctx context.Context) error {
		return m.cluster.Client.RESTClient().Get().AbsPath("/apis/external.metrics.k8s.io/v1beta1").Do(ctx).Error()
	})
	if err != nil {
		return fmt.Errorf("meshpulse: %w", err)
	}
	return nil
}

// sink is the ingest port.
func (m *meshpulse) sink() string { return m.ingest }

// prepare creates the HPA as it is: meshpulse reads HPAs.
func (m *meshpulse) prepare(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) error {
	_, err := m.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(hpa.Namespace).Create(ctx, hpa, metav1.CreateOptions{})
	return err
}

// restart ends the process as an update would and starts its successor on the same addresses.
func (m *meshpulse) restart(ctx context.Context) error {
	if err := m.leave(); err != nil {
		return err
	}
	return m.start(ctx)
}

// leave ends the process as an update would, and returns once it has ended.
func (m *meshpulse) leave() error {
	m.mu.Lock()
	p := m.process
	m.process = nil
	m.mu.Unlock()
	return p.Stop()
}

// kill ends the process at once (SIGKILL). Until launch there is none.
func (m *meshpulse) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil {
		m.process.Kill()
		m.process = nil
	}
}

// pause stops the process where it is (SIGSTOP), or lets it go on.
func (m *meshpulse) pause(on bool) error {
	p := m.current()
	if p == nil {
		return errors.New("meshpulse does not run")
	}
	return p.Pause(on)
}

func (m *meshpulse) current() *process.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process
}

func (m *meshpulse) failed() error {
	if p := m.current(); p != nil {
		return p.Ended()
	}
	return nil
}

func (m *meshpulse) processes() map[string]int {
	if p := m.current(); p != nil {
		return map[string]int{"meshpulse": p.PID()}
	}
	return nil
}

// ingestBytes is the counter of received bytes in /metrics (envoystats).
const ingestBytes = "meshpulse_ingest_bytes_total "

// metricsURL is where it tells of itself.
func (m *meshpulse) metricsURL() string { return "https://" + m.host() + "/metrics" }

func (m *meshpulse) wireBytes(ctx context.Context) (float64, error) {
	body, err := web.Get(ctx, m.cluster.AdminClient(), m.metricsURL())
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, ingestBytes); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, errors.New("/metrics of meshpulse has no " + ingestBytes)
}

func (m *meshpulse) stop() { m.kill() }
