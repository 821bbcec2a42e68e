package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/prometheus"
)

// keda is the peer's path: Prometheus scrapes the sidecars, KEDA's operator asks it, KEDA's adapter
// answers the HPA controller. Its manifests come out of its own module, its processes run outside
// pods as meshpulse does.
type keda struct {
	lab               *lab
	cluster           *cluster.Cluster
	prometheus        *prometheus.Server
	operator, adapter *process.Process
	silent            string

	// query is the URL that a trigger asks; "" before Prometheus has been started.
	query string
	// rotates: its operator makes the certificates, as it does by default in a cluster.
	rotates bool
	// within is the command that starts its processes in other circumstances, nil if there are
	// none.
	within func(command ...string) []string
	// certificates is the folder that has them, as a kubelet would mount it; operate and adapt
	// start the processes.
	certificates   string
	operate, adapt func() (*process.Process, error)
}

const (
	kedaVersion   = "v2.21.0"
	kedaNamespace = "keda"
	kedaIP        = "127.96.0.21"
)

// kedaManifests are the files of its module that a cluster gets, the webhooks left out.
var kedaManifests = []string{
	"config/crd/bases", "config/service_account/service_account.yaml", "config/rbac/role.yaml", "config/rbac/role_binding.yaml",
	"config/metrics-server/role.yaml", "config/metrics-server/role_binding.yaml",
}

// startKEDA starts Prometheus and KEDA and returns when the metrics API answers.
func startKEDA(ctx context.Context, l *lab, c *cluster.Cluster, dir string, scrape time.Duration, gateways []string) (*keda, error) {
	k := &keda{lab: l, cluster: c}
	if err := k.start(ctx, filepath.Join(dir, "keda"), dir, scrape, gateways); err != nil {
		k.stop()
		return nil, err
	}
	return k, nil
}

func (k *keda) start(ctx context.Context, dir, runDir string, scrape time.Duration, gateways []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	ports, err := cluster.FreePorts(6)
	if err != nil {
		return err
	}
	// The sidecars' sink needs an address: nobody listens there, so that nothing is paid for a push
	// that nobody wants.
	k.silent = "127.0.0.1:" + strconv.Itoa(ports[5])
	if k.query == "" {
		if k.prometheus, err = startPrometheus(ctx, k.lab, k.cluster, runDir, scrape, gateways); err != nil {
			return err
		}
		k.query = k.prometheus.URL()
	}
	if err := k.install(ctx); err != nil {
		return err
	}
	k.certificates = filepath.Join(dir, "certificates")
	if err := os.MkdirAll(k.certificates, 0o755); err != nil {
		return err
	}
	if !k.rotates {
		names := []string{"localhost", "127.0.0.1", "keda-operator.keda.svc", "keda-metrics-apiserver.keda.svc"}
		if err := k.cluster.CA.WriteFiles(k.certificates, "tls", "keda", nil, names); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(k.certificates, "ca.crt"), k.cluster.CA.PEM, 0o600); err != nil {
			return err
		}
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := k.cluster.ServiceAccountKubeconfig(ctx, kubeconfig, k.cluster.Server, kedaNamespace, "keda-operator"); err != nil {
		return err
	}
	k.commands(dir, kubeconfig, ports)
	if k.operator, err = k.operate(); err != nil {
		return err
	}
	if k.rotates {
		if err := k.mountCertificates(ctx); err != nil {
			return err
		}
	}
	if err := k.lead(ctx); err != nil {
		return err
	}
	return k.startAdapter(ctx)
}

// commands are those that start its processes.
func (k *keda) commands(dir, kubeconfig string, ports []int) {
	address := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	operator := address(2) // as the adapter knows it: its certificate has to be for that
	if k.rotates {
		operator = "keda-operator.keda.svc:" + strconv.Itoa(ports[2])
	}
	// env(1) sets what it runs on and becomes it, so the process id stays.
	env := []string{"env", "KUBECONFIG=" + kubeconfig, "POD_NAMESPACE=" + kedaNamespace, "WATCH_NAMESPACE=", "KEDA_CLUSTER_OBJECT_NAMESPACE=" + kedaNamespace}
	start := func(log string, args ...string) (*process.Process, error) {
		command := slices.Concat(env, args)
		if k.within != nil {
			command = k.within(command...)
		}
		return process.Start(filepath.Join(dir, log), command[0], command[1:]...)
	}
	k.operate = func() (*process.Process, error) {
		return start("operator.log", k.lab.peer("keda-operator", kedaVersion),
			"--cert-dir="+k.certificates, "--enable-cert-rotation="+strconv.FormatBool(k.rotates), "--enable-webhook-patching=false", "--enable-apiservice-patching=false",
			"--metrics-bind-address="+address(0), "--health-probe-bind-address="+address(1), "--metrics-service-bind-address="+address(2))
	}
	k.adapt = func() (*process.Process, error) {
		clients := filepath.Join(dir, "clients.crt")
		if err := os.WriteFile(clients, k.cluster.CA.PEM, 0o600); err != nil {
			return nil, err
		}
		return start("adapter.log", k.lab.peer("keda-adapter", kedaVersion),
			"--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig,
			"--lister-kubeconfig="+kubeconfig,
			"--bind-address="+kedaIP, "--secure-port=443", "--port="+strconv.Itoa(ports[3]), "--metrics-service-address="+operator,
			"--client-ca-file="+clients, "--tls-cert-file="+filepath.Join(k.certificates, "tls.crt"),
			"--tls-private-key-file="+filepath.Join(k.certificates, "tls.key"), "--cert-dir="+k.certificates)
	}
}

