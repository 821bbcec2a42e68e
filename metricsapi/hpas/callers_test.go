package hpas

import (
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
)

// TestWhoTakesTheWordOfCallers holds the form that the event advises: it parses, and takes nobody's
// word but the pods' own.
func TestWhoTakesTheWordOfCallers(t *testing.T) {
	for expr, want := range map[string]string{
		`sum(rate(istio_requests_total{destination_workload="web"}[1m]))`:                                                            `istio_requests_total{destination_workload="web",reporter="destination"}`,
		`sum(rate(istio_requests_total{destination_workload="web",reporter="source"}[1m]))`:                                          `istio_requests_total{destination_workload="web",reporter="destination"}`,
		`sum(rate(istio_requests_total[1m]))`:                                                                                        `istio_requests_total{reporter="destination"}`,
		`sum(rate(istio_requests_total{reporter=~"source|destination"}[1m]))`:                                                        `istio_requests_total{reporter="destination"}`,
		`sum(rate(istio_requests_total{source_workload="gw",source_workload_namespace="edge",reporter="source"}[1m]))`:               `istio_requests_total{namespace="edge",reporter="source",source_workload="gw",source_workload_namespace="edge"}`,
		`sum(rate(istio_requests_total{source_workload="gw"}[1m]))`:                                                                  `istio_requests_total{namespace="own",reporter="source",source_workload="gw"}`,
		`sum(rate(istio_requests_total{reporter="destination"}[1m])) + sum(rate(istio_tcp_sent_bytes_total{reporter="source"}[1m]))`: `istio_tcp_sent_bytes_total{reporter="destination"}`,

		`sum(rate(istio_requests_total{reporter="destination"}[1m]))`:             "",
		`sum(rate(istio_requests_total{reporter="waypoint"}[1m]))`:                "",
		`sum(rate(istio_requests_total{reporter="source",namespace="edge"}[1m]))`: "",
		`sum(rate(istio_requests_total{pod="web-0"}[1m]))`:                        "",
		`sum(rate(istio_requests_total{reporter!="source"}[1m]))`:                 "",
		`sum(rate(http_requests_total[1m]))`:                                      "",
		`vector(1)`:                                                               "",
	} {
		got := ""
		if parts := Parse(expr).calledBy(); len(parts) > 0 {
			got = parts[0].byThemselves("own")
			if better := Parse(got); better.Tree == nil {
				t.Errorf("%s: the form does not parse", got)
			} else if again := better.calledBy(); len(again) > 0 {
				t.Errorf("%s: the form still takes the word of callers", got)
			}
		}
		if sorted(got) != sorted(want) {
			t.Errorf("%s: %s, want %s", expr, got, want)
		}
	}
}

// sorted has a selector's matchers in order: which one stands first says nothing.
func sorted(selector string) string {
	tree, err := parser.ParseExpr(selector)
	if err != nil {
		return selector
	}
	return tree.(*parser.VectorSelector).String()
}

func TestTheWordOfCallersIsToldOnce(t *testing.T) {
	const head = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: a
  namespace: shop
  annotations:
    metric-config.external.prometheus-query.prometheus/x: QUERY
spec:
  maxReplicas: 3
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: a}
  metrics:
`
	for name, tc := range map[string]struct{ query, metric, selector, want string }{
		"PromQL": {
			`sum(rate(istio_requests_total{destination_workload="web"}[1m])) / sum(rate(istio_requests_total[1m]))`, legacyMetric, "query-name: x",
			`take istio_requests_total{destination_workload="web",reporter="destination"}`,
		},
		"without PromQL":                   {"vector(1)", "istio-requests-per-second", "reporter: source", "leave reporter: source out of the selector"},
		"without PromQL, of the callers":   {"vector(1)", "istio-requests-per-second", "reporter: source, source_workload: gw", "add namespace: shop to the selector"},
		"without PromQL, as it is":         {"vector(1)", "istio-requests-per-second", "destination_workload: web", ""},
		"without PromQL, of one's callers": {"vector(1)", "istio-requests-per-second", "reporter: source, namespace: edge", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := Vocabulary{}.Read(hpaFrom(t, strings.Replace(head, "QUERY", "'"+tc.query+"'", 1)+
				"    - {type: External, external: {metric: {name: "+tc.metric+", selector: {matchLabels: {"+tc.selector+"}}}, target: {type: AverageValue, averageValue: \"10\"}}}\n"))
			told := 0
			for _, p := range a.Problems {
				if p.Reason != ReasonCallersWord {
					continue
				}
				if told++; tc.want == "" || !strings.Contains(p.Message, tc.want) {
					t.Errorf("told: %s; want %q", p.Message, tc.want)
				}
			}
			if tc.want != "" && told != 1 {
				t.Errorf("told %d times: %+v", told, a.Problems)
			}
		})
	}
}

// A query that names a namespace which it does not read is told so, but where what it asks for is
// of calls from its own.
func TestNamespacesThatAreNamedAndNotRead(t *testing.T) {
	isRead := func(of string) bool { return of == "mine" || of == "shared" }
	for expr, want := range map[string]string{
		`istio_requests_total`: "",
		`istio_requests_total{destination_workload_namespace="mine"}`:                                         "",
		`istio_requests_total{destination_workload_namespace="theirs"}`:                                       "theirs",
		`istio_requests_total{destination_workload_namespace="theirs",reporter="destination"}`:                "theirs",
		`istio_requests_total{destination_workload_namespace="theirs",reporter="source"}`:                     "",
		`istio_requests_total{destination_workload_namespace="theirs",reporter="waypoint"}`:                   "theirs",
		`istio_requests_total{destination_workload_namespace="theirs",namespace="mine"}`:                      "",
		`istio_requests_total{destination_workload_namespace="mine",namespace="gateways"}`:                    "",
		`istio_requests_total{namespace="theirs"}`:                                                            "theirs",
		`istio_requests_total{namespace="theirs",reporter="source"}`:                                          "theirs",
		`istio_requests_total{namespace=~"mine|shared"}`:                                                      "",
		`istio_requests_total{namespace=~"mine|theirs|third"}`:                                                "theirs third",
		`istio_requests_total{namespace=~"the.*"}`:                                                            "",
		`istio_requests_total{destination_workload_namespace!="theirs"}`:                                      "",
		`sum(rate(a{namespace="x"}[1m])) / sum(rate(b{namespace="y"}[1m])) + sum(rate(c{namespace="x"}[1m]))`: "x y",
		`not PromQL(`: "",
	} {
		if got := strings.Join(Parse(expr).Unread(isRead), " "); got != want {
			t.Errorf("%s names %q, which it does not read, want %q", expr, got, want)
		}
	}
}
