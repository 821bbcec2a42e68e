package metricsapi

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func newTestStore(t *testing.T) *aggregator.Store {
	t.Helper()
	s, err := aggregator.New(aggregator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// told collects what was delivered.
type told struct {
	mu       sync.Mutex
	events   []string          // HPA REASON
	messages map[string]string // the last of each reason
}

func (r *told) deliver(h hpas.HPA, p hpas.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, h.Name+" "+p.Reason)
	if r.messages == nil {
		r.messages = map[string]string{}
	}
	r.messages[p.Reason] = p.Message
}

// message is what was told last for a reason.
func (r *told) message(reason string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.messages[reason]
}

func (r *told) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}

func newTestCatalog(t *testing.T) (*catalog, *told) {
	t.Helper()
	events := &told{}
	c := newCatalog(newTestStore(t), newWarner(events.deliver, newMetrics(nil)))
	t.Cleanup(c.Close)
	return c, events
}

func (c *catalog) wantExpr(t *testing.T, namespace, metric, selector, want string) {
	t.Helper()
	p, _, refused := c.find(namespace, metric, fixture.Selector(t, selector))
	if refused != nil {
		t.Fatalf("%s with %q: %s", metric, selector, refused.message)
	}
	defer p.release()
	if p.Text != want {
		t.Errorf("%s with %q is %q, want %q", metric, selector, p.Text, want)
	}
}

func (c *catalog) wantRefused(t *testing.T, namespace, metric, selector, outcome, part string) {
	t.Helper()
	_, _, refused := c.find(namespace, metric, fixture.Selector(t, selector))
	wantRefusal(t, refused, outcome, part)
}

// asks is an HPA that asks for legacy queries: name, expression, name, expression, ...
func asks(t *testing.T, hpa string, queries ...string) hpas.HPA {
	t.Helper()
	annotations, metrics := "", ""
	for i := 0; i < len(queries); i += 2 {
		annotations += fmt.Sprintf("metric-config.external.prometheus-query.prometheus/%s: %q, ", queries[i], queries[i+1])
		metrics += fixture.External("prometheus-query", "{matchLabels: {query-name: "+queries[i]+"}}", `type: AverageValue, averageValue: "10"`) + ", "
	}
	return hpaFrom(t, fixture.HPA(hpa, annotations, metrics))
}

func TestCatalogFind(t *testing.T) {
	c, _ := newTestCatalog(t)
	c.wantRefused(t, "test", "prometheus-query", "query-name=rps", outcomeUnknown, "no HPA in namespace test has a query for metric prometheus-query")

	own := hpaFrom(t, fixture.HPA("own", `metric-config.external.my-rps.prometheus/query: "vector(3)"`,
		fixture.External("my-rps", "{matchLabels: {type: prometheus}}", `type: AverageValue, averageValue: "10"`)))
	c.Replace([]hpas.HPA{asks(t, "a", "rps", "vector(1)", "p95", "vector(2)"), own})

	c.wantExpr(t, "test", "prometheus-query", "query-name=rps", "vector(1)")
	c.wantExpr(t, "test", "prometheus-query", "query-name in (p95)", "vector(2)")
	c.wantExpr(t, "test", "my-rps", "type=prometheus", "vector(3)")
	c.wantExpr(t, "test", "my-rps", "", "vector(3)") // the one that is left
	c.wantRefused(t, "test", "prometheus-query", "", outcomeBadSelector, `"query-name=p95", "query-name=rps"`)
	c.wantRefused(t, "test", "prometheus-query", "query-name=rsp", outcomeUnknown, `no HPA has a query for the selector "query-name=rsp"; there are "query-name=p95"`)
	c.wantRefused(t, "other", "prometheus-query", "query-name=rps", outcomeUnknown, "namespace other")

	// Metrics without PromQL answer without an HPA.
	c.wantExpr(t, "shop", "istio-requests-in-flight", "destination_workload=cart",
		`sum(rate(istio_request_duration_milliseconds_sum{destination_workload_namespace="shop",destination_workload="cart",reporter="destination"}[1m])) / 1000`)
	c.wantRefused(t, "shop", "istio-requests-in-flight", "window=x", outcomeBadSelector, "one duration")
}

