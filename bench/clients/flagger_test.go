package clients

import (
	"fmt"
	"math"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"text/template"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	external "k8s.io/metrics/pkg/client/external_metrics"
	"sigs.k8s.io/yaml"
)

// check is what Flagger makes of a metric.
type check struct {
	Metric string
	Online bool
	Value  float64
	Halt   string
}

// The canary that nobody calls is halted, the one that does well goes on, and the one that fails is
// halted.
func TestFlaggersBuiltInChecks(t *testing.T) {
	m := newMesh(t, "")
	manifests := m.page(t, "name: builtin")
	checks := func() []check {
		return ask[check](t, "flagger", manifests, "-metrics-server=http://"+m.Prometheus)
	}
	for _, c := range checks() {
		if !c.Online || !strings.Contains(c.Halt, "no values found") {
			t.Errorf("of a canary without requests: %+v", c)
		}
	}
	m.load(t, m.canary, 20, 40)
	await(t, "a canary that does well", func() string {
		got := checks()
		if len(got) == 2 && got[0].Halt == "" && got[0].Value == 100 && got[1].Halt == "" && got[1].Value > 25 && got[1].Value < 50 {
			return ""
		}
		return fmt.Sprintf("%+v", got)
	})
	m.failing.Store(true)
	await(t, "a canary that fails", func() string {
		if got := checks(); !strings.HasSuffix(got[0].Halt, " < 99") {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	m.load(t, m.canary, 20, 900)
	await(t, "a canary that is slow", func() string {
		if got := checks(); !strings.HasSuffix(got[1].Halt, " > 500") {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
}

func TestFlaggersTemplates(t *testing.T) {
	m := newMesh(t, "canaries-only")
	manifests := m.page(t, "name: templates")
	checks := func() []check { return ask[check](t, "flagger", manifests, "-token="+m.token) }
	for _, c := range ask[check](t, "flagger", manifests, "-token=another") {
		if c.Online || !strings.Contains(c.Halt, "--prometheus-token-file") {
			t.Errorf("with another token: %+v", c)
		}
	}
	for _, c := range checks() {
		if !c.Online || !strings.Contains(c.Halt, "no values found") {
			t.Errorf("of a canary without requests: %+v", c)
		}
	}
	m.load(t, m.canary, 20, 40)
	await(t, "a canary that does well", func() string {
		got := checks()
		if len(got) == 2 && got[0].Halt == "" && got[0].Value == 0 && got[1].Halt == "" && got[1].Value >= 20 {
			return ""
		}
		return fmt.Sprintf("%+v", got)
	})
	m.failing.Store(true)
	await(t, "a canary that fails", func() string {
		if got := checks(); !strings.HasSuffix(got[0].Halt, " > 1") || got[1].Halt != "" {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
}

// Flagger's provider externalmetrics, as its code asks: through the client of k8s.io/metrics, of
// the answer the first item.
func TestFlaggersExternalMetrics(t *testing.T) {
	m := newMesh(t, "")
	client, err := external.NewForConfig(&rest.Config{Host: m.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.NamespacedMetrics("kube-system").List("dummy-metric", labels.Everything()); err != nil {
		t.Errorf("Flagger would not take it for online: %v", err)
	}
	queries := externalQueries(t, m.page(t, "name: by-name"))
	values := func() (of map[string]float64, failed error) {
		of = map[string]float64{}
		for name, query := range queries {
			u, err := url.Parse("dummy:///" + query)
			if err != nil {
				t.Fatal(err)
			}
			namespace, metric, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
			selector, err := labels.Parse(u.Query().Get("labelSelector"))
			if err != nil {
				t.Fatal(err)
			}
			list, err := client.NamespacedMetrics(namespace).List(metric, selector)
			if err != nil || len(list.Items) == 0 {
				failed = fmt.Errorf("%s: no value: %w", name, err)
				continue
			}
			of[name] = list.Items[0].Value.AsApproximateFloat64()
		}
		return of, failed
	}
	if got, err := values(); err == nil && got["requests-per-second"] >= 0.3 {
		t.Errorf("of a canary without requests: %v", got)
	}
	m.load(t, m.canary, 20, 40)
	await(t, "a canary that does well", func() string {
		if got, err := values(); err != nil || got["error-ratio"] != 0 || got["requests-per-second"] < 0.3 {
			return fmt.Sprint(got, err)
		}
		return ""
	})
	m.failing.Store(true)
	await(t, "a canary that fails", func() string {
		if got, err := values(); err != nil || got["error-ratio"] <= 0.01 || math.IsNaN(got["error-ratio"]) {
			return fmt.Sprint(got, err)
		}
		return ""
	})
}

// externalQueries are those of the MetricTemplates among the manifests, by name, for the canary
// podinfo of the namespace test.
func externalQueries(t *testing.T, manifests string) map[string]string {
	t.Helper()
	queries := map[string]string{}
	filled := template.FuncMap{
		"namespace": func() string { return "test" }, "target": func() string { return "podinfo" }, "interval": func() string { return "1m" },
	}
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(manifests, -1) {
		var manifest struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct {
				Provider struct{ Type string }
				Query    string
			}
		}
		if err := yaml.Unmarshal([]byte(document), &manifest); err != nil {
			t.Fatal(err)
		}
		if manifest.Kind != "MetricTemplate" {
			continue
		}
		if manifest.Spec.Provider.Type != "externalmetrics" {
			t.Errorf("%s is of the provider %s", manifest.Metadata.Name, manifest.Spec.Provider.Type)
		}
		var query strings.Builder
		if err := template.Must(template.New("").Funcs(filled).Parse(manifest.Spec.Query)).Execute(&query, nil); err != nil {
			t.Fatal(err)
		}
		queries[manifest.Metadata.Name] = query.String()
	}
	if len(queries) != 2 {
		t.Fatalf("queries %v", queries)
	}
	return queries
}
