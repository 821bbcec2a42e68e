package metricsapi

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// advised finds in a message the annotation, if there is one, and the metric that are to be written
// in place of what is not served.
var advised = regexp.MustCompile(`(?:annotation (\S+): '((?:[^']|'')*)' and metric )?(\{type: External, external: .*?\}\}\})(, with N|[.]|$)`)

// follow does what a message says, to the letter, N being 10.
func follow(t *testing.T, h hpas.HPA, message string) hpas.HPA {
	t.Helper()
	found := advised.FindStringSubmatch(message)
	if found == nil {
		t.Fatalf("nothing is advised: %s", message)
	}
	annotations := ""
	if found[1] != "" {
		annotations = fmt.Sprintf("%s: '%s'", found[1], found[2])
	}
	metric := strings.Replace(found[3], `"N"`, `"10"`, 1)
	text := strings.Replace(fixture.HPA(h.Name, annotations, metric), "namespace: test", "namespace: "+h.Namespace, 1)
	after := hpaFrom(t, text)
	after.Spec.ScaleTargetRef = h.Spec.ScaleTargetRef
	return after
}

// values are what an HPA's metrics are answered with, in milli, or the errors.
func (m *callMesh) values(h hpas.HPA, at time.Duration) (got []answered) {
	m.t.Helper()
	c := newCatalog(m.store, newWarner(func(hpas.HPA, hpas.Problem) {}, newMetrics(nil)))
	c.words = hpas.Vocabulary{Keeps: istioOnly}
	defer c.Close()
	c.Replace([]hpas.HPA{h})
	r := rules{words: c.words, retention: 5 * time.Minute, started: m.store.Started()}
	for i, o := range c.current.Load().hpas[0].offers {
		a := answered{events: c.current.Load().hpas[0].problems}
		if o == nil {
			a.err = c.current.Load().hpas[0].Metrics[i].Why
		} else {
			v, _, refused := r.evaluate(m.t.Context(), "metric", o, o.prepared, m.store.Started().Add(at))
			if a.sum = v.sum(); refused != nil {
				a.err = refused.message
			}
		}
		got = append(got, a)
	}
	return got
}

