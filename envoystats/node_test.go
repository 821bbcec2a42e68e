package envoystats

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshpulse/meshpulse/aggregator"
)

func identifier(t testing.TB, n *corev3.Node) []byte {
	t.Helper()
	b, err := proto.Marshal(&metricsv3.StreamMetricsMessage_Identifier{Node: n})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func metadata(t testing.TB, fields map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func envoyVersion(major, minor uint32) *corev3.Node_UserAgentBuildVersion {
	return &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
		Version: &typev3.SemanticVersion{MajorNumber: major, MinorNumber: minor},
	}}
}

func TestTheNodeOfACapture(t *testing.T) {
	var m metricsv3.StreamMetricsMessage
	if err := proto.Unmarshal(messages(t, "testdata/captures/a-default/stream-0.pb.gz")[0], &m); err != nil {
		t.Fatal(err)
	}
	got, err := readNode(identifier(t, m.GetIdentifier().GetNode()))
	if err != nil {
		t.Fatal(err)
	}
	want := aggregator.Pod{
		Namespace: "test", Name: "podinfo-6d8f4b5c9-abcde", Workload: "podinfo", App: "podinfo", Version: "6.9.2",
		CanonicalService: "podinfo", CanonicalRevision: "6.9.2", InclusiveBounds: true, ServiceAccount: "default",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

func TestNamesThatKubernetesCannotHaveAreRefused(t *testing.T) {
	for _, c := range []struct {
		namespace, name string
		fits            bool
	}{
		{"shop", "web-0", true},
		{"1a", "a.b-c.0", true},
		{strings.Repeat("n", 63), strings.Repeat("a", 253), true},
		{strings.Repeat("n", 64), "web-0", false},
		{"shop.eu", "web-0", false},
		{"Shop", "web-0", false},
		{"-shop", "web-0", false},
		{"shop", "web-0\n", false},
		{"shop", "web\x00", false},
		{"shop", "\x1b[31mweb", false},
		{"shop", "web\u202e0", false},
		{"shop", "..", false},
		{"shop", "web..0", false},
		{"shop", "a/b", false},
		{"shop", "Web_0", false},
		{"shop", "web-", false},
		{"sh op", "web-0", false},
	} {
		node := &corev3.Node{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAMESPACE": structpb.NewStringValue(c.namespace), "NAME": structpb.NewStringValue(c.name),
		}}}
		_, err := readNode(identifier(t, node))
		if c.fits != (err == nil) || err != nil && !errors.Is(err, errNodeOdd) {
			t.Errorf("%q/%q: error %v", c.namespace, c.name, err)
		}
	}
}

