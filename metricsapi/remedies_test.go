package metricsapi

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// What the message about a label of a scrape says to write gives the value.
func TestTheRemedyForALabelOfAScrapeHelps(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	words := hpas.Vocabulary{Keeps: istioOnly}
	const sum = `sum(rate(istio_requests_total{reporter="destination",L="V"}[1m]))`
	write := regexp.MustCompile(`write (\w+) in its place(?: \(with reporter="source": (\w+)\))?`)
	values := map[string]string{
		"kubernetes_namespace": "test", "exported_namespace": "test", "destination_namespace": "test", "source_namespace": "test",
		"kubernetes_pod_name": "podinfo-7d9f8c6b5-00000", "pod_name": "podinfo-7d9f8c6b5-00000", "exported_pod": "podinfo-7d9f8c6b5-00000",
		"app": "podinfo", "app_kubernetes_io_name": "podinfo", "version": "6.9.2", "service_istio_io_canonical_name": "podinfo", "service_istio_io_canonical_revision": "v1",
		"workload": "podinfo", "deployment": "podinfo", "destination_deployment": "podinfo", "service": "podinfo",
		"job": "kubernetes-pods", "instance": "10.0.0.7:15020", "endpoint": "http-envoy-prom", "container": "istio-proxy", "prometheus": "monitoring/k8s", "pod_template_hash": "7d9f8c6b5",
	}
	for label, value := range values {
		expr := strings.NewReplacer("L", label, "V", value).Replace(sum)
		for _, around := range []string{expr, expr + " or vector(0)"} {
			got := m.ask(words, around, 10*time.Minute)
			if !strings.Contains(got.err, "Prometheus adds when it scrapes") {
				t.Errorf("%s gives %s", around, got)
				continue
			}
			names := write.FindStringSubmatch(got.err)
			better := strings.NewReplacer(","+label+`="`+value+`"`, "").Replace(expr)
			switch {
			case names != nil:
				better = strings.ReplaceAll(expr, label+`="`+value+`"`, names[1]+`="`+value+`"`)
			case !strings.Contains(got.err, "leave it out"):
				t.Errorf("no remedy for %s: %s", label, got.err)
			}
			if after := m.ask(words, better, 10*time.Minute); after.err != "" || after.sum <= 0 || len(after.events) > 0 {
				t.Errorf("%s: the remedy %s gives %s", label, better, after)
			}
			if names != nil && names[2] != "" { // of the callers
				better = strings.NewReplacer(`"destination"`, `"source"`, label+`="`+value+`"`, names[2]+`=~".+"`).Replace(expr)
				if after := m.ask(words, better, 10*time.Minute); after.err != "" || after.sum <= 0 {
					t.Errorf("%s: of the callers %s gives %s", label, better, after)
				}
			}
		}
	}
}

// A metric that is not a sidecar's is named as whose it is; where a sidecar has the like, that is
// named and has a value.
func TestTheRemedyForAnothersMetric(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	words := hpas.Vocabulary{Keeps: istioOnly}
	for expr, want := range map[string]string{
		`sum(rate(http_requests_total{pod="x"}[1m]))`:                         "The requests that reach a pod through its sidecar are in istio_requests_total",
		`sum(rate(nginx_ingress_controller_requests[1m]))`:                    "another adapter has to serve",
		`sum(rabbitmq_queue_messages_ready)`:                                  "another adapter has to serve",
		`count(kube_pod_info)`:                                                "another adapter has to serve",
		`sum(rate(container_cpu_usage_seconds_total[1m]))`:                    "metrics of type Resource",
		`sum(envoy_cluster_upstream_rq_active)`:                               "istio-requests-in-flight",
		`sum(job:http_requests:rate1m)`:                                       "recording rule",
		`sum(rate(istio_request_total{destination_workload="podinfo"}[1m]))`:  "check the spelling (istio_requests_total, ",
		`sum(istio_build)`:                                                    "by themselves",
		`sum(rate({__name__=~"istio_request_total|http_total",pod="x"}[1m]))`: "istio_request_total|http_total",
		`count({__name__!="",__name__="istio_request_total"})`:                "the metric istio_request_total by itself",
	} {
		got := m.ask(words, expr, 10*time.Minute)
		if !strings.Contains(got.err, want) {
			t.Errorf("%s gives %s, want %q", expr, got, want)
		}
	}
}

