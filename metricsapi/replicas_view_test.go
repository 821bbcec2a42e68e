package metricsapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// viewPair are two replicas with one HPA, of which the second alone knows the sidecars.
func viewPair(t *testing.T) (c *crew, a, b *testServer) {
	t.Helper()
	c = newCrew("a", "b")
	a, b = c.join(t, "a"), c.join(t, "b")
	hpa := fixture.HPA("podinfo", "", fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: podinfo}}", averageTen))
	for _, s := range []*testServer{a, b} {
		s.write("hpa.yaml", hpa)
	}
	for _, s := range []*testServer{a, b} {
		s.eventually(ownVersionPath+"/namespaces/test/explanations/podinfo", http.StatusOK)
	}
	b.sidecar("podinfo-0")
	c.questions()
	return c, a, b
}

func (s *testServer) own(path string, into any) {
	s.t.Helper()
	if code, body := s.get(ownVersionPath + path); code != http.StatusOK || json.Unmarshal([]byte(body), into) != nil {
		s.t.Fatalf("%s gives %d: %s", path, code, body)
	}
}

func TestWhoLooksOnIsShownWhatEitherReplicaKnows(t *testing.T) {
	c, a, b := viewPair(t)
	b.value("test", "istio-requests-per-second", workload) // a decision, which b alone has made
	c.questions()
	var e explain.Explanation
	a.own("/namespaces/test/explanations/podinfo", &e)
	if m := e.Metrics[0]; m.Value != "1" || m.Rule != explain.RuleSeen || len(m.Pods) != 1 || len(m.History) != 1 {
		t.Errorf("explained: %+v", m)
	}
	b.own("/namespaces/test/explanations/podinfo", &e)
	if m := e.Metrics[0]; m.Value != "1" || len(m.History) != 1 {
		t.Errorf("explained where all is known: %+v", m)
	}
	var list explain.List
	a.own("/namespaces/test/explanations", &list)
	if len(list.Items) != 1 || list.Items[0].Metrics[0].Value != "1" {
		t.Errorf("listed: %+v", list.Items)
	}
	var pods explain.Sidecars
	a.own("/namespaces/test/pods", &pods)
	if len(pods.Items) != 1 || pods.Items[0].State != explain.StateReporting {
		t.Errorf("pods: %+v", pods.Items)
	}
	if asked := c.questions(); !slices.Equal(asked, []string{"a b", "b a", "a b", "a b"}) {
		t.Errorf("asked: %v", asked)
	}
	b.own("/namespaces/test/explanations", &list)
	b.own("/namespaces/test/pods", &pods)
	if asked := c.questions(); len(asked) > 0 {
		t.Errorf("where all is known is asked: %v", asked)
	}
}

func TestAQueryThatIsNotKnownInFullIsAskedForAtTheOtherReplica(t *testing.T) {
	c, a, b := viewPair(t)
	for s, want := range map[*testServer][]string{a: {"a b"}, b: nil} {
		code, body := s.post(ownVersionPath+"/queries", `{"spec": {"query": "count(rate(istio_requests_total{reporter=\"destination\",destination_workload=\"podinfo\",destination_workload_namespace=\"test\"}[1m]))"}}`)
		var q explain.Query
		if json.Unmarshal([]byte(body), &q) != nil || q.Status == nil || len(q.Status.Series) != 1 || q.Status.Series[0].Points[0].Value != "1" {
			t.Errorf("the query gives %d: %s", code, body)
		}
		if asked := c.questions(); !slices.Equal(asked, want) {
			t.Errorf("asked: %v, want %v", asked, want)
		}
	}
	// One that cannot be read is no other replica's business.
	if code, _ := a.post(ownVersionPath+"/queries", `{"spec": {"query": "sum("}}`); code != http.StatusBadRequest {
		t.Errorf("a query that cannot be read gives %d", code)
	}
	if asked := c.questions(); len(asked) > 0 {
		t.Errorf("asked: %v", asked)
	}
}

// owning is one of a crew in which each namespace has owners of its own.
type owning struct {
	*mate
	of map[string][]string
}

func (o *owning) Owners(namespace string) []string { return o.of[namespace] }

