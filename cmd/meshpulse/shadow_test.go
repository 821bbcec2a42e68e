package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestShadowTakesTheWordReport(t *testing.T) {
	for _, args := range [][]string{{"shadow"}, {"shadow", "reports"}, {"shadow", "report", "x"}} {
		var told bytes.Buffer
		if code := run(t.Context(), args, console{out: &told, err: &told}); code != exitUsage || !strings.Contains(told.String(), "meshpulse shadow report") {
			t.Errorf("%q ends with %d: %s", args, code, &told)
		}
	}
}

func TestShadowFlagsAreChecked(t *testing.T) {
	for flag, want := range map[string]string{
		"--shadow-prometheus=prometheus:9090":    "--shadow-prometheus",
		"--shadow=keda":                          "NAMESPACE/SERVICE[:PORT]",
		"--shadow-prometheus=http://u:secret@x/": "--shadow-prometheus",
		"--shadow-prometheus-token-file=token":   "--shadow-prometheus URL",
		"--shadow-interval=10ms":                 "--shadow-interval 10ms",
	} {
		var told bytes.Buffer
		code := run(t.Context(), []string{"serve", "--standalone", "--hpa-dir", t.TempDir(), flag}, console{out: &told, err: &told})
		if code == exitOK || !strings.Contains(told.String(), want) || strings.Contains(told.String(), "secret") {
			t.Errorf("%s ends with %d: %s", flag, code, &told)
		}
	}
}
