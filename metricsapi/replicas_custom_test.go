package metricsapi

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// joinCustom makes custom metrics those of one of the crew.
func (c *crew) joinCustom(name string, p *customProvider) *customProvider {
	m := &mate{c, name}
	p.replicas, p.custom = m, p
	m.Answer(p.asked)
	return p
}

func TestOfEachPodWhatEitherReplicaKnowsCounts(t *testing.T) {
	whole := 2 * time.Minute
	sent := func(a, b requests) []requests {
		return []requests{{pod: "known", from: seconds5, to: whole}, a, b}
	}
	x, y := requests{pod: "x", from: seconds5, to: whole}, requests{pod: "y", from: seconds5, to: whole}
	silent := func(r requests) requests {
		r.to = whole - 30*time.Second
		return r
	}
	c := newCrew("a", "b")
	a := c.joinCustom("a", customMesh(t, whole, 3, "", sent(x, silent(y))...))
	b := c.joinCustom("b", customMesh(t, whole, 3, "", sent(silent(x), y)...))
	for name, p := range map[string]*customProvider{"a": a, "b": b} {
		if got := p.ofPods(t, "istio-requests-per-second"); got != "known=5 x=5 y=5" {
			t.Errorf("at %s: %s", name, got)
		}
	}
	if asked := c.questions(); len(asked) != 2 || !slices.Contains(asked, "a b") || !slices.Contains(asked, "b a") {
		t.Errorf("asked: %v", asked)
	}
	// Where all is known, and where the metric is none that pods without requests have, nobody is.
	c = newCrew("a", "b")
	a = c.joinCustom("a", customMesh(t, whole, 3, "", x, requests{pod: "idle", from: seconds5, to: whole, idle: true}))
	for _, metric := range []string{"istio-requests-per-second", "istio-request-duration-avg"} {
		if got := a.ofPods(t, metric); !strings.HasSuffix(got, "x=5") && !strings.HasSuffix(got, "x=10") {
			t.Errorf("%s: %s", metric, got)
		}
	}
	if asked := c.questions(); len(asked) > 0 {
		t.Errorf("asked: %v", asked)
	}
}

func TestAnObjectThatIsNotKnownInFullIsAskedForAtTheOtherReplica(t *testing.T) {
	whole := 2 * time.Minute
	hpa := objectHPA("rps", objectQuery, `type: AverageValue, averageValue: "10"`)
	known := []requests{{pod: "x", from: seconds5, to: whole}, {pod: "y", from: seconds5, to: whole}}
	silent := []requests{known[0], {pod: "y", from: seconds5, to: whole - 30*time.Second}}
	for name, tc := range map[string]struct {
		own  []requests
		hpas [2]string // of this one and of the other
		want string
	}{
		"one is silent here":             {silent, [2]string{hpa, hpa}, "10"},
		"the HPA is not known here":      {known, [2]string{"", hpa}, "10"},
		"the HPA is not known elsewhere": {silent, [2]string{hpa, ""}, "50"},
		"the HPA is not known":           {silent, [2]string{"", ""}, "no HPA in namespace test has a query"},
	} {
		c := newCrew("a", "b")
		a := c.joinCustom("a", customMesh(t, whole, 5, tc.hpas[0], tc.own...))
		c.joinCustom("b", customMesh(t, whole, 5, tc.hpas[1], known...))
		got := ""
		value, err := a.GetMetricByName(t.Context(), types.NamespacedName{Namespace: "test", Name: "podinfo"}, infoOf("deployments.apps", "rps"), labels.Everything())
		if err != nil {
			got = err.Error()
		} else {
			got = value.Value.String()
		}
		if !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		if asked := c.questions(); !slices.Equal(asked, []string{"a b"}) {
			t.Errorf("%s: asked: %v", name, asked)
		}
	}
}

// Without the HPA nobody knows that a metric which has a name that needs no PromQL has a query of
// its own, and is to be divided by the target's pods.
func TestAnObjectsMetricIsAskedForWhereItsHPAIsKnown(t *testing.T) {
	whole := 2 * time.Minute
	known := []requests{{pod: "x", from: seconds5, to: whole}, {pod: "y", from: seconds5, to: whole}}
	query := strings.ReplaceAll(objectQuery+`, metric-config.object.rps.prometheus/per-replica: "true"`, ".rps.", ".istio-requests-per-second.")
	hpa := objectHPA("istio-requests-per-second", query, `type: Value, value: "10"`)
	for name, tc := range map[string]struct {
		hpas [2]string // of this one and of the other
		want string
	}{
		"known here":      {[2]string{hpa, ""}, "5"},
		"known elsewhere": {[2]string{"", hpa}, "5"},
		"nowhere":         {[2]string{"", ""}, "10"},
	} {
		c := newCrew("a", "b")
		a := c.joinCustom("a", customMesh(t, whole, 2, tc.hpas[0], known...))
		c.joinCustom("b", customMesh(t, whole, 2, tc.hpas[1], known...))
		value, err := a.GetMetricByName(t.Context(), types.NamespacedName{Namespace: "test", Name: "podinfo"}, infoOf("deployments.apps", "istio-requests-per-second"), labels.Everything())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := value.Value.String(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// A replica of another version, or without custom metrics, is one that knows nothing.
func TestWhoServesNoCustomMetricsKnowsNoneOfThem(t *testing.T) {
	whole := 2 * time.Minute
	c := newCrew("a", "b")
	a := c.joinCustom("a", customMesh(t, whole, 3, "", requests{pod: "x", from: seconds5, to: whole}, requests{pod: "y", from: seconds5, to: whole - 30*time.Second}))
	b := customMesh(t, whole, 3, "")
	m := &mate{c, "b"}
	b.replicas = m
	m.Answer(b.asked)
	if got := a.ofPods(t, "istio-requests-per-second"); got != "x=5" {
		t.Errorf("it is said: %s", got)
	}
}
