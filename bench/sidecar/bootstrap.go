package sidecar

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"text/template"
)

// statPrefix is Istio's prefix of all its stats (istio: pkg/bootstrap,
// pilot/pkg/networking/core/listener).
const statPrefix = "istiocustom"

// These request headers tell a destination sidecar who calls, in place of Istio's peer metadata; a
// missing one is set to Istio's "unknown".
const (
	workloadHeader  = "x-source-workload"
	namespaceHeader = "x-source-namespace"
	principalHeader = "x-source-principal"
)

//go:embed bootstrap.json.tmpl
var bootstrapText string

// tag is one of Istio's tags with the format of its value.
type tag struct {
	Name   string `json:"name"`
	Format string `json:"value_format"`
}

// bootstrap renders Envoy's start configuration; upstreams is the file that the endpoints are read
// from.
func bootstrap(o Options, upstreams string) ([]byte, error) {
	sinkHost, sinkPort, err := splitAddress(o.Sink)
	if err != nil {
		return nil, fmt.Errorf("sidecar option Sink: %w", err)
	}
	t, err := template.New("bootstrap.json.tmpl").Funcs(template.FuncMap{"json": toJSON, "tls": transportSocket}).Parse(bootstrapText)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	err = t.Execute(&b, map[string]any{
		"Options":       o,
		"StatPrefix":    statPrefix,
		"StatsLogger":   StatsLogger(o),
		"Inclusions":    inclusions(o),
		"Listener":      listener(o),
		"Cluster":       upstreamCluster(o),
		"PeerHeaders":   []string{workloadHeader, namespaceHeader, principalHeader},
		"UpstreamsFile": upstreams,
		"SinkHost":      sinkHost,
		"SinkPort":      sinkPort,
		"Flush":         duration(o.FlushInterval.Seconds()),
		"Eviction":      duration(o.EvictionInterval.Seconds()),
	})
	if err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

// inclusions are the patterns of an annotation, each of a whole name (istio: pkg/bootstrap,
// getStatsOptions).
func inclusions(o Options) []string {
	note := o.Annotations["sidecar.istio.io/statsInclusionRegexps"]
	if note == "" {
		return nil
	}
	return strings.Split(note, ",")
}

// listener and upstreamCluster are what Istio calls the two in the names of Envoy's own stats, with
// the semicolon at which its tag rules tell where a name ends (istio:
// pkg/util/DelimitedStatsPrefix).
func listener(o Options) string {
	if o.Reporter == Source {
		return "outbound_0.0.0.0_9898;"
	}
	return "inbound_0.0.0.0_9898;"
}

func upstreamCluster(o Options) string {
	if o.Reporter == Source {
		return "outbound|9898||" + o.DestinationWorkload + "." + o.DestinationNamespace + ".svc.cluster.local;"
	}
	return "inbound|9898||;"
}

// transportSocket is that of the sink's cluster.
func transportSocket(t TLS) map[string]any {
	secret := func(name string) map[string]any {
		return map[string]any{"name": name, "sds_config": map[string]any{
			"api_config_source": map[string]any{
				"api_type": "GRPC", "grpc_services": []any{map[string]any{"envoy_grpc": map[string]any{"cluster_name": "sds-grpc"}}},
				"set_node_on_first_message_only": true, "transport_api_version": "V3",
			},
			"initial_fetch_timeout": "0s", "resource_api_version": "V3",
		}}
	}
	peers := []any{}
	for _, id := range t.Peers {
		peers = append(peers, map[string]any{"exact": id})
	}
	return map[string]any{
		"name": "envoy.transport_sockets.tls",
		"typed_config": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
			"sni":   "envoy_metrics_service",
			"common_tls_context": map[string]any{
				"alpn_protocols":                     []any{"istio", "h2"},
				"tls_certificate_sds_secret_configs": []any{secret("default")},
				"combined_validation_context": map[string]any{
					"default_validation_context":           map[string]any{"match_subject_alt_names": peers},
					"validation_context_sds_secret_config": secret("ROOTCA"),
				},
			},
		},
	}
}

