package metricsapi

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// callMesh is a mesh of nine pods whose sidecars tell of the calls between them at each flush: HTTP
// with and without mTLS, gRPC with messages, TCP, an ingress gateway, a waypoint, what no workload
// serves, and a pod that nobody calls.
type callMesh struct {
	t     *testing.T
	store *aggregator.Store
	calls map[string][]series // by pod
	pods  []aggregator.Pod
}

// series is one of a pod's, with what a flush adds to it.
type series struct {
	name   string
	labels map[string]string
	add    float64
}

func newCallMesh(t *testing.T) *callMesh {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{Retention: 15 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	m := &callMesh{t: t, store: store, calls: map[string][]series{}}
	for _, w := range []struct{ namespace, name, workload string }{
		{"test", "podinfo-7d9f8c6b5-00000", "podinfo"},
		{"test", "podinfo-7d9f8c6b5-00001", "podinfo"},
		{"test", "loadtester-0", "loadtester"},
		{"test", "frontend-0", "frontend"},
		{"test", "api-0", "api"},
		{"test", "db-0", "db"},
		{"test", "idle-0", "idle"},
		{"istio-system", "gateway-0", "istio-ingressgateway"},
		{"test", "waypoint-0", "waypoint"},
	} {
		m.pods = append(m.pods, aggregator.Pod{
			Namespace: w.namespace, Name: w.name, Workload: w.workload, App: w.workload, Version: "6.9.2", CanonicalService: w.workload, CanonicalRevision: "v1", FlushInterval: 5 * time.Second,
		})
	}
	for _, p := range []string{"podinfo-7d9f8c6b5-00000", "podinfo-7d9f8c6b5-00001"} {
		for code, n := range map[string]float64{"200": 50, "404": 5, "503": 5} {
			m.http(p, "destination", "loadtester", "podinfo", "mutual_tls", code, n)
		}
		m.http(p, "destination", "istio-ingressgateway", "podinfo", "mutual_tls", "200", 20)
		m.http(p, "destination", "unknown", "podinfo", "none", "200", 5)
		m.http(p, "destination", "loadtester", "podinfo", "none", "200", 5)
	}
	for code, n := range map[string]float64{"200": 100, "404": 10, "503": 10} {
		m.http("loadtester-0", "source", "loadtester", "podinfo", "mutual_tls", code, n)
	}
	m.http("loadtester-0", "source", "loadtester", "podinfo", "none", "200", 5)
	m.http("loadtester-0", "source", "loadtester", "unknown", "unknown", "502", 5)
	m.http("gateway-0", "source", "istio-ingressgateway", "podinfo", "mutual_tls", "200", 40)
	m.http("gateway-0", "source", "istio-ingressgateway", "frontend", "mutual_tls", "200", 10)
	m.http("waypoint-0", "waypoint", "loadtester", "podinfo", "mutual_tls", "200", 100)
	m.http("frontend-0", "destination", "istio-ingressgateway", "frontend", "mutual_tls", "200", 10)
	m.grpc("frontend-0", "source", "frontend", "api", "mutual_tls")
	m.grpc("api-0", "destination", "frontend", "api", "mutual_tls")
	m.tcp("api-0", "source", "api", "db", "mutual_tls")
	m.tcp("db-0", "destination", "api", "db", "mutual_tls")
	return m
}

// ends are the labels of a call's two ends, as Istio gives them.
func ends(reporter, source, destination, policy string) map[string]string {
	ls := map[string]string{"reporter": reporter, "connection_security_policy": policy, "response_flags": "-"}
	for _, end := range []struct{ prefix, workload string }{{"source_", source}, {"destination_", destination}} {
		namespace := "test"
		switch end.workload {
		case "unknown":
			namespace = "unknown"
		case "istio-ingressgateway":
			namespace = "istio-system"
		}
		for label, v := range map[string]string{
			"workload": end.workload, "workload_namespace": namespace, "canonical_service": end.workload, "canonical_revision": "v1", "app": end.workload, "version": "6.9.2",
			"principal": "spiffe://cluster.local/ns/" + namespace + "/sa/" + end.workload, "cluster": "Kubernetes",
		} {
			ls[end.prefix+label] = v
		}
	}
	ls["destination_service_name"], ls["destination_service_namespace"] = destination, "test"
	ls["destination_service"] = destination + ".test.svc.cluster.local"
	return ls
}

func (m *callMesh) http(pod, reporter, source, destination, policy, code string, n float64) {
	ls := ends(reporter, source, destination, policy)
	ls["request_protocol"], ls["response_code"] = "http", code
	m.requests(pod, ls, n)
}

func (m *callMesh) requests(pod string, ls map[string]string, n float64) {
	for _, name := range []string{"istio_requests_total", "istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"} {
		m.calls[pod] = append(m.calls[pod], series{name, ls, n})
	}
}

func (m *callMesh) grpc(pod, reporter, source, destination, policy string) {
	ls := ends(reporter, source, destination, policy)
	ls["request_protocol"], ls["response_code"], ls["grpc_response_status"] = "grpc", "200", "0"
	m.requests(pod, ls, 25)
	for _, name := range []string{"istio_request_messages_total", "istio_response_messages_total"} {
		m.calls[pod] = append(m.calls[pod], series{name, ends(reporter, source, destination, policy), 50})
	}
}

func (m *callMesh) tcp(pod, reporter, source, destination, policy string) {
	ls := ends(reporter, source, destination, policy)
	ls["request_protocol"] = "tcp"
	for _, name := range []string{"istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total", "istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"} {
		m.calls[pod] = append(m.calls[pod], series{name, ls, 1000})
	}
}

// run sends what the pods have to say, a flush every 5 s, from one time to another after the
// store's start.
func (m *callMesh) run(from, to time.Duration) {
	m.t.Helper()
	for _, p := range m.pods {
		stream := m.store.Connect(p)
		totals := make([]float64, len(m.calls[p.Name]))
		for at := from; at <= to; at += 5 * time.Second {
			arrival := m.store.Started().Add(at)
			b := &aggregator.Batch{Timestamp: arrival.UnixMilli()}
			for i, s := range m.calls[p.Name] {
				totals[i] += s.add
				sample := aggregator.Sample{Key: s.key(), Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: totals[i]}
				if !isCounterName(s.name) {
					sample.Kind, sample.Value, sample.Count = aggregator.Histogram, 30*s.add, uint64(s.add)
					sample.First = uint32(len(b.Buckets))
					for _, le := range []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000} {
						n := uint64(0)
						if le > 25 {
							n = sample.Count
						}
						b.Buckets = append(b.Buckets, aggregator.Bucket{UpperBound: le, Count: n})
					}
					sample.Last = uint32(len(b.Buckets))
				}
				b.Samples = append(b.Samples, sample)
			}
			if err := stream.Commit(arrival, b, calls(m.calls[p.Name])); err != nil {
				m.t.Fatal(err)
			}
		}
		stream.Close()
	}
}

