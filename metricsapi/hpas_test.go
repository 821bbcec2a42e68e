package metricsapi

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

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

// hpaText is an HPA of namespace test with the annotations and metrics in YAML flow style.
func hpaText(name, annotations, metrics string) string {
	return `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: ` + name + `, namespace: test, annotations: {` + annotations + `}}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: ` + name + `}
  maxReplicas: 5
  metrics: [` + metrics + `]
`
}

func external(name, selector, target string) string {
	return `{type: External, external: {metric: {name: ` + name + `, selector: ` + selector + `}, target: {` + target + `}}}`
}

func mustSelector(t *testing.T, text string) labels.Selector {
	t.Helper()
	s, err := labels.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const minimal = "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: %}\nspec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: %}}\n"

func minimalHPA(name string) string { return strings.ReplaceAll(minimal, "%", name) }
