package metricsapi

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func keepsIstio(metric string) bool { return strings.HasPrefix(metric, "istio_") }

// sharingCatalog is one beside another adapter.
func sharingCatalog(t *testing.T) (*catalog, *told) {
	c, events := newTestCatalog(t)
	c.words = hpas.Vocabulary{Keeps: keepsIstio}
	c.sharing = sharing{passes: true}
	return c, events
}

// aged are HPAs of which the first is the oldest, each with what Serve says; "" is nothing.
func aged(list []hpas.HPA, serve ...string) []hpas.HPA {
	for i, h := range list {
		h.CreationTimestamp = metav1.NewTime(time.Unix(int64(1000+i), 0))
		if i < len(serve) && serve[i] != "" {
			h.Annotations[hpas.Serve] = serve[i]
		}
	}
	return list
}

const (
	istioRate = `sum(rate(istio_requests_total{destination_workload="web"}[1m]))`
	otherRate = `sum(rate(http_requests_total{app="web"}[1m]))`
)

// Whose a metric is follows from what is written.
func TestWhoseAMetricIs(t *testing.T) {
	keda := fixture.External("s0-prometheus", "{matchLabels: {scaledobject.keda.sh/name: web}}", `type: AverageValue, averageValue: "10"`)
	named := fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: web}}", `type: AverageValue, averageValue: "10"`)
	cases := map[string]struct {
		hpas  []hpas.HPA
		serve []string
		asked string // metric selector
		want  bool
	}{
		"an HPA's query of Istio's metrics":         {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate)}, asked: "prometheus-query query-name=rps", want: true},
		"an HPA's query of others'":                 {hpas: []hpas.HPA{asks(t, "a", "rps", otherRate)}, asked: "prometheus-query query-name=rps"},
		"another query of the same HPA":             {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate, "app", otherRate)}, asked: "prometheus-query query-name=rps", want: true},
		"another query of the same HPA, of others'": {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate, "app", otherRate)}, asked: "prometheus-query query-name=app"},
		"no PromQL":                                   {hpas: []hpas.HPA{asks(t, "a", "rps", "sum(")}, asked: "prometheus-query query-name=rps"},
		"a metric without a query":                    {hpas: []hpas.HPA{hpaFrom(t, fixture.HPA("a", "", fixture.External("lag", "{matchLabels: {queue: a}}", `type: Value, value: "1"`)))}, asked: "lag queue=a"},
		"KEDA's metric":                               {hpas: []hpas.HPA{hpaFrom(t, fixture.HPA("keda-hpa-web", "", keda))}, asked: "s0-prometheus scaledobject.keda.sh/name=web"},
		"a named metric that an HPA asks for":         {hpas: []hpas.HPA{hpaFrom(t, fixture.HPA("a", "", named))}, asked: "istio-requests-per-second destination_workload=web", want: true},
		"a named metric that nobody asks for":         {asked: "istio-request-duration-p95 destination_workload=web", want: true},
		"a named metric of an HPA that is not served": {hpas: []hpas.HPA{hpaFrom(t, fixture.HPA("a", "", named))}, serve: []string{"false"}, asked: "istio-requests-per-second destination_workload=web"},
		"nobody asks for it":                          {asked: "s1-kafka scaledobject.keda.sh/name=web"},
		"an HPA that is not served":                   {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate)}, serve: []string{"false"}, asked: "prometheus-query query-name=rps"},
		"two HPAs, the older one's is ours":           {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate), asks(t, "b", "rps", otherRate)}, asked: "prometheus-query query-name=rps", want: true},
		"two HPAs, the older one's is another's":      {hpas: []hpas.HPA{asks(t, "a", "rps", otherRate), asks(t, "b", "rps", istioRate)}, asked: "prometheus-query query-name=rps"},
		"two HPAs, one is not served":                 {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate), asks(t, "b", "rps", istioRate)}, serve: []string{"", "false"}, asked: "prometheus-query query-name=rps"},
		"no selector, and all of that name is ours":   {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate)}, asked: "prometheus-query", want: true},
		"no selector, and some of that name is not":   {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate, "app", otherRate)}, asked: "prometheus-query"},
		"in upper case":                               {hpas: []hpas.HPA{asks(t, "a", "rps", istioRate)}, asked: "Prometheus-Query query-name=rps", want: true},
		"what says that an adapter is there":          {asked: "dummy-metric @kube-system", want: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			catalog, _ := sharingCatalog(t)
			catalog.Replace(aged(c.hpas, c.serve...))
			metric, selector, _ := strings.Cut(c.asked, " ")
			namespace := "test"
			if at, ok := strings.CutPrefix(selector, "@"); ok {
				namespace, selector = at, ""
			}
			if got := catalog.current.Load().ours(namespace, metric, fixture.Selector(t, selector)); got != c.want {
				t.Errorf("%s is ours: %t, want %t", c.asked, got, c.want)
			}
		})
	}
}

