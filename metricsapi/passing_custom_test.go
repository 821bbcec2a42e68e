package metricsapi

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	cmv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

const customPath = "/apis/custom.metrics.k8s.io/v1beta2"

// startSharing is a server of both APIs beside another adapter.
func startSharing(t *testing.T, change func(*Options), list ...hpas.HPA) (*fakeAPI, *otherAdapter, *testServer) {
	t.Helper()
	api, other := newFakeAPI(t, list...), startOtherAdapter(t)
	s := startServer(t, func(o *Options) {
		other.options(t, api)(o)
		o.CustomMetrics = true
		if change != nil {
			change(o)
		}
	})
	s.token = "hpa"
	return api, other, s
}

// customAsker asks by every way of the custom metrics API.
func customAsker(t *testing.T) hpas.HPA {
	t.Helper()
	return hpaFrom(t, fixture.HPA("podinfo", objectQuery+`, metric-config.object.app.prometheus/query: 'sum(rate(http_requests_total[1m]))'`,
		`{type: Object, object: {metric: {name: rps}, describedObject: {apiVersion: apps/v1, kind: Deployment, name: podinfo}, target: {type: Value, value: "10"}}},
		{type: Object, object: {metric: {name: app}, describedObject: {apiVersion: apps/v1, kind: Deployment, name: podinfo}, target: {type: AverageValue, averageValue: "10"}}},
		{type: Object, object: {metric: {name: hits}, describedObject: {apiVersion: networking.k8s.io/v1, kind: Ingress, name: web}, target: {type: Value, value: "10"}}},
		{type: Pods, pods: {metric: {name: queue_length}, target: {type: AverageValue, averageValue: "10"}}},
		{type: Pods, pods: {metric: {name: istio-requests-per-second}, target: {type: AverageValue, averageValue: "10"}}}`))
}

// Of the custom metrics API, as of the external one, what is not ours is the other adapter's.
func TestWhatIsNotOursOfCustomMetricsIsPassedOn(t *testing.T) {
	api, other, s := startSharing(t, nil, customAsker(t))
	for path, part := range map[string]string{
		"/namespaces/test/deployments.apps/podinfo/rps":                         "no sidecar",
		"/namespaces/test/services/web/istio-requests-per-second":               "no sidecar",
		"/namespaces/test/pods/*/istio-requests-per-second?labelSelector=a%3Db": "nothing is known in full of any",
	} {
		if code, body := s.get(customPath + path); code != http.StatusServiceUnavailable || !strings.Contains(body, part) {
			t.Errorf("ours, %s, gives %d: %s", path, code, body)
		}
	}
	if asked := other.take(); len(asked) != 0 {
		t.Errorf("of ours the other adapter is asked %d times, the first for %s", len(asked), asked[0].URL)
	}
	for _, path := range []string{
		"/namespaces/test/deployments.apps/podinfo/app",
		"/namespaces/test/deployments.apps/podinfo/rps?metricLabelSelector=a%3Db",
		"/namespaces/test/ingresses.networking.k8s.io/web/hits",
		"/namespaces/test/pods/*/queue_length?labelSelector=app%3Dweb",
		"/namespaces/test/metrics/hits",
		"/nodes/a/load",
	} {
		if code, body := s.get(customPath + path); code != http.StatusOK || body != theirAnswer {
			t.Errorf("%s gives %d: %s", path, code, body)
		}
		asked := other.take()
		if len(asked) != 1 || asked[0].URL.RequestURI() != customPath+path || asked[0].Header.Get("Authorization") != "Bearer fallback-for-600s" {
			t.Errorf("%s asks %+v", path, asked)
		}
	}
	if reasons := api.reasons(); strings.Contains(reasons, "NotServed") {
		t.Errorf("of what is the other adapter's is told: %s", reasons)
	}
	elsewhere := 0
	for _, m := range s.Status(t.Context()).Metrics {
		if m.Error == "not answered here, but by keda/metrics" {
			elsewhere++
		}
	}
	if elsewhere != 3 { // app, hits and queue_length
		t.Errorf("of %d metrics it is shown that the other adapter answers, want 3", elsewhere)
	}
	for _, odd := range []string{"/namespaces/test/pods/a/b/c", "/namespaces/test/pods/../../x/pods/a/b", "/namespaces/test/pods/a", "/namespaces/test/pods/*/b?metricLabelSelector=a%3D("} {
		if code, _ := s.get(customPath + odd); code == http.StatusOK || len(other.take()) != 0 {
			t.Errorf("%s gives %d, and is passed on", odd, code)
		}
	}
	other.Close()
	code, body := s.get(customPath + "/namespaces/test/pods/*/queue_length")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "keda/metrics does not answer") || !strings.Contains(body, "pods/*/queue_length") {
		t.Errorf("while it is down: %d %s", code, body)
	}
}

// Where the custom metrics API is not served nothing of it is passed on: the account that asks may
// not read it.
func TestCustomMetricsAreNotPassedOnWhereTheyAreNotServed(t *testing.T) {
	_, other, s := startSharing(t, func(o *Options) { o.CustomMetrics = false })
	if code, body := s.get(customPath + "/namespaces/test/pods/*/queue_length"); code != http.StatusNotFound || len(other.take()) != 0 {
		t.Errorf("gives %d: %s", code, body)
	}
}