func TestCatalogFollowsTheHPAs(t *testing.T) {
	c, _ := newTestCatalog(t)
	names := func() []string { return c.current.Load().metrics }

	if got := names(); len(got) != 0 {
		t.Fatalf("before any HPA there are %v", got)
	}
	a, b := asks(t, "a", "rps", "vector(1)"), asks(t, "b", "p95", "vector(2)")
	named := hpaFrom(t, fixture.HPA("named", "", fixture.External("istio-error-ratio", "{}", `type: Value, value: "1"`)))
	missing := hpaFrom(t, fixture.HPA("m", "", fixture.External("unheard-of", "{}", `type: Value, value: "1"`)))
	c.Replace([]hpas.HPA{a, b, named, missing})
	if d := cmp.Diff([]string{"istio-error-ratio", "prometheus-query"}, names()); d != "" {
		t.Errorf("discovery (-want +got):\n%s", d)
	}

	// A query that is in use outlives its HPA until the reader is done.
	p, _, refused := c.find("test", "prometheus-query", fixture.Selector(t, "query-name=rps"))
	if refused != nil {
		t.Fatal(refused.message)
	}
	c.Replace([]hpas.HPA{b})
	if got := len(c.prepared); got != 1 {
		t.Errorf("%d queries are kept for one HPA", got)
	}
	if !p.acquire() {
		t.Error("the query was closed under its reader")
	}
	p.release()
	p.release()
	if p.acquire() {
		t.Error("the query of an HPA that is gone was never closed")
	}
	c.wantRefused(t, "test", "prometheus-query", "query-name=rps", outcomeUnknown, "")

	// The same expression keeps its query when the HPA changes.
	before := c.prepared[preparedKey{namespace: "test", expr: "vector(2)"}]
	c.Replace([]hpas.HPA{asks(t, "renamed", "p95", "vector(2)")})
	if c.prepared[preparedKey{namespace: "test", expr: "vector(2)"}] != before {
		t.Error("an expression that stays was registered anew")
	}
	c.Replace(nil)
	if len(names()) != 0 || len(c.prepared) != 0 {
		t.Errorf("after the last HPA there are %v, %d queries", names(), len(c.prepared))
	}
}

func TestCatalogEvents(t *testing.T) {
	c, events := newTestCatalog(t)
	born := func(h hpas.HPA, second int64) hpas.HPA {
		h.CreationTimestamp = metav1.Unix(second, 0)
		return h
	}
	c.Replace([]hpas.HPA{
		born(asks(t, "younger", "rps", "vector(2)"), 20),
		born(asks(t, "older", "rps", "vector(1)"), 10),
		born(asks(t, "agrees", "rps", "vector(1)"), 30),
		born(asks(t, "broken", "bad", "sum("), 40),
		born(asks(t, "reaches", "far", "sum(rate(istio_requests_total{reporter='destination'}[1w]))"), 50),
		born(asks(t, "matrix", "m", "istio_requests_total{reporter='destination'}[1m]"), 60),
	})
	c.wantExpr(t, "test", "prometheus-query", "query-name=rps", "vector(1)")
	want := []string{"broken BadQuery", "matrix BadQuery", "older QueryConflict", "reaches BadQuery", "younger QueryConflict"}
	if d := cmp.Diff(want, events.take()); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}

	// Once, and not again when anything else changes.
	c.Replace([]hpas.HPA{born(asks(t, "broken", "bad", "sum("), 40)})
	if got := events.take(); len(got) != 0 {
		t.Errorf("told again: %v", got)
	}
	// An HPA that was away is a new one.
	c.Replace(nil)
	c.Replace([]hpas.HPA{asks(t, "broken", "bad", "sum(")})
	if d := cmp.Diff([]string{"broken BadQuery"}, events.take()); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestAQueryThatIsBrokenCountsForBothAndIsNamed(t *testing.T) {
	c, _ := newTestCatalog(t)
	older, younger := asks(t, "older", "rps", "sum("), asks(t, "younger", "rps", "vector(2)")
	older.CreationTimestamp, younger.CreationTimestamp = metav1.Unix(10, 0), metav1.Unix(20, 0)
	c.Replace([]hpas.HPA{older, younger})
	for _, h := range c.current.Load().hpas {
		want := map[string]string{
			"older":   "HPA younger, which is younger: this one counts for both, and is broken: ",
			"younger": "HPA older, which is older: its query counts for both, and is broken: ",
		}[h.Name]
		if !slices.ContainsFunc(h.problems, func(p hpas.Problem) bool {
			return p.Reason == hpas.ReasonQueryConflict && strings.Contains(p.Message, want)
		}) {
			t.Errorf("HPA %s: %v", h.Name, h.problems)
		}
	}
}

