package metricsapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// scaledObject is one of KEDA's on podinfo, with a trigger for each query.
func scaledObject(name string, queries ...string) string {
	triggers := []string{`{"type":"cron","metadata":{"start":"x"}}`}
	for _, q := range queries {
		triggers = append(triggers, fmt.Sprintf(`{"type":"prometheus","metadata":{"serverAddress":"http://192.0.2.1:9090","query":%q,"threshold":"10"}}`, q))
	}
	return fmt.Sprintf(`{"apiVersion":"keda.sh/v1alpha1","kind":"ScaledObject","metadata":{"name":%q,"namespace":"test","resourceVersion":"1"},`+
		`"spec":{"scaleTargetRef":{"name":"podinfo"},"minReplicaCount":1,"maxReplicaCount":9,"triggers":[%s]}}`, name, strings.Join(triggers, ","))
}

const podinfoRate = `sum(rate(istio_requests_total{reporter="destination",destination_workload="podinfo"}[1m]))`

// A ScaledObject's trigger is compared by its own query, of the operator's Prometheus and not of
// the one that its author wrote; and nothing that is answered is another for it.
func TestTriggersOfScaledObjectsAreCompared(t *testing.T) {
	x := newExplainTest(t, fixedPods{podinfo("a", time.Hour), podinfo("b", time.Hour)})
	for _, s := range all("a", "b") {
		s.send(x.store)
	}
	p := startShadowPrometheus(t, x)
	p.value = "35"
	list, refused := hpas.DecodeScaledObjects("", []byte(scaledObject("web", podinfoRate, "queue_depth", "sum(rate(istio_requests_total{reporter=\"destination\"}[1m])) / count(kube_pod_info)", "sum(rate(istio_requests_total[1m])")+
		"\n---\n"+scaledObject("other", "queue_depth")))
	if len(list) != 2 || len(refused) > 0 {
		t.Fatalf("%+v, %v", list, refused)
	}
	x.shadow.take(list)
	x.shadow.round(t.Context())
	for _, asked := range p.asked {
		if asked != podinfoRate && !strings.HasPrefix(asked, "max(timestamp(istio_requests_total{") {
			t.Errorf("sent is %s", asked)
		}
	}
	if got := x.outcome(t, shadowDiffered); got != 1 || len(p.asked) != 2 {
		t.Errorf("%v differ, asked %q", got, p.asked)
	}
	told, err := x.explanationsHere(t.Context(), "test")
	if err != nil || len(told.Items) != 1 || told.Items[0].Name != "scaledobject/web" {
		t.Fatalf("%+v, %v", told.Items, err)
	}
	m := told.Items[0].Metrics[0]
	if m.Shadow == nil || *m.Shadow.Newest.Here != 10 || *m.Shadow.Newest.There != 35 || m.Shadow.Newest.ThereAsks != 4 || m.Shadow.Decisions != 1 {
		t.Errorf("%+v", m.Shadow)
	}
	if report := explain.ShadowReport(told.Items, 0); len(report) != 2 || !strings.Contains(report[1], "scaledobject/web") {
		t.Errorf("%q", report)
	}
	if s := x.provider.catalog.current.Load(); len(s.hpas)+len(s.metrics)+len(s.offers) != 0 {
		t.Errorf("it is served: %+v", s)
	}
	x.shadow.take(nil)
	x.shadow.round(t.Context())
	if told, err := x.explanationsHere(t.Context(), ""); err != nil || len(told.Items) != 0 {
		t.Errorf("one that is gone is told of: %+v, %v", told.Items, err)
	}
}

// KEDA is asked for a trigger by the name that KEDA gives it. Without KEDA, and without the right
// to read what it has, HPAs are compared all the same.
func TestScaledObjectsAreReadWhereTheyAre(t *testing.T) {
	for name, scaled := range map[string]string{"KEDA is there": scaledObject("web", istioRate), "it is not": ""} {
		t.Run(name, func(t *testing.T) {
			api, other, asked := newFakeAPI(t, asks(t, "podinfo", "rps", istioRate)), startOtherAdapter(t), &shadowAsked{}
			api.apiService, api.others = apiLeadsTo("keda", "metrics"), asked.ServeHTTP
			if scaled != "" {
				api.scaled = `{"apiVersion":"keda.sh/v1alpha1","kind":"ScaledObjectList","metadata":{"resourceVersion":"1"},"items":[` + scaled + `]}`
			}
			s := startShadow(t, api, other, nil)
			want := []string{metricPath("test", "prometheus-query", "query-name=rps")}
			if scaled != "" {
				want = append(want, metricPath("test", "s1-prometheus", "scaledobject.keda.sh/name=web"))
				eventually(t, func() bool { return len(s.shadow.all()) == 2 }, func() string { return "the ScaledObject is not read" })
			}
			s.shadow.round(t.Context())
			paths := map[string]bool{}
			for _, r := range asked.asked {
				paths[r.URL.RequestURI()] = true
			}
			for _, path := range want {
				if !paths[path] {
					t.Errorf("%s is not asked for, but %v", path, paths)
				}
			}
			if got := testutil.ToFloat64(s.shadow.compared.WithLabelValues(shadowOursMissing)); got != float64(len(want)) || len(paths) != len(want) {
				t.Errorf("compared %v times, asked for %v", got, paths)
			}
			code, body := s.get(ownVersionPath + "/namespaces/test/explanations")
			var list explain.List
			if err := json.Unmarshal([]byte(body), &list); err != nil || code != http.StatusOK || len(list.Items) != len(want) {
				t.Errorf("%d: %s", code, body)
			}
		})
	}
}
