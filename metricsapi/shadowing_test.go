package metricsapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// shadowPrometheus answers with a value, "" for none, and samples of an age.
type shadowPrometheus struct {
	*httptest.Server
	value string
	age   time.Duration
	down  bool

	mu    sync.Mutex
	asked []string
}

func startShadowPrometheus(t *testing.T, x *explainTest) *shadowPrometheus {
	p := &shadowPrometheus{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, value := r.FormValue("query"), p.value
		p.mu.Lock()
		p.asked = append(p.asked, query)
		p.mu.Unlock()
		if p.down {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if strings.HasPrefix(query, "max(timestamp(") {
			value = fmt.Sprint(float64(x.at.Add(-p.age).UnixMilli()) / 1000)
		}
		series := ""
		if value != "" {
			series = fmt.Sprintf(`{"metric":{},"value":[0,%q]}`, value)
		}
		_, _ = fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":[%s]}}`, series)
	}))
	t.Cleanup(p.Close)
	x.options.ShadowPrometheus, x.options.Registerer = p.URL, prometheus.NewRegistry()
	if err := x.addShadow(x.options); err != nil {
		t.Fatal(err)
	}
	return p
}

func (x *explainTest) outcome(t *testing.T, outcome string) float64 {
	t.Helper()
	return testutil.ToFloat64(x.shadow.compared.WithLabelValues(outcome))
}

func TestAPrometheusIsComparedAndNothingGoesByIt(t *testing.T) {
	tests := map[string]struct {
		theirs    string
		age       time.Duration
		sent      []requests
		down      bool
		outcome   string
		reason    string
		decisions int
	}{
		"the same":                            {theirs: "10", sent: all("a", "b"), outcome: shadowAgreed},
		"another value, the same replicas":    {theirs: "7", sent: all("a", "b"), outcome: shadowDiffered, reason: "unknown"},
		"another value, other replicas":       {theirs: "25", sent: all("a", "b"), outcome: shadowDiffered, reason: "unknown", decisions: 1},
		"no value there":                      {sent: all("a", "b"), outcome: shadowTheirsMissing},
		"no answer there":                     {down: true, sent: all("a", "b"), outcome: shadowNoAnswer},
		"held here, since no sidecar reports": {theirs: "10", outcome: shadowDiffered, reason: "rule", decisions: 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			x := newExplainTest(t, fixedPods{podinfo("a", time.Hour), podinfo("b", time.Hour)}, explained(t, "podinfo", "istio-requests-per-second", averageTen))
			x.provider.catalog.warn.deliver = func(h hpas.HPA, p hpas.Problem) { t.Errorf("an event on %s: %v", h.Name, p) }
			for _, s := range test.sent {
				s.send(x.store)
			}
			before := x.of("podinfo")
			p := startShadowPrometheus(t, x)
			p.value, p.age, p.down = test.theirs, test.age, test.down
			x.shadow.round(t.Context())
			if got := x.outcome(t, test.outcome); got != 1 {
				t.Errorf("outcome %s: %v", test.outcome, got)
			}
			after := x.of("podinfo")
			m := after.Metrics[0]
			if m.Value != before.Metrics[0].Value || fmt.Sprint(after.Decision) != fmt.Sprint(before.Decision) || len(m.History) > 0 {
				t.Errorf("it changes the answer: %+v, before %+v", m, before.Metrics[0])
			}
			switch s := m.Shadow; {
			case test.down && s != nil:
				t.Errorf("no answer counts as a comparison: %+v", s)
			case test.down:
			case s == nil:
				t.Error("nothing is remembered")
			case s.Newest.Reason != test.reason || s.Decisions != test.decisions:
				t.Errorf("reason %q, decisions %d: %+v", s.Newest.Reason, s.Decisions, s)
			}
		})
	}
}

