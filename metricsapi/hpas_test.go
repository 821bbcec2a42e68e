package metricsapi

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// hpaFrom reads the one HPA of a YAML text.
func hpaFrom(t testing.TB, text string) sourceHPA {
	t.Helper()
	c := readHPAFile("test.yaml", []byte(text))
	if len(c.refused) > 0 || len(c.hpas) != 1 {
		t.Fatalf("%d HPAs, errors %v, in\n%s", len(c.hpas), c.refused, text)
	}
	return c.hpas[0]
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
