// Package keda serves KEDA's external scaler over gRPC: what a ScaledObject's trigger of type
// external or external-push is answered.
//
// It knows the wire (package externalscaler), who may ask, and which of gRPC's codes says what.
// What the answers are it asks a [Source] for, and it must not know how they come about. KEDA makes
// 0 of what is not a number, so what is not known is always an error here.
package keda

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"math"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/meshpulse/meshpulse/metricsapi/keda/externalscaler"
)

// Source answers for a trigger, which is named by its ScaledObject and its metadata. Its errors may
// say by a method Kind() string of what kind they are: invalid metadata, an unknown trigger, busy;
// of every other one the answer is not known now.
type Source interface {
	// TriggerTarget is the name of the trigger's metric, and its target.
	TriggerTarget(namespace, name string, metadata map[string]string) (metric string, target float64, err error)
	// TriggerValue is the metric's value.
	TriggerValue(ctx context.Context, namespace, name string, metadata map[string]string) (metric string, value float64, err error)
	// TriggerActive says whether there is something to do for the workload.
	TriggerActive(ctx context.Context, namespace, name string, metadata map[string]string) (bool, error)
	// FollowTrigger calls active while it is, until the context ends or there is an error.
	FollowTrigger(ctx context.Context, namespace, name string, metadata map[string]string, active func() error) error
	// FollowTarget calls changed with the target at once and when it changes, until then too.
	FollowTarget(ctx context.Context, namespace, name string, metadata map[string]string, changed func(metric string, target float64) error) error
}

// Options of New.
type Options struct {
	Source Source
	// TLS is how the port is served; nil: in plaintext.
	TLS *tls.Config
	// Token is what a client has to bear; nil: none. It is asked at each request.
	Token      func() string
	Registerer prometheus.Registerer // nil: nowhere
}

const (
	// maxStreams bounds the calls in progress of one connection: of each external-push trigger two
	// streams stay open.
	maxStreams = 20_000
	// maxRequest is the largest request: Kubernetes takes no object above 1.5 MiB.
	maxRequest = 2 << 20
	// keyToken is the key of the trigger's metadata in which KEDA can send a token.
	keyToken = "tokenFromEnv"
)

// Server is the scaler's port.
type Server struct {
	externalscaler.UnimplementedExternalScalerServer
	options  Options
	grpc     *grpc.Server
	requests *prometheus.CounterVec

	streaming context.Context // ends when no stream is to go on
	end       context.CancelFunc
}

// New returns the server.
func New(o Options) *Server {
	s := &Server{options: o, requests: promauto.With(o.Registerer).NewCounterVec(prometheus.CounterOpts{
		Name: "meshpulse_keda_requests_total",
		Help: "Calls of KEDA's external scaler by method and gRPC code; streams when they end.",
	}, []string{"method", "code"})}
	s.streaming, s.end = context.WithCancel(context.Background())
	options := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxRequest), grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
	}
	if o.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(o.TLS)))
	}
	s.grpc = grpc.NewServer(options...)
	externalscaler.RegisterExternalScalerServer(s.grpc, s)
	return s
}

// Serve serves until Shutdown.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Shutdown ends the streams, finishes the answers in the making, and returns when that is done or
// the context has ended.
func (s *Server) Shutdown(ctx context.Context) {
	s.end()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}

func (s *Server) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	answer, err := handle(ctx, request)
	s.count(info.FullMethod, err)
	return answer, err
}

func (s *Server) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	err := handle(server, stream)
	s.count(info.FullMethod, err)
	return err
}

func (s *Server) count(method string, err error) {
	s.requests.WithLabelValues(method[strings.LastIndexByte(method, '/')+1:], status.Code(err).String()).Inc()
}

// admit says why whoever asks is not answered. Who has no certificate that is wanted has no
// connection.
func (s *Server) admit(ctx context.Context, ref *externalscaler.ScaledObjectRef) error {
	if s.options.Token == nil {
		return nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	given := []string{ref.GetScalerMetadata()[keyToken]}
	for _, value := range md.Get("authorization") {
		given = append(given, strings.TrimPrefix(value, "Bearer "))
	}
	want := s.options.Token()
	for _, token := range given {
		if subtle.ConstantTimeCompare([]byte(token), []byte(want)) == 1 {
			return nil
		}
	}
	return status.Error(codes.Unauthenticated, "no bearer token, or another than that of --keda-token-file: name in the trigger's metadata key "+keyToken+" an environment variable of the workload that has it, or send it in gRPC's metadata (authorization: Bearer TOKEN)")
}

// coded is an error in gRPC's form.
func coded(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unavailable
	var of interface{ Kind() string }
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case !errors.As(err, &of):
	case of.Kind() == "invalid":
		code = codes.InvalidArgument
	case of.Kind() == "unknown":
		code = codes.NotFound
	case of.Kind() == "busy":
		code = codes.ResourceExhausted
	}
	return status.Error(code, err.Error())
}

