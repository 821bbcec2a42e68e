package metricsapi

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

var updateExplained = flag.Bool("update-explained", false, "write testdata/explain anew")

// explainTest is a server of a cluster with an HPA of Deployment podinfo, whose pods are the
// test's.
type explainTest struct {
	*Server
	t     *testing.T
	store *aggregator.Store
	list  []hpas.HPA
	at    time.Time
}

// informed is a source of HPAs that are known.
type informed struct{ of *explainTest }

func (informed) Run(context.Context) error { return nil }
func (informed) Synced() error             { return nil }
func (s informed) Known(namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, bool) {
	for _, h := range s.of.list {
		if h.Namespace == namespace && h.Name == name {
			return h.HorizontalPodAutoscaler, true
		}
	}
	return nil, false
}

// explained is an HPA with a metric of podinfo that needs no PromQL.
func explained(t *testing.T, name, metric, target string) hpas.HPA {
	h := hpaFrom(t, strings.Replace(fixture.HPA(name, "", fixture.External(metric, "{matchLabels: {destination_workload: podinfo}}", target)), "kind: Deployment, name: "+name, "kind: Deployment, name: podinfo", 1))
	h.UID, h.Status.CurrentReplicas = types.UID(name), 3
	return h
}

const averageTen = `type: AverageValue, averageValue: "10"`

// newExplainTest takes the pods, by their ages at the store's start, and the HPAs.
func newExplainTest(t *testing.T, pods fixedPods, list ...hpas.HPA) *explainTest {
	store := newTestStore(t)
	for i := range pods { // given since the zero time
		p := &pods[i]
		p.Created = store.Started().Add(p.Created.Sub(time.Time{}))
	}
	x := &explainTest{t: t, store: store, list: list, at: store.Started().Add(2 * time.Minute)}
	m := newMetrics(nil)
	c := newCatalog(store, newWarner(func(hpas.HPA, hpas.Problem) {}, m))
	t.Cleanup(c.Close)
	x.Server = &Server{source: informed{x}, options: Options{Store: store, HPATolerance: horizontal.DefaultTolerance, Proves: true}.withDefaults(), provider: &provider{
		catalog: c, metrics: m, readers: newReaders(100, discardLog()), now: func() time.Time { return x.at },
		rules: rules{retention: 5 * time.Minute, started: store.Started(), holder: &holder{
			pods: pods, scales: fixedScale(3), settings: horizontal.Settings{Tolerance: horizontal.DefaultTolerance}, store: store, started: store.Started(), hold: 5 * time.Minute,
			status: func(string, string) (int32, bool) { return 3, true },
		}},
	}}
	x.provider.history = newHistory(x.settings(), informed{x}.Known)
	c.history = x.provider.history
	c.Replace(list)
	return x
}

// podinfo is a pod of that workload, of an age at the store's start.
func podinfo(name string, age time.Duration, change ...func(*cluster.Pod)) cluster.Pod {
	p := cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "test", Name: name, Workload: "podinfo"}, Created: time.Time{}.Add(-age)}
	for _, c := range change {
		c(&p)
	}
	return p
}

// ask is a look of the controller at the first metric of each HPA, at the test's time.
func (x *explainTest) ask() {
	x.t.Helper()
	for _, h := range x.provider.catalog.current.Load().hpas {
		for _, w := range h.Metrics {
			_, _ = x.provider.get(x.t.Context(), h.Namespace, w.Name, w.Selector)
		}
	}
}

func (x *explainTest) of(name string) explain.Explanation {
	x.t.Helper()
	for _, h := range x.provider.catalog.current.Load().hpas {
		if h.Name == name {
			return x.explain(x.t.Context(), h, x.at, x.at, true)
		}
	}
	x.t.Fatalf("no HPA %s", name)
	return explain.Explanation{}
}

func all(pods ...string) (sent []requests) {
	for _, p := range pods {
		sent = append(sent, requests{pod: p, from: 5 * time.Second, to: 2 * time.Minute})
	}
	return sent
}

