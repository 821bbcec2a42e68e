package envoystats

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Reasons for which a stream is refused.
var (
	errNoNode    = errors.New("the first message of a stream carries no identifier.node: it has to say who reports; Envoy's own metrics_service sink does")
	errNodeBytes = errors.New("identifier is malformed")
	errNodeSize  = errors.New("identifier is beyond 1 MiB: Istio's are tens of KB")
	errNodeName  = errors.New("node names no pod: set metadata NAME and NAMESPACE, or an id of the form sidecar~IP~POD.NAMESPACE~DOMAIN as Istio does")
	errNodeLong  = errors.New("a workload's name or a label is longer than Kubernetes allows")
	errNodeOdd   = errors.New("no pod or namespace of Kubernetes has such a name, which is of lower-case letters, digits, hyphens and, a pod's, dots")
	errOtherNode = errors.New("a later message of the stream comes from another node: open a stream for each node")
)

// maxNodeName is the longest name that Kubernetes gives to a pod or a workload; values of labels
// are shorter.
const maxNodeName = 253

// maxIdentifier bounds what is decoded, which takes some twenty times as much memory. A pod's
// annotations are at most 256 KiB.
const maxIdentifier = 1 << 20

// maxInterval is the longest interval of flushes or evictions that is believed.
const maxInterval = time.Hour

// Fields of the identifier and of the node that are read. A node is tens of KB, most of it every
// extension of the Envoy.
const (
	identifierNode  = 1<<3 | delimited // envoy.service.metrics.v3.StreamMetricsMessage.Identifier
	nodeID          = 1<<3 | delimited // envoy.config.core.v3.Node
	nodeMetadata    = 3<<3 | delimited
	nodeUserAgentBV = 8<<3 | delimited
)

// readNode returns the pod that an identifier names.
func readNode(identifier []byte) (aggregator.Pod, error) {
	node, err := decodeNode(identifier)
	if err != nil {
		return aggregator.Pod{}, err
	}
	meta := node.GetMetadata().GetFields()
	labels := meta["LABELS"].GetStructValue().GetFields()
	name, namespace := splitNodeID(node.GetId())
	pod := aggregator.Pod{
		Namespace:         cmp.Or(meta["NAMESPACE"].GetStringValue(), namespace),
		Name:              cmp.Or(meta["NAME"].GetStringValue(), name),
		ServiceAccount:    meta["SERVICE_ACCOUNT"].GetStringValue(),
		Workload:          meta["WORKLOAD_NAME"].GetStringValue(),
		App:               labels["app"].GetStringValue(),
		Version:           labels["version"].GetStringValue(),
		CanonicalService:  labels["service.istio.io/canonical-name"].GetStringValue(),
		CanonicalRevision: labels["service.istio.io/canonical-revision"].GetStringValue(),
		FlushInterval:     interval(meta["ANNOTATIONS"].GetStructValue(), "sidecar.istio.io/statsFlushInterval"),
		EvictionInterval:  interval(meta["ANNOTATIONS"].GetStructValue(), "sidecar.istio.io/statsEvictionInterval"),
		InclusiveBounds:   inclusiveBounds(node.GetUserAgentBuildVersion()),
	}
	pod.SendsActive, pod.SendsPending = sends(meta)
	for _, part := range []struct {
		key, value string
		fits       bool
	}{{"NAMESPACE", pod.Namespace, len(pod.Namespace) <= maxNamespace && isLabel(pod.Namespace)}, {"NAME", pod.Name, isName(pod.Name)}} {
		switch {
		case part.value == "" || len(part.value) > maxNodeName:
			return aggregator.Pod{}, fmt.Errorf("%s is missing or too long in node %.300q: %w", part.key, node.GetId(), errNodeName)
		case !part.fits:
			return aggregator.Pod{}, fmt.Errorf("%s %.300q: %w", part.key, part.value, errNodeOdd)
		}
	}
	for _, value := range []string{pod.ServiceAccount, pod.Workload, pod.App, pod.Version, pod.CanonicalService, pod.CanonicalRevision} {
		if len(value) > maxNodeName {
			return aggregator.Pod{}, fmt.Errorf("%.300q in node %.300q is too long for a name: %w", value, node.GetId(), errNodeLong)
		}
	}
	return pod, nil
}

// maxNamespace is the longest name of a namespace: a DNS label (RFC 1123).
const maxNamespace = 63

// isName reports whether a text is a DNS subdomain as Kubernetes has it: labels, joined with dots.
func isName(text string) bool {
	for label := range strings.SplitSeq(text, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

// isLabel reports whether a text is lower-case letters, digits and hyphens, these within.
func isLabel(text string) bool {
	for i, c := range []byte(text) {
		letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !letter && (c != '-' || i == 0 || i == len(text)-1) {
			return false
		}
	}
	return text != ""
}

// decodeNode decodes the parts of the identifier's node that are read.
func decodeNode(identifier []byte) (*corev3.Node, error) {
	if len(identifier) > maxIdentifier {
		return nil, errNodeSize
	}
	var node []byte
	found := false
	for span, err := range fields(identifier, identifierNode) {
		if err != nil {
			return nil, err
		}
		found = true
		_, i := readTag(span, 0)
		from, end := readSpan(span, i)
		// What comes twice is merged, which for protobuf is concatenation.
		for part, err := range fields(span[from:end], nodeID, nodeMetadata, nodeUserAgentBV) {
			if err != nil {
				return nil, err
			}
			node = append(node, part...)
		}
	}
	if !found {
		return nil, errNoNode
	}
	n := new(corev3.Node)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(node, n); err != nil {
		return nil, errNodeBytes
	}
	return n, nil
}

// fields are those of a message with these tags, which are of length-delimited ones: each with its
// tag, as it lies in b. The error is the last one.
func fields(b []byte, tags ...uint32) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for i := 0; i < len(b); {
			tag, next := readTag(b, i)
			end := skip(b, next, tag)
			if end == malformed {
				yield(nil, errNodeBytes)
				return
			}
			if slices.Contains(tags, tag) && !yield(b[i:end], nil) {
				return
			}
			i = end
		}
	}
}

// splitNodeID reads type~IP~POD.NAMESPACE~DOMAIN (istio/istio pkg/model/proxy.go,
// ParseServiceNodeWithMetadata). A pod's name may hold dots, a namespace's may not.
func splitNodeID(id string) (name, namespace string) {
	parts := strings.Split(id, "~")
	if len(parts) != 4 {
		return "", ""
	}
	dot := strings.LastIndexByte(parts[2], '.')
	if dot < 0 {
		return "", ""
	}
	return parts[2][:dot], parts[2][dot+1:]
}

// interval reads an annotation by which Istio sets Envoy's stats_flush_interval or
// stats_eviction_interval, 0 where there is none.
func interval(annotations *structpb.Struct, name string) time.Duration {
	d, err := time.ParseDuration(annotations.GetFields()[name].GetStringValue())
	if err != nil || d <= 0 || d > maxInterval {
		return 0
	}
	return d
}

// inclusiveBounds says whether the Envoy counts a value that equals a bucket's bound into that
// bucket: since 1.38.
func inclusiveBounds(v *corev3.BuildVersion) bool {
	major, minor := v.GetVersion().GetMajorNumber(), v.GetVersion().GetMinorNumber()
	return major > 1 || major == 1 && minor >= 38
}
