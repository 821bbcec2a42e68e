package promapi

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Grafana and Kiali are no Go programs without a build of their frontends, so what they ask stands
// here: Grafana as grafana/grafana's pkg/promlib and packages/grafana-prometheus ask, Kiali as
// kiali/kiali's prometheus/client.go, handlers/config.go and business/istio_status.go do. The
// expressions of their panels and views are of others' collection, where that is at hand.

// busyMesh is a store that all kinds of traffic have been reported to for three minutes: HTTP with
// three codes, gRPC with messages and TCP, with and without mutual TLS, from a workload and a
// gateway, to podinfo and from it, and to where no sidecar is.
func busyMesh(t *testing.T) mesh {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m := mesh{store, store.Started().Add(3 * time.Minute).Truncate(time.Millisecond)}
	loadtester, gateway := caller("loadtester", "test"), caller("istio-ingressgateway", "istio-system")
	podinfo, api := callee("podinfo", "test"), callee("api", "test")
	unknown := callee("podinfo", "test")
	unknown["destination_workload"], unknown["destination_workload_namespace"] = "unknown", "unknown"
	m.report("podinfo-0", "podinfo", "test", "destination", with(loadtester, podinfo), with(gateway, podinfo))
	m.report("loadtester-0", "loadtester", "test", "source", with(loadtester, podinfo))
	m.report("gateway-0", "istio-ingressgateway", "istio-system", "source", with(gateway, podinfo), with(gateway, unknown))
	m.report("podinfo-1", "podinfo", "test", "source", with(caller("podinfo", "test"), api))
	m.report("api-0", "api", "test", "destination", with(caller("podinfo", "test"), api))
	return m
}

func caller(workload, namespace string) map[string]string {
	return map[string]string{
		"source_workload": workload, "source_workload_namespace": namespace, "source_cluster": "Kubernetes",
		"source_canonical_service": workload, "source_canonical_revision": "v1", "source_app": workload,
	}
}

func callee(workload, namespace string) map[string]string {
	return map[string]string{
		"destination_workload": workload, "destination_workload_namespace": namespace, "destination_cluster": "Kubernetes",
		"destination_service": workload + "." + namespace + ".svc.cluster.local", "destination_service_name": workload,
		"destination_service_namespace": namespace, "destination_canonical_service": workload, "destination_canonical_revision": "v1",
		"destination_app": workload, "request_operation": "read",
	}
}

func with(labels ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, l := range labels {
		maps.Copy(all, l)
	}
	return all
}

// report has a pod report every five seconds, of each pair of workloads all kinds of traffic.
func (m mesh) report(pod, workload, namespace, reporter string, pairs ...map[string]string) {
	st := m.store.Connect(aggregator.Pod{Namespace: namespace, Name: pod, Workload: workload, FlushInterval: 5 * time.Second})
	defer st.Close()
	var of series
	add := func(name string, labels map[string]string) {
		of = append(of, struct {
			name   string
			labels map[string]string
		}{name, with(labels, map[string]string{"reporter": reporter})})
	}
	for _, pair := range pairs {
		for policy, principal := range map[string]string{"mutual_tls": "spiffe://cluster.local/ns/test/sa/x", "none": "unknown"} {
			secured := with(pair, map[string]string{"connection_security_policy": policy, "source_principal": principal, "destination_principal": principal})
			for _, code := range []string{"200", "404", "503"} {
				http := with(secured, map[string]string{"request_protocol": "http", "response_code": code, "response_flags": "-"})
				for _, name := range []string{"istio_requests_total", "istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"} {
					add(name, http)
				}
			}
			grpc := with(secured, map[string]string{"request_protocol": "grpc", "response_code": "200", "grpc_response_status": "0", "response_flags": "-"})
			for _, name := range []string{"istio_requests_total", "istio_request_messages_total", "istio_response_messages_total"} {
				add(name, grpc)
			}
			tcp := with(secured, map[string]string{"request_protocol": "tcp", "response_flags": "-"})
			for _, name := range []string{"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total", "istio_tcp_connections_opened_total"} {
				add(name, tcp)
			}
		}
	}
	for at := 5 * time.Second; m.store.Started().Add(at).Before(m.now); at += 5 * time.Second {
		arrival := m.store.Started().Add(at)
		b := &aggregator.Batch{Timestamp: arrival.UnixMilli()}
		for i, s := range of {
			key := uint64(i + 1)
			if strings.HasSuffix(s.name, "_total") {
				b.Samples = append(b.Samples, aggregator.Sample{Key: key, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: 4 * at.Seconds()})
				continue
			}
			first := uint32(len(b.Buckets))
			b.Buckets = append(b.Buckets, aggregator.Bucket{UpperBound: 5, Count: 10}, aggregator.Bucket{UpperBound: 50, Count: 20})
			b.Samples = append(b.Samples, aggregator.Sample{Key: key, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: 20, Value: 400, First: first, Last: first + 2})
		}
		if err := st.Commit(arrival, b, of); err != nil {
			panic(err)
		}
	}
}

