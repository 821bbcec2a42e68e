package mesh

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/meshpulse/meshpulse/bench/sidecar"
)

// Gateway is the Envoy through which a workload's traffic enters: it reports as source and balances
// over the pods that are ready.
type Gateway struct {
	envoy *sidecar.Sidecar
	pod   *corev1.Pod
}

// GatewayNamespace is where gateways are.
const GatewayNamespace = "istio-ingress"

// GatewayConfig says whose gateway it is and how it reports.
type GatewayConfig struct {
	Dir, Envoy, Sink string
	FlushInterval    time.Duration
	// Namespace and Workload are whom it calls; Index tells the gateways of one lab apart.
	Namespace, Workload string
	Index               int
}

// StartGateway returns when the gateway serves. Without pods it answers 503.
func StartGateway(ctx context.Context, c GatewayConfig) (*Gateway, error) {
	dir := filepath.Join(c.Dir, "gateways", c.Namespace)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	name, address := "gateway-"+c.Namespace, fmt.Sprintf("127.97.255.%d", c.Index+1)
	envoy, err := sidecar.Start(ctx, sidecar.Options{
		Binary: c.Envoy, Dir: dir,
		Pod: name, Namespace: GatewayNamespace, Workload: "gateway",
		Address: address, InboundPort: inboundPort, AdminPort: adminPort,
		Reporter: sidecar.Source, DestinationWorkload: c.Workload, DestinationNamespace: c.Namespace,
		Sink: c.Sink, FlushInterval: c.FlushInterval,
	})
	if err != nil {
		return nil, fmt.Errorf("gateway of %s/%s: %w", c.Namespace, c.Workload, err)
	}
	return &Gateway{envoy: envoy, pod: gatewayPod(name, address)}, nil
}

func gatewayPod(name, address string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: GatewayNamespace, Name: name, Labels: map[string]string{"operator.istio.io/component": "IngressGateways"}},
		Spec:       corev1.PodSpec{SchedulerName: "nobody", Containers: []corev1.Container{{Name: "istio-proxy", Image: "none"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}},
	}
}

// Register makes the gateway one of the cluster's pods, which nobody schedules and runs: what
// reports has to be known.
func (g *Gateway) Register(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: GatewayNamespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	pod, err := client.CoreV1().Pods(GatewayNamespace).Create(ctx, g.pod, metav1.CreateOptions{})
	// A namespace gets its service account a moment later.
	for apierrors.IsForbidden(err) && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		pod, err = client.CoreV1().Pods(GatewayNamespace).Create(ctx, g.pod, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("gateway's pod: %w", err)
	}
	pod.Status = g.pod.Status
	_, err = client.CoreV1().Pods(GatewayNamespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// Address is where requests enter, host:port.
func (g *Gateway) Address() string { return g.envoy.Address() }

// PID is its Envoy's.
func (g *Gateway) PID() int { return g.envoy.PID() }

// SetPods replaces the sidecars (host:port) that it balances over.
func (g *Gateway) SetPods(addresses []string) error { return g.envoy.SetUpstreams(addresses...) }

// Stop ends it.
func (g *Gateway) Stop() { g.envoy.Kill() }