// IsActive says whether there is something to do for the workload. It is false only where that is
// known.
func (s *Server) IsActive(ctx context.Context, ref *externalscaler.ScaledObjectRef) (*externalscaler.IsActiveResponse, error) {
	if err := s.admit(ctx, ref); err != nil {
		return nil, err
	}
	active, err := s.options.Source.TriggerActive(ctx, ref.GetNamespace(), ref.GetName(), ref.GetScalerMetadata())
	if err != nil {
		return nil, coded(err)
	}
	return &externalscaler.IsActiveResponse{Result: active}, nil
}

// GetMetricSpec is the metric that KEDA's HPA gets, and its target.
func (s *Server) GetMetricSpec(ctx context.Context, ref *externalscaler.ScaledObjectRef) (*externalscaler.GetMetricSpecResponse, error) {
	if err := s.admit(ctx, ref); err != nil {
		return nil, err
	}
	metric, target, err := s.options.Source.TriggerTarget(ref.GetNamespace(), ref.GetName(), ref.GetScalerMetadata())
	if err != nil {
		return nil, coded(err)
	}
	return specOf(metric, target), nil
}

// specOf has the target as a whole number too, for a KEDA that knows no other.
func specOf(metric string, target float64) *externalscaler.GetMetricSpecResponse {
	return &externalscaler.GetMetricSpecResponse{MetricSpecs: []*externalscaler.MetricSpec{{MetricName: metric, TargetSize: whole(target), TargetSizeFloat: target}}}
}

// whole is the whole number next above, which asks for no more replicas than there should be.
func whole(v float64) int64 { return int64(math.Ceil(min(v, 1<<62))) }

// GetMetrics is the metric's value, in thousandths at the finest. One that is not a number from 0
// on is an error: KEDA would make 0 of it.
func (s *Server) GetMetrics(ctx context.Context, request *externalscaler.GetMetricsRequest) (*externalscaler.GetMetricsResponse, error) {
	ref := request.GetScaledObjectRef()
	if err := s.admit(ctx, ref); err != nil {
		return nil, err
	}
	metric, value, err := s.options.Source.TriggerValue(ctx, ref.GetNamespace(), ref.GetName(), ref.GetScalerMetadata())
	switch {
	case err != nil:
		return nil, coded(err)
	case request.GetMetricName() != "" && request.GetMetricName() != metric:
		return nil, status.Errorf(codes.NotFound, "the trigger has the metric %s now, not %s: GetMetricSpec tells", metric, request.GetMetricName())
	case !(value >= 0) || math.IsInf(value, 0):
		return nil, status.Errorf(codes.Unavailable, "the value is %g, of which KEDA would make 0", value)
	}
	return &externalscaler.GetMetricsResponse{MetricValues: []*externalscaler.MetricValue{{MetricName: metric, MetricValue: whole(value), MetricValueFloat: value}}}, nil
}

// StreamIsActive sends true while the workload is active, from a moment after the first flush with
// a request on. It never sends false: KEDA ignores that.
func (s *Server) StreamIsActive(ref *externalscaler.ScaledObjectRef, stream grpc.ServerStreamingServer[externalscaler.IsActiveResponse]) error {
	return s.follow(stream.Context(), ref, func(ctx context.Context) error {
		return s.options.Source.FollowTrigger(ctx, ref.GetNamespace(), ref.GetName(), ref.GetScalerMetadata(), func() error {
			return stream.Send(&externalscaler.IsActiveResponse{Result: true})
		})
	})
}

// StreamMetricSpec sends what GetMetricSpec would say, at once and when it changes.
func (s *Server) StreamMetricSpec(ref *externalscaler.ScaledObjectRef, stream grpc.ServerStreamingServer[externalscaler.GetMetricSpecResponse]) error {
	return s.follow(stream.Context(), ref, func(ctx context.Context) error {
		return s.options.Source.FollowTarget(ctx, ref.GetNamespace(), ref.GetName(), ref.GetScalerMetadata(), func(metric string, target float64) error {
			return stream.Send(specOf(metric, target))
		})
	})
}

// follow runs a stream until its client, or the server, ends it.
func (s *Server) follow(ctx context.Context, ref *externalscaler.ScaledObjectRef, run func(context.Context) error) error {
	if err := s.admit(ctx, ref); err != nil {
		return err
	}
	following, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.streaming, cancel)()
	err := run(following)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil // the server ends: KEDA opens another one at once
	}
	return coded(err)
}