// shown are expressions of Istio's dashboards and of Kiali's views, one of each form.
var shown = []string{
	`round(sum(irate(istio_requests_total{reporter=~"source|destination",destination_service=~"podinfo.test.svc.cluster.local"}[5m])), 0.001)`,
	`sum(irate(istio_requests_total{reporter="source",destination_service=~"podinfo.test.svc.cluster.local",response_code!~"5.*"}[5m])) / sum(irate(istio_requests_total{reporter="source",destination_service=~"podinfo.test.svc.cluster.local"}[5m]))`,
	`(histogram_quantile(0.99, sum(irate(istio_request_duration_milliseconds_bucket{reporter="source"}[1m])) by (le)) / 1000) or histogram_quantile(0.99, sum(irate(istio_request_duration_seconds_bucket{reporter="source"}[1m])) by (le))`,
	`label_join((sum(rate(istio_requests_total{reporter="source"}[1m])) by (destination_workload, destination_workload_namespace)), "workload", ".", "destination_workload", "destination_workload_namespace")`,
	`sum(istio_requests_total{reporter="destination"}) by (source_workload_namespace) or sum(istio_tcp_sent_bytes_total{reporter="destination"}) by (source_workload_namespace)`,
	`round(sum(rate(istio_requests_total{reporter=~"destination|waypoint",destination_workload_namespace="test"} [60s])) by (source_workload,destination_workload,request_protocol,response_code,grpc_response_status,response_flags) > 0,0.001)`,
	`(sum(rate(istio_tcp_sent_bytes_total{reporter="source"}[1m])) OR sum(rate(istio_tcp_sent_bytes_total{reporter="destination"}[1m])))`,
}

// shownByOthers are those of the dashboards mesh, service and workload of Istio and of Kiali that
// had a value in a mesh like this one, where they are at hand.
func shownByOthers(t *testing.T) (exprs []string) {
	t.Helper()
	all := corpus(t)
	if all == nil {
		return nil
	}
	groups := map[string]int{"dash:istio-mesh-dashboard": 0, "dash:istio-service-dashboard": 0, "dash:istio-workload-dashboard": 0, "kiali": 0}
	for _, q := range all {
		if n, wanted := groups[q.group]; wanted && q.verdict == "served" {
			groups[q.group] = n + 1
			exprs = append(exprs, q.expr)
		}
	}
	for group, n := range groups {
		if n < 10 {
			t.Errorf("%d expressions of %s", n, group)
		}
	}
	return exprs
}

func TestDashboardsOfIstioAndViewsOfKialiHaveValues(t *testing.T) {
	m := busyMesh(t)
	client, _ := m.serve(t)
	during := v1.Range{Start: m.now.Add(-2 * time.Minute), End: m.now.Add(-10 * time.Second), Step: 10 * time.Second}
	for _, expr := range append(shown, shownByOthers(t)...) {
		got, _, _, err := client.QueryRange(t.Context(), expr, during)
		matrix, _ := got.(model.Matrix)
		if err != nil || len(matrix) == 0 || len(matrix[0].Values) != 12 {
			t.Errorf("%s: %v, %v", expr, got, err)
			continue
		}
		for _, s := range matrix {
			if v := float64(s.Values[len(s.Values)-1].Value); v != v {
				t.Errorf("%s: %v is NaN", expr, s.Metric)
			}
		}
	}
}

// asks is a request of a client's and what it has to find in the answer.
type asks struct {
	method, path string
	form         url.Values
	code         int
	has          string
}