// TestExplainNamesCauseAndRemedyFirst: the first three lines are what is wrong, why, and what
// helps. testdata/explain has the texts whole.
func TestExplainNamesCauseAndRemedyFirst(t *testing.T) {
	const old = time.Hour
	unwired := func(p *cluster.Pod) { p.Wired = false }
	rps := func(t *testing.T) hpas.HPA { return explained(t, "podinfo", "istio-requests-per-second", averageTen) }
	tests := map[string]struct {
		pods  fixedPods
		hpas  func(t *testing.T) []hpas.HPA
		sent  []requests
		after func(x *explainTest) // before it is asked for
		want  [3]string            // parts of the first three lines
	}{
		"held": {
			pods: fixedPods{podinfo("podinfo-a", old), podinfo("podinfo-b", old)},
			sent: append(all("podinfo-a"), requests{pod: "podinfo-b", from: 5 * time.Second, to: 70 * time.Second}),
			after: func(x *explainTest) { // it has been held for a while
				for at := x.at.Add(-30 * time.Second); at.Before(x.at); at = at.Add(15 * time.Second) {
					now := x.at
					x.at = at
					x.ask()
					x.at = now
				}
			},
			want: [3]string{"HELD for 30s: istio-requests-per-second answers 30, which keeps 3 replicas; what is seen is 6.042", "1 sidecar silent (podinfo-b, last flush 50s ago)", "kubectl -n test logs podinfo-b -c istio-proxy"},
		},
		"silent": { // for longer than the hold
			pods:  fixedPods{podinfo("podinfo-a", old), podinfo("podinfo-b", old)},
			sent:  []requests{{pod: "podinfo-a", from: 5 * time.Second, to: 8 * time.Minute}, {pod: "podinfo-b", from: 5 * time.Second, to: time.Minute}},
			after: func(x *explainTest) { x.at = x.store.Started().Add(8 * time.Minute) },
			want:  [3]string{"1 of 2 sidecars of istio-requests-per-second do not tell all", "1 sidecar mute for longer than --hold (podinfo-b, last flush 7m ago); they count as the mean of the others", "delete pod podinfo-b"},
		},
		"unit": {
			pods: fixedPods{podinfo("podinfo-a", old)}, sent: all("podinfo-a"),
			hpas: func(t *testing.T) []hpas.HPA {
				return []hpas.HPA{explained(t, "podinfo", "istio-request-duration-p95", `type: Value, value: "5m"`)}
			},
			want: [3]string{"WRONG UNIT: any traffic asks for all 5 replicas", "istio-request-duration-p95 is in milliseconds and its target is 5m", "If seconds were meant, the target is 5"},
		},
		"surge": {
			pods: fixedPods{podinfo("podinfo-a", old)}, sent: all("podinfo-a"),
			after: func(x *explainTest) {
				o := x.provider.catalog.current.Load().hpas[0].offers[0]
				o.prepared.surge = &fixedSurge{surge: aggregator.Surge{
					Active: true, Ready: true, Value: 60, Rate: 60, Baseline: 5, Tail: 1e-40, Since: x.at.Add(-7 * time.Second), From: x.at.Add(-5 * time.Second), To: x.at, Flush: 5 * time.Second,
				}}
			},
			want: [3]string{"SURGE for 7.0s: 60/s, 5/s before", "counts 12 times as many requests as in the minute before", "none is needed: the answer is its rate, 60, and the controller asks for 5 replicas at its next look"},
		},
		"shared": {
			pods: fixedPods{podinfo("podinfo-a", old)}, sent: all("podinfo-a"),
			hpas: func(t *testing.T) []hpas.HPA {
				return []hpas.HPA{rps(t), explained(t, "podinfo-too", "istio-requests-in-flight", averageTen)}
			},
			want: [3]string{"the controller changes nothing: several HPAs scale Deployment/podinfo", "Deployment podinfo is also the target of younger HPAs", "Put the metrics into one HPA"},
		},
		"unwired": {
			pods: fixedPods{podinfo("podinfo-a", old, unwired), podinfo("podinfo-b", old, unwired)},
			want: [3]string{"NOT WIRED: istio-requests-per-second has no value", "2 pods are without a sidecar (podinfo-a, podinfo-b): namespace test is not injected", "kubectl label namespace test istio-injection=enabled"},
		},
		"unpointed": {
			pods:  fixedPods{podinfo("podinfo-a", old)},
			after: func(x *explainTest) { x.at = x.store.Started().Add(8 * time.Minute) },
			want:  [3]string{"NOT WIRED", "1 pod has a sidecar that has never reported (podinfo-a)", "set envoyMetricsService"},
		},
		"well": {
			pods: fixedPods{podinfo("podinfo-a", old), podinfo("podinfo-b", old)}, sent: all("podinfo-a", "podinfo-b"),
			want: [3]string{"nothing is wrong", "istio-requests-per-second is 10 against a target of 10, which asks for 1 replica", "none is needed"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			list := []hpas.HPA{rps(t)}
			if tc.hpas != nil {
				list = tc.hpas(t)
			}
			x := newExplainTest(t, tc.pods, list...)
			for _, s := range tc.sent {
				s.send(x.store)
			}
			if tc.after != nil {
				tc.after(x)
			}
			e := x.of("podinfo")
			text := e.Text()
			lines := strings.Split(text, "\n")
			for i, want := range tc.want {
				if !strings.Contains(lines[i], want) {
					t.Errorf("line %d lacks %q:\n%s", i+1, want, text)
				}
			}
			golden := filepath.Join("testdata", "explain", name+".txt")
			if *updateExplained {
				if err := os.WriteFile(golden, []byte(text), 0o644); err != nil { //nolint:gosec // it is read by everybody
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), text); d != "" {
				t.Errorf("-%s +now (go test ./metricsapi -run TestExplain -update-explained):\n%s", golden, d)
			}
		})
	}
}