// StatsLogger is the access logger, in protobuf's JSON, by which a stock Envoy counts what Istio's
// stats filter counts, under its names and with its tags. Of the options it is what the tags say
// that counts, each an Envoy format: %ENVIRONMENT(NAME)% is as good as a name.
func StatsLogger(o Options) map[string]any {
	o = o.withDefaults()
	scope := map[string]any{"prefix": statPrefix}
	if o.EvictionInterval != 0 {
		scope["enable_eviction"] = true
	}
	stat := func(name string) map[string]any { return map[string]any{"name": name, "tags": tags(o)} }
	histogram := func(name, unit, value string) map[string]any {
		return map[string]any{"stat": stat(name), "unit": unit, "value_format": value}
	}
	return map[string]any{
		"name": "envoy.access_loggers.stats",
		"typed_config": map[string]any{
			"@type":       "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config",
			"stats_scope": scope,
			"counters":    []any{map[string]any{"stat": stat("istio_requests_total"), "value_fixed": 1}},
			"histograms": []any{
				histogram("istio_request_duration_milliseconds", "Milliseconds", o.Duration),
				histogram("istio_request_bytes", "Bytes", "%REQUEST_HEADERS_BYTES%"),
				histogram("istio_response_bytes", "Bytes", "%RESPONSE_HEADERS_BYTES%"),
			},
		},
	}
}

// tags are Istio's 25 tags of the HTTP metrics, in its order: it is the order in a joined name.
func tags(o Options) []tag {
	source := struct{ workload, revision, namespace, principal, version, cluster string }{
		"%REQ(" + workloadHeader + ")%", "latest", "%REQ(" + namespaceHeader + ")%",
		"%REQ(" + principalHeader + ")%", "unknown", "unknown",
	}
	if o.Reporter == Source {
		source.workload, source.revision, source.namespace = o.Workload, o.Version, o.Namespace
		source.principal, source.version, source.cluster = "unknown", o.Version, "Kubernetes"
	}
	workload, namespace, version := o.DestinationWorkload, o.DestinationNamespace, o.DestinationVersion
	all := []tag{
		{"reporter", string(o.Reporter)},
		{"source_workload", source.workload},
		{"source_canonical_service", source.workload},
		{"source_canonical_revision", source.revision},
		{"source_workload_namespace", source.namespace},
		{"source_principal", source.principal},
		{"source_app", source.workload},
		{"source_version", source.version},
		{"source_cluster", source.cluster},
		{"destination_workload", workload},
		{"destination_workload_namespace", namespace},
		{"destination_principal", "unknown"},
		{"destination_app", workload},
		{"destination_version", version},
		{"destination_service", workload + "." + namespace + ".svc.cluster.local"},
		{"destination_canonical_service", workload},
		{"destination_canonical_revision", version},
		{"destination_service_name", workload},
		{"destination_service_namespace", namespace},
		{"destination_cluster", "Kubernetes"},
		{"request_protocol", "http"},
		{"response_code", "%RESPONSE_CODE%"},
		{"grpc_response_status", "%GRPC_STATUS_NUMBER%"},
		{"response_flags", "%RESPONSE_FLAGS%"},
		{"connection_security_policy", "none"},
	}
	for i := range all {
		if format, ok := o.Tags[all[i].Name]; ok {
			all[i].Format = format
		}
	}
	return all
}

// endpoints renders the file of upstream addresses (an EDS response on disk).
func endpoints(addresses []string) ([]byte, error) {
	lb := make([]any, 0, len(addresses))
	for _, a := range addresses {
		host, port, err := splitAddress(a)
		if err != nil {
			return nil, fmt.Errorf("upstream: %w", err)
		}
		lb = append(lb, map[string]any{"endpoint": map[string]any{
			"address": map[string]any{"socket_address": map[string]any{"address": host, "port_value": port}},
		}})
	}
	return json.MarshalIndent(map[string]any{"resources": []any{map[string]any{
		"@type":        "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
		"cluster_name": "upstream",
		"endpoints":    []any{map[string]any{"lb_endpoints": lb}},
	}}}, "", " ")
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port of %q: %w", address, err)
	}
	return host, int(n), nil
}

func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// duration is protobuf's JSON form: seconds with an s; "" for none.
func duration(seconds float64) string {
	if seconds == 0 {
		return ""
	}
	return strconv.FormatFloat(seconds, 'f', -1, 64) + "s"
}