// key is another one for other labels.
func (s series) key() uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, s.name, s.labels) // in the order of the labels' names
	return h.Sum64()
}

func isCounterName(name string) bool { return name[len(name)-len("_total"):] == "_total" }

type calls []series

func (c calls) Describe(i int) (string, []aggregator.Label, error) {
	var ls []aggregator.Label
	for _, name := range slices.Sorted(maps.Keys(c[i].labels)) {
		ls = append(ls, aggregator.Label{Name: name, Value: c[i].labels[name]})
	}
	return c[i].name, ls, nil
}

// answered is what became of a query.
type answered struct {
	sum    int64 // milli
	reason string
	err    string
	events []hpas.Problem
}

func (a answered) String() string {
	text := fmt.Sprintf("%dm %q", a.sum, a.reason)
	if a.err != "" {
		text = "error: " + a.err
	}
	for _, e := range a.events {
		text += fmt.Sprintf("\n  %s: %s", e.Reason, e.Message)
	}
	return text
}

// ask takes the expression as the query of an HPA, at a time after the store's start.
func (m *callMesh) ask(words hpas.Vocabulary, expr string, at time.Duration) answered {
	m.t.Helper()
	c := newCatalog(m.store, newWarner(func(hpas.HPA, hpas.Problem) {}, newMetrics(nil)))
	c.words = words
	defer c.Close()
	h := asks(m.t, "asker", "q", "vector(1)")
	h.Annotations["metric-config.external.prometheus-query.prometheus/q"] = expr
	c.Replace([]hpas.HPA{h})
	var got answered
	for _, h := range c.current.Load().hpas {
		got.events = append(got.events, h.problems...)
	}
	r := rules{words: words, retention: 5 * time.Minute, started: m.store.Started()}
	for _, o := range c.current.Load().offers {
		v, _, refused := r.evaluate(m.t.Context(), "metric q in namespace test", o, o.prepared, m.store.Started().Add(at))
		got.sum, got.reason = v.sum(), v.reason
		if refused != nil {
			got.err = refused.message
		}
		got.events = append(got.events, v.problems...)
	}
	return got
}
