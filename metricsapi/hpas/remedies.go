package hpas

import (
	"fmt"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
)

// What to write in place of a metric, a label or a value that no sidecar sends. The texts are for
// errors and events.

// RemedyForMetric is the function's, but for Envoy's own metrics where they are kept: sidecars have
// to send them, too.
func (v Vocabulary) RemedyForMetric(name string) string {
	if !strings.HasPrefix(name, aggregator.ProxyPrefix) || v.Keeps == nil || !v.Keeps(name) {
		return remedyForMetric(name)
	}
	return fmt.Sprintf("%s is kept, and no sidecar sends it: each sends what its bootstrap includes, from the first use on (the annotation %s of its pod; manifests/istio/README.md)", name, InclusionAnnotation)
}

// InclusionAnnotation of a pod says which of Envoy's own metrics its sidecar sends.
const InclusionAnnotation = "sidecar.istio.io/statsInclusionRegexps"

// remedyForMetric says what to do about a metric that is not Istio's, or a list of such
// (part.named).
func remedyForMetric(name string) string {
	begins := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	}
	switch {
	case strings.Contains(name, ":"):
		return "the name " + name + " is of a recording rule, which is Prometheus' own: write the expression of that rule in its place"
	case name == aggregator.ProxyBuild:
		return "sidecars send the metric istio_build by themselves, and none of these does"
	case begins("istio_agent_", "istio_cni_", "istiod_"):
		return "the metric " + name + " is of Istio's control plane or agent, and meshpulse has what sidecars tell of requests only"
	case begins(istioPrefix):
		return "Istio does not set the metric " + name + " by itself: check the spelling (istio_requests_total, istio_request_duration_milliseconds, istio_request_bytes, istio_response_bytes, " +
			"istio_tcp_sent_bytes_total, …), or the Telemetry resource that adds it"
	case begins(aggregator.ProxyPrefix):
		return name + " is one of Envoy's own metrics, of which those are read that --keep names, and sent that " + InclusionAnnotation +
			" does (manifests/istio/README.md). For requests take istio_requests_total, for requests in progress the metric istio-requests-in-flight"
	case begins("http_", "grpc_", "nginx_", "traefik_"):
		return anothers(name) + ". The requests that reach a pod through its sidecar are in istio_requests_total"
	case begins("container_cpu", "container_memory", "node_cpu", "process_cpu"):
		return anothers(name) + ". For CPU and memory an HPA has metrics of type Resource, which need none"
	}
	return anothers(name)
}

func anothers(name string) string {
	return "Istio does not set the metric " + name + ": meshpulse has what sidecars send only, and what another exporter has another adapter has to serve. Else check the spelling"
}

// RemedyForLabel says what to do about a label that no series has. Most are labels that Prometheus
// adds to what it scrapes, which no sidecar and no Telemetry resource sends.
func RemedyForLabel(name string) string {
	now, caller := scrapeLabel(name)
	scraped := fmt.Sprintf("the label %s is one that Prometheus adds when it scrapes, and no sidecar sends it: ", name)
	switch {
	case now == "":
		return fmt.Sprintf("Istio does not set the label %s by itself: check the spelling, or the Telemetry resource that adds it", name)
	case now == dropLabel:
		return scraped + "leave it out"
	case caller != "":
		return scraped + fmt.Sprintf(`write %s in its place (with reporter="source": %s)`, now, caller)
	}
	return scraped + fmt.Sprintf("write %s in its place", now)
}

// dropLabel stands for no label in place of another.
const dropLabel = "-"

// scrapeLabel says what label of Istio's, or of the store's, has what a label of a scrape would
// say: of what is called and, where that is another, of the caller; dropLabel where there is none,
// "" where the label is none that scrapes are known to have. The names are those of the scrape jobs
// of Istio's samples/addons/prometheus.yaml, of the Prometheus operator and of the older charts.
func scrapeLabel(name string) (now, caller string) {
	switch name {
	case "kubernetes_namespace", "kube_namespace", "exported_namespace", "k8s_namespace", "pod_namespace":
		return "namespace", ""
	case "kubernetes_pod_name", "kubernetes_pod", "kube_pod", "exported_pod", "k8s_pod", "pod_name":
		return "pod", ""
	case "destination_namespace":
		return namespaceKey, ""
	case "source_namespace":
		return "source_workload_namespace", ""
	case "app", "app_kubernetes_io_name", "k8s_app":
		return "destination_app", "source_app"
	case "version", "app_kubernetes_io_version":
		return "destination_version", "source_version"
	case "service_istio_io_canonical_name":
		return "destination_canonical_service", "source_canonical_service"
	case "service_istio_io_canonical_revision":
		return "destination_canonical_revision", "source_canonical_revision"
	case "workload", "workload_name", "deployment", "destination_deployment":
		return "destination_workload", "source_workload"
	case "service", "service_name":
		return "destination_service_name", ""
	case "job", "instance", "endpoint", "container", "container_name", "prometheus", "prometheus_replica", "release", "chart", "heritage", "node", "pod_template_hash",
		"controller_revision_hash", "security_istio_io_tlsMode", "istio_io_rev", "istio", "mesh_id", "cluster", "__address__", "__scheme__", "__metrics_path__":
		return dropLabel, ""
	}
	return "", ""
}

// remedyForPods is for who divides by a number of pods.
const remedyForPods = "A sum needs no division by the pods with a target of type AverageValue, which divides by the replicas: leave it out. " +
	"Where the number itself is meant, take count(count by (pod) (istio_requests_total{…}))"
