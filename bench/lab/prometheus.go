package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/prometheus"
)

// prometheusVersion is the newest that builds as a module beside the others (v0.313.5 is Prometheus
// 3.13.5).
const prometheusVersion = "v0.313.5"

// prometheusConfig scrapes what Istio's merged endpoint would show and nothing else: the best case
// of this path. The gateways are no pods of the API server, so they are named.
const prometheusConfig = `global: {scrape_interval: %[1]s, scrape_timeout: %[1]s}
scrape_configs:
- job_name: sidecars
  metrics_path: /stats/prometheus
  params: {filter: ["^istiocustom"]}
  kubernetes_sd_configs: [{role: pod, kubeconfig_file: %[2]q}]
  relabel_configs:
  - {source_labels: [__meta_kubernetes_pod_annotation_sidecar_istio_io_status], regex: .+, action: keep}
  - {source_labels: [__meta_kubernetes_pod_phase], regex: Running, action: keep}
  - {source_labels: [__meta_kubernetes_pod_container_name], regex: istio-proxy, action: keep}
  - {source_labels: [__meta_kubernetes_pod_ip], replacement: "$1:15000", target_label: __address__}
  - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
  - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
  metric_relabel_configs: &strip
  - {source_labels: [__name__], regex: envoy_istiocustom_(.*), target_label: __name__}
- job_name: gateways
  metrics_path: /stats/prometheus
  params: {filter: ["^istiocustom"]}
  static_configs: [{targets: %[3]s}]
  metric_relabel_configs: *strip
`

// scrapedBytes asks for the bytes of all scrapes so far.
const scrapedBytes = "sum(sum_over_time(scrape_body_size_bytes[2h]))"

// startPrometheus starts one that finds the pods through the API server as they come and go.
func startPrometheus(ctx context.Context, l *lab, c *cluster.Cluster, dir string, scrape time.Duration, gateways []string) (*prometheus.Server, error) {
	targets, err := json.Marshal(gateways)
	if err != nil {
		return nil, err
	}
	ports, err := cluster.FreePorts(1)
	if err != nil {
		return nil, err
	}
	return prometheus.Start(ctx, prometheus.Options{
		Binary: l.peer("prometheus", prometheusVersion), Dir: filepath.Join(dir, "prometheus"), Address: "127.0.0.1:" + strconv.Itoa(ports[0]),
		Config: fmt.Sprintf(prometheusConfig, scrape, c.Kubeconfig, targets), Flags: []string{"--enable-feature=extra-scrape-metrics"},
	})
}
