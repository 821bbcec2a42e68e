package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshpulse/meshpulse/bench/identity"
	"github.com/meshpulse/meshpulse/bench/lab/link"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
)

// impostor is a stream that names a pod whose sidecar it is not. In plaintext nothing on the wire
// tells it from one that is.
type impostor struct {
	conn   *grpc.ClientConn
	stream metricsv3.MetricsService_StreamMetricsClient
	node   *corev3.Node // for the first message; then nil
}

// impersonate opens a stream over a link as a pod of the workload. Annotations are the pod's.
func (h *Hands) impersonate(ctx context.Context, over *link.Link, namespace, pod string, annotations map[string]any) (*impostor, error) {
	metadata, err := structpb.NewStruct(map[string]any{
		"NAME": pod, "NAMESPACE": namespace, "WORKLOAD_NAME": h.system.Workload, "ANNOTATIONS": annotations, "SERVICE_ACCOUNT": "default",
		"LABELS": map[string]any{"app": h.system.Workload, "service.istio.io/canonical-name": h.system.Workload},
	})
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+over.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	stream, err := metricsv3.NewMetricsServiceClient(conn).StreamMetrics(ctx)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	id := fmt.Sprintf("sidecar~127.0.0.1~%s.%s~%s.svc.cluster.local", pod, namespace, namespace)
	return &impostor{conn: conn, stream: stream, node: &corev3.Node{Id: id, Metadata: metadata}}, nil
}

// stranger opens a link that shows the certificate of a service account, and returns what closes
// it.
func (h *Hands) stranger(id string) (*link.Link, func(), error) {
	l, err := link.Open(link.Config{Upstream: h.system.Ingest, TLS: (&workload{ca: h.system.CA, id: id}).tls})
	if err != nil {
		return nil, nil, err
	}
	return l, func() {
		l.Close()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.flooded += l.Messages()
	}, nil
}

// flush sends the families as of now.
func (i *impostor) flush(families ...*dto.MetricFamily) error {
	m := &metricsv3.StreamMetricsMessage{EnvoyMetrics: families}
	if i.node != nil {
		m.Identifier, i.node = &metricsv3.StreamMetricsMessage_Identifier{Node: i.node}, nil
	}
	for _, f := range families {
		f.GetMetric()[0].TimestampMs = proto.Int64(time.Now().UnixMilli())
	}
	return i.stream.Send(m)
}

func (i *impostor) close() { _ = i.conn.Close() }

func counter(name string, value float64, labels ...*dto.LabelPair) *dto.MetricFamily {
	return &dto.MetricFamily{
		Name: proto.String(name), Type: dto.MetricType_COUNTER.Enum(),
		Metric: []*dto.Metric{{Label: labels, Counter: &dto.Counter{Value: proto.Float64(value)}}},
	}
}

// secondStream reports as a pod that is ready, flush after flush, without a request: whoever
// believes it takes the pod for idle.
func (h *Hands) secondStream(ctx context.Context, f Fault) error {
	namespace, pods := h.ready(f)
	if len(pods) == 0 {
		return errors.New("no pod is ready")
	}
	over := h.flood
	if f.Seed%2 == 0 {
		l, end, err := h.stranger(identity.SPIFFE(namespace, "default"))
		if err != nil {
			return err
		}
		defer end()
		over = l
	}
	return h.pose(ctx, f, over, namespace, pods[0])
}

// otherIdentity reports as a pod that is ready with a certificate that is not its own: of another
// namespace, or of another service account of the same.
func (h *Hands) otherIdentity(ctx context.Context, f Fault) error {
	namespace, pods := h.ready(f)
	if len(pods) == 0 {
		return errors.New("no pod is ready")
	}
	id := identity.SPIFFE("elsewhere", "default")
	if f.Seed%2 == 0 {
		id = identity.SPIFFE(namespace, "other")
	}
	over, end, err := h.stranger(id)
	if err != nil {
		return err
	}
	defer end()
	return h.pose(ctx, f, over, namespace, pods[0])
}

// pose reports as a pod until the fault's end, and comes back at the next flush where its stream
// has ended, as an Envoy does.
func (h *Hands) pose(ctx context.Context, f Fault, over *link.Link, namespace, pod string) error {
	end := time.Now().Add(f.For)
	for {
		i, err := h.impersonate(ctx, over, namespace, pod, nil)
		for err == nil {
			if err = i.flush(counter("server.live", 1)); err != nil {
				break // refused, or meshpulse is down
			}
			if left := time.Until(end); left <= 0 || !proc.Sleep(ctx, min(left, h.system.Flush)) {
				i.close()
				return nil
			}
		}
		if i != nil {
			i.close()
		}
		if left := time.Until(end); left <= 0 || !proc.Sleep(ctx, min(left, h.system.Flush)) {
			return nil
		}
	}
}

// forgedRequests is what a forged flush claims to have counted, over the hour that it tells: less
// than one a second.
const forgedRequests = 3000

// forgeFlush sends one message of a pod that the cluster does not know, and ends.
func (h *Hands) forgeFlush(ctx context.Context, f Fault) error {
	namespace := h.system.Namespaces[f.Lane]
	pod := fmt.Sprintf("forged-%d", f.Seed%1_000_000)
	i, err := h.impersonate(ctx, h.flood, namespace, pod, map[string]any{"sidecar.istio.io/statsFlushInterval": "1h"})
	if err != nil {
		return err
	}
	defer i.close()
	var labels []*dto.LabelPair
	for _, l := range [][2]string{
		{"reporter", "destination"},
		{"destination_workload", h.system.Workload},
		{"destination_workload_namespace", namespace},
		{"destination_canonical_service", h.system.Workload},
		{"response_code", "200"},
	} {
		labels = append(labels, &dto.LabelPair{Name: proto.String(l[0]), Value: proto.String(l[1])})
	}
	durations := &dto.MetricFamily{
		Name: proto.String("istiocustom.istio_request_duration_milliseconds"), Type: dto.MetricType_HISTOGRAM.Enum(),
		Metric: []*dto.Metric{{Label: labels, Histogram: &dto.Histogram{
			SampleCount: proto.Uint64(forgedRequests), SampleSum: proto.Float64(forgedRequests),
			Bucket: []*dto.Bucket{{UpperBound: proto.Float64(1), CumulativeCount: proto.Uint64(forgedRequests)}},
		}}},
	}
	if err := i.flush(counter("istiocustom.istio_requests_total", forgedRequests, labels...), durations); err != nil {
		return nil // meshpulse is down
	}
	proc.Sleep(ctx, f.For)
	return nil
}
