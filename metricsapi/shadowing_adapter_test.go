package metricsapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// apiLeadsTo is the APIService of external metrics, of a Service.
func apiLeadsTo(namespace, service string) string {
	return fmt.Sprintf(`{"kind":"APIService","apiVersion":"apiregistration.k8s.io/v1","metadata":{"name":"v1beta1.external.metrics.k8s.io"},"spec":{"service":{"namespace":%q,"name":%q}}}`, namespace, service)
}

// shadowAsked is what an adapter is asked that is compared with.
type shadowAsked struct {
	mu     sync.Mutex
	asked  []*http.Request
	status int    // 0: 200
	answer string // "": theirAnswer
}

func (a *shadowAsked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r)
	w.WriteHeader(max(a.status, http.StatusOK))
	if a.answer == "" {
		a.answer = theirAnswer
	}
	_, _ = w.Write([]byte(a.answer))
}

// startShadow serves beside an adapter that is asked through the API server, or at its Service.
func startShadow(t *testing.T, api *fakeAPI, other *otherAdapter, change func(*Options)) *testServer {
	t.Helper()
	s := startServer(t, func(o *Options) {
		other.options(t, api)(o)
		o.Shadow, o.Fallback, o.FallbackCAFile = o.Fallback, "", ""
		o.ShadowInterval = time.Hour // a test has its rounds itself
		if change != nil {
			change(o)
		}
	})
	s.token = "hpa"
	return s
}

// The other adapter is asked as an HPA controller asks, with the right of one account, by whichever
// way leads there.
func TestAnotherAdapterIsCompared(t *testing.T) {
	for name, test := range map[string]struct {
		leads     string // the APIService
		authority bool   // of its Service is known
		direct    bool
		outcome   string
	}{
		"it has the API":                                     {leads: apiLeadsTo("keda", "metrics"), outcome: shadowOursMissing},
		"it has the API, and an authority":                   {leads: apiLeadsTo("keda", "metrics"), authority: true, outcome: shadowOursMissing},
		"nobody has the API":                                 {authority: true, direct: true, outcome: shadowOursMissing},
		"another one has the API":                            {leads: apiLeadsTo("keda", "other"), authority: true, direct: true, outcome: shadowOursMissing},
		"another one has the API, and there is no authority": {leads: apiLeadsTo("keda", "other"), outcome: shadowNoAnswer},
		"nobody has the API, and there is no authority":      {outcome: shadowNoAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			api, other, asked := newFakeAPI(t, asks(t, "podinfo", "rps", istioRate, "app", otherRate)), startOtherAdapter(t), &shadowAsked{}
			api.apiService, api.others = test.leads, asked.ServeHTTP
			s := startShadow(t, api, other, func(o *Options) {
				if test.authority {
					o.ShadowCAFile = other.ca
				}
			})
			s.shadow.round(t.Context())
			if got := testutil.ToFloat64(s.shadow.compared.WithLabelValues(test.outcome)); got != 1 {
				t.Errorf("outcome %s: %v", test.outcome, got)
			}
			through, direct := asked.asked, other.take()
			if test.outcome == shadowNoAnswer {
				if len(through)+len(direct) != 0 || s.log.count("--shadow-ca-file") != 1 {
					t.Errorf("asked %d and %d times, and told its remedy %d times", len(through), len(direct), s.log.count("--shadow-ca-file"))
				}
				return
			}
			if test.direct {
				through, direct = direct, through
			}
			want := metricPath("test", "prometheus-query", "query-name=rps")
			if len(through) != 1 || len(direct) != 0 || through[0].URL.RequestURI() != want || through[0].Header.Get("Authorization") != "Bearer shadow-for-600s" {
				t.Fatalf("asked %v and %v, want %s once", through, direct, want)
			}
			if test.leads == "" {
				return
			}
			code, body := s.get(ownVersionPath + "/namespaces/test/explanations")
			var list explain.List
			if err := json.Unmarshal([]byte(body), &list); err != nil || code != http.StatusOK || len(list.Items) != 1 {
				t.Fatalf("%d: %s", code, body)
			}
			if m := list.Items[0].Metrics[0]; m.Shadow == nil || m.Shadow.OursMissing != 1 || *m.Shadow.Newest.There != 7 {
				t.Errorf("explained is %+v", m.Shadow)
			}
		})
	}
}

