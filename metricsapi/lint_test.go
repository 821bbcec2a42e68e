package metricsapi

import (
	"strings"
	"testing"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

const soundQuery = `sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo",destination_workload_namespace="test"}[1m]))`

// yamlAsking is an HPA in YAML that asks for a query, by a name and a target of its own.
func yamlAsking(name, query string) string {
	return fixture.HPA(name, `metric-config.external.a.prometheus/query: '`+query+`', `,
		fixture.External("a", "{matchLabels: {type: prometheus}}", `type: AverageValue, averageValue: "10"`)+", ")
}

// scaled is a ScaledObject in YAML with triggers.
func scaled(name, triggers string) string {
	return "kind: ScaledObject\napiVersion: keda.sh/v1alpha1\nmetadata: {name: " + name + ", namespace: test}\n" +
		"spec: {scaleTargetRef: {name: " + name + "}, minReplicaCount: 1, triggers: [" + triggers + "]}\n"
}

func prometheusTrigger(query string) string {
	return `{type: prometheus, metadata: {threshold: "1", query: '` + query + `'}}`
}

// linted judges files by their names.
func linted(t *testing.T, files map[string]string) Report {
	t.Helper()
	l := Lint{Words: hpas.Vocabulary{Keeps: func(metric string) bool { return strings.HasPrefix(metric, "istio_") }}}
	for _, name := range []string{"a.yaml", "b.yaml", "c.json"} {
		if text, ok := files[name]; ok {
			l.Add(name, []byte(text))
		}
	}
	r, err := l.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func reasons(f Finding) string {
	told := ""
	for _, p := range f.Problems {
		told += p.Reason + ": " + p.Message + "\n"
	}
	return told
}

func TestLintJudgesAsAServerDoes(t *testing.T) {
	other := func(from, to string) string { return strings.Replace(soundQuery, from, to, 1) }
	for name, test := range map[string]struct {
		text    string
		verdict Verdict
		told    string
	}{
		"a sound one":      {yamlAsking("podinfo", soundQuery), VerdictServed, ""},
		"a noisy one":      {yamlAsking("podinfo", other("rate", "irate")), VerdictDoubtful, hpas.ReasonNoisyRate},
		"no PromQL":        {yamlAsking("podinfo", "sum("), VerdictRefused, hpas.ReasonBadQuery},
		"an application's": {yamlAsking("podinfo", "sum(queue_depth)"), VerdictRefused, hpas.ReasonNotReported},
		"no query":         {fixture.HPA("podinfo", "", fixture.External("prometheus-query", "{matchLabels: {query-name: a}}", `type: Value, value: "1"`)+", "), VerdictRefused, hpas.ReasonNoQuery},
		"no metric of it":  {fixture.HPA("podinfo", "", ""), VerdictOthers, ""},
		"a target that an API server refuses": {
			fixture.HPA("podinfo", "", fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: podinfo}}", `type: Value`)+", "), VerdictRefused, hpas.ReasonBadMetric,
		},
		"a metric that is misspelt":         {yamlAsking("podinfo", other("istio_requests_total", "istio_request_total")), VerdictRefused, "Istio does not set the metric istio_request_total by itself: check the spelling"},
		"a label that is misspelt":          {yamlAsking("podinfo", other("destination_workload=", "destination_worklod=")), VerdictRefused, "Istio does not set the label destination_worklod by itself: check the spelling"},
		"a label of a scrape":               {yamlAsking("podinfo", other("destination_workload=", "app=")), VerdictRefused, "write destination_app in its place"},
		"a reporter that is none":           {yamlAsking("podinfo", other(`"destination"`, `"dest"`)), VerdictRefused, "is none of destination, source and waypoint"},
		"a misspelt one beside a right one": {yamlAsking("podinfo", "sum(rate(istio_request_total[1m])) or "+soundQuery), VerdictServed, ""},
		"a misspelt one and 0 beside":       {yamlAsking("podinfo", "sum(rate(istio_request_total[1m])) or vector(0)"), VerdictRefused, "check the spelling"},
		"a code that is none":               {yamlAsking("podinfo", other("reporter", `response_code="5xx",reporter`)), VerdictDoubtful, `no request has response_code="5xx"`},
		"a policy that is none":             {yamlAsking("podinfo", other("reporter", `connection_security_policy="mtls",reporter`)), VerdictDoubtful, "there are mutual_tls, none, unknown"},
		"a code and a policy that are":      {yamlAsking("podinfo", other("reporter", `response_code=~"5.*",connection_security_policy!="mutual_tls",request_protocol="http",reporter`)), VerdictServed, ""},
		"a selector's label that is misspelt": {
			fixture.HPA("podinfo", "", fixture.External("istio-requests-per-second", "{matchLabels: {destination_worklod: podinfo}}", `type: AverageValue, averageValue: "10"`)+", "),
			VerdictRefused, hpas.ReasonUnknownLabel,
		},
		"a ScaledObject":                          {scaled("podinfo", prometheusTrigger(soundQuery)), VerdictServed, ""},
		"a ScaledObject of others":                {scaled("podinfo", "{type: cron}"), VerdictOthers, ""},
		"a ScaledObject with others":              {scaled("podinfo", prometheusTrigger(soundQuery)+", {type: cron}"), VerdictDoubtful, ""},
		"a ScaledObject whose metric is misspelt": {scaled("podinfo", prometheusTrigger("sum(rate(istio_request_total[1m]))")), VerdictRefused, "check the spelling"},
		"a ScaledObject without a threshold":      {scaled("podinfo", "{type: prometheus, metadata: {query: '"+soundQuery+"'}}"), VerdictRefused, ""},
	} {
		r := linted(t, map[string]string{"a.yaml": test.text})
		if len(r.Unread) > 0 || len(r.Findings) != 1 {
			t.Errorf("%s: %+v\n%s", name, r, test.text)
			continue
		}
		f := r.Findings[0]
		if f.Verdict != test.verdict || !strings.Contains(reasons(f), test.told) || f.File != "a.yaml" || f.Name != "podinfo" {
			t.Errorf("%s: %+v, want %s for %s", name, f, test.verdict, test.told)
		}
		if r.Failed() != (test.verdict == VerdictRefused) {
			t.Errorf("%s: failed is %v", name, r.Failed())
		}
	}
}

func TestLintComparesHPAsOfAllFiles(t *testing.T) {
	shares := func(name, target string) string {
		return strings.Replace(yamlAsking(name, soundQuery), "name: "+name+"}", "name: "+target+"}", 1)
	}
	r := linted(t, map[string]string{"a.yaml": shares("one", "podinfo"), "b.yaml": shares("two", "podinfo") + "---\n" + yamlAsking("three", soundQuery)})
	for i, want := range []string{"also the target of younger HPAs", "also the target of HPA one", ""} {
		if told := reasons(r.Findings[i]); !strings.Contains(told, want) || strings.Contains(told, hpas.ReasonSharedTarget) != (want != "") {
			t.Errorf("%s: %q, want %q", r.Findings[i].Name, told, want)
		}
	}
	r = linted(t, map[string]string{"a.yaml": yamlAsking("podinfo", soundQuery), "b.yaml": scaled("podinfo", prometheusTrigger(soundQuery))})
	if told := reasons(r.Findings[1]); !strings.Contains(told, hpas.ReasonSharedTarget) {
		t.Errorf("a ScaledObject beside an HPA of its target: %q", told)
	}
}

// Overlays have an object of one name each.
func TestLintJudgesTwoOfOneNameEachByItself(t *testing.T) {
	r := linted(t, map[string]string{"a.yaml": yamlAsking("podinfo", soundQuery), "b.yaml": yamlAsking("podinfo", "sum(")})
	first, second := r.Findings[0], r.Findings[1]
	if first.Verdict != VerdictServed || second.Verdict != VerdictRefused || first.AlsoIn != "" || second.AlsoIn != "a.yaml" || strings.Contains(reasons(second), hpas.ReasonSharedTarget) {
		t.Errorf("%+v\n%+v", first, second)
	}
}

func TestLintRefusesABrokenQueryThatAnOlderHPAAnswersFor(t *testing.T) {
	r := linted(t, map[string]string{"a.yaml": yamlAsking("one", soundQuery), "b.yaml": yamlAsking("two", "sum(")})
	if one, two := r.Findings[0], r.Findings[1]; one.Verdict != VerdictDoubtful || two.Verdict != VerdictRefused || !strings.Contains(reasons(two), hpas.ReasonBadQuery) {
		t.Errorf("%+v\n%+v", one, two)
	}
}

func TestLintSaysWhatItLookedAt(t *testing.T) {
	const deployment = "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: a}\n"
	r := linted(t, map[string]string{
		"a.yaml": deployment + "---\n" + scaled("podinfo", "{type: cron}"), "b.yaml": "kind: [\n",
		"c.json": `{"kind": "HorizontalPodAutoscalerList", "apiVersion": "autoscaling/v2", "items": [{"metadata": {"name": "listed"}, "spec": {"maxReplicas": 2, "scaleTargetRef": {"kind": "Deployment", "name": "a"}}}]}`,
	})
	if r.Files != 3 || r.Objects["apps/v1 Deployment"] != 1 || r.Objects["ScaledObject"] != 1 || r.Objects["HorizontalPodAutoscaler"] != 1 || len(r.Objects) != 3 {
		t.Errorf("files %d, objects %v", r.Files, r.Objects)
	}
	if len(r.Unread) != 1 || r.Unread[0].File != "b.yaml" || !r.Failed() {
		t.Errorf("unread %+v", r.Unread)
	}
	if last := r.Findings[len(r.Findings)-1]; last.Name != "listed" {
		t.Errorf("an API server's own list has %+v", r.Findings)
	}
}

// Whatever a file holds, it is judged or told as what cannot be read.
func FuzzLint(f *testing.F) {
	for _, text := range []string{
		yamlAsking("podinfo", soundQuery), yamlAsking("podinfo", "sum("), scaled("podinfo", prometheusTrigger(soundQuery)+", {type: cpu, metadata: {value: \"70\"}}"),
		yamlAsking("a", soundQuery) + "---\n" + yamlAsking("a", "sum(rate(istio_request_total[1m])) or vector(0)"),
		objectHPA("rps", objectQuery, `type: Value, value: "10"`), `{"kind": "List", "items": [{}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, custom := range []bool{false, true} {
			l := Lint{Words: hpas.Vocabulary{Keeps: istioOnly, Custom: custom}}
			l.Add("a.yaml", data)
			l.Add("b.yaml", data) // all of it twice
			r, err := l.Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range r.Findings {
				if found.Verdict == "" {
					t.Errorf("%+v", found)
				}
			}
		}
	})
}