// A status, a managed field or somebody else's annotation is not read, and so makes no HPA be read
// again, whoever else was edited.
func TestCatalogReadsOnlyWhatHasChanged(t *testing.T) {
	c, _ := newTestCatalog(t)
	list := func(change func(a *autoscalingv2.HorizontalPodAutoscaler)) []hpas.HPA {
		b := asks(t, "b", "b", "vector(2)")
		b.HorizontalPodAutoscaler = b.DeepCopy()
		change(b.HorizontalPodAutoscaler)
		return []hpas.HPA{b}
	}
	for what, tc := range map[string]struct {
		change func(h *autoscalingv2.HorizontalPodAutoscaler)
		again  bool
	}{
		"nothing":        {func(*autoscalingv2.HorizontalPodAutoscaler) {}, false},
		"its status":     {func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Status.CurrentReplicas, h.ResourceVersion = 7, "8" }, false},
		"a label":        {func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Labels = map[string]string{"a": "b"} }, false},
		"another's note": {func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Annotations["argocd.argoproj.io/sync"] = "1" }, false},
		"its query": {func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Annotations["metric-config.external.prometheus-query.prometheus/b"] = "vector(3)"
		}, true},
		"one more":        {func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Annotations["meshpulse.io/surge-window"] = "off" }, true},
		"one less":        {func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Annotations = nil }, true},
		"its maxReplicas": {func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MaxReplicas = 9 }, true},
		"it is another":   {func(h *autoscalingv2.HorizontalPodAutoscaler) { h.UID = "2" }, true},
	} {
		c.Replace(list(func(*autoscalingv2.HorizontalPodAutoscaler) {}))
		before := c.current.Load().hpas[0].Wants
		c.Replace(append(list(tc.change), asks(t, "edited", "x", "vector(4)")))
		if again := c.current.Load().hpas[0].Wants != before; again != tc.again {
			t.Errorf("%s has changed, read again: %v", what, again)
		}
		c.Replace(nil)
	}
	old := asks(t, "b", "b", "vector(2)")
	old.Problems = []hpas.Problem{{Reason: hpas.ReasonOldVersion, Message: "write v2"}}
	c.Replace(list(func(*autoscalingv2.HorizontalPodAutoscaler) {}))
	c.Replace([]hpas.HPA{old})
	if got := c.current.Load().hpas[0].problems; len(got) != 1 {
		t.Errorf("what the source has found is not told: %v", got)
	}
}

func TestCatalogOrderOfFiles(t *testing.T) {
	c, events := newTestCatalog(t)
	first, second := asks(t, "z", "rps", "vector(1)"), asks(t, "a", "rps", "vector(2)")
	first.Path, second.Path = "1.yaml", "2.yaml"
	c.Replace([]hpas.HPA{second, first})
	c.wantExpr(t, "test", "prometheus-query", "query-name=rps", "vector(1)")
	if d := cmp.Diff([]string{"a QueryConflict", "z QueryConflict"}, events.take()); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestCatalogSharedTarget(t *testing.T) {
	c, events := newTestCatalog(t)
	a, b, other := asks(t, "a", "x", "vector(1)"), asks(t, "b", "x2", "vector(1)"), asks(t, "other", "z", "vector(1)")
	b.Spec.ScaleTargetRef.Name, b.Spec.ScaleTargetRef.APIVersion = "a", "apps/v1beta1"
	c.Replace([]hpas.HPA{a, b, other})
	if d := cmp.Diff([]string{"a SharedTarget", "b SharedTarget"}, events.take()); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

func TestAdhocQueriesAreBounded(t *testing.T) {
	q := newAdhocQueries(newTestStore(t), 2)
	get := func(expr string) *prepared {
		p := q.acquire("test", expr)
		p.release()
		return p
	}
	one, two := get("vector(1)"), get("vector(2)")
	get("vector(1)") // used again
	get("vector(3)")
	if one.refs != 1 || two.refs != 0 || q.kept.Len() != 2 {
		t.Errorf("the least used is not the one that went: refs %d and %d, %d kept", one.refs, two.refs, q.kept.Len())
	}
	if get("vector(1)") != one {
		t.Error("a kept query was prepared again")
	}
	q.close()
	if one.refs != 0 || q.kept.Len() != 0 {
		t.Error("close keeps queries")
	}
}

// Readers never fail while HPAs come and go; under -race this also watches the snapshot.
func TestCatalogConcurrentSafe(t *testing.T) {
	c, _ := newTestCatalog(t)
	stays := asks(t, "stays", "rps", "vector(1)")
	comes := asks(t, "comes", "more", "vector(2)", "most", "vector(3)")
	c.Replace([]hpas.HPA{stays})
	selector, more := fixture.Selector(t, "query-name=rps"), fixture.Selector(t, "query-name=more")

	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p, _, refused := c.find("test", "prometheus-query", selector)
				if refused != nil {
					t.Errorf("a query that stays is refused: %s", refused.message)
					return
				}
				p.release()
				if p, _, refused := c.find("test", "prometheus-query", more); refused == nil {
					if _, err := p.query.Eval(t.Context(), time.Now()); err != nil {
						t.Error(err)
					}
					p.release()
				}
			}
		})
	}
	for range 200 {
		c.Replace([]hpas.HPA{stays, comes})
		c.Replace([]hpas.HPA{stays})
	}
	close(stop)
	readers.Wait()
	if p := c.prepared[preparedKey{namespace: "test", expr: "vector(1)"}]; p.refs != 1 {
		t.Errorf("%d references are left over", p.refs-1)
	}
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