// Of more than two, those are asked that keep the namespace, and who knows less comes after.
func TestAQueryOfOneNamespaceIsAskedForAtItsOwners(t *testing.T) {
	c := newCrew()
	of := map[string][]string{"test": {"b", "c"}, "": {"a", "c"}}
	servers := map[string]*testServer{}
	for _, name := range []string{"a", "b", "c"} {
		servers[name] = startServer(t, func(o *Options) { o.Replicas = &owning{&mate{c, name}, of} })
		servers[name].eventually("/readyz", http.StatusOK)
	}
	servers["b"].sidecar("podinfo-0")
	_, body := servers["a"].post(ownVersionPath+"/queries", `{"spec": {"query": "count(rate(istio_requests_total{reporter=\"destination\",destination_workload_namespace=\"test\"}[1m]))"}}`)
	var q explain.Query
	if json.Unmarshal([]byte(body), &q) != nil || q.Status == nil || len(q.Status.Series) != 1 || q.Status.Series[0].Points[0].Value != "1" {
		t.Errorf("the query gives %s", body)
	}
	if asked := c.questions(); len(asked) == 0 || asked[0] != "a b" {
		t.Errorf("asked: %v", asked)
	}
}

func TestAnExplanationOfAnHPAThatIsNotKnownHereIsAskedFor(t *testing.T) {
	c := newCrew("a", "b")
	a, b := c.join(t, "a"), c.join(t, "b")
	b.write("hpa.yaml", fixture.HPA("podinfo", "", fixture.External("istio-requests-per-second", "{matchLabels: {destination_workload: podinfo}}", averageTen)))
	b.eventually(ownVersionPath+"/namespaces/test/explanations/podinfo", http.StatusOK)
	a.eventually(ownVersionPath+"/namespaces/test/explanations/podinfo", http.StatusOK)
	a.eventually(ownVersionPath+"/namespaces/test/explanations/other", http.StatusNotFound)
	c.with(func() { c.silent["b"] = time.Minute })
	a.eventually(ownVersionPath+"/namespaces/test/explanations/podinfo", http.StatusNotFound)
}

// Of Prometheus' API what is complete counts, and never an error.
func TestWhichAnswerOfPrometheusAPICounts(t *testing.T) {
	own := PrometheusAnswer{Code: http.StatusOK, Text: []byte("own"), Incomplete: "a pod is silent"}
	for name, test := range map[string]struct {
		owners []string
		own    PrometheusAnswer
		other  PrometheusAnswer
		want   string
	}{
		"the other is complete":              {[]string{"a", "b"}, own, PrometheusAnswer{Code: http.StatusOK, Text: []byte("other")}, "other"},
		"this one is":                        {[]string{"b", "a"}, PrometheusAnswer{Code: http.StatusOK, Text: []byte("own")}, PrometheusAnswer{Code: http.StatusOK, Text: []byte("other")}, "own"},
		"neither is, and this one is first":  {[]string{"a", "b"}, own, PrometheusAnswer{Code: http.StatusOK, Text: []byte("other"), Incomplete: "x"}, "own"},
		"neither is, and this one is second": {[]string{"b", "a"}, own, PrometheusAnswer{Code: http.StatusOK, Text: []byte("other"), Incomplete: "x"}, "other"},
		"the other is busy":                  {[]string{"b", "a"}, own, PrometheusAnswer{Code: http.StatusServiceUnavailable, Text: []byte("busy")}, "own"},
	} {
		c := newCrew(test.owners...)
		other := &Server{provider: &provider{replicas: &mate{c, "b"}}}
		other.provider.show = other.show
		other.AnswerPrometheus(func(_ context.Context, path string, form url.Values) PrometheusAnswer {
			if path != "/api/v1/query" || form.Get("query") != "up" {
				t.Errorf("%s: asked for %s with %v", name, path, form)
			}
			return test.other
		})
		(&mate{c, "b"}).Answer(other.provider.asked)
		s := &Server{provider: &provider{replicas: &mate{c, "a"}, metrics: newMetrics(nil)}}
		if got := s.Prometheus(t.Context(), "/api/v1/query", url.Values{"query": {"up"}}, test.own); string(got.Text) != test.want {
			t.Errorf("%s: %s counts", name, got.Text)
		}
	}
}

// Without the Prometheus API, or of another version, a replica has nothing to show.
func TestWhoHasNothingToShowCountsForNothing(t *testing.T) {
	c := newCrew("b", "a")
	c.answers["b"] = func(context.Context, []byte) []byte { return []byte(`{"Outcome":"bad_selector"}`) }
	s := &Server{provider: &provider{replicas: &mate{c, "a"}, metrics: newMetrics(nil)}}
	own := PrometheusAnswer{Code: http.StatusOK, Text: []byte("own"), Incomplete: "x"}
	if got := s.Prometheus(t.Context(), "/api/v1/query", nil, own); string(got.Text) != "own" {
		t.Errorf("%s counts", got.Text)
	}
	for _, v := range []view{{Resource: viewPrometheus}, {Resource: "queries"}, {Resource: "of the future"}} {
		if r := s.show(t.Context(), v); r.View != nil || r.Outcome == "" {
			t.Errorf("%+v shows %+v", v, r)
		}
	}
}
