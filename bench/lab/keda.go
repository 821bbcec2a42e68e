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
	if k.prometheus, err = startPrometheus(ctx, k.lab, k.cluster, runDir, scrape, gateways); err != nil {
		return err
	}
	if err := k.install(ctx); err != nil {
		return err
	}
	names := []string{"localhost", "127.0.0.1", "keda-operator.keda.svc", "keda-metrics-apiserver.keda.svc"}
	if err := k.cluster.CA.WriteFiles(dir, "tls", "keda", nil, names); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), k.cluster.CA.PEM, 0o600); err != nil {
		return err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := k.cluster.ServiceAccountKubeconfig(ctx, kubeconfig, k.cluster.Server, kedaNamespace, "keda-operator"); err != nil {
		return err
	}
	address := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	// env(1) sets what it runs on and becomes it, so the process id stays.
	env := []string{"KUBECONFIG=" + kubeconfig, "POD_NAMESPACE=" + kedaNamespace, "WATCH_NAMESPACE=", "KEDA_CLUSTER_OBJECT_NAMESPACE=" + kedaNamespace}
	k.operator, err = process.Start(filepath.Join(dir, "operator.log"), "env", append(env, k.lab.peer("keda-operator", kedaVersion),
		"--cert-dir="+dir, "--enable-cert-rotation=false", "--enable-webhook-patching=false", "--enable-apiservice-patching=false",
		"--metrics-bind-address="+address(0), "--health-probe-bind-address="+address(1), "--metrics-service-bind-address="+address(2))...)
	if err != nil {
		return err
	}
	k.adapter, err = process.Start(filepath.Join(dir, "adapter.log"), "env", append(env, k.lab.peer("keda-adapter", kedaVersion),
		"--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig,
		"--lister-kubeconfig="+kubeconfig,
		"--bind-address="+kedaIP, "--secure-port=443", "--port="+strconv.Itoa(ports[3]), "--metrics-service-address="+address(2),
		"--client-ca-file="+filepath.Join(dir, "ca.crt"), "--tls-cert-file="+filepath.Join(dir, "tls.crt"),
		"--tls-private-key-file="+filepath.Join(dir, "tls.key"), "--cert-dir="+dir)...)
	if err != nil {
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

// install applies KEDA's own manifests, a Service that leads to the process, and the APIService
// with the lab's CA.
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
	if _, err := k.cluster.Kubectl(ctx, nil, args...); err != nil {
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
`, kedaNamespace, kedaIP, base64.StdEncoding.EncodeToString(k.cluster.CA.PEM)))
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
			"serverAddress": k.prometheus.URL(), "query": query, "threshold": target.AverageValue.String(),
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