// What is left to the other adapter is nobody's concern here: no event, no query, no series.
func TestWhatIsLeftGetsNoEvents(t *testing.T) {
	c, events := sharingCatalog(t)
	average := asks(t, "a", "rps", istioRate, "app", "avg(http_request_duration_seconds_sum / http_request_duration_seconds_count)", "broken", "sum(", "deep", `sum(rate(istio_requests_total[3h]))`)
	c.Replace(aged([]hpas.HPA{average, hpaFrom(t, fixture.HPA("b", "", fixture.External("lag", "null", `type: Value, value: "1"`)))}))
	got := events.take()
	if len(got) == 0 || events.message(hpas.ReasonBadQuery) == "" {
		t.Fatalf("events are %v: what is ours and refused is told", got)
	}
	for reason, message := range events.messages {
		if reason == hpas.ReasonNoQuery || reason == hpas.ReasonLatencyAverage || strings.Contains(message, "app") || strings.Contains(message, "broken") {
			t.Errorf("%s: %s", reason, message)
		}
	}
	if n := len(c.current.Load().offers); n != 2 {
		t.Errorf("%d offers, want that of rps and that of deep", n)
	}
	c.Replace(aged([]hpas.HPA{average}, "false"))
	c.Replace(nil)
	c.Replace(aged([]hpas.HPA{average}, "false"))
	if got := events.take(); len(got) != 0 {
		t.Errorf("an HPA that is not served gets %v", got)
	}
}

// An HPA that would be answered here, were it not for another one, is told.
func TestAnHPAIsToldWhyItIsLeft(t *testing.T) {
	c, events := sharingCatalog(t)
	c.Replace(aged([]hpas.HPA{asks(t, "a", "rps", istioRate), asks(t, "b", "rps", istioRate)}, "", "false"))
	if m := events.message(hpas.ReasonQueryConflict); !strings.Contains(m, "HPA b asks for it too and is not served (meshpulse.io/serve)") {
		t.Errorf("told %q", m)
	}
}

// Without another adapter nothing is left to it: what no sidecar sends is told as ever, and an HPA
// that is not served gets no answer.
func TestWithoutAnotherAdapterNothingIsLeft(t *testing.T) {
	c, events := sharingCatalog(t)
	c.sharing.passes = false
	c.Replace(aged([]hpas.HPA{asks(t, "a", "app", otherRate), asks(t, "b", "rps", istioRate)}, "", "false"))
	c.wantExpr(t, "test", "prometheus-query", "query-name=app", otherRate)
	if events.message(hpas.ReasonNotReported) == "" {
		t.Error("that no sidecar reports it is not told")
	}
	c.wantRefused(t, "test", "prometheus-query", "query-name=rps", outcomeUnknown, "no HPA has a query")
	c.sharing.OptIn = true
	c.Replace(aged([]hpas.HPA{asks(t, "a", "app", istioRate), asks(t, "b", "rps", istioRate)}, "", "true"))
	c.wantRefused(t, "test", "prometheus-query", "query-name=app", outcomeUnknown, "no HPA has a query")
	c.wantExpr(t, "test", "prometheus-query", "query-name=rps", istioRate)
}
