package keda

import (
	"context"
	"errors"
	"math"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/meshpulse/meshpulse/metricsapi/keda/externalscaler"
)

// kinded is an error that tells its kind.
type kinded string

func (e kinded) Error() string { return "of kind " + string(e) }
func (e kinded) Kind() string  { return string(e) }

// answers is a source that says what it is told to.
type answers struct {
	mu     sync.Mutex
	value  float64
	err    error
	target chan float64
	active chan bool
}

func (a *answers) set(value float64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.value, a.err = value, err
}

func (a *answers) says() (float64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.value, a.err
}

func (a *answers) TriggerTarget(_, _ string, _ map[string]string) (string, float64, error) {
	v, err := a.says()
	return "rps", v, err
}

func (a *answers) TriggerValue(context.Context, string, string, map[string]string) (string, float64, error) {
	v, err := a.says()
	return "rps", v, err
}

func (a *answers) TriggerActive(context.Context, string, string, map[string]string) (bool, error) {
	v, err := a.says()
	return v > 0, err
}

func (a *answers) FollowTrigger(ctx context.Context, _, _ string, _ map[string]string, active func() error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.active:
			if err := active(); err != nil {
				return err
			}
		}
	}
}

func (a *answers) FollowTarget(ctx context.Context, _, _ string, _ map[string]string, changed func(string, float64) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case target := <-a.target:
			if err := changed("rps", target); err != nil {
				return err
			}
		}
	}
}

// start serves a source on a loopback port, and returns a client of it.
func start(t *testing.T, a *answers, token func() string) (*Server, externalscaler.ExternalScalerClient) {
	t.Helper()
	s := New(Options{Source: a, Token: token, Registerer: prometheus.NewRegistry()})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Shutdown(context.Background())
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return s, externalscaler.NewExternalScalerClient(conn)
}

var ref = &externalscaler.ScaledObjectRef{Name: "a", Namespace: "test", ScalerMetadata: map[string]string{"threshold": "10"}}

func TestAnswersOverTheWire(t *testing.T) {
	a := &answers{value: 12.5}
	_, client := start(t, a, nil)
	spec, err := client.GetMetricSpec(t.Context(), ref)
	if err != nil || len(spec.GetMetricSpecs()) != 1 || spec.GetMetricSpecs()[0].GetMetricName() != "rps" || spec.GetMetricSpecs()[0].GetTargetSizeFloat() != 12.5 || spec.GetMetricSpecs()[0].GetTargetSize() != 13 {
		t.Errorf("spec %v, %v", spec, err)
	}
	got, err := client.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: ref, MetricName: "rps"})
	if err != nil || len(got.GetMetricValues()) != 1 || got.GetMetricValues()[0].GetMetricValueFloat() != 12.5 {
		t.Errorf("value %v, %v", got, err)
	}
	if active, err := client.IsActive(t.Context(), ref); err != nil || !active.GetResult() {
		t.Errorf("active %v, %v", active, err)
	}
	a.set(0, nil)
	if got, err := client.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: ref}); err != nil || len(got.GetMetricValues()) != 1 || got.GetMetricValues()[0].GetMetricValueFloat() != 0 {
		t.Errorf("0 that is known is %v, %v", got, err)
	}
	if active, err := client.IsActive(t.Context(), ref); err != nil || active.GetResult() {
		t.Errorf("inactive that is known is %v, %v", active, err)
	}
}

