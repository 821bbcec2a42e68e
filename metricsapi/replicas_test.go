package metricsapi

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/metrics/pkg/apis/external_metrics"

	"github.com/meshpulse/meshpulse/aggregator"
)

// crew are replicas of a test's: who owns what is said, and questions are handed over directly.
type crew struct {
	mu      sync.Mutex
	owners  []string
	several bool
	cold    error
	silent  map[string]time.Duration
	answers map[string]func(context.Context, []byte) []byte
	asked   []string // from to
}

// mate is one of a crew.
type mate struct {
	*crew
	name string
}

func newCrew(owners ...string) *crew {
	return &crew{owners: owners, silent: map[string]time.Duration{}, answers: map[string]func(context.Context, []byte) []byte{}}
}

func (c *crew) with(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (m *mate) Self() string { return m.name }

func (m *mate) Cold() (err error) {
	m.with(func() { err = m.cold })
	return err
}

func (m *mate) Owners(string) (owners []string) {
	m.with(func() { owners = m.owners })
	return owners
}

func (m *mate) Several() (several bool) {
	m.with(func() { several = m.several })
	return several
}

func (m *mate) Silent(name string) (d time.Duration) {
	m.with(func() { d = m.silent[name] })
	return d
}

func (m *mate) Leads(string) bool { return m.Owners("")[0] == m.name }

func (m *mate) Answer(f func(context.Context, []byte) []byte) {
	m.with(func() { m.answers[m.name] = f })
}

func (m *mate) Ask(ctx context.Context, name string, request []byte) ([]byte, error) {
	var answer func(context.Context, []byte) []byte
	m.with(func() {
		m.asked = append(m.asked, m.name+" "+name)
		answer = m.answers[name]
	})
	if answer == nil {
		<-ctx.Done() // it hangs
		return nil, ctx.Err()
	}
	return answer(ctx, request), nil
}

// questions returns who was asked so far, and forgets it.
func (c *crew) questions() (asked []string) {
	c.with(func() { asked, c.asked = c.asked, nil })
	return asked
}

// join starts a server as one of the crew.
func (c *crew) join(t *testing.T, name string) *testServer {
	t.Helper()
	s := startServer(t, func(o *Options) { o.Replicas = &mate{c, name} })
	s.eventually("/readyz", http.StatusOK)
	return s
}

const workload = "destination_workload=podinfo"

func TestAnOwnerThatKnowsAllAsksNobody(t *testing.T) {
	c := newCrew("a", "b")
	a := c.join(t, "a")
	c.join(t, "b")
	a.sidecar("podinfo-0")
	v := a.value("test", "istio-requests-per-second", workload)
	if v.MetricLabels[labelReplica] != "a" || v.MetricLabels[labelOther] != "" {
		t.Errorf("labels %v", v.MetricLabels)
	}
	if asked := c.questions(); len(asked) > 0 {
		t.Errorf("asked: %v", asked)
	}
}

func TestAReplicaByItselfSaysNothingOfReplicas(t *testing.T) {
	s := startServer(t, nil)
	s.eventually("/readyz", http.StatusOK)
	s.sidecar("podinfo-0")
	v := s.value("test", "istio-requests-per-second", workload)
	for label := range v.MetricLabels {
		if label == labelReplica || label == labelOther {
			t.Errorf("labels %v", v.MetricLabels)
		}
	}
}

// One that has just begun knows of no sidecar, and the other one of all.
func TestAnOwnerThatDoesNotKnowAllAsksTheOther(t *testing.T) {
	c := newCrew("a", "b")
	a, b := c.join(t, "a"), c.join(t, "b")
	b.sidecar("podinfo-0")
	v := a.value("test", "istio-requests-per-second", workload)
	if v.Value.MilliValue() != 1000 || v.MetricLabels[labelReplica] != "b" || !strings.HasPrefix(v.MetricLabels[labelOther], "a: ") {
		t.Errorf("%v with labels %v", v.Value, v.MetricLabels)
	}
	if asked := c.questions(); !slices.Equal(asked, []string{"a b"}) {
		t.Errorf("asked: %v", asked)
	}
}

// The file, or the watch of the API server, has not come here yet.
func TestAnHPAThatIsNotKnownHereIsAskedForAtTheOther(t *testing.T) {
	c := newCrew("a", "b")
	a, b := c.join(t, "a"), c.join(t, "b")
	for _, s := range []*testServer{a, b} {
		s.sidecar("podinfo-0")
	}
	data, err := os.ReadFile("hpas/testdata/requests-total.yaml")
	if err != nil {
		t.Fatal(err)
	}
	b.write("hpa.yaml", string(data))
	b.discovers(discovered)
	if v := a.value("test", "prometheus-query", "query-name=processed-requests-per-second"); v.MetricLabels[labelReplica] != "b" || !strings.HasPrefix(v.MetricLabels[labelOther], "a: no HPA") {
		t.Errorf("labels %v", v.MetricLabels)
	}
	if text := a.refused("test", "of-nobody", workload, http.StatusNotFound); !strings.Contains(text, "no HPA") {
		t.Errorf("told: %s", text)
	}
	if asked := c.questions(); !slices.Equal(asked, []string{"a b", "a b"}) {
		t.Errorf("asked: %v", asked)
	}
}

func TestAnOtherThatIsAwayCostsNothing(t *testing.T) {
	c := newCrew("a", "b")
	a := c.join(t, "a")
	c.with(func() { c.silent["b"] = 2 * time.Second })
	if text := a.refused("test", "istio-requests-per-second", workload, http.StatusServiceUnavailable); !strings.Contains(text, "no sidecar") && !strings.Contains(text, "sidecar") {
		t.Errorf("told: %s", text)
	}
	if asked := c.questions(); len(asked) > 0 {
		t.Errorf("asked: %v", asked)
	}
	// It is not silent yet, and does not answer: what this one has is said all the same.
	c.with(func() { c.silent["b"] = 0 })
	a.refused("test", "istio-requests-per-second", workload, http.StatusServiceUnavailable)
	if asked := c.questions(); !slices.Equal(asked, []string{"a b"}) {
		t.Errorf("asked: %v", asked)
	}
}

func TestWhoOwnsNothingHandsTheQuestionOn(t *testing.T) {
	c := newCrew("a", "b")
	a, third := c.join(t, "a"), c.join(t, "c")
	a.sidecar("podinfo-0")
	if v := third.value("test", "istio-requests-per-second", workload); v.Value.MilliValue() != 1000 || v.MetricLabels[labelReplica] != "a" {
		t.Errorf("%v with labels %v", v.Value, v.MetricLabels)
	}
	// The first owner is not there: the second is asked.
	c.with(func() { c.silent["a"] = time.Minute })
	b := c.join(t, "b")
	b.sidecar("podinfo-0")
	if v := third.value("test", "istio-requests-per-second", workload); v.MetricLabels[labelReplica] != "b" {
		t.Errorf("labels %v", v.MetricLabels)
	}
	c.with(func() { c.silent["b"] = time.Minute })
	if text := third.refused("test", "istio-requests-per-second", workload, http.StatusServiceUnavailable); !strings.Contains(text, "[a b]") {
		t.Errorf("told: %s", text)
	}
}

// What several namespaces' pods send is not in one place where there are more than two.
func TestAQueryOfSeveralNamespacesIsNotAnsweredByMoreThanTwo(t *testing.T) {
	c := newCrew("a", "b")
	a := c.join(t, "a")
	a.sidecar("podinfo-0")
	c.with(func() { c.several = true })
	a.value("test", "istio-requests-per-second", workload)
	if text := a.refused("test", "istio-requests-per-second", "reporter=source", http.StatusServiceUnavailable); !strings.Contains(text, "several namespaces") {
		t.Errorf("told: %s", text)
	}
}

// What is told counts before what is held, a value before none, and of two alike the first owner's.
func TestWhichOfTwoAnswersCounts(t *testing.T) {
	none := refuse(outcomeHeld, "nothing is known")
	for name, test := range map[string]struct {
		own, other said
		at         int // this one's place
		want       string
	}{
		"both hold, the first is asked":    {said{incomplete: "x"}, said{incomplete: "y"}, 0, "a"},
		"both hold, the second is asked":   {said{incomplete: "x"}, said{incomplete: "y"}, 1, "b"},
		"the other is complete":            {said{incomplete: "x"}, said{}, 0, "b"},
		"the other knows no such HPA":      {said{incomplete: "x"}, said{refused: refuse(outcomeUnknown, "no HPA")}, 1, "a"},
		"the other could not evaluate it":  {said{incomplete: "x"}, said{refused: refuse(outcomeFailed, "busy")}, 1, "a"},
		"the other knows that it is 0/0":   {said{incomplete: "x"}, said{refused: refuse(outcomeNaN, "0/0")}, 0, "b"},
		"the other has no value":           {said{incomplete: "x"}, said{refused: none, incomplete: "y"}, 1, "a"},
		"this one has none, and is first":  {said{refused: none, incomplete: "x"}, said{incomplete: "y"}, 0, "b"},
		"neither has one, and it is first": {said{refused: none, incomplete: "x"}, said{refused: none, incomplete: "y"}, 0, "a"},
	} {
		c := newCrew("a", "b")
		if test.at == 1 {
			c.owners = []string{"b", "a"}
		}
		c.answers["b"] = func(context.Context, []byte) []byte { return encode(test.other.filled("b")) }
		p := &provider{replicas: &mate{c, "a"}, metrics: newMetrics(nil)}
		got := p.compare(t.Context(), question{}, test.own.filled("a"), c.owners, test.at)
		whose := "nobody's"
		if got.list != nil {
			whose = got.list.Items[0].MetricLabels[labelReplica]
		} else if got.refused != nil {
			whose = map[bool]string{true: "a", false: "b"}[got.incomplete == test.own.incomplete]
		}
		if whose != test.want {
			t.Errorf("%s: %s counts", name, whose)
		}
	}
}

// filled gives an item to what is no refusal.
func (s said) filled(of string) said {
	if s.refused == nil {
		s.list = &external_metrics.ExternalMetricValueList{Items: []external_metrics.ExternalMetricValue{{MetricName: of}}}
	}
	return s
}

// What another version or a fault sends is no answer.
func TestWhatIsNoAnswerIsNone(t *testing.T) {
	for _, body := range []string{"", "{}", "null", "[1]", `{"List":7}`} {
		c := newCrew("a", "b")
		c.answers["b"] = func(context.Context, []byte) []byte { return []byte(body) }
		p := &provider{replicas: &mate{c, "a"}, metrics: newMetrics(nil)}
		if _, outcome := p.ask(t.Context(), "b", question{}, time.Minute); outcome != askedFailed {
			t.Errorf("%q is %q", body, outcome)
		}
	}
	p := &provider{replicas: &mate{newCrew("a"), "a"}}
	for _, q := range []string{"", "{", `{"Selector":"=="}`} {
		if body := p.asked(t.Context(), []byte(q)); !strings.Contains(string(body), outcomeBadSelector) {
			t.Errorf("%q is answered with %s", q, body)
		}
	}
}

func TestAReplicaThatWarmsUpIsNotReady(t *testing.T) {
	c := newCrew("a")
	s := c.join(t, "a")
	c.with(func() { c.cold = errors.New("warming up") })
	s.eventually("/readyz", http.StatusInternalServerError)
	s.eventually("/livez", http.StatusOK)
	c.with(func() { c.cold = nil })
	s.eventually("/readyz", http.StatusOK)
}

func FuzzAsked(f *testing.F) {
	f.Add([]byte(`{"Namespace":"test","Metric":"m","Selector":"a=b"}`))
	f.Add([]byte(`{"Raised":{"UID":"1","From":1,"To":2}}`))
	f.Fuzz(func(t *testing.T, request []byte) {
		store, err := aggregator.New(aggregator.Config{})
		if err != nil {
			t.Fatal(err)
		}
		m := newMetrics(nil)
		p := &provider{replicas: &mate{newCrew("a"), "a"}, metrics: m, now: time.Now, catalog: newCatalog(store, newWarner(nil, m))}
		if body := p.asked(t.Context(), request); len(body) == 0 {
			t.Errorf("%q is answered with nothing", request)
		}
	})
}