// A selector without a metric's name would read every series there is: it is refused when the HPA
// is read. What the message says to write in its place gives a value.
func TestASelectorHasToNameAMetric(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	words := hpas.Vocabulary{Keeps: istioOnly}
	write := regexp.MustCompile(`as in (istio_requests_total\S*), and`)
	for _, selector := range []string{
		`{reporter="destination"}`, `{__name__=~".+"}`, `{__name__!=""}`, `{__name__=~"istio_.*"}`, `{__name__=~"istio_requests_total|",pod=~".+"}`, `{__name__!="istio_requests_total",pod=~".+"}`,
		`{namespace="test",destination_workload="podinfo"}`, `{destination_workload="podinfo",__name__!~"x|y"}`,
	} {
		for _, whole := range []string{"sum(rate(X[1m]))", "sum(rate(istio_requests_total[1m])) + (sum(rate(X[1m])) or vector(0))", "count(count_over_time(X[1m])) or vector(0)"} {
			expr := strings.ReplaceAll(whole, "X", selector)
			got := m.ask(words, expr, 10*time.Minute)
			if !strings.Contains(got.err, "names no metric") || !got.told(hpas.ReasonBadQuery, "names no metric") {
				t.Errorf("%s gives %s", expr, got)
				continue
			}
			better := write.FindStringSubmatch(got.err)
			if better == nil {
				t.Fatalf("%s is told %s", expr, got.err)
			}
			after := m.ask(words, strings.ReplaceAll(whole, "X", better[1]), 10*time.Minute)
			// What named no reporter names none now, which is told.
			told := slices.DeleteFunc(slices.Clone(after.events), func(p hpas.Problem) bool { return p.Reason == hpas.ReasonCallersWord })
			if after.err != "" || after.sum <= 0 || len(told) > 0 {
				t.Errorf("%s: the remedy %s gives %s", expr, better[1], after)
			}
		}
	}
}

// Before any sidecar has reported, as in standalone mode at the start, the same is told: nothing
// has to be seen for it.
func TestAnothersMetricIsToldBeforeAnySidecarReports(t *testing.T) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m := &callMesh{t: t, store: store}
	got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, `sum(rate(http_requests_total[1m]))`, time.Minute)
	if !got.told(hpas.ReasonNotReported, "another adapter has to serve") || !strings.Contains(got.err, "istio_requests_total") {
		t.Errorf("got %s", got)
	}
}

// Where Envoy's own metrics are kept, sidecars have to send them too.
func TestTheRemedyForEnvoysOwnMetricWhereItIsKept(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	words := hpas.Vocabulary{Keeps: func(metric string) bool { return istioOnly(metric) || strings.HasPrefix(metric, "envoy_cluster_") }}
	got := m.ask(words, `sum(rate(envoy_cluster_upstream_rq_total[1m]))`, 10*time.Minute)
	if !strings.Contains(got.err, hpas.InclusionAnnotation) || strings.Contains(got.err, "--keep") {
		t.Errorf("got %s", got)
	}
}

// A label that somebody has said is added is not told of as one that Istio does not set, on a
// metric without PromQL too.
func TestACustomTagIsAKnownLabelOfANamedMetric(t *testing.T) {
	c, told := newTestCatalog(t)
	c.words.Tags = []string{"region"}
	c.Replace([]hpas.HPA{hpaFrom(t, fixture.HPA("one", "", fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: podinfo, region: eu, tenant: a}}", `type: AverageValue, averageValue: "10"`)))})
	if events := told.take(); len(events) != 1 || !strings.Contains(told.message(hpas.ReasonUnknownLabel), "selects by tenant") {
		t.Errorf("told %q, %q", events, told.message(hpas.ReasonUnknownLabel))
	}
}
