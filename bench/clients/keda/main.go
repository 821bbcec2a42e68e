// Command keda asks what a ScaledObject's triggers of type prometheus ask, by KEDA's own scaler.
//
// It reads the ScaledObject (YAML) and writes a line of JSON for each trigger: the value that
// KEDA's metrics server would give the HPA, whether KEDA takes the trigger for active, and the
// error that it would have instead.
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
	Value  float64 `json:"value"`
	Active bool    `json:"active"`
	Error  string  `json:"error,omitempty"`
}

func main() {
	ctrl.SetLogger(logr.Discard())
	if err := run(context.Background(), os.Stdin, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "keda:", err)
		os.Exit(1)
	}
}

// run takes what a TriggerAuthentication would give as arguments, NAME=VALUE.
func run(ctx context.Context, in io.Reader, out io.Writer, auth []string) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var so kedav1alpha1.ScaledObject
	if err := yaml.UnmarshalStrict(text, &so); err != nil {
		return err
	}
	params := map[string]string{}
	for _, a := range auth {
		name, value, _ := strings.Cut(a, "=")
		params[name] = value
	}
	w := json.NewEncoder(out)
	for i, trigger := range so.Spec.Triggers {
		if err := w.Encode(ask(ctx, &so, i, trigger, params)); err != nil {
			return err
		}
	}
	return nil
}

// ask builds the scaler of a trigger as KEDA's cache of scalers does, and asks it once.
func ask(ctx context.Context, so *kedav1alpha1.ScaledObject, index int, trigger kedav1alpha1.ScaleTriggers, auth map[string]string) answer {
	metadata := map[string]string{}
	for name, value := range trigger.Metadata {
		metadata[name] = value
	}
	s, err := scalers.NewPrometheusScaler(&scalersconfig.ScalerConfig{
		ScalableObjectName: so.Name, ScalableObjectNamespace: so.Namespace, ScalableObjectType: "ScaledObject",
		GlobalHTTPTimeout: httpTimeout, TriggerName: trigger.Name, TriggerType: trigger.Type,
		TriggerMetadata: metadata, AuthParams: auth, TriggerIndex: index, MetricType: trigger.MetricType,
	})
	if err != nil {
		return answer{Error: err.Error()}
	}
	defer func() { _ = s.Close(ctx) }()
	name := s.GetMetricSpecForScaling(ctx)[0].External.Metric.Name
	values, active, err := s.GetMetricsAndActivity(ctx, name)
	if err != nil {
		return answer{Name: name, Error: err.Error()}
	}
	return answer{Name: name, Value: values[0].Value.AsApproximateFloat64(), Active: active}
}
