package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshpulse/meshpulse/bench/identity"
)

// poser reports as a pod that it is not.
type poser struct {
	what string
	// id is what its certificate says, "" without one; from is the address that it sends from.
	id, from string
}

// hostile lets senders with another identity, or none, report as a pod that proves itself.
func (r *mtlsRun) hostile(ctx context.Context) error {
	all := r.sidecarsOf(provenNamespace)
	victim, other := all[0], all[1]
	otherAddress, _, _ := net.SplitHostPort(other.Admin)
	const nobodys = "127.99.0.1"
	posers := []poser{
		{"a certificate of another namespace", identity.SPIFFE("evil", "default"), nobodys},
		{"a certificate of another service account of the namespace", identity.SPIFFE(provenNamespace, "other"), nobodys},
		{"a certificate of the same service account, at another pod's address", identity.SPIFFE(provenNamespace, "default"), otherAddress},
		{"plaintext", "", nobodys},
		{"plaintext, at another pod's address", "", otherAddress},
	}
	said := map[string]error{}
	lostBefore, _, _, err := r.lost(ctx, provenNamespace, nil, nil)
	if err != nil {
		return err
	}
	err = r.under(ctx, func(ctx context.Context) error {
		for _, p := range posers {
			posing, stop := context.WithTimeout(ctx, 20*time.Second)
			said[p.what] = r.pose(posing, p, victim.Pod)
			stop()
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range posers {
		refused := status.Code(said[p.what]) == codes.PermissionDenied
		r.add("reports as a pod that proves itself, with "+p.what+": not refused", map[bool]float64{false: 1}[refused], "count", 0, "lower")
		if !refused {
			r.note("with %s: %v", p.what, said[p.what])
		}
	}
	lost, counted, _, err := r.lost(ctx, provenNamespace, nil, nil)
	if err != nil {
		return err
	}
	r.add("what the pods' numbers changed by for all of them", float64(max(lost-lostBefore, lostBefore-lost)+counted), "count", 0, "lower")
	return nil
}

// pose sends flushes with a million requests until it is refused, or the context ends.
func (r *mtlsRun) pose(ctx context.Context, p poser, victim string) error {
	creds := insecure.NewCredentials()
	if p.id != "" {
		r.mu.Lock()
		pair, err := r.signer.Issue(p.id, mtlsLife)
		roots := x509.NewCertPool()
		for _, root := range r.roots {
			roots.AppendCertsFromPEM(root.PEM)
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
		certificate, err := tls.X509KeyPair(pair.Chain, pair.Key)
		if err != nil {
			return err
		}
		creds = credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"},
			InsecureSkipVerify: true, // whom it attacks does not matter to it: there is no name to verify
		})
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(p.from)}}
	conn, err := grpc.NewClient("passthrough:///"+r.meshpulse.sink(), grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stream, err := metricsv3.NewMetricsServiceClient(conn).StreamMetrics(ctx)
	if err != nil {
		return err
	}
	answer := make(chan error, 1)
	go func() { answer <- stream.RecvMsg(&metricsv3.StreamMetricsResponse{}) }()
	message, err := forgedFlush(victim)
	if err != nil {
		return err
	}
	for {
		if err := stream.Send(message); err == nil {
			message.Identifier = nil
		}
		select {
		case err := <-answer:
			return err
		case <-time.After(mtlsFlush):
		case <-ctx.Done():
			return errors.Join(errors.New("it is not refused"), ctx.Err())
		}
		for _, f := range message.GetEnvoyMetrics() {
			f.GetMetric()[0].TimestampMs = proto.Int64(time.Now().UnixMilli())
		}
	}
}

// forgedFlush is one of a pod of the proven.
func forgedFlush(pod string) (*metricsv3.StreamMetricsMessage, error) {
	metadata, err := structpb.NewStruct(map[string]any{
		"NAME": pod, "NAMESPACE": provenNamespace, "WORKLOAD_NAME": workload, "SERVICE_ACCOUNT": "default",
		"LABELS": map[string]any{"app": workload, "service.istio.io/canonical-name": workload},
	})
	if err != nil {
		return nil, err
	}
	var labels []*dto.LabelPair
	for _, l := range strings.Fields("reporter=destination destination_workload=" + workload + " destination_workload_namespace=" + provenNamespace + " response_code=200") {
		name, value, _ := strings.Cut(l, "=")
		labels = append(labels, &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)})
	}
	return &metricsv3.StreamMetricsMessage{
		Identifier: &metricsv3.StreamMetricsMessage_Identifier{Node: &corev3.Node{
			Id: fmt.Sprintf("sidecar~127.0.0.1~%s.%s~%s.svc.cluster.local", pod, provenNamespace, provenNamespace), Metadata: metadata,
		}},
		EnvoyMetrics: []*dto.MetricFamily{{
			Name: proto.String("istiocustom.istio_requests_total"), Type: dto.MetricType_COUNTER.Enum(),
			Metric: []*dto.Metric{{Label: labels, Counter: &dto.Counter{Value: proto.Float64(1e6)}, TimestampMs: proto.Int64(time.Now().UnixMilli())}},
		}},
	}, nil
}
