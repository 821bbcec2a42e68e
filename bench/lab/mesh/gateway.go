package mesh

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/meshpulse/meshpulse/bench/sidecar"
)

// Gateway is the Envoy through which a workload's traffic enters: it reports as source and balances over the pods
// that are ready.
type Gateway struct {
	envoy *sidecar.Sidecar
}

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
	envoy, err := sidecar.Start(ctx, sidecar.Options{
		Binary: c.Envoy, Dir: dir,
		Pod: "gateway-" + c.Namespace, Namespace: "istio-ingress", Workload: "gateway",
		Address: fmt.Sprintf("127.97.255.%d", c.Index+1), InboundPort: inboundPort, AdminPort: adminPort,
		Reporter: sidecar.Source, DestinationWorkload: c.Workload, DestinationNamespace: c.Namespace,
		Sink: c.Sink, FlushInterval: c.FlushInterval,
	})
	if err != nil {
		return nil, fmt.Errorf("gateway of %s/%s: %w", c.Namespace, c.Workload, err)
	}
	return &Gateway{envoy: envoy}, nil
}

// URL is where requests enter.
func (g *Gateway) URL() string { return "http://" + g.envoy.Address() + "/" }

// PID is its Envoy's.
func (g *Gateway) PID() int { return g.envoy.PID() }

// SetPods replaces the sidecars (host:port) that it balances over.
func (g *Gateway) SetPods(addresses []string) error { return g.envoy.SetUpstreams(addresses...) }

// Stop ends it.
func (g *Gateway) Stop() { g.envoy.Kill() }