// TestExplainGoesByTheControllersArithmetic: what is explained is what package horizontal decides,
// which is held against the real controller.
func TestExplainGoesByTheControllersArithmetic(t *testing.T) {
	for _, target := range []string{`type: AverageValue, averageValue: "1"`, averageTen, `type: AverageValue, averageValue: 1700m`, `type: Value, value: "3"`, `type: Value, value: "10"`} {
		x := newExplainTest(t, fixedPods{podinfo("a", time.Hour), podinfo("b", time.Hour)}, explained(t, "podinfo", "istio-requests-per-second", target))
		for _, s := range all("a", "b") {
			s.send(x.store)
		}
		e := x.of("podinfo")
		spec := x.list[0].Spec
		want := x.settings().Decide(&spec, horizontal.Target{Spec: 3, Status: 3, Pods: 3, Ready: 3}, []horizontal.Reading{{Milli: 10_000, Known: true}}, &horizontal.Past{}, x.at)
		if e.Metrics[0].Value != "10" || e.Decision == nil || e.Decision.Replicas != want.Replicas || e.Decision.Recommended != want.Recommended {
			t.Errorf("%s: %+v of %s, the controller decides %+v", target, e.Decision, e.Metrics[0].Value, want)
		}
	}
}

// TestExplainTellsEachPodsValue: the values of the pods add up to that of a sum.
func TestExplainTellsEachPodsValue(t *testing.T) {
	x := newExplainTest(t, fixedPods{podinfo("a", time.Hour), podinfo("b", time.Hour)}, explained(t, "podinfo", "istio-requests-per-second", averageTen))
	for _, s := range all("a", "b") {
		s.send(x.store)
	}
	e := x.of("podinfo")
	if got := e.Metrics[0].Pods; len(got) != 2 || got[0].Name != "a" || got[0].Value != "5" || got[1].Value != "5" || got[0].State != explain.StateReporting {
		t.Errorf("%+v", got)
	}
	list := x.explain(t.Context(), x.provider.catalog.current.Load().hpas[0], x.at, x.at, false)
	if len(list.Metrics[0].Pods) != 0 || list.Metrics[0].Value != "10" || list.Replicas.From != "status" {
		t.Errorf("in a list: %+v", list)
	}
}

// TestHistoryKeepsOnePointASync: of what is asked within one sync the newest stays, an hour back
// and no more.
func TestHistoryKeepsOnePointASync(t *testing.T) {
	h := newHistory(horizontal.Settings{}, func(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool) { return nil, false })
	of := explained(t, "podinfo", "istio-requests-per-second", averageTen)
	begin := time.Unix(1_800_000_000, 0)
	for i := range 2 * historyPoints * 3 {
		d := decision{at: uint32(begin.Add(time.Duration(i) * syncPeriod / 3).Unix()), answered: int64(i), seen: noValue, baseline: noBaseline, wanted: 4, asked: 3, replicas: 2}
		if i%3 == 2 && i%2 == 0 {
			d.baseline = 1.5
		}
		h.add(of, 0, d, 0)
	}
	points := h.of(of, 0)
	if len(points) != historyPoints {
		t.Fatalf("%d points", len(points))
	}
	for i, p := range points {
		if i > 0 && p.At.Sub(points[i-1].At) != syncPeriod {
			t.Fatalf("point %d is %s after the one before", i, p.At.Sub(points[i-1].At))
		}
		if p.Seen != nil || *p.Answered != float64(3*(historyPoints+i)+2)/1000 {
			t.Fatalf("point %d: %v", i, *p.Answered)
		}
		if surge := (3*(historyPoints+i)+2)%2 == 0; surge != (p.Baseline != nil) || surge && *p.Baseline != 1.5 || p.Wanted != 4 || p.Asked != 3 || p.Replicas != 2 {
			t.Fatalf("point %d: %+v", i, p)
		}
	}
	if size := unsafe.Sizeof(decision{}); size != 40 {
		t.Errorf("a decision has %d bytes: change what the documents say", size)
	}
	h.forget(of)
	if h.of(of, 0) != nil {
		t.Error("it remembers an HPA that is gone")
	}
}