func TestADifferenceHasItsLikelyReason(t *testing.T) {
	const sum = "sum(rate(istio_requests_total{destination_workload=\"podinfo\"}[1m]))"
	late := []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 90 * time.Second, to: 2 * time.Minute}}
	tests := map[string]struct {
		expr   string
		theirs string
		age    time.Duration
		sent   []requests
		reason string
		target string // "": averageTen
		old    bool   // no pod is new
	}{
		"it keeps the replicas":            {expr: sum, theirs: "10", reason: "rule", old: true},
		"less than the window is known":    {expr: sum, theirs: "30", sent: []requests{{pod: "a", from: 90 * time.Second, to: 2 * time.Minute}, late[1]}, target: `type: AverageValue, averageValue: "1"`, reason: "window", old: true},
		"twice as much, of both reporters": {expr: sum, theirs: "20", sent: all("a", "b"), reason: "reporter"},
		"one reporter is asked for":        {expr: strings.Replace(sum, "{", `{reporter="destination",`, 1), theirs: "20", sent: all("a", "b"), reason: "unknown"},
		"as it was at its newest sample":   {expr: sum, theirs: "5", age: 30 * time.Second, sent: late, reason: "stale answer"},
		"less, and a pod is new":           {expr: sum, theirs: "5", sent: late, reason: "lost first requests"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			young := time.Duration(0)
			if !test.old && test.sent[1].from > time.Minute {
				young = -85 * time.Second // it began after the store
			}
			h := explained(t, "podinfo", "mine", cmp.Or(test.target, averageTen))
			h.Annotations = map[string]string{"metric-config.external.mine.prometheus/query": test.expr}
			x := newExplainTest(t, fixedPods{podinfo("a", time.Hour), podinfo("b", young)}, h)
			for _, s := range test.sent {
				s.send(x.store)
			}
			p := startShadowPrometheus(t, x)
			p.value, p.age = test.theirs, test.age
			x.shadow.round(t.Context())
			m := x.of("podinfo").Metrics[0]
			if m.Shadow == nil || m.Shadow.Newest.Reason != test.reason {
				t.Errorf("%+v of %+v, want %s", m.Shadow, m, test.reason)
			}
		})
	}
}

func TestOnlyWhatAnHPAMayReadIsSent(t *testing.T) {
	query := func(name, expr string) hpas.HPA {
		h := explained(t, name, name, averageTen)
		h.Annotations = map[string]string{"metric-config.external." + name + ".prometheus/query": expr}
		return h
	}
	list := []hpas.HPA{
		query("own", `sum(rate(istio_requests_total{destination_workload_namespace="test"}[1m]))`),
		query("other", `sum(rate(istio_requests_total{destination_workload_namespace="secret"}[1m]))`),
		query("every", `sum(rate(istio_requests_total[1m]))`),
		query("broken", `sum(rate(istio_requests_total[1m])`),
	}
	for only, want := range map[string]struct {
		sent, notSent int
	}{queryNamespacesOwn: {1, 3}, queryNamespacesAll: {3, 1}} {
		x := newExplainTest(t, nil, list...)
		x.options.QueryNamespaces = only
		p := startShadowPrometheus(t, x)
		x.shadow.round(t.Context())
		if len(p.asked) != want.sent || x.outcome(t, shadowNotSent) != float64(want.notSent) {
			t.Errorf("--query-namespaces %s: sent %q, %v not", only, p.asked, x.outcome(t, shadowNotSent))
		}
	}
}

// The Prometheus has more than a mesh: what an HPA's author may not read there is not read for
// them.
func TestOnlyWhatTheMeshSendsIsAskedFor(t *testing.T) {
	for _, expr := range []string{
		`sum(kube_secret_info{namespace="test"})`,
		`sum(rate(istio_requests_total[1m])) + 0 * sum(kube_secret_info)`,
		`sum({__name__=~"istio_requests_total|kube_secret_info"})`,
		`sum({__name__=~"istio_requests_total|kube_.*"})`,
	} {
		h := explained(t, "podinfo", "mine", averageTen)
		h.Annotations = map[string]string{"metric-config.external.mine.prometheus/query": expr}
		x := newExplainTest(t, nil, h)
		p := startShadowPrometheus(t, x)
		x.shadow.round(t.Context())
		if len(p.asked) != 0 || x.outcome(t, shadowNotSent) != 1 {
			t.Errorf("%s: asked %q, %v not sent", expr, p.asked, x.outcome(t, shadowNotSent))
		}
	}
}

// A metric of an object is compared as an external one is, by its annotation's query or its name's;
// one that is divided by the pods asks for as many replicas as one that is not.
func TestMetricsOfObjectsAreCompared(t *testing.T) {
	const perReplica = `, metric-config.object.rps.prometheus/per-replica: "true"`
	for name, text := range map[string]string{
		"by a query":                     objectHPA("rps", objectQuery, `type: AverageValue, averageValue: "10"`),
		"by a query, for each that runs": objectHPA("rps", objectQuery+perReplica, `type: Value, value: "10"`),
		"by a name":                      objectHPA("istio-requests-per-second", "", `type: AverageValue, averageValue: "10"`),
	} {
		x := newExplainTest(t, fixedPods{podinfo("a", time.Hour), podinfo("b", time.Hour)})
		x.list = []hpas.HPA{hpaFrom(t, text)}
		x.list[0].Status.CurrentReplicas = 3
		x.provider.catalog.words.Custom = true
		x.provider.catalog.Replace(x.list)
		for _, s := range all("a", "b") {
			s.send(x.store)
		}
		startShadowPrometheus(t, x).value = "45"
		x.shadow.round(t.Context())
		m := x.of("podinfo").Metrics[0]
		if m.Shadow == nil || m.Shadow.Compared != 1 || *m.Shadow.Newest.Here != 10 || *m.Shadow.Newest.There != 45 || m.Shadow.Newest.HereAsks != 1 || m.Shadow.Newest.ThereAsks != 5 {
			t.Errorf("%s: %+v", name, m.Shadow)
		}
	}
}

