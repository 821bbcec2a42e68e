package hpas

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

func TestNamedExpressionOfASidecarsOwnMetrics(t *testing.T) {
	for _, tc := range []struct{ metric, selector, expr, refused string }{
		{requestsActive, "destination_workload=podinfo", `sum(envoy_http_downstream_rq_active{http_conn_manager_prefix=~"inbound_.*",namespace="shop",workload="podinfo"})`, ""},
		{
			requestsActive, "destination_canonical_service in (a,b.c),destination_version!=v1,reporter=destination,destination_workload_namespace=shop",
			`sum(envoy_http_downstream_rq_active{http_conn_manager_prefix=~"inbound_.*",namespace="shop",service_istio_io_canonical_name=~"a|b\\.c",version!="v1"})`, "",
		},
		{requestsActive, "pod=a-0", `sum(envoy_http_downstream_rq_active{http_conn_manager_prefix=~"inbound_.*",namespace="shop",pod="a-0"})`, ""},
		{requestsActive, "destination_workload=a,window=1m", "", "looks at no window"},
		{requestsActive, "destination_workload=a,reporter=source", "", "by destination sidecars alone"},
		{requestsActive, "destination_workload=a,destination_workload_namespace=other", "", "limited to the namespace"},
		{requestsActive, "source_workload=web", "", "do not tell source_workload"},
		{requestsActive, "destination_service_name=a", "", "takes destination_workload"},
		{
			requestsPending, "destination_service_name=podinfo",
			`sum(envoy_cluster_upstream_rq_pending_active{cluster_name=~"outbound[|][0-9]+[|][^|]*[|]podinfo[.]shop[.]svc[.].*"})`, "",
		},
		{
			requestsPending, "destination_service_name=podinfo,source_workload=web,source_workload_namespace=front",
			`sum(envoy_cluster_upstream_rq_pending_active{cluster_name=~"outbound[|][0-9]+[|][^|]*[|]podinfo[.]shop[.]svc[.].*",workload="web",namespace="front"})`, "",
		},
		{requestsPending, "destination_workload=podinfo", "", "do not tell destination_workload. istio-requests-pending takes destination_service_name"},
		{requestsPending, "source_workload=web", "", "give the selector a destination_service_name"},
	} {
		selector, err := labels.Parse(tc.selector)
		if err != nil {
			t.Fatal(err)
		}
		expr, unknown, err := NamedExpression(tc.metric, "shop", selector)
		if tc.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%s %s: %q, error %v, want one with %q", tc.metric, tc.selector, expr, err, tc.refused)
			}
			continue
		}
		if err != nil || expr != tc.expr || len(unknown) > 0 {
			t.Errorf("%s %s:\n got %s, unknown %v, error %v\nwant %s", tc.metric, tc.selector, expr, unknown, err, tc.expr)
		}
		if e := Parse(expr); e.NamesMetrics() != nil {
			t.Errorf("%s: %v", expr, e.NamesMetrics())
		}
	}
}

func TestOpenRequestsOfEachPod(t *testing.T) {
	expr, _, err := PodsExpression(requestsActive, "shop", labels.Everything())
	if want := `sum by (pod) (envoy_http_downstream_rq_active{http_conn_manager_prefix=~"inbound_.*",namespace="shop",namespace="shop"})`; err != nil || expr != want {
		t.Errorf("got %s, %v", expr, err)
	}
}
