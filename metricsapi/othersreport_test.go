package metricsapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Where a workload's name is misspelt the error says which do report: of the namespace that is
// meant, and standalone of all where it has none.
func TestWhoReportsIsToldOfANameThatNobodyHas(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	const five = "others do report: test/api, test/db, test/frontend, test/idle, test/loadtester, …"
	for matchers, want := range map[string]string{
		`destination_workload="podinfoo",destination_workload_namespace="test",reporter="destination"`:         five,
		`destination_workload="podinfoo",destination_workload_namespace="test",reporter="destination",app="x"`: five,
		`source_workload="podinfoo",source_workload_namespace="test",reporter="source"`:                        five,
		`destination_workload="podinfo",destination_workload_namespace="tset",reporter="destination"`:          "others do report: istio-system/istio-ingressgateway, test/api, ",
		`destination_workload="ingress",destination_workload_namespace="istio-system",reporter="destination"`:  "others do report: istio-system/istio-ingressgateway: sum(",
		`destination_workload="podinfoo",reporter="destination"`:                                               "others do report: istio-system/",
		`destination_workload="podinfoo",destination_workload_namespace="test",reporter="waypoint"`:            "",
	} {
		got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, "sum(rate(istio_requests_total{"+matchers+"}[1m]))", 10*time.Minute)
		if got.err == "" || !strings.Contains(got.err, want) || (want == "") == strings.Contains(got.err, "others do report") {
			t.Errorf("%s gives %s, want %q", matchers, got, want)
		}
	}
	// Who is silent does not report.
	if got := m.ask(hpas.Vocabulary{Keeps: istioOnly}, `sum(rate(istio_requests_total{destination_workload="podinfoo",destination_workload_namespace="test"}[1m]))`, 11*time.Minute); got.err == "" || strings.Contains(got.err, "others do report") {
		t.Errorf("after all have fallen silent: %s", got)
	}
}

// In a cluster an error tells of the namespace alone that the query means.
func TestInAClusterNobodyElsesWorkloadsAreTold(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	for namespace, want := range map[string]bool{"test": true, "tset": false} {
		expr := fmt.Sprintf(`sum(rate(istio_requests_total{destination_workload="podinfoo",destination_workload_namespace=%q,reporter="destination"}[1m]))`, namespace)
		q, err := m.store.Query(expr)
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		r := rules{words: hpas.Vocabulary{Keeps: istioOnly}, retention: 5 * time.Minute, started: m.store.Started(), holder: &holder{}}
		p := newPrepared(expr, q, nil)
		_, refused := r.judge("a metric", p, aggregator.Answer{}, m.store.Started().Add(10*time.Minute))
		if refused == nil || strings.Contains(refused.message, "others do report: test/api, ") != want {
			t.Errorf("in namespace %s: %v", namespace, refused)
		}
	}
}
