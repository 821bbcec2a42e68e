package metricsapi

import (
	"strings"
	"testing"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// hpaFrom reads the one HPA of a YAML text.
func hpaFrom(t testing.TB, text string) hpas.HPA {
	t.Helper()
	c := hpas.Decode("test.yaml", []byte(text))
	if len(c.Refused) > 0 || len(c.HPAs) != 1 {
		t.Fatalf("%d HPAs, errors %v, in\n%s", len(c.HPAs), c.Refused, text)
	}
	return c.HPAs[0]
}

const minimal = "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: %}\nspec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: %}}\n"

func minimalHPA(name string) string { return strings.ReplaceAll(minimal, "%", name) }
