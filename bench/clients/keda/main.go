// Command keda asks what a ScaledObject's triggers of types prometheus, external and external-push
// ask, by KEDA's own scalers.
//
// It reads the ScaledObject (YAML) and writes a line of JSON for each trigger: the target that
// KEDA's HPA would have and the value that its metrics server would give that, whether KEDA takes
// the trigger for active, whether one that pushes has said so by itself, and the error that KEDA
// would have instead.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-logr/logr"
	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	"github.com/kedacore/keda/v2/pkg/scalers"
	"github.com/kedacore/keda/v2/pkg/scalers/scalersconfig"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/yaml"
)

// httpTimeout is KEDA's default (KEDA_HTTP_DEFAULT_TIMEOUT).
const httpTimeout = 3 * time.Second

// answer is what KEDA makes of a trigger.
type answer struct {
	Name   string  `json:"name"`
	Target float64 `json:"target"`
	Value  float64 `json:"value"`
	Active bool    `json:"active"`
	Pushed bool    `json:"pushed"`
	Error  string  `json:"error,omitempty"`
}

func main() {
	ctrl.SetLogger(logr.Discard())
	if err := run(context.Background(), os.Stdin, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "keda:", err)
		os.Exit(1)
	}
}

// run takes what a TriggerAuthentication would give as arguments, NAME=VALUE, and what the
// workload's environment has as env:NAME=VALUE.
func run(ctx context.Context, in io.Reader, out io.Writer, auth []string) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var so kedav1alpha1.ScaledObject
	if err := yaml.UnmarshalStrict(text, &so); err != nil {
		return err
	}
	params, env := map[string]string{}, map[string]string{}
	for _, a := range auth {
		name, value, _ := strings.Cut(a, "=")
		if of, is := strings.CutPrefix(name, "env:"); is {
			env[of] = value
		} else {
			params[name] = value
		}
	}
	w := json.NewEncoder(out)
	for i, trigger := range so.Spec.Triggers {
		if err := w.Encode(ask(ctx, &so, i, trigger, params, env)); err != nil {
			return err
		}
	}
	return nil
}

// ask builds the scaler of a trigger as KEDA's cache of scalers does, and asks it once.
func ask(ctx context.Context, so *kedav1alpha1.ScaledObject, index int, trigger kedav1alpha1.ScaleTriggers, auth, env map[string]string) answer {
	metadata := map[string]string{}
	for name, value := range trigger.Metadata {
		metadata[name] = value
	}
	s, err := scalerOf(&scalersconfig.ScalerConfig{
		ScalableObjectName: so.Name, ScalableObjectNamespace: so.Namespace, ScalableObjectType: "ScaledObject",
		GlobalHTTPTimeout: httpTimeout, TriggerName: trigger.Name, TriggerType: trigger.Type,
		TriggerMetadata: metadata, AuthParams: auth, ResolvedEnv: env, TriggerIndex: index, MetricType: trigger.MetricType,
	})
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer func() { _ = s.Close(ctx) }()
	specs := s.GetMetricSpecForScaling(ctx)
	if len(specs) == 0 {
		return answer{Error: "no metric"}
	}
	of := specs[0].External
	got := answer{Name: of.Metric.Name}
	if of.Target.AverageValue != nil {
		got.Target = of.Target.AverageValue.AsApproximateFloat64()
	}
	values, active, err := s.GetMetricsAndActivity(ctx, got.Name)
	if err != nil {
		got.Error = err.Error()
		return got
	}
	got.Value, got.Active = values[0].Value.AsApproximateFloat64(), active
	if p, ok := s.(scalers.PushScaler); ok {
		got.Pushed = pushed(ctx, p)
	}
	return got
}

// scalerOf builds the scaler of a trigger.
func scalerOf(c *scalersconfig.ScalerConfig) (scalers.Scaler, error) {
	switch c.TriggerType {
	case "external":
		return scalers.NewExternalScaler(c)
	case "external-push":
		return scalers.NewExternalPushScaler(c)
	}
	return scalers.NewPrometheusScaler(c)
}

// pushTimeout is how long a scaler may take to say by itself that a trigger is active.
const pushTimeout = 20 * time.Second

// pushed says whether a scaler has said by itself that its trigger is active.
func pushed(ctx context.Context, s scalers.PushScaler) bool {
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	active := make(chan bool)
	go s.Run(ctx, active)
	return <-active // closed when its time is over
}
