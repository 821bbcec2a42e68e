package main

import (
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
		"served":       {[]string{examples + "requests-total.yaml"}, exitOK, []string{"test/podinfo-total: served"}},
		"doubtful":     {[]string{examples + "latency-average.yaml"}, exitOK, []string{": doubtful", "  MillisecondsTarget: "}},
		"ScaledObject": {[]string{scaled}, exitOK, []string{"scales to zero", "the HPA in its place:", "    kind: HorizontalPodAutoscaler", "averageValue: \"5\""}},
		"no HPA":       {[]string{file("bad.yaml", "kind: HorizontalPodAutoscaler\napiVersion: autoscaling/v2\n")}, exitFailed, []string{"bad.yaml: line 1: ", "metadata.name"}},
		"not there":    {[]string{filepath.Join(dir, "none.yaml")}, exitFailed, nil},
		"another form": {[]string{"-o", "xml", scaled}, exitUsage, nil},
		"nothing":      {nil, exitUsage, nil},
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
		Unread   []string
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || len(report.Findings) != 1 || report.Findings[0].Verdict != "served" || report.Unread == nil {
		t.Errorf("%+v, %v:\n%s", report, err, stdout)
	}
}
