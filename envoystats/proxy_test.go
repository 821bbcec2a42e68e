package envoystats

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"

	"github.com/meshpulse/meshpulse/aggregator"
)

// The right sides are what a real Envoy with the same rules shows below /stats/prometheus, which
// bench/e2e holds for all that one sends; here are those that it does not.
func TestTagsAreCutOutOfNamesByTheBootstrapsRules(t *testing.T) {
	for name, want := range map[string]struct {
		metric string
		labels map[string]string
	}{
		"cluster.inbound|9898||;.upstream_rq_active": {"envoy_cluster_upstream_rq_active", map[string]string{"cluster_name": "inbound|9898||"}},
		"cluster.outbound|9898|v1|podinfo.test.svc.cluster.local;.upstream_rq_503": {
			"envoy_cluster_upstream_rq", map[string]string{"cluster_name": "outbound|9898|v1|podinfo.test.svc.cluster.local", "response_code": "503"},
		},
		"cluster.xds-grpc;.internal.upstream_rq_2xx": {"envoy_cluster_internal_upstream_rq", map[string]string{"cluster_name": "xds-grpc", "response_code_class": "2xx"}},
		"http.inbound_0.0.0.0_9898;.downstream_rq_active": {
			"envoy_http_downstream_rq_active", map[string]string{"http_conn_manager_prefix": "inbound_0.0.0.0_9898"},
		},
		"http.inbound_[__]_9898;.rbac.allowed":               {"envoy_http_rbac", map[string]string{"http_conn_manager_prefix": "inbound_[__]_9898", "authz_enforce_result": "allowed"}},
		"listener.0.0.0.0_15006.downstream_cx_active":        {"envoy_listener_downstream_cx_active", map[string]string{"listener_address": "0.0.0.0_15006"}},
		"server.worker_0.watchdog_miss":                      {"envoy_server_watchdog_miss", map[string]string{"thread_name": "worker_0"}},
		"tcp.outbound|80.downstream_cx_total":                {"envoy_tcp_downstream_cx_total", map[string]string{"tcp_prefix": "outbound|80"}},
		"server.uptime":                                      {"envoy_server_uptime", nil},
		"istiocustom.istio_build.component.proxy.tag.1.31.1": {"istio_build", map[string]string{"component": "proxy", "tag": "1.31.1"}},
		"istio_build.component.proxy.tag":                    {"istio_build", map[string]string{"component": "proxy"}},
	} {
		s := newScan(Config{Keep: []string{""}})
		s.own = &own{Name: "a", Namespace: "test", Workload: "podinfo", App: "podinfo", CanonicalService: "web"}
		if err := s.read(message(t, family(name, dto.MetricType_GAUGE, gauge(1, 1))), new(seen)); err != nil {
			t.Fatal(err)
		}
		metric, labels, err := s.Describe(0)
		if err != nil || metric != want.metric {
			t.Errorf("%s is %s, error %v, want %s", name, metric, err, want.metric)
		}
		all := map[string]string{"app": "podinfo", "workload": "podinfo", "service_istio_io_canonical_name": "web"} // as Prometheus adds its pod's
		for l, v := range want.labels {
			all[l] = v
		}
		if diff := cmp.Diff(all, asMap(t, labels)); diff != "" {
			t.Errorf("%s: want -, got +\n%s", name, diff)
		}
	}
}

func TestProxyMetricsAreKeptByTheirNames(t *testing.T) {
	const active = "http.inbound_0.0.0.0_9898;.downstream_rq_active"
	for _, tc := range []struct {
		keep, name string
		want       bool
	}{
		{"envoy_http_downstream_rq_active", active, true},
		{"envoy_http_downstream_rq_active", "http.downstream_rq_active", true}, // its tags are labels
		{"envoy_http_downstream_rq_", active, true},
		{"envoy_http_", active, true},
		{"envoy_", active, true},
		{"http.", active, true},
		{"envoy_http_downstream_rq_total", active, false},
		{"envoy_cluster_downstream_rq_active", active, false},
		{"envoy_http_rq_active", active, false},
		{"istio_requests_total", active, false},
		{"envoy_cluster_upstream_rq", "cluster.inbound|80||;.upstream_rq_200", true},
		{"envoy_cluster_upstream_rq", "cluster.inbound|80||;.internal.upstream_rq_200", false},
		{"envoy_cluster_circuit_breakers_default_cx_open", "cluster.upstream_rq;.circuit_breakers.default.cx_open", true},
		{"envoy_cluster_manager_active_clusters", "cluster_manager.active_clusters", true},
		{"envoy_cluster_upstream_rq_active", "cluster_manager.active_clusters", false},
		{"envoy_listener_downstream_cx_active", "listener.0.0.0.0_15006.downstream_cx_active", true},
		{"envoy_server_uptime", "server.uptime", true},
		{"envoy_server_uptime", "server", false},
	} {
		s := newScan(Config{Keep: []string{tc.keep}})
		if err := s.read(message(t, family(tc.name, dto.MetricType_GAUGE, gauge(1, 1))), new(seen)); err != nil {
			t.Fatal(err)
		}
		if got := len(s.batch.Samples) == 1; got != tc.want {
			t.Errorf("--keep=%s: %s read %t, want %t", tc.keep, tc.name, got, tc.want)
		}
	}
}

// What is on by default does not change: of all that a sidecar sends no gauge is read.
func TestGaugesAreNotReadUnlessTheyAreKept(t *testing.T) {
	for _, file := range captures(t) {
		s, keys := newScan(Config{}), new(seen)
		for _, b := range messages(t, file) {
			if err := s.read(b, keys); err != nil {
				t.Fatal(err)
			}
			if n := s.kinds[aggregator.Gauge]; n > 0 {
				t.Errorf("%s: %d gauges are read", file, n)
			}
		}
	}
}