func TestOnlyAnIntervalThatCanBeOneIsBelieved(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1s": time.Second, "1h": time.Hour, "0.25s": 250 * time.Millisecond,
		"": 0, "5": 0, "soon": 0, "0s": 0, "-5s": 0, "1h1ms": 0, "87600h": 0,
	} {
		got := interval(metadata(t, map[string]any{"sidecar.istio.io/statsFlushInterval": text}), "sidecar.istio.io/statsFlushInterval")
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestWhatANodeSays(t *testing.T) {
	const id = "sidecar~10.0.0.1~web-0.a.shop~shop.svc.cluster.local"
	for _, test := range []struct {
		name string
		node *corev3.Node
		want aggregator.Pod
		err  error
	}{
		{
			name: "metadata goes before the id", node: &corev3.Node{Id: id, Metadata: metadata(t, map[string]any{"NAME": "n", "NAMESPACE": "ns"})},
			want: aggregator.Pod{Namespace: "ns", Name: "n"},
		},
		{
			name: "what metadata lacks is in the id", node: &corev3.Node{Id: id, Metadata: metadata(t, map[string]any{"NAME": "n"})},
			want: aggregator.Pod{Namespace: "shop", Name: "n"},
		},
		{name: "no metadata, a pod's name with a dot", node: &corev3.Node{Id: id}, want: aggregator.Pod{Namespace: "shop", Name: "web-0.a"}},
		{name: "a flush interval, an older Envoy", node: &corev3.Node{
			Id: id, UserAgentVersionType: envoyVersion(1, 37),
			Metadata: metadata(t, map[string]any{"ANNOTATIONS": map[string]any{"sidecar.istio.io/statsFlushInterval": "1s"}}),
		}, want: aggregator.Pod{Namespace: "shop", Name: "web-0.a", FlushInterval: time.Second}},
		{name: "a flush and an eviction interval", node: &corev3.Node{
			Id: id, Metadata: metadata(t, map[string]any{"ANNOTATIONS": map[string]any{
				"sidecar.istio.io/statsFlushInterval": "10s", "sidecar.istio.io/statsEvictionInterval": "1m0s",
			}}),
		}, want: aggregator.Pod{Namespace: "shop", Name: "web-0.a", FlushInterval: 10 * time.Second, EvictionInterval: time.Minute}},
		{name: "eviction intervals that are none", node: &corev3.Node{
			Id: id, Metadata: metadata(t, map[string]any{"ANNOTATIONS": map[string]any{"sidecar.istio.io/statsEvictionInterval": "2h"}}),
		}, want: aggregator.Pod{Namespace: "shop", Name: "web-0.a"}},
		{name: "a flush interval that is none", node: &corev3.Node{
			Id: id, UserAgentVersionType: envoyVersion(2, 0),
			Metadata: metadata(t, map[string]any{"ANNOTATIONS": map[string]any{"sidecar.istio.io/statsFlushInterval": "-1s"}, "LABELS": "none"}),
		}, want: aggregator.Pod{Namespace: "shop", Name: "web-0.a", InclusiveBounds: true}},
		{name: "an id of another kind", node: &corev3.Node{Id: "envoy-1"}, err: errNodeName},
		{name: "an id without a namespace", node: &corev3.Node{Id: "sidecar~10.0.0.1~web~x"}, err: errNodeName},
		{name: "nothing", node: &corev3.Node{}, err: errNodeName},
		{name: "no node", node: nil, err: errNoNode},
		{name: "a name that no pod has", node: &corev3.Node{Id: id, Metadata: metadata(t, map[string]any{"NAME": strings.Repeat("n", 300)})}, err: errNodeName},
		{name: "a workload that no cluster has", node: &corev3.Node{Id: id, Metadata: metadata(t, map[string]any{"WORKLOAD_NAME": strings.Repeat("n", 300)})}, err: errNodeLong},
		{name: "a label that no pod has", node: &corev3.Node{Id: id, Metadata: metadata(t, map[string]any{"LABELS": map[string]any{"version": strings.Repeat("n", 300)}})}, err: errNodeLong},
		{name: "more than any node says", node: &corev3.Node{Id: id, Cluster: strings.Repeat("n", maxIdentifier)}, err: errNodeSize},
	} {
		got, err := readNode(identifier(t, test.node))
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: want -, got +\n%s", test.name, diff)
		}
	}
}

func TestAnErrorAboutANodeNamesWhatIsMissingAndTheRemedy(t *testing.T) {
	_, err := readNode(identifier(t, &corev3.Node{Id: "sidecar~1.2.3.4~x~y", Metadata: metadata(t, map[string]any{"NAME": "n"})}))
	for _, part := range []string{"NAMESPACE is missing", `"sidecar~1.2.3.4~x~y"`, "set metadata NAME and NAMESPACE"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v does not say %q", err, part)
		}
	}
}

// FuzzNode holds that an identifier that the generated decoder takes gives the pod that it names,
// or an error that says why not.
func FuzzNode(f *testing.F) {
	for _, file := range captures(f)[:3] {
		var m metricsv3.StreamMetricsMessage
		if err := proto.Unmarshal(messages(f, file)[0], &m); err != nil {
			f.Fatal(err)
		}
		n := m.GetIdentifier().GetNode()
		n.Extensions = n.Extensions[:2]
		b := identifier(f, n)
		f.Add(b)
		f.Add(b[:len(b)/2])
		f.Add(append(b, b...))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		pod, err := readNode(b)
		var id metricsv3.StreamMetricsMessage_Identifier
		if proto.Unmarshal(b, &id) != nil {
			return
		}
		meta := id.GetNode().GetMetadata().GetFields()
		switch {
		case errors.Is(err, errNodeBytes):
			t.Fatalf("refused: %v", err)
		case errors.Is(err, errNoNode) != (id.GetNode() == nil):
			t.Fatalf("node %v, error %v", id.GetNode(), err)
		case err != nil && meta["NAME"].GetStringValue() != "" && meta["NAMESPACE"].GetStringValue() != "" && len(b) < maxNodeName:
			t.Fatalf("node has a name and a namespace, error %v", err)
		case err == nil && meta["NAME"].GetStringValue() != "" && meta["NAME"].GetStringValue() != pod.Name:
			t.Fatalf("name %q, want %q", pod.Name, meta["NAME"].GetStringValue())
		case err == nil && pod.Workload != meta["WORKLOAD_NAME"].GetStringValue():
			t.Fatalf("workload %q", pod.Workload)
		}
	})
}