// Nothing is written to a cluster whose HPAs another one serves: no event, and no raise.
func TestInShadowNothingIsActedOn(t *testing.T) {
	h := asks(t, "podinfo", "rps", istioRate) // of which there is something to tell
	h.Annotations["meshpulse.io/surge-action"] = "scale"
	for _, shadow := range []bool{false, true} {
		api, other := newFakeAPI(t, h), startOtherAdapter(t)
		api.apiService = apiLeadsTo("keda", "metrics")
		s := startShadow(t, api, other, func(o *Options) {
			if !shadow {
				o.Shadow = ""
			}
		})
		if acts := s.provider.rules.actor != nil; acts == shadow {
			t.Errorf("in shadow %t, something raises: %t", shadow, acts)
		}
		if !shadow { // a twin, whose problem is an event
			eventually(t, func() bool { return api.reasons() != "" }, func() string { return "no event at all" })
			continue
		}
		code, body := s.get(ownVersionPath + "/namespaces/test/explanations/podinfo")
		if code != http.StatusOK || !strings.Contains(body, hpas.ReasonCallersWord) {
			t.Errorf("what is wrong with a query is not explained: %d: %s", code, body)
		}
		s.stop()
		if s.api.Events.Queued() != 0 || api.reasons() != "" {
			t.Errorf("%d events wait, told are %s", s.api.Events.Queued(), api.reasons())
		}
	}
}

func TestWhatTheOtherAdapterSaysIsRead(t *testing.T) {
	item := func(value, stamp string) string { return fmt.Sprintf(`{"value":%q,"timestamp":%s}`, value, stamp) }
	list := func(items ...string) string { return `{"items":[` + strings.Join(items, ",") + `]}` }
	for name, test := range map[string]struct {
		status  int
		answer  string
		outcome string
		value   float64
		age     time.Duration // 0: none is known
	}{
		"several items":       {answer: list(item("1500m", `"2026-01-01T00:00:00Z"`), item("2", `"2026-01-01T00:00:50Z"`)), outcome: shadowOursMissing, value: 3.5, age: 10 * time.Second},
		"no time":             {answer: list(item("2", "null")), outcome: shadowOursMissing, value: 2},
		"no items":            {answer: list(), outcome: shadowBothMissing},
		"it knows none":       {status: http.StatusNotFound, answer: `{"kind":"Status"}`, outcome: shadowBothMissing},
		"it fails":            {status: http.StatusInternalServerError, answer: `{"kind":"Status"}`, outcome: shadowBothMissing},
		"it is not reached":   {status: http.StatusServiceUnavailable, outcome: shadowNoAnswer},
		"it may not be asked": {status: http.StatusForbidden, answer: `{"kind":"Status"}`, outcome: shadowNoAnswer},
		"no JSON":             {answer: "<html>", outcome: shadowNoAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			api, other := newFakeAPI(t, asks(t, "podinfo", "rps", istioRate)), startOtherAdapter(t)
			api.apiService, api.others = apiLeadsTo("keda", "metrics"), (&shadowAsked{status: test.status, answer: test.answer}).ServeHTTP
			s := startShadow(t, api, other, nil)
			s.provider.now = func() time.Time { return time.Date(2026, 1, 1, 0, 1, 0, 0, time.UTC) }
			s.shadow.round(t.Context())
			if got := testutil.ToFloat64(s.shadow.compared.WithLabelValues(test.outcome)); got != 1 {
				t.Errorf("outcome %s: %v", test.outcome, got)
			}
			h := s.provider.catalog.current.Load().hpas[0]
			told := s.shadow.of(h.HPA, h.Metrics[0])
			switch {
			case test.outcome == shadowNoAnswer:
				if told != nil {
					t.Errorf("no answer counts as a comparison: %+v", told)
				}
			case test.outcome == shadowBothMissing:
				if told == nil || told.Newest.There != nil {
					t.Errorf("%+v", told)
				}
			case told == nil || *told.Newest.There != test.value || (told.Newest.ThereAgeSeconds == nil) != (test.age == 0) || test.age > 0 && *told.Newest.ThereAgeSeconds != test.age.Seconds():
				t.Errorf("%+v, want %v, %s old", told, test.value, test.age)
			}
		})
	}
}

func TestWhatIsNoShadowIsRefused(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"--shadow and --fallback":          func(o *Options) { o.Fallback, o.FallbackCAFile = "keda/metrics", "ca.crt" },
		"--shadow and --shadow-prometheus": func(o *Options) { o.ShadowPrometheus = "http://prometheus:9090" },
		"NAMESPACE/SERVICE[:PORT]":         func(o *Options) { o.Shadow = "keda" },
		"--standalone":                     func(o *Options) { o.Standalone, o.HPADir = true, t.TempDir() },
		"--shadow-ca-file is for --shadow": func(o *Options) { o.Shadow, o.ShadowCAFile = "", "ca.crt" },
	} {
		o := Options{Shadow: "keda/metrics"}
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	api, other := newFakeAPI(t), startOtherAdapter(t)
	for want, change := range map[string]func(*Options){
		"meshpulse's own Service": func(o *Options) { o.Shadow = "meshpulse-system/meshpulse:443" },
		"--shadow-ca-file":        func(o *Options) { o.Shadow, o.ShadowCAFile = "keda/metrics", "/no/such/file" },
	} {
		o, _ := testOptions(t)
		other.options(t, api)(&o)
		o.Fallback, o.FallbackCAFile = "", ""
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
