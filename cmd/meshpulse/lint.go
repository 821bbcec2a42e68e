package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/envoystats"
	"github.com/meshpulse/meshpulse/metricsapi"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

const lintText = `Reads HPAs, and KEDA's ScaledObjects with Prometheus triggers, out of files as a server does, and says of each whether
it is served, is doubtful and why, or cannot be served. It needs neither a cluster nor a server. All that is given is
judged together: HPAs of two files may scale the same target.

  meshpulse lint manifests/examples/*.yaml
  helm template . | meshpulse lint -
  meshpulse lint --cluster

A ScaledObject comes with the HPA that would take its place, and as one that asks meshpulse's external scaler. --cluster
reads those of a cluster in place of files, whether the sidecars of their targets are told where to report, and what
meshpulse answers for them where it is installed.
It ends with 1 if one cannot be served or read.`

// errUnservable is a lint that has said why.
var errUnservable = errors.New("lint: not all can be served, see above")

type lintOptions struct {
	keep, tags []string
	custom     bool
	cluster    bool
	kubeconfig string
	output     string
}

// lint parses the flags and judges files, or a cluster.
func lint(ctx context.Context, args []string, c console) error {
	var o lintOptions
	f := newFlags("lint", lintText, c)
	f.BoolVar(&o.cluster, "cluster", false, "read what the cluster of kubectl's current context has")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "with --cluster: way to the API server (default: kubectl's)")
	f.StringSliceVar(&o.keep, "keep", nil, "as of serve")
	f.StringSliceVar(&o.tags, "custom-tags", nil, "labels that Telemetry resources add to Istio's own")
	f.BoolVar(&o.custom, "custom-metrics", false, "as of serve")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	if err := parse(f, args); err != nil {
		return err
	}
	sink := envoystats.Config{Keep: o.keep, CustomTags: o.tags}
	if err := errors.Join(o.validate(f.Args()), sink.Validate()); err != nil {
		return usageError{err}
	}
	l := &metricsapi.Lint{Words: hpas.Vocabulary{Keeps: sink.Keeps, Tags: sink.CustomTags, Custom: o.custom}}
	if o.cluster {
		if err := l.AddCluster(ctx, o.kubeconfig); err != nil {
			return fmt.Errorf("lint: %w", err)
		}
	}
	for _, path := range f.Args() {
		data, err := readAll(path, c.in)
		if err != nil {
			return fmt.Errorf("lint: %w: give files that can be read", err)
		}
		l.Add(path, data)
	}
	report, err := l.Report(ctx)
	if err != nil {
		return fmt.Errorf("lint: %w", err)
	}
	if err := o.print(report, c.out); err != nil {
		return err
	}
	if report.Failed() {
		return errUnservable
	}
	return nil
}

func (o lintOptions) validate(files []string) error {
	var wrong complaints
	wrong.when(len(files) == 0 && !o.cluster, "no files to read: name some with HPAs, in YAML or JSON, - for what comes in, or --cluster")
	wrong.when(len(files) > 0 && o.cluster, "--cluster reads no files: leave out %s, or the flag", strings.Join(files, " "))
	wrong.when(o.kubeconfig != "" && !o.cluster, "--kubeconfig is for --cluster: give that too")
	wrong.when(o.output != "text" && o.output != "json", "--output %q is neither text nor json", o.output)
	return errors.Join(wrong...)
}

// readAll reads a file, or what comes in where its name is "-".
func readAll(path string, in io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(path)
}

