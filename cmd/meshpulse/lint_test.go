package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLintTellsByTextJSONAndExitCode(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const examples = "../../manifests/examples/"
	scaled := file("scaled.yaml", "kind: ScaledObject\napiVersion: keda.sh/v1alpha1\nmetadata: {name: a, namespace: test}\nspec: {scaleTargetRef: {name: a}, "+
		"triggers: [{type: prometheus, metadata: {threshold: \"5\", query: 'sum(rate(istio_requests_total{destination_workload=\"a\",destination_workload_namespace=\"test\"}[1m]))'}}]}")
	for name, test := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"served":                 {[]string{examples + "requests-total.yaml"}, exitOK, []string{"test/podinfo-total: served"}},
		"doubtful":               {[]string{examples + "latency-average.yaml"}, exitOK, []string{": doubtful", "  MillisecondsTarget: "}},
		"ScaledObject":           {[]string{scaled}, exitOK, []string{"scales to zero", "the HPA in its place:", "    kind: HorizontalPodAutoscaler", "averageValue: \"5\"", "or itself, asking meshpulse", "        scalerAddress: meshpulse-keda.meshpulse-system:9091", "type: external-push\n"}},
		"no HPA":                 {[]string{file("bad.yaml", "kind: HorizontalPodAutoscaler\napiVersion: autoscaling/v2\n")}, exitFailed, []string{"bad.yaml: line 1: ", "metadata.name"}},
		"not there":              {[]string{filepath.Join(dir, "none.yaml")}, exitFailed, nil},
		"another form":           {[]string{"-o", "xml", scaled}, exitUsage, nil},
		"nothing":                {nil, exitUsage, nil},
		"no HPA in it":           {[]string{file("app.yaml", "kind: Deployment\napiVersion: apps/v1\n")}, exitOK, []string{"files 1: neither an HPA nor a ScaledObject, so nothing was judged; not looked at: 1 apps/v1 Deployment"}},
		"an empty one":           {[]string{file("empty.yaml", "")}, exitOK, []string{"files 1: neither an HPA"}},
		"two files":              {[]string{examples + "requests-total.yaml", examples + "latency-average.yaml"}, exitOK, []string{"HPAs and ScaledObjects 2: 2 doubtful\n"}},
		"a cluster and a file":   {[]string{"--cluster", scaled}, exitUsage, nil},
		"a way to no cluster":    {[]string{"--kubeconfig", scaled, scaled}, exitUsage, nil},
		"a cluster that is none": {[]string{"--cluster", "--kubeconfig", filepath.Join(dir, "none")}, exitFailed, nil},
	} {
		code, stdout, stderr := call(t.Context(), append([]string{"lint"}, test.args...)...)
		if code != test.code || (code != exitOK) != (stderr != "") {
			t.Errorf("%s: code %d, stderr %q", name, code, stderr)
		}
		for _, want := range test.want {
			if !strings.Contains(stdout, want) {
				t.Errorf("%s: no %q in\n%s", name, want, stdout)
			}
		}
	}
	_, stdout, _ := call(t.Context(), "lint", "-o", "json", examples+"requests-total.yaml")
	var report struct {
		Findings []struct{ Name, Verdict string }
		Unread   []struct{ Error string }
		Files    int
		Objects  map[string]int
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || len(report.Findings) != 1 || report.Findings[0].Verdict != "served" || report.Unread == nil ||
		report.Files != 1 || report.Objects["HorizontalPodAutoscaler"] != 1 {
		t.Errorf("%+v, %v:\n%s", report, err, stdout)
	}
}

func TestLintReadsWhatComesIn(t *testing.T) {
	in, err := os.Open("../../manifests/examples/requests-total.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"lint", "-"}, console{out: &out, err: &errs, in: in})
	if code != exitOK || !strings.HasPrefix(out.String(), "-: HorizontalPodAutoscaler test/podinfo-total: served\n") {
		t.Errorf("code %d, %s%s", code, out.String(), errs.String())
	}
}
