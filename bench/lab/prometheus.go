package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/process"
)

// promServer is a real Prometheus that scrapes the pods' Envoys, found through the API server as they come and go.
type promServer struct {
	process *process.Process
	url     string
}

// prometheusVersion is the newest that builds as a module beside the others (v0.313.5 is Prometheus 3.13.5).
const prometheusVersion = "v0.313.5"

// prometheusConfig scrapes what Istio's merged endpoint would show and nothing else: the best case of this path. The
// gateways are no pods of the API server, so they are named.
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

func startPrometheus(ctx context.Context, l *lab, c *cluster.Cluster, dir string, scrape time.Duration, gateways []string) (*promServer, error) {
	dir = filepath.Join(dir, "prometheus")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	targets, err := json.Marshal(gateways)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, prometheusConfig, scrape, c.Kubeconfig, targets), 0o600); err != nil {
		return nil, err
	}
	ports, err := cluster.FreePorts(1)
	if err != nil {
		return nil, err
	}
	address := "127.0.0.1:" + strconv.Itoa(ports[0])
	p := &promServer{url: "http://" + address}
	p.process, err = process.Start(filepath.Join(dir, "prometheus.log"), l.peer("prometheus", prometheusVersion),
		"--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address,
		"--enable-feature=extra-scrape-metrics")
	if err != nil {
		return nil, err
	}
	err = proc.Await(ctx, p.process, 30*time.Second, func() error {
		_, err := p.get(ctx, "/-/ready", nil)
		return err
	})
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	return p, nil
}

func (p *promServer) stop() {
	if p != nil {
		p.process.Kill()
	}
}

// scraped is the bytes of all scrapes so far.
func (p *promServer) scraped(ctx context.Context) (float64, error) {
	body, err := p.get(ctx, "/api/v1/query", url.Values{"query": {"sum(sum_over_time(scrape_body_size_bytes[2h]))"}})
	if err != nil {
		return 0, err
	}
	var answer struct {
		Data struct {
			Result []struct {
				Value [2]any `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("prometheus: %w", err)
	}
	if len(answer.Data.Result) != 1 {
		return 0, fmt.Errorf("prometheus: no sizes of scrapes in %s", body)
	}
	return strconv.ParseFloat(fmt.Sprint(answer.Data.Result[0].Value[1]), 64)
}

func (p *promServer) get(ctx context.Context, path string, query url.Values) ([]byte, error) {
	return fetch(ctx, http.DefaultClient, p.url+path+"?"+query.Encode())
}
