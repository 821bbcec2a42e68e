package metricsapi

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// inNamespace is an HPA's YAML for another namespace than test.
func inNamespace(namespace, text string) string {
	return strings.Replace(text, "namespace: test", "namespace: "+namespace, 1)
}

// readersText is an HPA with queries, by name.
func readersText(name string, queries map[string]string) string {
	annotations, metrics := "", ""
	for query, expr := range queries {
		annotations += "metric-config.external.prometheus-query.prometheus/" + query + ": '" + expr + "', "
		metrics += fixture.External("prometheus-query", "{matchLabels: {query-name: "+query+"}}", `type: AverageValue, averageValue: "10"`) + ", "
	}
	return fixture.HPA(name, annotations, metrics)
}

// Whoever may write an HPA reads every namespace as is, and is told so; where queries read their
// own only, it reads nothing of another one, by whatever expression.
func TestQueriesReadTheirOwnNamespaceWhereTheyAreTold(t *testing.T) {
	queries := map[string]string{
		"by-name":      `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination"}[1m]))`,
		"by-namespace": `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[1m]))`,
		"by-engine":    `sum(rate(istio_requests_total{namespace="test"}[1m] offset 1s))`,
		"counted":      `count(istio_requests_total) or vector(7)`,
		"missing":      `absent(istio_requests_total) * 7 or vector(1)`,
		"scalar":       `vector(scalar(sum(rate(istio_requests_total[1m]))) > bool 0)`,
		"latency":      `histogram_quantile(0.5, sum(rate(istio_request_duration_milliseconds_bucket{destination_workload_namespace="test"}[1m])) by (le))`,
	}
	for namespaces, reads := range map[string]bool{"": true, "all": true, "own": false} {
		t.Run(namespaces, func(t *testing.T) {
			s := startServer(t, func(o *Options) { o.QueryNamespaces = namespaces })
			s.sidecar("podinfo-1")
			s.write("mine.yaml", inNamespace("evil", readersText("mine", queries)))
			s.write("theirs.yaml", readersText("theirs", queries))
			s.discovers(discovered)
			for _, name := range []string{"by-name", "by-namespace", "by-engine"} {
				if got := s.value("test", "prometheus-query", "query-name="+name); got.Value.Value() != 1 {
					t.Errorf("%s of the namespace itself is %s", name, got.Value.String())
				}
				if reads {
					if got := s.value("evil", "prometheus-query", "query-name="+name); got.Value.Value() != 1 {
						t.Errorf("%s of another namespace is %s", name, got.Value.String())
					}
				} else if got := s.refused("evil", "prometheus-query", "query-name="+name, http.StatusServiceUnavailable); strings.Contains(got, "podinfo,") || strings.Contains(got, "others do report") {
					t.Errorf("%s of another namespace tells %s", name, got)
				}
			}
			for _, name := range []string{"counted", "missing", "scalar", "latency"} {
				_, mine := s.get(metricPath("evil", "prometheus-query", "query-name="+name))
				_, theirs := s.get(metricPath("test", "prometheus-query", "query-name="+name))
				value := func(body string) string {
					_, value, _ := strings.Cut(body, `"value":"`)
					value, _, _ = strings.Cut(value, `"`)
					return value
				}
				if same := value(mine) == value(theirs); same != reads {
					t.Errorf("%s is %q, and %q in the namespace that it is of", name, value(mine), value(theirs))
				}
			}
			if got := s.log.count("hpa=mine reason=" + hpas.ReasonReadsBeyond); (got > 0) != reads {
				t.Errorf("%d events tell that the query reads another namespace", got)
			}
			if got := s.log.count("hpa=theirs reason=" + hpas.ReasonReadsBeyond); got != 0 {
				t.Errorf("%d events tell of a query that reads its own", got)
			}
			if got := s.log.count("hpa=mine reason=" + hpas.ReasonNotRead); (got == 3) == reads {
				t.Errorf("%d events tell that a namespace is named and not read, want 3 where it is not", got)
			}
			if got := s.log.count("hpa=theirs reason=" + hpas.ReasonNotRead); got != 0 {
				t.Errorf("%d events tell of a query that reads what it names", got)
			}
		})
	}
}

// A namespace's owner lets others read it, and takes that back, and every query of theirs follows:
// those that are registered, those that nobody has registered, and what is told of them.
func TestANamespaceIsReadByThoseThatItLets(t *testing.T) {
	client := fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "test"}})
	s := startServer(t, nil) // for its store, in which test has a pod
	s.sidecar("podinfo-1")
	events := &told{}
	c := newCatalog(s.store, newWarner(events.deliver, newMetrics(nil)))
	t.Cleanup(c.Close)
	const expr = `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[1m]))`
	mine := hpaFrom(t, inNamespace("mine", readersText("mine", map[string]string{"rps": expr})))
	changed := make(chan struct{}, 100)
	names, err := cluster.NewNamespaces(client, func() { changed <- struct{}{} }, s.store.Contain, discardLog(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	c.limit(names)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { names.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, func() bool { return names.Read() == nil }, func() string { return "the namespaces are not read" })
	c.Replace([]hpas.HPA{mine})
	sees := func() int {
		p, _, refused := c.find("mine", "prometheus-query", fixture.Selector(t, "query-name=rps"))
		if refused != nil {
			t.Fatal(refused.message)
		}
		defer p.release()
		registered, err := p.query.Eval(ctx, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		like, err := p.query.Like(expr)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := like.Eval(ctx, time.Now())
		if err != nil || fresh.Matched != registered.Matched {
			t.Errorf("%d series are seen by a registered query, %d by one that is not; %v", registered.Matched, fresh.Matched, err)
		}
		return registered.Matched
	}
	if n := sees(); n != 0 || events.message(hpas.ReasonNotRead) == "" {
		t.Errorf("%d series are seen before anybody lets, told: %q", n, events.message(hpas.ReasonNotRead))
	}
	for _, step := range []struct {
		by   string
		want int
	}{{"other", 0}, {"other, mine", 1}, {"other", 0}, {"*", 1}, {"", 0}, {"mine", 1}} {
		if _, err := client.CoreV1().Namespaces().Update(ctx, &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: "test", Annotations: map[string]string{cluster.ReadableBy: step.by}},
		}, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		<-changed
		c.Replace([]hpas.HPA{mine}) // as the HPAs' informer does when it is woken
		if n := sees(); n != step.want {
			t.Errorf("readable by %q: %d series are seen, want %d", step.by, n, step.want)
		}
	}
	if err := client.CoreV1().Namespaces().Delete(ctx, "test", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	<-changed
	c.Replace([]hpas.HPA{mine})
	if n := sees(); n != 0 {
		t.Errorf("%d series are seen of a namespace that is gone", n)
	}
}