func (m mesh) asked(t *testing.T, base string, all ...asks) {
	t.Helper()
	for _, a := range all {
		var r *http.Request
		var err error
		if a.method == http.MethodPost {
			r, err = http.NewRequestWithContext(t.Context(), a.method, base+a.path, strings.NewReader(a.form.Encode()))
		} else {
			r, err = http.NewRequestWithContext(t.Context(), a.method, base+a.path+"?"+a.form.Encode(), http.NoBody)
		}
		if err != nil {
			t.Fatal(err)
		}
		if a.method == http.MethodPost {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		code, text := do(t, r)
		if code != a.code || !strings.Contains(text, a.has) {
			t.Errorf("%s %s %v: %d, %.300s; want %d with %s", a.method, a.path, a.form, code, text, a.code, a.has)
		}
	}
}

// What Grafana asks of a data source: when it is saved, for variables and in the editor. Its
// queries of panels are form posts with times in seconds.
func TestGrafanasRequestsAreAnswered(t *testing.T) {
	m := busyMesh(t)
	_, server := m.serve(t)
	seconds := func(at time.Time) string { return fmt.Sprint(at.Unix()) }
	start, end := seconds(m.now.Add(-2*time.Minute)), seconds(m.now)
	some := url.Values{"match[]": {`istio_requests_total{reporter="source"}`}, "start": {start}, "end": {end}, "limit": {"40000"}}
	m.asked(t, server.URL,
		// Save & test
		asks{"POST", "/api/v1/query", url.Values{"query": {"1+1"}, "time": {"4"}}, 200, `{"resultType":"scalar","result":[4,"2"]}`},
		asks{"GET", "/api/v1/query", url.Values{"query": {"1+1"}, "time": {"4"}}, 200, `{"resultType":"scalar","result":[4,"2"]}`},
		asks{"GET", "/api/v1/status/buildinfo", nil, 200, `"version":"3.`},
		// variables: query_result(…) and label_values(…)
		asks{"POST", "/api/v1/query", url.Values{"query": {`sum(istio_requests_total{}) by (destination_service)`}, "time": {end}}, 200, "podinfo.test.svc.cluster.local"},
		asks{"GET", "/api/v1/label/destination_workload/values", some, 200, `"podinfo"`},
		asks{"GET", "/api/v1/label/__name__/values", url.Values{"match[]": {`{__name__!=""}`}, "limit": {"40000"}}, 200, "istio_request_duration_milliseconds_bucket"},
		// the editor
		asks{"POST", "/api/v1/labels", some, 200, `"response_code"`},
		asks{"GET", "/api/v1/labels", some, 200, `"response_code"`},
		asks{"POST", "/api/v1/series", some, 200, `"source_workload":"loadtester"`},
		asks{"GET", "/api/v1/metadata", url.Values{"limit": {"40000"}}, 200, `"istio_requests_total"`},
		asks{"POST", "/api/v1/format_query", url.Values{"query": {"sum(a)by(b)"}}, 200, "sum by (b) (a)"},
		// what a Prometheus without them answers, which Grafana lives with
		asks{"GET", "/api/v1/query_exemplars", some, 404, ""},
		asks{"GET", "/api/v1/rules", nil, 404, ""},
		// a panel, and one whose expression is wrong
		asks{
			"POST", "/api/v1/query_range",
			url.Values{"query": {`sum(rate(istio_requests_total{reporter="source"}[1m])) by (response_code)`}, "start": {start + ".000"}, "end": {end + ".000"}, "step": {"15"}, "timeout": {"60s"}},
			200, `"resultType":"matrix","result":[{"metric":{"response_code":"200"}`,
		},
		asks{"POST", "/api/v1/query_range", url.Values{"query": {"sum("}, "start": {start}, "end": {end}, "step": {"15"}}, 400, `"errorType":"bad_data"`},
	)
}

// What Kiali asks to find out what there is, and whether it is reachable; its views' queries are
// form posts of Prometheus' own client.
func TestKialisRequestsAreAnswered(t *testing.T) {
	m := busyMesh(t)
	client, server := m.serve(t)
	m.asked(t, server.URL,
		asks{"GET", "/-/healthy", nil, 200, ""},
		asks{"GET", "/api/v1/status/config", nil, 200, `scrape_interval: 5s`},
		asks{"GET", "/api/v1/status/runtimeinfo", nil, 200, `"storageRetention":"5m"`},
		asks{"GET", "/api/v1/status/buildinfo", nil, 200, `"version"`},
		asks{"GET", "/api/v1/label/__name__/values", url.Values{"start": {"0"}, "end": {fmt.Sprint(m.now.Unix())}}, 200, `"istio_tcp_sent_bytes_total"`},
	)
	names, _, _, err := client.LabelValues(t.Context(), "__name__", nil, time.Unix(0, 0), m.now)
	if err != nil || len(names) < 10 {
		t.Errorf("names %v, %v", names, err)
	}
	got, _, _, err := client.Query(t.Context(), `rate(istio_requests_total{destination_service_name="podinfo",destination_service_namespace="test",destination_cluster=~"Kubernetes|unknown"}[60s]) > 0`, m.now)
	if vector, _ := got.(model.Vector); err != nil || len(vector) == 0 {
		t.Errorf("health: %v, %v", got, err)
	}
}
