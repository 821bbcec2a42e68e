package manifests

import (
	"bufio"
	"compress/gzip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	metrics "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	upstreams "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metricsservice "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	telemetry "istio.io/api/telemetry/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// ingestAddress is where every way of wiring has to point, as base/services.yaml has it.
func ingestAddress(t *testing.T) (host string, port uint32) {
	t.Helper()
	s := one[*corev1.Service](t, renderObjects(t, "base"), "meshpulse-ingest")
	return s.Name + "." + s.Namespace + ".svc.cluster.local", uint32(s.Spec.Ports[0].Port)
}

// section reads a YAML file and returns the part under the given keys.
func section(t *testing.T, path string, keys ...string) any {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var part any
	if err := yaml.UnmarshalStrict(content, &part); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, key := range keys {
		m, ok := part.(map[string]any)
		if !ok || m[key] == nil {
			t.Fatalf("%s: no %s under %v", path, key, keys)
		}
		part = m[key]
	}
	return part
}

// decodeProto reads a YAML value into a message and refuses fields that the message does not have.
func decodeProto(t *testing.T, name string, value any, into proto.Message) {
	t.Helper()
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if err := protojson.Unmarshal(asJSON, into); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, text)
	}
}

// proves fails where the sidecars would not show who they are, or would report to somebody else.
// Without subjectAltNames any workload of the mesh passes for meshpulse; SIMPLE and MUTUAL without
// files let Envoy refuse its bootstrap, so that every pod ends.
func proves(t *testing.T, s *mesh.RemoteService) {
	t.Helper()
	if mode := s.GetTlsSettings().GetMode(); mode != networking.ClientTLSSettings_ISTIO_MUTUAL {
		t.Errorf("mode %v, want ISTIO_MUTUAL", mode)
	}
	account := one[*appsv1.Deployment](t, renderObjects(t, "base"), "meshpulse").Spec.Template.Spec.ServiceAccountName
	want := []string{"spiffe://cluster.local/ns/" + namespace + "/sa/" + account, "spiffe://cluster.local/ns/" + namespace + "/sa/meshpulse-relay"}
	if got := s.GetTlsSettings().GetSubjectAltNames(); !slices.Equal(got, want) {
		t.Errorf("subjectAltNames %v, want %v", got, want)
	}
}

func TestEnvoyMetricsServiceAddress(t *testing.T) {
	host, port := ingestAddress(t)
	want := host + ":" + itoa(int32(port))

	for file, keys := range map[string][]string{
		"istio/mesh-wide-helm-values.yaml":   {"meshConfig"},
		"istio/mesh-wide-istiooperator.yaml": {"spec", "meshConfig"},
	} {
		t.Run(file, func(t *testing.T) {
			var config mesh.MeshConfig
			decodeProto(t, file, section(t, file, keys...), &config)
			if got := config.GetDefaultConfig().GetEnvoyMetricsService().GetAddress(); got != want {
				t.Errorf("address %q, the Service is %q", got, want)
			}
			proves(t, config.GetDefaultConfig().GetEnvoyMetricsService())
		})
	}

	t.Run("pod annotation", func(t *testing.T) {
		const file = "istio/pod-annotation.yaml"
		text, ok := podPatch(t, file).Spec.Template.Annotations["proxy.istio.io/config"]
		if !ok {
			t.Fatal("no annotation proxy.istio.io/config")
		}
		var value any
		if err := yaml.UnmarshalStrict([]byte(text), &value); err != nil {
			t.Fatal(err)
		}
		var config mesh.ProxyConfig
		decodeProto(t, file, value, &config)
		if got := config.GetEnvoyMetricsService().GetAddress(); got != want {
			t.Errorf("address %q, the Service is %q", got, want)
		}
		proves(t, config.GetEnvoyMetricsService())
	})
}

// podPatch reads a patch for a Deployment.
func podPatch(t *testing.T, path string) appsv1.Deployment {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.Deployment
	if err := yaml.UnmarshalStrict(content, &d); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return d
}

