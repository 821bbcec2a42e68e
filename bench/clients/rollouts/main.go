// Command rollouts measures an AnalysisTemplate's metrics once, by Argo Rollouts' own templates and
// Prometheus provider.
//
// It reads the AnalysisTemplate (YAML), takes the values of its arguments as NAME=VALUE, and writes
// a line of JSON for each metric: the measurement as the AnalysisRun would store it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/argoproj/argo-rollouts/metricproviders/prometheus"
	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	templates "github.com/argoproj/argo-rollouts/utils/template"
	"github.com/sirupsen/logrus"
	"sigs.k8s.io/yaml"
)

// measured is a metric's measurement.
type measured struct {
	Metric string `json:"metric"`
	v1alpha1.Measurement
}

func main() {
	logrus.SetOutput(io.Discard)
	if err := run(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "rollouts:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, args []string) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	var template v1alpha1.AnalysisTemplate
	if err := yaml.UnmarshalStrict(text, &template); err != nil {
		return err
	}
	given := template.Spec.Args
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		for i := range given {
			if given[i].Name == name {
				given[i].Value = &value
			}
		}
	}
	w := json.NewEncoder(out)
	for _, metric := range template.Spec.Metrics {
		m, err := measure(metric, given)
		if err != nil {
			return fmt.Errorf("%s: %w", metric.Name, err)
		}
		if err := w.Encode(measured{metric.Name, m}); err != nil {
			return err
		}
	}
	return nil
}

// measure fills in the arguments and asks, as the controller's analysis does.
func measure(metric v1alpha1.Metric, args []v1alpha1.Argument) (v1alpha1.Measurement, error) {
	text, err := json.Marshal(metric)
	if err != nil {
		return v1alpha1.Measurement{}, err
	}
	resolved, err := templates.ResolveQuotedArgs(string(text), args)
	if err != nil {
		return v1alpha1.Measurement{}, err
	}
	var filled v1alpha1.Metric
	if err := json.Unmarshal([]byte(resolved), &filled); err != nil {
		return v1alpha1.Measurement{}, err
	}
	api, err := prometheus.NewPrometheusAPI(filled)
	if err != nil {
		return v1alpha1.Measurement{}, err
	}
	provider, err := prometheus.NewPrometheusProvider(api, *logrus.NewEntry(logrus.StandardLogger()), filled)
	if err != nil {
		return v1alpha1.Measurement{}, err
	}
	return provider.Run(nil, filled), nil
}