// What is not known is an error, by whatever name, and never a number that KEDA would make 0 of.
func TestWhatIsNotKnownIsAnError(t *testing.T) {
	a := &answers{}
	_, client := start(t, a, nil)
	for name, test := range map[string]struct {
		value float64
		err   error
		want  codes.Code
	}{
		"not known":         {0, kinded("unanswered"), codes.Unavailable},
		"of no kind":        {0, errors.New("no"), codes.Unavailable},
		"bad metadata":      {0, kinded("invalid"), codes.InvalidArgument},
		"no such trigger":   {0, kinded("unknown"), codes.NotFound},
		"too much at once":  {0, kinded("busy"), codes.ResourceExhausted},
		"its time is over":  {0, context.DeadlineExceeded, codes.DeadlineExceeded},
		"not a number":      {math.NaN(), nil, codes.Unavailable},
		"infinite":          {math.Inf(1), nil, codes.Unavailable},
		"negative":          {-1, nil, codes.Unavailable},
		"negative infinite": {math.Inf(-1), nil, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			a.set(test.value, test.err)
			got, err := client.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: ref})
			if status.Code(err) != test.want || got != nil {
				t.Errorf("value %v, %v", got, err)
			}
			if test.err == nil {
				return
			}
			if active, err := client.IsActive(t.Context(), ref); status.Code(err) != test.want || active != nil {
				t.Errorf("active %v, %v", active, err)
			}
			if spec, err := client.GetMetricSpec(t.Context(), ref); status.Code(err) != test.want || spec != nil {
				t.Errorf("spec %v, %v", spec, err)
			}
		})
	}
	a.set(1, nil)
	if _, err := client.GetMetrics(t.Context(), &externalscaler.GetMetricsRequest{ScaledObjectRef: ref, MetricName: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("of a metric that the trigger has no more: %v", err)
	}
}

func TestStreamsTellAndEndWithTheServer(t *testing.T) {
	a := &answers{active: make(chan bool), target: make(chan float64)}
	s, client := start(t, a, nil)
	active, err := client.StreamIsActive(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := client.StreamMetricSpec(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	a.active <- true
	if got, err := active.Recv(); err != nil || !got.GetResult() {
		t.Errorf("told %v, %v", got, err)
	}
	for _, target := range []float64{10, 20} {
		a.target <- target
		if got, err := spec.Recv(); err != nil || got.GetMetricSpecs()[0].GetTargetSizeFloat() != target {
			t.Errorf("told %v, %v", got, err)
		}
	}
	s.Shutdown(t.Context())
	if _, err := active.Recv(); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("the stream ends with %v, want its regular end", err)
	}
	if _, err := spec.Recv(); err == nil || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("the stream ends with %v, want its regular end", err)
	}
}

// KEDA sends no gRPC metadata of its own: it can send a token in the trigger's.
func TestWhoBearsNoTokenIsNotAnswered(t *testing.T) {
	a := &answers{value: 1, active: make(chan bool), target: make(chan float64)}
	_, client := start(t, a, func() string { return "secret" })
	bearing := func(token string) *externalscaler.ScaledObjectRef {
		return &externalscaler.ScaledObjectRef{Name: "a", Namespace: "test", ScalerMetadata: map[string]string{"tokenFromEnv": token}}
	}
	for name, test := range map[string]struct {
		ref  *externalscaler.ScaledObjectRef
		ctx  context.Context
		want codes.Code
	}{
		"none":             {ref, t.Context(), codes.Unauthenticated},
		"another":          {bearing("guess"), t.Context(), codes.Unauthenticated},
		"an empty one":     {bearing(""), t.Context(), codes.Unauthenticated},
		"in gRPC's":        {ref, metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer secret"), codes.OK},
		"in the trigger's": {bearing("secret"), t.Context(), codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			_, spec := client.GetMetricSpec(test.ctx, test.ref)
			_, value := client.GetMetrics(test.ctx, &externalscaler.GetMetricsRequest{ScaledObjectRef: test.ref})
			_, active := client.IsActive(test.ctx, test.ref)
			for _, err := range []error{spec, value, active} {
				if status.Code(err) != test.want {
					t.Errorf("answered with %v", err)
				}
			}
			if test.want == codes.OK {
				return
			}
			stream, err := client.StreamIsActive(test.ctx, test.ref)
			if err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != test.want {
				t.Errorf("the stream ends with %v", err)
			}
		})
	}
}