// startAdapter starts it and returns when the metrics API answers.
func (k *keda) startAdapter(ctx context.Context) (err error) {
	if k.adapter, err = k.adapt(); err != nil {
		return err
	}
	err = k.adapter.Await(ctx, time.Minute, func(ctx context.Context) error {
		return k.cluster.Client.RESTClient().Get().AbsPath("/apis/external.metrics.k8s.io/v1beta1").Do(ctx).Error()
	})
	if err != nil {
		return fmt.Errorf("keda: %w", err)
	}
	return nil
}

// mountCertificates plays the kubelet: what the operator has put into its Secret comes into the
// folder. The operator ends when it has made them, and is started again.
func (k *keda) mountCertificates(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		secret, err := k.cluster.Client.CoreV1().Secrets(kedaNamespace).Get(ctx, "kedaorg-certs", metav1.GetOptions{})
		if err == nil && len(secret.Data["tls.crt"]) > 0 && len(secret.Data["ca.crt"]) > 0 {
			for name, data := range secret.Data {
				if err := os.WriteFile(filepath.Join(k.certificates, name), data, 0o600); err != nil {
					return err
				}
			}
			break
		}
		if k.operator.Ended() != nil {
			if k.operator, err = k.operate(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("keda's operator makes no certificates: %w; see its log", ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
	k.operator.Kill()
	var err error
	k.operator, err = k.operate()
	return err
}

// install applies KEDA's own manifests.
func (k *keda) install(ctx context.Context) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: kedaNamespace}}
	if _, err := k.cluster.Client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/kedacore/keda/v2")
	cmd.Dir = filepath.Join(k.lab.root, "bench", "lab", "peers", "keda")
	module, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("folder of the keda module: %w", err)
	}
	args := []string{"apply", "--server-side", "--force-conflicts"}
	for _, file := range kedaManifests {
		args = append(args, "-f", filepath.Join(strings.TrimSpace(string(module)), file))
	}
	_, err = k.cluster.Kubectl(ctx, nil, args...)
	return err
}

// lead makes a Service that leads to the process, and the APIService with the authority of its
// certificate.
func (k *keda) lead(ctx context.Context) error {
	ca, err := os.ReadFile(filepath.Join(k.certificates, "ca.crt"))
	if err != nil {
		return err
	}
	return k.cluster.Apply(ctx, fmt.Appendf(nil, `apiVersion: v1
kind: Service
metadata: {name: keda-metrics-apiserver, namespace: %[1]s}
spec: {type: NodePort, clusterIP: %[2]s, ports: [{port: 443}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  service: {name: keda-metrics-apiserver, namespace: %[1]s, port: 443}
  group: external.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: %[3]s
`, kedaNamespace, kedaIP, base64.StdEncoding.EncodeToString(ca)))
}

func (k *keda) sink() string { return k.silent }

// prepare makes a ScaledObject that stands for the HPA: same query, same target, same limits, same
// behavior; KEDA makes the HPA, under the same name.
func (k *keda) prepare(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) error {
	var query string
	for key, value := range hpa.Annotations {
		if strings.HasPrefix(key, "metric-config.external.prometheus-query.prometheus/") {
			query = value
		}
	}
	target := hpa.Spec.Metrics[0].External.Target
	if query == "" || target.AverageValue == nil {
		return fmt.Errorf("HPA %s has no PromQL with an AverageValue: KEDA cannot stand in", hpa.Name)
	}
	horizontal := map[string]any{"name": hpa.Name}
	if hpa.Spec.Behavior != nil {
		horizontal["behavior"] = hpa.Spec.Behavior
	}
	spec := map[string]any{
		"scaleTargetRef": map[string]any{"name": hpa.Spec.ScaleTargetRef.Name}, "pollingInterval": 5,
		"minReplicaCount": 1, "maxReplicaCount": hpa.Spec.MaxReplicas,
		"advanced": map[string]any{"horizontalPodAutoscalerConfig": horizontal},
		"triggers": []any{map[string]any{"type": "prometheus", "metricType": "AverageValue", "metadata": map[string]any{
			"serverAddress": k.query, "query": query, "threshold": target.AverageValue.String(),
		}}},
	}
	object, err := json.Marshal(map[string]any{
		"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": spec,
		"metadata": map[string]any{"name": hpa.Name, "namespace": hpa.Namespace},
	})
	if err != nil {
		return err
	}
	return k.cluster.Apply(ctx, object)
}

func (k *keda) restart(context.Context) error {
	return errors.New("the peer's path is not restarted")
}

func (k *keda) failed() error {
	return errors.Join(k.prometheus.Ended(), k.operator.Ended(), k.adapter.Ended())
}

func (k *keda) processes() map[string]int {
	return map[string]int{"prometheus": k.prometheus.PID(), "keda-operator": k.operator.PID(), "keda-adapter": k.adapter.PID()}
}

func (k *keda) wireBytes(ctx context.Context) (float64, error) {
	return k.prometheus.Value(ctx, scrapedBytes)
}

func (k *keda) stop() {
	if k == nil {
		return
	}
	for _, p := range []*process.Process{k.adapter, k.operator} {
		if p != nil {
			p.Kill()
		}
	}
	if k.prometheus != nil {
		k.prometheus.Kill()
	}
}
