package hpas

import (
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// custom reads an HPA where the custom metrics API is served.
func custom(t *testing.T, annotations, metrics string) *Wants {
	t.Helper()
	return Vocabulary{Custom: true}.Read(hpaFrom(t, fixture.HPA("podinfo", annotations, metrics)))
}

func TestCustomMetricsAreReadWhereTheyAreServed(t *testing.T) {
	const (
		query   = `metric-config.object.rps.prometheus/query: 'sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo"}[1m]))'`
		per     = `, metric-config.object.rps.prometheus/per-replica: "true"`
		service = `{type: Object, object: {metric: {name: NAME}, describedObject: {apiVersion: v1, kind: Service, name: orders}, target: {type: Value, value: "10"}}}`
		pods    = `{type: Pods, pods: {metric: {name: NAME}, target: {type: AverageValue, averageValue: "10"}}}`
		average = `{type: Object, object: {metric: {name: NAME}, describedObject: {apiVersion: v1, kind: Service, name: orders}, target: {type: AverageValue, averageValue: "10"}}}`
	)
	for name, tc := range map[string]struct {
		annotations, metric, as string
		key, expr, reason       string
		perReplica, unserved    bool
	}{
		"by a query": {query, service, "rps", "services/orders/rps", `sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo"}[1m]))`, "", false, false},
		"per replica": {
			query + per, service, "rps", "services/orders/rps", `sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo"}[1m]))`, "", true, false,
		},
		"per replica, which AverageValue divides by": {
			query + per, average, "rps", "services/orders/rps", `sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo"}[1m]))`, ReasonIgnoredAnnotation, false, false,
		},
		"of a Service": {
			"", service, "istio-requests-per-second", "services/orders/istio-requests-per-second",
			`sum(rate(istio_requests_total{destination_workload_namespace="test",destination_service_name="orders",reporter="destination"}[1m]))`, "", false, false,
		},
		"of a Deployment": {
			"", strings.Replace(service, "v1, kind: Service", "apps/v1, kind: Deployment", 1), "istio-requests-per-second", "deployments.apps/orders/istio-requests-per-second",
			`sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="orders",reporter="destination"}[1m]))`, "", false, false,
		},
		"of pods": {
			"", pods, "istio-requests-per-second", "pods/*/istio-requests-per-second",
			`sum by (pod) (rate(istio_requests_total{destination_workload_namespace="test",namespace="test",reporter="destination"}[1m]))`, "", false, false,
		},
		"of an Ingress":             {"", strings.Replace(service, "v1, kind: Service", "networking.k8s.io/v1, kind: Ingress", 1), "istio-requests-per-second", "ingresses.networking.k8s.io/orders/istio-requests-per-second", "", ReasonBadSelector, false, false},
		"another adapter's, pods":   {"", pods, "queue_length", "", "", ReasonPodsNotServed, false, true},
		"another adapter's, object": {"", service, "queue_length", "", "", ReasonObjectNotServed, false, true},
	} {
		a := custom(t, tc.annotations, strings.Replace(tc.metric, "NAME", tc.as, 1))
		if told := len(a.Problems) > 0; told != (tc.reason != "") || told && a.Problems[0].Reason != tc.reason {
			t.Errorf("%s: problems %v, want %q", name, a.Problems, tc.reason)
		}
		if tc.unserved {
			if len(a.Metrics) != 0 || len(a.Unserved) != 1 {
				t.Errorf("%s: %+v", name, a)
			}
			continue
		}
		if len(a.Metrics) != 1 || len(a.Unserved) != 0 {
			t.Errorf("%s: %+v", name, a)
			continue
		}
		if w := a.Metrics[0]; w.Name != tc.key || w.Expr != tc.expr || w.PerReplica != tc.perReplica || !w.Custom() {
			t.Errorf("%s: %+v, want %+v", name, w, tc)
		}
	}
}

// Without the API they are another adapter's, as they were.
func TestCustomMetricsAreOthersWhereTheyAreNotServed(t *testing.T) {
	h := hpaFrom(t, fixture.HPA("podinfo", "", `{type: Pods, pods: {metric: {name: istio-requests-per-second}, target: {type: AverageValue, averageValue: "10"}}}`))
	if a := (Vocabulary{}).Read(h); len(a.Metrics) != 0 || len(a.Unserved) != 1 {
		t.Errorf("%+v", a)
	}
}

// What nothing says how to compute is another adapter's where one is asked, and is told of where
// none is: not as if the API were another's.
func TestACustomMetricThatNothingComputes(t *testing.T) {
	h := hpaFrom(t, fixture.HPA("podinfo", "", `{type: Pods, pods: {metric: {name: queue_length}, target: {type: AverageValue, averageValue: "10"}}}`))
	if a := (Vocabulary{Custom: true, Shared: true}).Read(h); len(a.Metrics) != 1 || a.Metrics[0].Expr != "" || len(a.Unserved)+len(a.Problems) != 0 {
		t.Errorf("beside another adapter: %+v", a)
	}
	a := (Vocabulary{Custom: true}).Read(h)
	if len(a.Unserved) != 1 || !strings.Contains(a.Unserved[0].Why, "nothing says how to compute it") || strings.Contains(a.Unserved[0].Why, "another adapter") {
		t.Errorf("alone: %+v", a)
	}
	if a := (Vocabulary{Shared: true}).Read(h); len(a.Unserved) != 1 || !strings.Contains(a.Unserved[0].Why, "leaves custom.metrics.k8s.io to another adapter") {
		t.Errorf("where the API is not served: %+v", a)
	}
}

func TestMetricsKeepTheOrderOfTheSpec(t *testing.T) {
	a := custom(t, "", `{type: Pods, pods: {metric: {name: istio-requests-per-second}, target: {type: AverageValue, averageValue: "10"}}}, `+
		fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: podinfo}}", `type: AverageValue, averageValue: "10"`))
	if len(a.Metrics) != 2 || a.Metrics[0].Place != 0 || a.Metrics[1].Place != 1 {
		t.Errorf("%+v", a.Metrics)
	}
}

// Every named metric has a form for each pod that gives a series for each, and no other.
func TestEachNamedMetricHasAFormForPods(t *testing.T) {
	for _, name := range []string{
		"istio-requests-per-second", "istio-requests-in-flight", "istio-request-duration-avg", "istio-request-duration-p50", "istio-request-duration-p90",
		"istio-request-duration-p95", "istio-request-duration-p99", "istio-error-ratio",
	} {
		expr, _, err := PodsExpression(name, "test", labels.Everything())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tree, err := parser.ParseExpr(expr)
		if err != nil || strings.Contains(expr, "sum(") || strings.Contains(expr, "vector(") {
			t.Errorf("%s: %s: %v", name, expr, err)
			continue
		}
		for _, p := range partsOf(tree) {
			if !p.limited() {
				t.Errorf("%s: %s reads beyond its namespace", name, p)
			}
		}
	}
}
