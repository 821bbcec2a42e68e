// Command flagger checks a Canary's metrics as Flagger's controller does, by Flagger's own
// templates, queries and providers.
//
// It reads the Canary and its MetricTemplates (YAML documents) and writes a line of JSON for each
// metric of the analysis: whether its provider is online, the value, and what would halt the
// canary. The controller's own check is none of Flagger's exported names, so its arithmetic is
// repeated.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"

	flaggerv1 "github.com/fluxcd/flagger/pkg/apis/flagger/v1beta1"
	"github.com/fluxcd/flagger/pkg/metrics/observers"
	"github.com/fluxcd/flagger/pkg/metrics/providers"
	"sigs.k8s.io/yaml"
)

// check is what becomes of a metric.
type check struct {
	Metric string  `json:"metric"`
	Online bool    `json:"online"`
	Value  float64 `json:"value"`
	Halt   string  `json:"halt,omitempty"`
}

func main() {
	server := flag.String("metrics-server", "", "Flagger's flag of that name")
	token := flag.String("token", "", "the key token of the Secret that MetricTemplates name")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, *server, *token); err != nil {
		fmt.Fprintln(os.Stderr, "flagger:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, server, token string) error {
	canary, templates, err := read(in)
	if err != nil {
		return err
	}
	w := json.NewEncoder(out)
	for _, metric := range canary.GetAnalysis().Metrics {
		c := check{Metric: metric.Name}
		value, err := c.ask(canary, templates, metric, server, token)
		c.Value = value
		if err != nil {
			c.Halt = err.Error()
		} else {
			c.Halt = outside(metric, value)
		}
		if err := w.Encode(c); err != nil {
			return err
		}
	}
	return nil
}

var between = regexp.MustCompile(`(?m)^---\s*$`)

// read returns the Canary, and the MetricTemplates by name.
func read(in io.Reader) (*flaggerv1.Canary, map[string]flaggerv1.MetricTemplate, error) {
	text, err := io.ReadAll(in)
	if err != nil {
		return nil, nil, err
	}
	var canary *flaggerv1.Canary
	templates := map[string]flaggerv1.MetricTemplate{}
	for _, document := range between.Split(string(text), -1) {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			return nil, nil, err
		}
		switch kind.Kind {
		case "":
		case flaggerv1.CanaryKind:
			canary = new(flaggerv1.Canary)
			err = strictly(document, canary)
		case "MetricTemplate":
			var t flaggerv1.MetricTemplate
			err = strictly(document, &t)
			templates[t.Name] = t
		default:
			err = fmt.Errorf("a %s is neither Canary nor MetricTemplate", kind.Kind)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	if canary == nil {
		return nil, nil, fmt.Errorf("no Canary in it")
	}
	return canary, templates, nil
}

func strictly(document string, into any) error {
	text, err := yaml.YAMLToJSON([]byte(document))
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// ask returns the value of a metric: of one that is built in by the mesh provider istio, of another
// by its template.
func (c *check) ask(canary *flaggerv1.Canary, templates map[string]flaggerv1.MetricTemplate, metric flaggerv1.CanaryMetric, server, token string) (float64, error) {
	model := modelOf(canary, metric)
	if metric.TemplateRef == nil {
		factory, err := observers.NewFactory(server)
		if err != nil {
			return 0, err
		}
		if c.Online, err = factory.Client.IsOnline(); err != nil {
			return 0, err
		}
		observer := factory.Observer(flaggerv1.IstioProvider)
		switch metric.Name {
		case "request-success-rate":
			return observer.GetRequestSuccessRate(model)
		case "request-duration":
			took, err := observer.GetRequestDuration(model)
			return float64(took.Milliseconds()), err
		}
		return 0, fmt.Errorf("no metric of Flagger's own is called %s", metric.Name)
	}
	template, known := templates[metric.TemplateRef.Name]
	if !known {
		return 0, fmt.Errorf("no MetricTemplate %s", metric.TemplateRef.Name)
	}
	provider, err := providers.Factory{}.Provider(metric.Interval, template.Spec.Provider, map[string][]byte{"token": []byte(token)})
	if err != nil {
		return 0, err
	}
	if c.Online, err = provider.IsOnline(); err != nil {
		return 0, err
	}
	query, err := observers.RenderQuery(template.Spec.Query, model)
	if err != nil {
		return 0, err
	}
	return provider.RunQuery(query)
}

// modelOf is the controller's toMetricModel.
func modelOf(canary *flaggerv1.Canary, metric flaggerv1.CanaryMetric) flaggerv1.MetricTemplateModel {
	target, interval := canary.Spec.TargetRef.Name, metric.Interval
	if interval == "" {
		interval = canary.GetMetricInterval()
	}
	return flaggerv1.MetricTemplateModel{
		Name: canary.Name, Namespace: canary.Namespace, Target: target, Service: target, Ingress: target, Route: target,
		Interval: interval, Variables: metric.TemplateVariables,
	}
}

// outside says why a value halts the canary, "" if it does not.
func outside(metric flaggerv1.CanaryMetric, value float64) string {
	r := metric.ThresholdRange
	switch {
	case r == nil:
		return "no thresholdRange"
	case r.Min != nil && value < *r.Min:
		return fmt.Sprintf("%.2f < %v", value, *r.Min)
	case r.Max != nil && value > *r.Max:
		return fmt.Sprintf("%.2f > %v", value, *r.Max)
	}
	return ""
}