func TestAnotherQueryIsComparedAnew(t *testing.T) {
	query := func(reporter string) hpas.HPA {
		h := explained(t, "podinfo", "mine", averageTen)
		h.Annotations = map[string]string{"metric-config.external.mine.prometheus/query": `sum(rate(istio_requests_total{reporter="` + reporter + `"}[1m]))`}
		return h
	}
	x := newExplainTest(t, fixedPods{podinfo("a", time.Hour)}, query("source"))
	startShadowPrometheus(t, x).value = "10"
	x.shadow.round(t.Context())
	if x.of("podinfo").Metrics[0].Shadow == nil {
		t.Fatal("nothing is remembered")
	}
	x.provider.catalog.Replace([]hpas.HPA{query("destination")})
	if got := x.of("podinfo").Metrics[0].Shadow; got != nil {
		t.Errorf("the other query's comparisons are shown: %+v", got)
	}
	x.shadow.round(t.Context())
	if got := x.of("podinfo").Metrics[0].Shadow; got == nil || got.TheirsMissing+got.OursMissing+got.Compared != 1 {
		t.Errorf("%+v, want one comparison", got)
	}
}

func TestFourComparisonsAreMadeAtOnce(t *testing.T) {
	var list []hpas.HPA
	for i := range 3 * shadowAtOnce {
		list = append(list, explained(t, fmt.Sprint("podinfo-", i), "istio-requests-per-second", averageTen))
	}
	x := newExplainTest(t, nil, list...)
	startShadowPrometheus(t, x)
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		var begun atomic.Int64
		x.provider.now = func() time.Time {
			begun.Add(1)
			<-goOn
			return x.at
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { x.shadow.round(ctx); close(done) }()
		synctest.Wait()
		if got := begun.Load(); got != shadowAtOnce {
			t.Errorf("%d at once", got)
		}
		cancel() // before anything is sent
		close(goOn)
		<-done
	})
}

func TestAnHPAThatIsGoneIsNotComparedAnyMore(t *testing.T) {
	x := newExplainTest(t, fixedPods{podinfo("a", time.Hour)}, explained(t, "podinfo", "istio-requests-per-second", averageTen))
	startShadowPrometheus(t, x).value = "10"
	x.shadow.round(t.Context())
	h := x.provider.catalog.current.Load().hpas[0]
	if x.shadow.of(h.HPA, h.Metrics[0]) == nil {
		t.Fatal("nothing is remembered")
	}
	x.provider.catalog.Replace(nil)
	x.shadow.round(t.Context())
	if got := x.shadow.of(h.HPA, h.Metrics[0]); got != nil {
		t.Errorf("remembered: %+v", got)
	}
}

func TestTopAndReportShowTheComparison(t *testing.T) {
	x := newExplainTest(t, fixedPods{podinfo("a", time.Hour)}, explained(t, "podinfo", "istio-requests-per-second", averageTen))
	for _, s := range all("a") {
		s.send(x.store)
	}
	list := func() []explain.Explanation {
		return []explain.Explanation{x.explain(t.Context(), x.provider.catalog.current.Load().hpas[0], x.at, x.at, false)}
	}
	if top := explain.Table(list(), true, 0); strings.Contains(top[0], "SHADOW") {
		t.Errorf("a column of nothing: %q", top)
	}
	if report := explain.ShadowReport(list(), 0); len(report) != 1 || !strings.Contains(report[0], "--shadow-prometheus") {
		t.Errorf("%q", report)
	}
	startShadowPrometheus(t, x).value = "35"
	x.shadow.round(t.Context())
	if top := explain.Table(list(), true, 0); !strings.HasSuffix(top[0], "SHADOW") || !strings.HasSuffix(top[1], "0/1") {
		t.Errorf("%q", top)
	}
	report := explain.ShadowReport(list(), 0)
	if len(report) != 2 || !strings.Contains(report[1], "35") || !strings.Contains(report[1], x.at.UTC().Format(time.TimeOnly)) || !strings.HasSuffix(report[1], "unknown") {
		t.Errorf("%q", report)
	}
}
