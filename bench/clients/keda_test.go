package clients

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// trigger is what KEDA makes of one.
type trigger struct {
	Name   string
	Target float64
	Value  float64
	Active bool
	Pushed bool
	Error  string
}

// What is not known is an error to KEDA, which keeps the replicas: not a 0, by which it would scale
// down.
func TestKEDAsPrometheusScaler(t *testing.T) {
	const rate = 20
	m := newMesh(t, "scalers-only")
	manifest := m.page(t, "kind: ScaledObject")
	of := func(manifest string) trigger {
		got := ask[trigger](t, "keda", manifest, "bearerToken="+m.token)
		if len(got) != 1 {
			t.Fatalf("%+v", got)
		}
		return got[0]
	}
	const parameter = "        queryParameters: on_incomplete=error\n"
	if !strings.Contains(manifest, parameter) {
		t.Fatalf("the page's manifest has no line %q", parameter)
	}
	unknown := strings.Replace(manifest, `destination_workload="podinfo"`, `destination_workload="nobody"`, 1)
	if got := of(unknown); !strings.Contains(got.Error, "503") {
		t.Errorf("of a workload that nobody reports as: %+v", got)
	}
	if got := of(strings.Replace(unknown, parameter, "", 1)); got.Error != "" || got.Value != 0 || got.Active {
		t.Errorf("without the parameter: %+v, and the page says that KEDA takes it for 0", got)
	}
	m.load(t, m.canary, rate, 40)
	await(t, "a window that is known", func() string {
		if got := of(manifest); got.Error != "" || math.Abs(got.Value-rate) > rate/20. || !got.Active {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	m.canary.Kill()
	await(t, "a sidecar that is silent", func() string {
		if got := of(manifest); !strings.Contains(got.Error, "503") {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
}
