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

	"github.com/meshpulse/meshpulse/bench/lab/proc"
)

// impostor is a stream that names a pod whose sidecar it is not. Nothing on the wire tells it from
// one that is.
type impostor struct {
	conn   *grpc.ClientConn
	stream metricsv3.MetricsService_StreamMetricsClient
	node   *corev3.Node // for the first message; then nil
}

// impersonate opens a stream as a pod of the workload. Annotations are the pod's.
func (h *Hands) impersonate(ctx context.Context, namespace, pod string, annotations map[string]any) (*impostor, error) {
	metadata, err := structpb.NewStruct(map[string]any{
		"NAME": pod, "NAMESPACE": namespace, "WORKLOAD_NAME": h.system.Workload, "ANNOTATIONS": annotations,
		"LABELS": map[string]any{"app": h.system.Workload, "service.istio.io/canonical-name": h.system.Workload},
	})
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+h.flood.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
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
	i, err := h.impersonate(ctx, namespace, pods[0], nil)
	if err != nil {
		return err
	}
	defer i.close()
	for end := time.Now().Add(f.For); ; {
		if i.flush(counter("server.live", 1)) != nil {
			return nil // meshpulse is down, or cut: the impostor is gone with its connection
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
	i, err := h.impersonate(ctx, namespace, pod, map[string]any{"sidecar.istio.io/statsFlushInterval": "1h"})
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