func TestBootstrapOverride(t *testing.T) {
	configMap, ok := decodeFile(t, "istio/bootstrap-override.yaml")[0].(*corev1.ConfigMap)
	if !ok {
		t.Fatal("not a ConfigMap")
	}
	if got := podPatch(t, "istio/bootstrap-annotation.yaml").Spec.Template.Annotations["sidecar.istio.io/bootstrapOverride"]; got != configMap.Name {
		t.Errorf("the annotation names ConfigMap %q, it is %q", got, configMap.Name)
	}
	var b bootstrap.Bootstrap
	if err := protojson.Unmarshal([]byte(configMap.Data["custom_bootstrap.json"]), &b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	if len(b.StatsSinks) != 1 || len(b.GetStaticResources().GetClusters()) != 1 {
		t.Fatalf("%d sinks, %d clusters, want one of each", len(b.StatsSinks), len(b.GetStaticResources().GetClusters()))
	}

	var sink metrics.MetricsServiceConfig
	if err := b.StatsSinks[0].GetTypedConfig().UnmarshalTo(&sink); err != nil {
		t.Fatal(err)
	}
	if err := sink.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	if !sink.EmitTagsAsLabels || sink.HistogramEmitMode != metrics.HistogramEmitMode_HISTOGRAM || sink.ReportCountersAsDeltas != nil {
		t.Errorf("sink %v: want labels, histograms only, cumulative counters", &sink)
	}

	c := b.StaticResources.Clusters[0]
	if got := sink.GetGrpcService().GetEnvoyGrpc().GetClusterName(); got != c.Name {
		t.Errorf("the sink streams to cluster %q, which is not %q", got, c.Name)
	}
	if c.Name == "envoy_metrics_service" || c.GetType() != cluster.Cluster_STRICT_DNS {
		t.Errorf("cluster %q of type %v: want a name that Istio does not use, resolved by DNS", c.Name, c.GetType())
	}
	var protocol upstreams.HttpProtocolOptions
	if err := c.TypedExtensionProtocolOptions["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"].UnmarshalTo(&protocol); err != nil {
		t.Fatal(err)
	}
	if protocol.GetExplicitHttpConfig().GetHttp2ProtocolOptions() == nil {
		t.Error("the cluster does not speak HTTP/2, so no gRPC")
	}
	// Without pings an Envoy whose meshpulse is gone with its node is silent for a quarter of an
	// hour.
	if k := protocol.GetExplicitHttpConfig().GetHttp2ProtocolOptions().GetConnectionKeepalive(); k.GetInterval().AsDuration() != 5*time.Second || k.GetTimeout().AsDuration() != 3*time.Second {
		t.Errorf("the cluster is asked whether it lives with %v: want every 5 s, and 3 s to answer", k)
	}
	address := c.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().GetAddress().GetSocketAddress()
	if host, port := ingestAddress(t); address.GetAddress() != host || address.GetPortValue() != port {
		t.Errorf("the cluster is at %s:%d, the Service at %s:%d", address.GetAddress(), address.GetPortValue(), host, port)
	}
}

func TestTelemetryKeepsWhatHPAsNeed(t *testing.T) {
	const file = "istio/telemetry-less-volume.yaml"
	var spec telemetry.Telemetry
	decodeProto(t, file, section(t, file, "spec"), &spec)
	var off []string
	for _, m := range spec.Metrics {
		for _, o := range m.Overrides {
			if !o.GetDisabled().GetValue() {
				t.Errorf("override %v does not switch off", o)
			}
			off = append(off, o.GetMatch().GetMetric().String()+" "+o.GetMatch().GetMode().String())
		}
	}
	want := []string{"ALL_METRICS CLIENT", "REQUEST_SIZE CLIENT_AND_SERVER", "RESPONSE_SIZE CLIENT_AND_SERVER"}
	slices.Sort(off)
	if !slices.Equal(off, want) {
		t.Errorf("switched off are %v, want %v", off, want)
	}
}

// TestEveryWiringFileIsInTheReadme fails when a file is added that its README does not explain.
func TestEveryWiringFileIsInTheReadme(t *testing.T) {
	readme, err := os.ReadFile("istio/README.md")
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("istio/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no wiring: %v", err)
	}
	for _, path := range paths {
		if !strings.Contains(string(readme), "`"+filepath.Base(path)+"`") {
			t.Errorf("%s is not in istio/README.md", path)
		}
	}
}

// TestWhatShowsTheSinkIsInNoEnvoyWithoutOne: a bootstrap names every extension that its Envoy
// knows, the sink's among them, wired or not.
func TestWhatShowsTheSinkIsInNoEnvoyWithoutOne(t *testing.T) {
	text, err := os.ReadFile("istio/README.md")
	if err != nil {
		t.Fatal(err)
	}
	grep := regexp.MustCompile("`istioctl proxy-config bootstrap [^`]* [|] grep -A4 (\\S+)`").FindSubmatch(text)
	if grep == nil {
		t.Fatal("istio/README.md has no command that shows the sink")
	}
	f, err := os.Open("../envoystats/testdata/captures/a-default/stream-0.pb.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var first metricsservice.StreamMetricsMessage
	if err := protodelim.UnmarshalFrom(bufio.NewReader(z), &first); err != nil {
		t.Fatal(err)
	}
	node, err := protojson.Marshal(first.GetIdentifier().GetNode())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(node), "envoy.stat_sinks.metrics_service") {
		t.Fatal("the recorded Envoy does not name its extensions")
	}
	if strings.Contains(string(node), string(grep[1])) {
		t.Errorf("every Envoy says %s of itself", grep[1])
	}
	sinks, err := protojson.Marshal(&bootstrap.Bootstrap{StatsSinks: []*metrics.StatsSink{{Name: "x"}}})
	if err != nil || !strings.Contains(string(sinks), string(grep[1])) {
		t.Errorf("%s is not in a bootstrap with a sink: %v", grep[1], err)
	}
}
