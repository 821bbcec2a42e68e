package metricsapi

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// A server that the API server tells nothing any more stays alive and ready, says so, and its
// metric too.
func TestServeWhileTheAPIServerTellsNothing(t *testing.T) {
	api := newFakeAPI(t, asks(t, "podinfo", "bad", "sum("))
	c := new(fixture.Clock)
	s := startServer(t, func(o *Options) {
		o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig, o.Now = false, "", "127.0.0.1", api.kubeconfig(t), c.Now
	})
	s.token = "hpa"
	eventually(t, func() bool {
		return s.provider.rules.holder.hpasFresh.Age() == 0 && s.api.Pods.Synced() == nil && s.api.Pods.Freshness().Age() == 0
	}, func() string { return "nothing is watched" })
	if _, body := s.get("/readyz?verbose"); !strings.Contains(body, "[+]pods ok") || !strings.Contains(body, "[+]hpas ok") {
		t.Errorf("at first: %s", body)
	}
	api.deaf.Store(true)
	api.CloseClientConnections()
	eventually(t, func() bool { return s.provider.rules.holder.hpasFresh.Age() > 0 && s.api.Pods.Freshness().Age() > 0 }, func() string { return "nothing is refused" })
	c.Shift(2 * time.Minute)
	for path, want := range map[string]int{"/readyz": http.StatusOK, "/livez": http.StatusOK, "/healthz": http.StatusOK} {
		if code, body := s.get(path); code != want {
			t.Errorf("%s gives %d: %s", path, code, body)
		}
	}
	if _, body := s.get("/readyz?verbose"); !strings.Contains(body, "[+]pods (nothing heard of them for more than 20 seconds: replicas are not lowered) ok") || !strings.Contains(body, "[+]hpas (nothing") {
		t.Errorf("two minutes later: %s", body)
	}
	_, body := s.get("/metrics")
	for _, resource := range []string{"pods", "hpas"} {
		if !strings.Contains(body, `meshpulse_metricsapi_watch_seconds_since_success{resource="`+resource+`"} 12`) { // 120 and some
			t.Errorf("no metric of %s: %s", resource, body)
		}
	}
	if !strings.Contains(body, `meshpulse_metricsapi_watch_seconds_since_success{resource="scales"} 0`) {
		t.Errorf("scales, which nobody has asked for, are not in step: %s", body)
	}
}

// What is not in step lowers nothing. A rolling update that the index has not heard of leaves pods
// in it that are gone, and hides new ones.
func TestWhatIsStaleLowersNothing(t *testing.T) {
	const whole = 10 * time.Minute
	stale := staleFreshness("HPAs")
	for name, tc := range map[string]struct {
		pods, hpas bool // are stale
		target     string
		want       string
		deaf       string
	}{
		"nothing":                          {target: "10", want: "20, 4 expected"}, // the old ones are mute
		"the pods":                         {pods: true, target: "10", want: "30 held, 4 expected", deaf: "of pods"},
		"the pods, and the load asks more": {pods: true, target: "1", want: "10, 4 expected", deaf: "of pods"},
		"the HPAs":                         {hpas: true, target: "10", want: "30 held, 4 expected", deaf: "of HPAs"},
		"the HPAs, and the load asks more": {hpas: true, target: "1", want: "10, 4 expected", deaf: "of HPAs"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newHeldCluster(t, sentBy{workload: "podinfo", pods: []string{"o1", "o2"}, from: 5 * time.Second, to: time.Minute, rps: 5},
				sentBy{workload: "podinfo", pods: []string{"n1", "n2"}, from: 70 * time.Second, to: whole, rps: 5})
			c.add("podinfo", -time.Hour, "o1", "o2")
			c.add("podinfo", time.Minute, "n1", "n2")
			c.target = tc.target
			c.change = func(h *holder) {
				if tc.pods {
					h.pods = stalePods{c.pods}
				}
				if tc.hpas {
					h.hpasFresh = stale
				}
			}
			v, refused := c.answer(strings.Replace(namespaceWide, "destination_workload_namespace", `destination_workload="podinfo",destination_workload_namespace`, 1), whole)
			if refused != nil || shown(v) != tc.want {
				t.Errorf("got %s (%s), refused %v, want %s", shown(v), v.reason, refused, tc.want)
			}
			told := ""
			for _, p := range v.problems {
				if p.Reason == hpas.ReasonDeafWatch {
					told += p.Message
				}
			}
			if (told != "") != (tc.deaf != "") || !strings.Contains(told, tc.deaf) {
				t.Errorf("told %q, want %q", told, tc.deaf)
			}
		})
	}
}

// stalePods have not been heard of for long.
type stalePods struct{ fixedPods }

func (stalePods) Synced() error { return &cluster.DeafError{What: "pods", Age: 2 * time.Minute} }

// staleFreshness is of what has not been heard of for an hour.
func staleFreshness(what string) *cluster.Freshness {
	c := new(fixture.Clock)
	f := cluster.NewFreshness(what, c.Now)
	c.Shift(time.Hour)
	return f
}

// A scale that may not be read is kept by what the HPA's status says, unless that is from long ago.
func TestAStaleStatusIsNotTheReplicas(t *testing.T) {
	stale := staleFreshness("HPAs")
	c := new(fixture.Clock)
	failed := func(h *holder) bool { // whether the newest read is noted as one that has failed
		c.Shift(time.Second)
		return h.scalesFresh.Age() > 0
	}
	h := &holder{scales: fixedScale(-1), status: func(string, string) (int32, bool) { return 2, true }, scalesFresh: cluster.NewAskedFreshness("scales", c.Now)}
	a := asking("podinfo", autoscalingv2.AverageValueMetricType, "10", 2)
	if target, err := h.replicas(t.Context(), a); err != nil || target.Spec != 2 {
		t.Errorf("got %+v, %v, want the HPA's status", target, err)
	}
	if h.hpasFresh = stale; h.hpasFresh.Stale() == nil {
		t.Fatal("not stale")
	}
	if target, err := h.replicas(t.Context(), a); err == nil {
		t.Errorf("got %+v of a status that is not believed", target)
	}
	if failed(h) {
		t.Error("that it may not be read is an answer")
	}
	h.scales = fixedScale(-2)
	if _, err := h.replicas(t.Context(), a); err == nil || !failed(h) {
		t.Errorf("a read that failed is not noted: %v", err)
	}
	h.hpasFresh, h.scalesFresh = nil, cluster.NewAskedFreshness("scales", c.Now)
	for range 12 { // reads that fail for two minutes
		h.scalesFresh.Done(errors.New("timeout"))
		c.Shift(10 * time.Second)
	}
	if target, err := h.replicas(t.Context(), a); err != nil || target.Spec != 2 {
		t.Errorf("no scale could be read for long: got %+v, %v, want the HPA's status", target, err)
	}
	h.scalesFresh = cluster.NewAskedFreshness("scales", c.Now)
	h.scalesFresh.Done(nil)
	c.Shift(time.Hour) // read, an hour ago
	if target, err := h.replicas(t.Context(), a); err == nil {
		t.Errorf("one read of a scale has failed: got %+v of a status that may be from before a raise", target)
	}
	h.scales, h.scalesFresh = fixedScale(-4), cluster.NewAskedFreshness("scales", c.Now)
	if target, err := h.replicas(t.Context(), a); err != nil || target.Spec != 2 || failed(h) {
		t.Errorf("that there is no such kind is an answer: got %+v, %v", target, err)
	}
}
