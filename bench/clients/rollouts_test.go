package clients

import (
	"fmt"
	"testing"
)

// measurement is what an AnalysisRun stores of a metric.
type measurement struct {
	Metric, Phase, Message, Value string
	Metadata                      map[string]string
}

func TestArgoRolloutsTemplates(t *testing.T) {
	m := newMesh(t, "canaries-only")
	token := "token=" + m.token
	templates := map[string]func(token string) measurement{}
	for name, args := range map[string][]string{
		"success-rate":       {"workload=podinfo"},
		"slower-than-stable": {"canary=" + canaryHash, "stable=" + stableHash},
		"errors-over-time":   {"workload=podinfo"},
	} {
		manifest := m.page(t, "name: "+name+"\n")
		templates[name] = func(token string) measurement {
			got := ask[measurement](t, "rollouts", manifest, append(args, token)...)
			if len(got) != 1 {
				t.Fatalf("%s: %+v", name, got)
			}
			return got[0]
		}
	}
	for name, measure := range templates {
		if got := measure("token=another"); got.Phase != "Error" {
			t.Errorf("%s with another token: %+v", name, got)
		}
		if got := measure(token); got.Phase == "Successful" || got.Phase == "Error" {
			t.Errorf("%s of a canary without requests: %+v", name, got)
		}
	}
	if got := templates["success-rate"](token); got.Phase != "Inconclusive" || got.Metadata["warnings"] == "" {
		t.Errorf("a canary without requests, a second after the start: %+v", got)
	}
	phases := func(what string, wanted string) {
		t.Helper()
		for name, measure := range templates {
			await(t, name+" of "+what, func() string {
				if got := measure(token); got.Phase != wanted {
					return fmt.Sprintf("%+v", got)
				}
				return ""
			})
		}
	}
	m.load(t, m.stable, 20, 40)
	m.load(t, m.canary, 20, 40)
	phases("a canary that does well", "Successful")
	m.failing.Store(true)
	m.load(t, m.canary, 20, 900)
	phases("a canary that fails and is slow", "Failed")
}
