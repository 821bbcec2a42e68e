package clients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/meshpulse/meshpulse/metricsapi/keda"
)

// fixedTrigger answers for every trigger with a value, or an error. What is answered for which
// trigger is tested where the answers are made.
type fixedTrigger struct {
	value   float64
	err     error
	asked   atomic.Value // the metadata of the last one
	streams atomic.Int32
}

func (f *fixedTrigger) TriggerTarget(_, _ string, metadata map[string]string) (string, float64, error) {
	f.asked.Store(metadata)
	return "istio-requests-per-second", 12.5, nil
}

func (f *fixedTrigger) TriggerValue(context.Context, string, string, map[string]string) (string, float64, error) {
	return "istio-requests-per-second", f.value, f.err
}

func (f *fixedTrigger) TriggerActive(context.Context, string, string, map[string]string) (bool, error) {
	return f.value > 0, f.err
}

func (f *fixedTrigger) FollowTrigger(ctx context.Context, _, _ string, _ map[string]string, active func() error) error {
	f.streams.Add(1)
	if err := active(); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fixedTrigger) FollowTarget(ctx context.Context, _, _ string, _ map[string]string, changed func(string, float64) error) error {
	if err := changed("istio-requests-per-second", 12.5); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// KEDA's own code asks the external scaler over the wire: it takes the target and the value as they
// are, the metadata comes as written, what is not known is an error to it, and one that pushes is
// told.
func TestKEDAsExternalScaler(t *testing.T) {
	const token = "scalers-only"
	for name, test := range map[string]struct {
		kind  string
		value float64
		err   error
		token string
		want  trigger
		part  string // of the error
	}{
		"polled":            {"external", 31.416, nil, token, trigger{Name: "s0-istio-requests-per-second", Target: 12.5, Value: 31.416, Active: true}, ""},
		"pushed":            {"external-push", 0.017, nil, token, trigger{Name: "s0-istio-requests-per-second", Target: 12.5, Value: 0.017, Active: true, Pushed: true}, ""},
		"nothing asked for": {"external", 0, nil, token, trigger{Name: "s0-istio-requests-per-second", Target: 12.5}, ""},
		"not known":         {"external", 0, errors.New("1 sidecar silent"), token, trigger{Name: "s0-istio-requests-per-second", Target: 12.5}, "Unavailable desc = 1 sidecar silent"},
		"another token":     {"external", 1, nil, "guess", trigger{}, "no metric"},
	} {
		t.Run(name, func(t *testing.T) {
			source := &fixedTrigger{value: test.value, err: test.err}
			s := keda.New(keda.Options{Source: source, Token: func() string { return token }})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() { served <- s.Serve(l) }()
			defer func() {
				s.Shutdown(context.Background())
				if err := <-served; err != nil {
					t.Error(err)
				}
			}()
			manifest := fmt.Sprintf("apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: podinfo, namespace: test}\nspec:\n  scaleTargetRef: {name: podinfo}\n"+
				"  triggers:\n  - {type: %s, metadata: {scalerAddress: %q, metric: istio-requests-per-second, threshold: \"12.5\", tokenFromEnv: TOKEN}}\n", test.kind, l.Addr())
			got := ask[trigger](t, "keda", manifest, "env:TOKEN="+test.token)
			if len(got) != 1 || (test.part == "") != (got[0].Error == "") || !strings.Contains(got[0].Error, test.part) {
				t.Fatalf("%+v", got)
			}
			got[0].Error = ""
			if got[0] != test.want {
				t.Errorf("%+v, want %+v", got[0], test.want)
			}
			if metadata, ok := source.asked.Load().(map[string]string); test.token == token && (!ok || metadata["metric"] != "istio-requests-per-second" || metadata["threshold"] != "12.5") {
				t.Errorf("the trigger's metadata came as %v", metadata)
			}
		})
	}
}
