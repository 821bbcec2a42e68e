package hpas

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/promql/parser"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestNamedExpression(t *testing.T) {
	const rps = "istio-requests-per-second"
	tests := map[string]struct {
		metric, selector string
		want             string
		unknown          []string
		err              string
	}{
		"rate, limited to the namespace": {
			metric: rps, want: `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[1m]))`,
		},
		"a workload, another window and reporter": {
			metric: rps, selector: "destination_workload=podinfo,window=30s,reporter=source",
			want: `sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="podinfo",reporter="source"}[30s]))`,
		},
		"in flight": {
			metric: "istio-requests-in-flight",
			want:   `sum(rate(istio_request_duration_milliseconds_sum{destination_workload_namespace="test",reporter="destination"}[1m])) / 1000`,
		},
		"average": {
			metric: "istio-request-duration-avg",
			want: `sum(rate(istio_request_duration_milliseconds_sum{destination_workload_namespace="test",reporter="destination"}[1m])) / ` +
				`sum(rate(istio_request_duration_milliseconds_count{destination_workload_namespace="test",reporter="destination"}[1m]))`,
		},
		"p50": {metric: "istio-request-duration-p50", want: `histogram_quantile(0.5, sum(rate(istio_request_duration_milliseconds{destination_workload_namespace="test",reporter="destination"}[1m])))`},
		"p90": {metric: "istio-request-duration-p90", want: `histogram_quantile(0.9, sum(rate(istio_request_duration_milliseconds{destination_workload_namespace="test",reporter="destination"}[1m])))`},
		"p95": {metric: "istio-request-duration-p95", want: `histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds{destination_workload_namespace="test",reporter="destination"}[1m])))`},
		"p99": {metric: "istio-request-duration-p99", want: `histogram_quantile(0.99, sum(rate(istio_request_duration_milliseconds{destination_workload_namespace="test",reporter="destination"}[1m])))`},
		"error ratio": {
			metric: "istio-error-ratio", selector: "destination_workload=podinfo",
			want: `(sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="podinfo",reporter="destination",response_code=~"5.."}[1m])) or vector(0)) / ` +
				`sum(rate(istio_requests_total{destination_workload_namespace="test",destination_workload="podinfo",reporter="destination"}[1m]))`,
		},
		"sets, absence and regular expression characters": {
			metric: rps, selector: "destination_version in (v1.2,v1),source_app notin (a,b),request_protocol!=grpc,response_flags,!grpc_response_status,source_version notin (x)",
			want: `sum(rate(istio_requests_total{destination_workload_namespace="test",destination_version=~"v1|v1\\.2",grpc_response_status="",request_protocol!="grpc",response_flags!="",` +
				`source_app!~"a|b",source_version!="x",reporter="destination"}[1m]))`,
		},
		"a reporter in a set of one": {
			metric: rps, selector: "reporter in (waypoint)",
			want: `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="waypoint"}[1m]))`,
		},
		"several reporters count a request twice": {metric: rps, selector: "reporter in (waypoint,destination)", err: "name one reporter"},
		"the namespace said again": {
			metric: rps, selector: "destination_workload_namespace=test",
			want: `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[1m]))`,
		},
		"a label that Istio does not set": {
			metric: rps, selector: "destination_worklod=podinfo",
			want:    `sum(rate(istio_requests_total{destination_workload_namespace="test",destination_worklod="podinfo",reporter="destination"}[1m]))`,
			unknown: []string{"destination_worklod"},
		},
		"the same twice": {
			metric: rps, selector: "tenant!=b,tenant!=a",
			want:    `sum(rate(istio_requests_total{destination_workload_namespace="test",tenant!="a",tenant!="b",reporter="destination"}[1m]))`,
			unknown: []string{"tenant"},
		},
		"another namespace is refused":     {metric: rps, selector: "destination_workload_namespace=other", err: "limited to the namespace of the request, test"},
		"all but this namespace":           {metric: rps, selector: "destination_workload_namespace!=test", err: "limited to the namespace"},
		"a window that is no duration":     {metric: rps, selector: "window=soon", err: "one duration such as 1m"},
		"a window of nothing":              {metric: rps, selector: "window=0s", err: "one duration"},
		"two windows":                      {metric: rps, selector: "window in (1m,2m)", err: "one duration"},
		"a reporter that there is not":     {metric: rps, selector: "reporter=server", err: "destination, source or waypoint"},
		"any reporter but one":             {metric: rps, selector: "reporter!=source", err: "name one reporter"},
		"a key that is no label":           {metric: rps, selector: "app.kubernetes.io/name=podinfo", err: "not the name of a Prometheus label"},
		"greater than":                     {metric: rps, selector: "response_code>499", err: "labels are text"},
		"a metric that there is not":       {metric: "istio-requests", err: "istio-requests is not a metric"},
		"a selector with a value of blank": {metric: rps, selector: "source_app=", want: `sum(rate(istio_requests_total{destination_workload_namespace="test",source_app="",reporter="destination"}[1m]))`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, unknown, err := NamedExpression(tc.metric, "test", fixture.Selector(t, tc.selector))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %q, error %v, want an error with %q", got, err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if d := cmp.Diff(tc.unknown, unknown); d != "" {
				t.Errorf("unknown labels (-want +got):\n%s", d)
			}
			if _, err := parser.ParseExpr(got); err != nil {
				t.Errorf("not PromQL: %v", err)
			}
		})
	}
}

func TestCanonicalSelector(t *testing.T) {
	same := [][]string{
		{"a=b", "a==b", "a in (b)", "a=b,a=b"},
		{"a=b,c in (e,d)", "c in (d,e),a=b"},
		{"a!=b", "a notin (b)"},
		{"a!=b,a!=c", "a!=c,a!=b", "a notin (c),a notin (b)"},
		{"", "   "},
		{"a"},
		{"!a"},
		{"a="},
		{"a=c"},
		{"a in (b,c)"},
		{"a notin (b,c)"},
	}
	seen := map[string]string{}
	for _, group := range same {
		first := Canonical(fixture.Selector(t, group[0]))
		if other, ok := seen[first]; ok {
			t.Errorf("%q and %q are both %q", group[0], other, first)
		}
		seen[first] = group[0]
		for _, text := range group[1:] {
			if got := Canonical(fixture.Selector(t, text)); got != first {
				t.Errorf("%q is %q, but %q is %q", text, got, group[0], first)
			}
		}
	}
}

// An HPA's matchExpressions keep the order in which its author wrote the values; a request's come
// sorted.
func TestTheOrderOfValuesMeansNothing(t *testing.T) {
	written, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "destination_version", Operator: metav1.LabelSelectorOpIn, Values: []string{"v2", "v1"}}, {Key: "destination_app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"b", "a"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	asked := fixture.Selector(t, "destination_app notin (a,b),destination_version in (v1,v2)")
	if a, b := Canonical(written), Canonical(asked); a != b {
		t.Errorf("written %q, asked for %q", a, b)
	}
	a, _, _ := NamedExpression("istio-requests-per-second", "test", written)
	if b, _, _ := NamedExpression("istio-requests-per-second", "test", asked); a != b {
		t.Errorf("written %s, asked for %s", a, b)
	}
}