// Who may not read custom metrics is refused here, and nothing that a caller says of itself
// arrives.
func TestWhoAsksForCustomMetricsIsDecidedHere(t *testing.T) {
	_, other, s := startSharing(t, nil)
	const path = customPath + "/namespaces/test/pods/*/queue_length"
	for token, want := range map[string]int{"": http.StatusForbidden, "nobody": http.StatusUnauthorized, "stranger": http.StatusForbidden} {
		s.token = token
		if code := s.withHeader(path, http.Header{"X-Remote-User": {"hpa"}, "X-Remote-Group": {"system:masters"}}); code != want {
			t.Errorf("token %q gives %d, want %d", token, code, want)
		}
	}
	if asked := other.take(); len(asked) != 0 {
		t.Fatalf("the other adapter was asked %d times", len(asked))
	}
	s.token = "hpa"
	if code := s.withHeader(path, http.Header{"X-Remote-User": {"system:admin"}, "Impersonate-User": {"root"}}); code == http.StatusOK {
		t.Error("who may read may be somebody else")
	}
	if code := s.withHeader(path, http.Header{"X-Remote-User": {"system:admin"}, "Cookie": {"a=b"}}); code != http.StatusOK {
		t.Fatalf("who may read is given %d", code)
	}
	for _, r := range other.take() {
		for name := range r.Header {
			if !slices.Contains([]string{"Accept", "Accept-Encoding", "Authorization", "User-Agent", "Via"}, name) {
				t.Errorf("%s arrives", name)
			}
		}
	}
}

// Until HPAs have been listed, and while their watch is deaf, no custom metric is passed on a
// guess.
func TestNoCustomMetricIsPassedOnAGuess(t *testing.T) {
	c := new(fixture.Clock)
	api, other, s := startSharing(t, func(o *Options) { o.Now = c.Now }, customAsker(t))
	const path = customPath + "/namespaces/test/pods/*/queue_length"
	s.eventually(path, http.StatusOK)
	fresh := s.api.HPAs.Freshness()
	eventually(t, func() bool { return fresh.Age() == 0 && s.api.Namespaces.Freshness().Age() == 0 }, func() string { return "nothing is watched" })
	api.deaf.Store(true)
	api.CloseClientConnections()
	eventually(t, func() bool { return fresh.Age() > 0 }, func() string { return "nothing is refused" })
	c.Shift(time.Minute)
	other.take()
	for _, of := range []string{path, customPath + "/namespaces/test/deployments.apps/podinfo/rps"} {
		if code, body := s.get(of); code != http.StatusServiceUnavailable || !strings.Contains(body, "not known yet whose it is") {
			t.Errorf("%s gives %d: %s", of, code, body)
		}
	}
	if asked := other.take(); len(asked) != 0 {
		t.Errorf("the other adapter was asked %d times", len(asked))
	}
}

// Both forms of discovery list what either has.
func TestCustomMetricsOfBothAreListed(t *testing.T) {
	_, _, s := startSharing(t, nil, customAsker(t))
	want := []string{"deployments.apps/rps", "nodes/load", "pods/istio-requests-per-second", "pods/queue_length"}
	eventually(t, func() bool {
		_, body := s.get(customPath)
		return !slices.ContainsFunc(want, func(name string) bool { return !strings.Contains(body, `"name":"`+name+`"`) })
	}, func() string { _, body := s.get(customPath); return "listed are " + body })
	client, err := discovery.NewDiscoveryClientForConfig(&rest.Config{Host: "https://" + s.Addr().String(), BearerToken: "hpa", TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	_, resources, failed, err := client.GroupsAndMaybeResources()
	if err != nil || len(failed) > 0 {
		t.Fatalf("aggregated discovery: %v, failed %v", err, failed)
	}
	var names []string
	for _, r := range resources[cmv1beta2.SchemeGroupVersion].APIResources {
		names = append(names, r.Name)
		if r.Namespaced != (r.Name != "nodes/load") {
			t.Errorf("%s is of a namespace: %t", r.Name, r.Namespaced)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("aggregated discovery lists %q, want %q", names, want)
	}
}

// An adapter that does not tell what it has is told of, and hides nothing that it told before.
func TestAFailingListIsToldAndCounted(t *testing.T) {
	_, other, s := startSharing(t, nil)
	eventually(t, func() bool { return strings.Contains(s.resources(), "externalmetrics") }, func() string { return "it is not listed" })
	other.mute.Store(true)
	ask := s.passing.theirs
	if err := ask.ask(t.Context()); err == nil || !strings.Contains(err.Error(), "/apis/external.metrics.k8s.io/v1beta1: status 500") || !strings.Contains(err.Error(), customPath) {
		t.Errorf("%v", err)
	}
	if !strings.Contains(s.resources(), "externalmetrics") || len(ask.ofObjects()) != 2 {
		t.Errorf("listed are %s and %v", s.resources(), ask.ofObjects())
	}
}

// It fails from the first time on: that is in the log once, and counted.
func TestAnAdapterThatListsNothingIsInTheLog(t *testing.T) {
	api, other := newFakeAPI(t), startOtherAdapter(t)
	other.mute.Store(true)
	s := startServer(t, other.options(t, api))
	s.token = "hpa"
	const told = `does not tell what metrics it has: discovery lists those that it told last" adapter=keda/metrics`
	eventually(t, func() bool { return s.log.count(told) == 1 }, func() string { return "it is not told" })
	if _, metrics := s.get("/metrics"); strings.Contains(metrics, "meshpulse_metricsapi_fallback_list_errors_total 0\n") {
		t.Error("it is not counted")
	}
}
