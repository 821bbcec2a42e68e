package hpas

import (
	"strings"
	"testing"

	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// What cannot be served in another form either is told so, with the reason.
func TestWhatCannotBeServedInAnyFormIsToldSo(t *testing.T) {
	object := `{type: Object, object: {metric: {name: m}, describedObject: {kind: Pod, name: x}, target: {type: Value, value: "10"}}}`
	for query, want := range map[string]string{
		`scalar(sum(rate(event-service_events_count{application="event-service"}[1m])))`: "not valid PromQL",
		`rate(http_requests_total{app="ecommerce-app"}[5m])`:                             "http_requests_total",
		`count(kube_pod_info) / sum(rate(istio_requests_total[1m]))`:                     "kube_pod_info",
	} {
		h := hpaFrom(t, fixture.HPA("podinfo", `metric-config.object.m.prometheus/query: '`+query+`'`, object))
		read := Vocabulary{}.Read(h)
		if len(read.Problems) != 1 || !strings.Contains(read.Problems[0].Message, "could not be served either: ") || !strings.Contains(read.Problems[0].Message, want) || strings.Contains(read.Problems[0].Message, "{type: External") {
			t.Errorf("%s: %v, want %q", query, read.Problems, want)
		}
	}
	for metrics, want := range map[string]string{
		`{type: Pods, pods: {metric: {name: queue_length}, target: {type: AverageValue, averageValue: "10"}}}`: "metric-config.external.queue_length.prometheus/query",
		object: "metric-config.external.m.prometheus/query",
	} {
		read := Vocabulary{}.Read(hpaFrom(t, fixture.HPA("podinfo", "", metrics)))
		if len(read.Problems) != 1 || !strings.Contains(read.Problems[0].Message, want) {
			t.Errorf("%s: %v, want %q", metrics, read.Problems, want)
		}
	}
}

// Metrics that kube-metrics-adapter collects otherwise are its business.
func TestMetricsOfOtherCollectorsAreLeftAlone(t *testing.T) {
	read := Vocabulary{}.Read(hpaFrom(t, fixture.HPA("consumer", `metric-config.pods.queue-length.json-path/json-key: "$.queue", metric-config.pods.queue-length.json-path/path: /metrics`,
		`{type: Pods, pods: {metric: {name: queue-length}, target: {type: AverageValue, averageValue: 1k}}}, `+
			`{type: Object, object: {metric: {name: requests-per-second}, describedObject: {apiVersion: networking.k8s.io/v1, kind: Ingress, name: consumer}, target: {type: Value, value: "10"}}}, `+
			fixture.External("app-queue-length", "{matchLabels: {type: sqs-queue-length}}", `type: AverageValue, averageValue: "30"`))))
	wantProblems(t, read.Problems, nil)
	if len(read.Unserved) != 0 || len(read.Metrics) != 0 {
		t.Errorf("metrics %v, unserved %v", read.Metrics, read.Unserved)
	}
}