// Who does what the event about a metric that is not served says gets the value, at the same
// target.
func TestWhatIsAdvisedInPlaceOfOtherMetricsIsServed(t *testing.T) {
	m := newCallMesh(t)
	m.run(5*time.Second, 10*time.Minute)
	const (
		perReplica = `metric-config.object.istio-requests-total.prometheus/per-replica: "true", `
		query      = `metric-config.object.istio-requests-total.prometheus/query: '%s'`
		sum        = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`
		pods       = `count(count(container_memory_usage_bytes{namespace="test",pod=~"podinfo.*"}) by (pod))`
		mean       = `sum(rate(istio_request_duration_milliseconds_sum{destination_workload="podinfo",reporter="destination"}[1m])) / sum(rate(istio_request_duration_milliseconds_count{destination_workload="podinfo",reporter="destination"}[1m]))`
		object     = `{type: Object, object: {metric: {name: %s}, describedObject: {apiVersion: v1, kind: %s, name: podinfo}, target: {%s}}}`
		pod        = `{type: Pods, pods: {metric: {name: %s}, target: {%s}}}`
	)
	perSecond := 36.0 // of both pods of podinfo
	both := fmt.Sprintf(query, sum+" / "+pods)
	for name, tc := range map[string]struct {
		annotations, metrics, workload, reason string
		target                                 string // of the advised form
		want                                   float64
		notes                                  string
	}{
		"istio-hpa's": {
			annotations: perReplica + both, metrics: fmt.Sprintf(object, "istio-requests-total", "Pod", `type: Value, value: "10"`),
			target: "AverageValue 10", want: perSecond, notes: "divided by the pods twice",
		},
		"divided by the query alone": {
			annotations: both, metrics: fmt.Sprintf(object, "istio-requests-total", "Pod", `type: Value, value: "10"`),
			target: "AverageValue 10", want: perSecond, notes: "AverageValue divides by the replicas",
		},
		"divided by a scalar": {
			annotations: fmt.Sprintf(query, sum+` / scalar(count(up{job="podinfo"}))`), metrics: fmt.Sprintf(object, "istio-requests-total", "Pod", `type: Value, value: "10"`),
			target: "AverageValue 10", want: perSecond,
		},
		"per replica alone": {
			annotations: perReplica + fmt.Sprintf(query, sum), metrics: fmt.Sprintf(object, "istio-requests-total", "Pod", `type: Value, value: 2500m`),
			target: "AverageValue 2500m", want: perSecond,
		},
		"a ratio": {
			annotations: perReplica + fmt.Sprintf(query, sum+" / "+strings.Replace(sum, "1m", "5m", 1)+" / "+pods), metrics: fmt.Sprintf(object, "istio-requests-total", "Pod", `type: Value, value: "1"`),
			target: "Value 1", want: 1, notes: "look at the target",
		},
		"a latency": {
			annotations: perReplica + fmt.Sprintf(query, mean), metrics: fmt.Sprintf(object, "istio-requests-total", "Pod", `type: Value, value: "20"`),
			target: "Value 20", want: 30, notes: "look at the target",
		},
		"neither": {
			annotations: fmt.Sprintf(query, sum), metrics: fmt.Sprintf(object, "istio-requests-total", "Service", `type: Value, value: "10"`),
			target: "Value 10", want: perSecond,
		},
		"a query with a quote": {
			annotations: fmt.Sprintf(query, strings.Replace(sum, `"test"`, `"test",response_code!="it''s"`, 1)), metrics: fmt.Sprintf(object, "istio-requests-total", "Pod", `type: AverageValue, averageValue: "10"`),
			target: "AverageValue 10", want: perSecond,
		},
		"the legacy form as an object": {
			annotations: `metric-config.object.prometheus-query.prometheus/requests: '` + sum + `'`, target: "AverageValue 10", want: perSecond,
		},
		"requests a second of pods": {
			metrics: fmt.Sprintf(pod, "istio_requests_per_second", `type: AverageValue, averageValue: "100"`),
			reason:  hpas.ReasonPodsNotServed, target: "AverageValue 100", want: perSecond,
		},
		"of an odd target": {
			metrics: fmt.Sprintf(pod, "requests_per_second", `type: Value, averageValue: "5"`),
			reason:  hpas.ReasonPodsNotServed, target: "AverageValue 5", want: perSecond,
		},
		"a minute": {
			metrics: fmt.Sprintf(pod, "istio_requests_per_min", `type: AverageValue, averageValue: "120"`),
			reason:  hpas.ReasonPodsNotServed, target: "AverageValue 2", want: perSecond,
		},
		"requests of a service": {
			metrics: fmt.Sprintf(object, "istio_requests_per_second", "Service", `type: Value, value: "100"`),
			target:  "AverageValue 100", want: perSecond,
		},
		"requests of a deployment": {
			metrics: fmt.Sprintf(object, "http_request_rate", "Deployment", `type: Value, value: "100"`),
			target:  "AverageValue 100", want: perSecond,
		},
		"errors": {
			metrics: fmt.Sprintf(pod, "istio_request_errors_per_second", `type: AverageValue, averageValue: "5"`),
			reason:  hpas.ReasonPodsNotServed, target: "AverageValue 5", want: 2,
		},
		"a latency in seconds": {
			metrics: fmt.Sprintf(pod, "istio_request_duration_p99", `type: AverageValue, averageValue: 200m`),
			reason:  hpas.ReasonPodsNotServed, target: "Value 200", want: 50, notes: "milliseconds",
		},
		"a latency in milliseconds": {
			metrics: fmt.Sprintf(object, "http_p99_latency_ms", "Deployment", `type: Value, value: "500"`),
			target:  "Value 500", want: 50,
		},
		"a gateway's requests": {
			metrics:  fmt.Sprintf(pod, "istio_requests_per_second", `type: AverageValue, averageValue: "100"`),
			workload: "istio-ingressgateway", reason: hpas.ReasonPodsNotServed, target: "AverageValue 100", want: 10,
		},
		"a gateway's latency": {
			metrics:  fmt.Sprintf(pod, "istio_request_p50_latency", `type: AverageValue, averageValue: "100"`),
			workload: "istio-ingressgateway", reason: hpas.ReasonPodsNotServed, target: "Value 100", want: 37,
		},
		"requests in flight": {
			metrics: fmt.Sprintf(pod, "requests-in-flight", `type: AverageValue, averageValue: "3"`),
			reason:  hpas.ReasonPodsNotServed, target: "AverageValue 3", want: perSecond * 0.030,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := hpaFrom(t, fixture.HPA("podinfo", tc.annotations, tc.metrics))
			if tc.workload != "" {
				h.Namespace, h.Spec.ScaleTargetRef.Name = "istio-system", tc.workload
			}
			reason := tc.reason
			if reason == "" {
				reason = hpas.ReasonObjectNotServed
			}
			read := hpas.Vocabulary{}.Read(h)
			if len(read.Problems) != 1 || read.Problems[0].Reason != reason {
				t.Fatalf("events %v, want one of %s", read.Problems, reason)
			}
			message := read.Problems[0].Message
			if len(message) > 1024 {
				t.Errorf("%d bytes, and an event has 1024: %s", len(message), message)
			}
			if !strings.Contains(message, tc.notes) {
				t.Errorf("no word of %q: %s", tc.notes, message)
			}
			after := follow(t, h, message)
			goal := after.Spec.Metrics[0].External.Target
			if got := string(goal.Type) + " " + (hpas.Unserved{Target: goal}).Goal().String(); got != tc.target {
				t.Errorf("the target is %s, want %s", got, tc.target)
			}
			got := m.values(after, 10*time.Minute)
			if len(got) != 1 || got[0].err != "" {
				t.Fatalf("what is advised gives %v: %s", got, message)
			}
			for _, p := range got[0].events {
				if p.Reason != hpas.ReasonLatencyStability { // the text says what to set
					t.Errorf("what is advised has the event %s: %s", p.Reason, p.Message)
				}
			}
			if value := float64(got[0].sum) / 1000; value < 0.97*tc.want || value > 1.03*tc.want {
				t.Errorf("the value is %v, want %v: %s", value, tc.want, message)
			}
		})
	}
}

// /debug/hpas has a line for each Pods and Object metric, in the spec's order, so that it shows all
// that a switch would break.
func TestStatusShowsMetricsThatAreNotServed(t *testing.T) {
	s := startServer(t, nil)
	s.write("hpa.yaml", fixture.HPA("podinfo", "",
		`{type: Pods, pods: {metric: {name: istio_requests_per_second}, target: {type: AverageValue, averageValue: "100"}}}, `+
			fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: podinfo}}", `type: AverageValue, averageValue: "10"`)+`, `+
			`{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}, `+
			`{type: Object, object: {metric: {name: rps}, describedObject: {kind: Service, name: podinfo}, target: {type: Value, value: "7"}}}`))
	eventually(t, func() bool { return len(s.Status(t.Context()).Metrics) == 3 }, func() string { return fmt.Sprint(s.Status(t.Context()).Metrics) })
	var got []string
	for _, m := range s.Status(t.Context()).Metrics {
		served := m.Type == "" || m.Error != "" && m.Value == "" && len(m.Events) == 2
		got = append(got, fmt.Sprint(m.HPA, " ", m.Type, " ", m.Metric, " ", m.Displayed, " ", served))
	}
	want := []string{"podinfo Pods istio_requests_per_second <unknown>/100 (avg) true", "podinfo  istio-requests-per-second <unknown>/10 (avg) true", "podinfo Object rps <unknown>/7 true"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