func (o lintOptions) print(r metricsapi.Report, out io.Writer) error {
	if o.output == "text" {
		_, err := io.WriteString(out, lintReport(r))
		return err
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func lintReport(r metricsapi.Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s: %s %s/%s: %s\n", f.File, f.Kind, f.Namespace, f.Name, f.Verdict)
		if f.AlsoIn != "" {
			fmt.Fprintf(&b, "  one of this name is in %s too: what is applied last counts\n", f.AlsoIn)
		}
		for _, p := range f.Problems {
			fmt.Fprintf(&b, "  %s: %s\n", p.Reason, strings.ReplaceAll(p.Message, "\n", "\n    "))
		}
		for _, d := range f.Differs {
			fmt.Fprintf(&b, "  not in an HPA: %s\n", d)
		}
		b.WriteString(told(f.Cluster))
		if f.Replacement != nil {
			b.WriteString("  the HPA in its place:\n" + indented(f.Replacement))
		}
		if f.Scaler != nil {
			fmt.Fprintf(&b, "  or itself, asking meshpulse as KEDA's external scaler (TriggerAuthentication %s has caCert, tlsClientCert and tlsClientKey):\n%s", hpas.ScalerAuthentication, indented(f.Scaler))
		}
	}
	for _, u := range r.Unread {
		fmt.Fprintf(&b, "%s: line %d: %s\n", u.File, u.Line, u.Error)
	}
	b.WriteString(lookedAt(r))
	return b.String()
}

// told is what a cluster tells of a finding.
func told(c *metricsapi.InCluster) string {
	if c == nil {
		return ""
	}
	var b strings.Builder
	if w := c.Wiring; w == nil {
		b.WriteString("  the target has no pods\n")
	} else {
		fmt.Fprintf(&b, "  pods %d, with a sidecar %d, told where to report %d%s\n", w.Pods, w.Sidecars, w.Wired, strings.TrimRight(": "+strings.Join(w.Services, ", "), ": "))
	}
	for _, a := range c.Answers {
		switch {
		case a.Error != "":
			fmt.Fprintf(&b, "  metric %s has no value now: %s\n", a.Metric, a.Error)
		case a.Reason != "":
			fmt.Fprintf(&b, "  metric %s is %s now, sidecars that report %s: %s\n", a.Metric, a.Value, a.Coverage, a.Reason)
		case a.Coverage == "": // a custom metric's answer does not say
			fmt.Fprintf(&b, "  metric %s is %s now\n", a.Metric, a.Value)
		default:
			fmt.Fprintf(&b, "  metric %s is %s now, sidecars that report %s\n", a.Metric, a.Value, a.Coverage)
		}
	}
	return b.String()
}

// lookedAt says what was read, so that nothing to judge is not taken for nothing to object to.
func lookedAt(r metricsapi.Report) string {
	var b strings.Builder
	if r.Cluster == nil {
		fmt.Fprintf(&b, "files %d: ", r.Files)
	} else {
		fmt.Fprintf(&b, "external.metrics.k8s.io is served by %s\n", cmp.Or(r.Cluster.Server, "nobody"))
	}
	verdicts := map[metricsapi.Verdict]int{}
	for _, f := range r.Findings {
		verdicts[f.Verdict]++
	}
	if len(r.Findings) == 0 {
		b.WriteString("neither an HPA nor a ScaledObject, so nothing was judged")
	} else {
		var counts []string
		for _, v := range []metricsapi.Verdict{metricsapi.VerdictServed, metricsapi.VerdictDoubtful, metricsapi.VerdictRefused, metricsapi.VerdictOthers} {
			if n := verdicts[v]; n > 0 {
				counts = append(counts, fmt.Sprintf("%d %s", n, v))
			}
		}
		fmt.Fprintf(&b, "HPAs and ScaledObjects %d: %s", len(r.Findings), strings.Join(counts, ", "))
	}
	var others []string
	for _, kind := range slices.Sorted(maps.Keys(r.Objects)) {
		if kind != "HorizontalPodAutoscaler" && kind != "ScaledObject" {
			others = append(others, fmt.Sprintf("%d %s", r.Objects[kind], kind))
		}
	}
	if len(others) > 0 {
		b.WriteString("; not looked at: " + strings.Join(others, ", "))
	}
	if n := len(r.Unread); n > 0 {
		fmt.Fprintf(&b, "; not readable: %d", n)
	}
	return b.String() + "\n"
}

// indented is an object as it would be applied.
func indented(object any) string {
	content, err := yaml.Marshal(object)
	if err != nil {
		return "    " + err.Error() + "\n"
	}
	text, _, _ := strings.Cut(string(content), "\nstatus:") // which a server writes
	return "    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
}
