package metricsapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"
	externalclient "k8s.io/metrics/pkg/client/external_metrics"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// Kubernetes' own client, which the HPA controller asks with, asks for a metric in lower case
// whatever the HPA says. The values of selectors, and so the names of queries, stay as they are.
func TestMetricsAreFoundAsKubernetesClientAsks(t *testing.T) {
	s := startServer(t, nil)
	const average = `type: AverageValue, averageValue: "10"`
	s.write("hpa.yaml", fixture.HPA("podinfo",
		`metric-config.external.ProcessedRequests.prometheus/query: "vector(1)", metric-config.external.errors.prometheus/query: "vector(2)", `+
			`metric-config.external.prometheus-query.prometheus/RPS: "vector(3)", metric-config.external.prometheus-query.prometheus/rps: "vector(4)"`,
		strings.Join([]string{
			fixture.External("ProcessedRequests", "{matchLabels: {type: prometheus}}", average),
			fixture.External("Errors", "{matchLabels: {type: prometheus}}", average),
			fixture.External("Prometheus-Query", "{matchLabels: {query-name: RPS}}", average),
			fixture.External("prometheus-query", "{matchLabels: {query-name: rps}}", average),
			fixture.External("Istio-Requests-Per-Second", "{matchLabels: {destination_workload: podinfo}}", average),
		}, ", ")))
	s.sidecar("a")
	eventually(t, func() bool { return strings.Contains(s.resources(), `"processedrequests"`) }, s.resources)
	client, err := externalclient.NewForConfig(&rest.Config{Host: "https://" + s.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		metric, selector string
		want             int64
	}{
		{"ProcessedRequests", "type=prometheus", 1},
		{"processedrequests", "type=prometheus", 1},
		{"Errors", "type=prometheus", 2},
		{"prometheus-query", "query-name=RPS", 3},
		{"Prometheus-Query", "query-name=rps", 4},
		{"Istio-Requests-Per-Second", "destination_workload=podinfo", 1},
	} {
		list, err := client.NamespacedMetrics("test").List(tc.metric, fixture.Selector(t, tc.selector))
		if err != nil || len(list.Items) != 1 || list.Items[0].Value.Value() != tc.want {
			t.Errorf("%s with %s: %v, error %v, want %d", tc.metric, tc.selector, list, err, tc.want)
		}
		if code, body := s.get(metricPath("test", tc.metric, tc.selector)); code != http.StatusOK { // by hand, as written
			t.Errorf("%s with %s gives %d: %s", tc.metric, tc.selector, code, body)
		}
	}
	for _, m := range s.Status(t.Context()).Metrics {
		if m.Error != "" || len(m.Events) > 0 {
			t.Errorf("%s: error %q, events %v", m.Metric, m.Error, m.Events)
		}
	}
}

// Two metrics whose names differ by case only are one to the client: that is an event on all who
// ask.
func TestMetricsThatDifferByCaseOnly(t *testing.T) {
	const average = `type: AverageValue, averageValue: "10"`
	hpa := func(name string, metrics ...string) hpas.HPA {
		annotations, specs := "", ""
		for _, m := range metrics {
			annotations += "metric-config.external." + m + `.prometheus/query: "vector(` + strings.Repeat("1", len(m)+len(specs)) + `)", `
			specs += fixture.External(m, "{matchLabels: {type: prometheus}}", average) + ", "
		}
		return hpaFrom(t, fixture.HPA(name, annotations, specs))
	}
	younger := hpa("younger", "rps")
	younger.Place = 1
	for what, tc := range map[string]struct {
		hpas []hpas.HPA
		want []string
	}{
		"in one HPA":    {[]hpas.HPA{hpa("one", "Rps", "rps")}, []string{"one QueryConflict"}},
		"in two HPAs":   {[]hpas.HPA{hpa("older", "Rps"), younger}, []string{"older QueryConflict", "younger QueryConflict"}},
		"of one name":   {[]hpas.HPA{hpa("older", "rps"), younger}, []string{}},
		"another name":  {[]hpas.HPA{hpa("older", "rpm"), younger}, []string{}},
		"two in either": {[]hpas.HPA{hpa("older", "Rps", "rpm"), younger}, []string{"older QueryConflict", "younger QueryConflict"}},
	} {
		t.Run(what, func(t *testing.T) {
			c, events := newTestCatalog(t)
			c.Replace(tc.hpas)
			got := events.take()
			slices.Sort(got)
			if d := cmp.Diff(tc.want, append([]string{}, got...)); d != "" {
				t.Error(d)
			}
			if message := events.message(hpas.ReasonQueryConflict); len(tc.want) > 0 && !strings.Contains(message, "differ by case only") {
				t.Errorf("the event says %q", message)
			}
			if len(tc.want) > 0 { // the first counts, for both spellings
				p, _, refused := c.find("test", "RPS", fixture.Selector(t, "type=prometheus"))
				if refused != nil {
					t.Fatal(refused.message)
				}
				if p.Text != "vector(111)" {
					t.Errorf("the answer is of %s", p.Text)
				}
				p.release()
			}
		})
	}
}
