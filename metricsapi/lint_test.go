package metricsapi

import (
	"strings"
	"testing"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestLintJudgesAsAServerDoes(t *testing.T) {
	const sound = `sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo",destination_workload_namespace="test"}[1m]))`
	ask := func(query string) string {
		return fixture.HPA("podinfo", `metric-config.external.a.prometheus/query: '`+query+`', `,
			fixture.External("a", "{matchLabels: {type: prometheus}}", `type: AverageValue, averageValue: "10"`)+", ")
	}
	for name, test := range map[string]struct {
		text    string
		verdict Verdict
		reason  string
	}{
		"a sound one":      {ask(sound), VerdictServed, ""},
		"a noisy one":      {ask(strings.Replace(sound, "rate", "irate", 1)), VerdictDoubtful, hpas.ReasonNoisyRate},
		"no PromQL":        {ask("sum("), VerdictRefused, hpas.ReasonBadQuery},
		"an application's": {ask("sum(queue_depth)"), VerdictRefused, hpas.ReasonNotReported},
		"no query":         {fixture.HPA("podinfo", "", fixture.External("prometheus-query", "{matchLabels: {query-name: a}}", `type: Value, value: "1"`)+", "), VerdictRefused, hpas.ReasonNoQuery},
		"no metric of it":  {fixture.HPA("podinfo", "", ""), VerdictOthers, ""},
		"a ScaledObject": {
			"kind: ScaledObject\napiVersion: keda.sh/v1alpha1\nmetadata: {name: podinfo}\nspec: {scaleTargetRef: {name: podinfo}, minReplicaCount: 1, " +
				"triggers: [{type: prometheus, metadata: {threshold: \"1\", query: '" + sound + "'}}]}", VerdictServed, "",
		},
		"a ScaledObject of others": {
			"kind: ScaledObject\napiVersion: keda.sh/v1alpha1\nmetadata: {name: podinfo}\nspec: {scaleTargetRef: {name: podinfo}, triggers: [{type: cron}]}", VerdictOthers, "",
		},
	} {
		found, refused, err := Lint("f.yaml", []byte(test.text), hpas.Vocabulary{Keeps: func(metric string) bool { return strings.HasPrefix(metric, "istio_") }})
		if err != nil || len(refused) > 0 || len(found) != 1 {
			t.Errorf("%s: %+v, refused %v, error %v\n%s", name, found, refused, err, test.text)
			continue
		}
		f := found[0]
		told := ""
		for _, p := range f.Problems {
			told += p.Reason + " "
		}
		if f.Verdict != test.verdict || !strings.Contains(told, test.reason) || f.File != "f.yaml" || f.Name != "podinfo" {
			t.Errorf("%s: %+v, want %s for %s", name, f, test.verdict, test.reason)
		}
	}
}