// TestADecisionTellsWhatWasBeforeTheSurge: a plot has, beside what was answered, what was asked for
// and what there would be without the surge.
func TestADecisionTellsWhatWasBeforeTheSurge(t *testing.T) {
	hpa := explained(t, "podinfo", "istio-requests-per-second", averageTen)
	hpa.Status.DesiredReplicas = 4
	x := newExplainTest(t, fixedPods{podinfo("podinfo-a", time.Hour)}, hpa)
	for _, s := range all("podinfo-a") {
		s.send(x.store)
	}
	x.at = x.at.Add(-syncPeriod)
	x.ask()
	x.at = x.at.Add(syncPeriod)
	x.provider.catalog.current.Load().hpas[0].offers[0].prepared.surge = &fixedSurge{surge: aggregator.Surge{Active: true, Ready: true, Value: 90, Rate: 60, Baseline: 6}}
	x.ask()
	points := x.of("podinfo").Metrics[0].History
	if len(points) != 2 || points[0].Baseline != nil || points[1].Rule != explain.RuleSurge || points[1].Baseline == nil || *points[1].Baseline != 9 || points[1].Asked != 4 || points[1].Replicas != 3 {
		t.Errorf("%+v", points)
	}
}

// TestWhatIsWrongNowIsMeasuredByNamespace: a held HPA counts while it is, and no name of one is in
// a label.
func TestWhatIsWrongNowIsMeasuredByNamespace(t *testing.T) {
	x := newExplainTest(t, fixedPods{podinfo("a", time.Hour), podinfo("b", time.Hour)}, explained(t, "podinfo", "istio-requests-per-second", averageTen))
	for _, s := range append(all("a"), requests{pod: "b", from: 5 * time.Second, to: 70 * time.Second}) {
		s.send(x.store)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newStandingTroubles(x.provider.history, x.store, func() time.Time { return x.at }))
	expect := func(held string) {
		t.Helper()
		if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP meshpulse_metricsapi_held_hpas HPAs with a metric whose newest answer, of the last minute, keeps the replicas.
# TYPE meshpulse_metricsapi_held_hpas gauge
`+held+`
# HELP meshpulse_metricsapi_unproven_pods Pods that report and have not shown with a certificate who they are.
# TYPE meshpulse_metricsapi_unproven_pods gauge
meshpulse_metricsapi_unproven_pods{namespace="test"} 1
`), "meshpulse_metricsapi_held_hpas", "meshpulse_metricsapi_unproven_pods"); err != nil {
			t.Error(err)
		}
	}
	x.ask()
	expect(`meshpulse_metricsapi_held_hpas{namespace="test"} 1`)
	x.at = x.at.Add(nowFor + time.Second) // nobody has asked since
	for _, s := range []requests{{pod: "a", from: 125 * time.Second, to: 3 * time.Minute}} {
		s.send(x.store)
	}
	expect(`meshpulse_metricsapi_held_hpas{namespace=""} 0`)
	many := map[string]int{}
	for i := range 3 * maxNamespaces {
		many[fmt.Sprint(i)] = 1
	}
	sent := make(chan prometheus.Metric, len(many))
	send(sent, newStandingTroubles(nil, nil, nil).held, many)
	if len(sent) != maxNamespaces+1 {
		t.Errorf("%d namespaces make %d series", len(many), len(sent))
	}
}

// A query that is no PromQL is explained, and takes no other HPA's explanation with it.
func TestAQueryThatIsBrokenIsExplained(t *testing.T) {
	x := newExplainTest(t, nil, asks(t, "podinfo", "rps", "sum(rate(istio_requests_total[1m])"))
	list, err := x.explanationsHere(t.Context(), "")
	if err != nil || len(list.Items) != 1 || !strings.Contains(list.Items[0].Metrics[0].Error, "parse error") {
		t.Errorf("%+v, %v", list.Items, err)
	}
	if m := x.Status(t.Context()).Metrics; len(m) != 1 || !strings.Contains(m[0].Error, "parse error") {
		t.Errorf("/debug/hpas has %+v", m)
	}
}
