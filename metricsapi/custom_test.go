package metricsapi

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	cmv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	adapter "sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// customMesh is a cluster's custom metrics at an instant after the store's start, of pods of
// podinfo that were there an hour before it; scale are the replicas that podinfo is to have.
func customMesh(t *testing.T, at time.Duration, scale int32, hpa string, sent ...requests) *customProvider {
	t.Helper()
	return customMeshOf(t, aggregator.Config{Logger: slog.New(slog.DiscardHandler)}, at, scale, hpa, sent...)
}

// customMeshOf is the same of a store's configuration.
func customMeshOf(t *testing.T, config aggregator.Config, at time.Duration, scale int32, hpa string, sent ...requests) *customProvider {
	t.Helper()
	store, err := aggregator.New(config)
	if err != nil {
		t.Fatal(err)
	}
	started := store.Started()
	var exist fixedPods
	var selected []cluster.SelectedPod
	for _, r := range sent {
		if r.send(store); r.to > 0 { // else it is not there
			created := started.Add(-time.Hour)
			exist = append(exist, cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "test", Name: r.pod, Workload: "podinfo"}, Created: created})
			selected = append(selected, cluster.SelectedPod{Name: r.pod, Created: created, Ready: r.pod != "starts"})
		}
	}
	m := newMetrics(nil)
	c := newCatalog(store, newWarner(func(hpas.HPA, hpas.Problem) {}, m))
	t.Cleanup(c.Close)
	c.words = hpas.Vocabulary{Keeps: istioOnly, Custom: true}
	if hpa != "" {
		c.Replace([]hpas.HPA{hpaFrom(t, hpa)})
	}
	p := &provider{catalog: c, metrics: m, readers: newReaders(10, slog.New(slog.DiscardHandler)), now: func() time.Time { return started.Add(at) }}
	p.rules = rules{words: c.words, retention: 5 * time.Minute, started: started, holder: &holder{
		pods: exist, scales: fixedScale(scale), settings: horizontal.Settings{Tolerance: 0.1}, status: func(string, string) (int32, bool) { return 0, false },
		store: store, started: started, hold: 5 * time.Minute,
	}}
	return &customProvider{p, func(_ context.Context, namespace, selector string) ([]cluster.SelectedPod, error) {
		if namespace != "test" {
			t.Errorf("pods of namespace %s are asked for", namespace)
		}
		return selected, nil
	}}
}

func infoOf(resource, metric string) adapter.CustomMetricInfo {
	return adapter.CustomMetricInfo{GroupResource: schema.ParseGroupResource(resource), Namespaced: true, Metric: metric}
}

// ofPods is what each pod is answered with, as "a=5 b=0".
func (c *customProvider) ofPods(t *testing.T, metric string) string {
	t.Helper()
	list, err := c.GetMetricBySelector(t.Context(), "test", labels.Everything(), infoOf("pods", metric), labels.Everything())
	if err != nil {
		return err.Error()
	}
	var told []string
	for _, item := range list.Items {
		if item.DescribedObject.Kind != "Pod" || item.DescribedObject.Namespace != "test" || item.Metric.Name != metric || item.Timestamp.IsZero() || *item.WindowSeconds != 60 {
			t.Errorf("%+v", item)
		}
		told = append(told, item.DescribedObject.Name+"="+item.Value.String())
	}
	slices.Sort(told)
	return strings.Join(told, " ")
}

const seconds5 = 5 * time.Second

// A pod of which not all is known is left out: as 0 it would take replicas away.
func TestOfPodsEachAnswersForItselfAndWhoIsNotKnownIsLeftOut(t *testing.T) {
	whole := 2 * time.Minute
	c := customMesh(t, whole, 3, "",
		requests{pod: "serves", from: seconds5, to: whole},
		requests{pod: "idle", from: seconds5, to: whole, idle: true},
		requests{pod: "silent", from: seconds5, to: whole - 30*time.Second},
		requests{pod: "late", from: whole - 20*time.Second, to: whole, begun: true}, // it was there before
		requests{pod: "refused", from: seconds5, to: whole, unreadable: true},
	)
	if got := c.ofPods(t, "istio-requests-per-second"); got != "idle=0 serves=5" {
		t.Errorf("requests: %s", got)
	}
	if got := c.ofPods(t, "istio-requests-in-flight"); got != "idle=0 serves=50m" {
		t.Errorf("in flight: %s", got)
	}
	if got := c.ofPods(t, "istio-request-duration-avg"); got != "serves=10" {
		t.Errorf("a latency, which one without requests has not: %s", got)
	}
	if got := c.ofPods(t, "istio-error-ratio"); got != "serves=0" {
		t.Errorf("errors: %s", got)
	}
	if got := c.ofPods(t, "queue_length"); !strings.Contains(got, "no HPA in namespace test has a query for pods/*/queue_length") {
		t.Errorf("another's: %s", got)
	}
}

func TestPodsOfWhichNothingIsKnownHaveNoAnswer(t *testing.T) {
	c := customMesh(t, 2*time.Minute, 3, "", requests{pod: "silent", from: seconds5, to: time.Minute})
	if got := c.ofPods(t, "istio-requests-per-second"); !strings.Contains(got, "nothing is known in full of any of the 1 pods") || !strings.Contains(got, "silent is silent") {
		t.Errorf("%s", got)
	}
}

// A selector that no pod can have a value of is a mistake, and none without requests.
func TestOfPodsWhatNoneCanHaveIsNot0(t *testing.T) {
	whole := 2 * time.Minute
	c := customMesh(t, whole, 3, "", requests{pod: "a", from: seconds5, to: whole}, requests{pod: "b", from: seconds5, to: whole, idle: true})
	for selector, want := range map[string]string{
		"window=5s":                   "a window of 5s needs two flushes",
		"destination_worklod=podinfo": "Istio does not set the label destination_worklod by itself",
		"destination_workload=podinf": "is none of the pods whose requests the selector means",
		"reporter=waypoint":           "is none of the pods whose requests the selector means",
	} {
		of, err := labels.Parse(selector)
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.GetMetricBySelector(t.Context(), "test", labels.Everything(), infoOf("pods", "istio-requests-per-second"), of)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want an error with %q", selector, list.Items, err, want)
		}
	}
}

// A metric that is not kept for whoever asks is read from when an HPA asks for it: no pod had 0
// before that.
func TestOfAMetricThatIsReadSinceNowPodsHaveNoAnswer(t *testing.T) {
	whole := 2 * time.Minute
	hpa := fixture.HPA("podinfo", "", `{type: Pods, pods: {metric: {name: istio-requests-per-second}, target: {type: AverageValue, averageValue: "10"}}}`)
	config := aggregator.Config{Logger: slog.New(slog.DiscardHandler), Keep: []string{"istio_request_duration_milliseconds"}}
	for name, idle := range map[string]bool{"it serves": false, "it is idle": true} {
		c := customMeshOf(t, config, whole, 2, hpa, requests{pod: "a", from: seconds5, to: whole, idle: idle})
		if got := c.ofPods(t, "istio-requests-per-second"); !strings.Contains(got, "a is not known back to the beginning of the window") {
			t.Errorf("%s: %s", name, got)
		}
		if why := (&Server{provider: c.provider}).Held(t.Context(), "sum(rate(istio_requests_total[1m]))", c.now()); !strings.Contains(why, "--keep") {
			t.Errorf("%s: who asks of all is told %q", name, why)
		}
	}
}

func objectHPA(name, annotations, target string) string {
	return fixture.HPA("podinfo", annotations, `{type: Object, object: {metric: {name: `+name+`}, describedObject: {apiVersion: apps/v1, kind: Deployment, name: podinfo}, target: {`+target+`}}}`)
}

const objectQuery = `metric-config.object.rps.prometheus/query: 'sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))'`

// A metric of an object is answered as an external one is, the replicas kept while not all is
// known.
func TestAnObjectIsAnsweredAsAnExternalMetricIs(t *testing.T) {
	const perReplica = `, metric-config.object.rps.prometheus/per-replica: "true"`
	whole := 2 * time.Minute
	all := []requests{{pod: "a", from: seconds5, to: whole}, {pod: "starts", from: seconds5, to: whole}, {pod: "b", from: seconds5, to: whole}}
	silent := []requests{all[0], all[1], {pod: "b", from: seconds5, to: whole - 30*time.Second}}
	for name, tc := range map[string]struct {
		hpa, metric string
		sent        []requests
		want        string // part of the error, where it is none
	}{
		"by a name that no HPA asks for":   {"", "istio-requests-per-second", all, "15"},
		"by a name":                        {objectHPA("istio-requests-per-second", "", `type: AverageValue, averageValue: "10"`), "istio-requests-per-second", all, "15"},
		"by a query":                       {objectHPA("rps", objectQuery, `type: Value, value: "10"`), "rps", all, "15"},
		"by a query, for each that serves": {objectHPA("rps", objectQuery+perReplica, `type: Value, value: "10"`), "rps", all, "7500m"},
		"one is silent":                    {objectHPA("rps", objectQuery, `type: AverageValue, averageValue: "10"`), "rps", silent, "50"},
		"one is silent, a value":           {objectHPA("rps", objectQuery, `type: Value, value: "20"`), "rps", silent, "20"},
		"one is silent, for each":          {objectHPA("rps", objectQuery+perReplica, `type: Value, value: "10"`), "rps", silent, "25"}, // times the 2 that are ready, by 10, are 5
		"one is silent, and nobody's":      {"", "istio-requests-per-second", silent, "No HPA asks for it"},
		"of another":                       {"", "rps", all, "no HPA in namespace test has a query for deployments.apps/podinfo/rps"},
	} {
		c := customMesh(t, whole, 5, tc.hpa, tc.sent...)
		got := ""
		value, err := c.GetMetricByName(t.Context(), types.NamespacedName{Namespace: "test", Name: "podinfo"}, infoOf("deployments.apps", tc.metric), labels.Everything())
		if err != nil {
			got = err.Error()
		} else {
			got = value.Value.String()
			if of := value.DescribedObject; of.Kind != "Deployment" || of.Name != "podinfo" || value.Metric.Name != tc.metric {
				t.Errorf("%s: %+v", name, value)
			}
		}
		if err == nil && got != tc.want || err != nil && !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// With queries kept to their own namespace custom metrics see no more than external ones.
func TestCustomMetricsReadTheirOwnNamespaceWhereTheyAreTold(t *testing.T) {
	whole := 2 * time.Minute
	c := customMesh(t, whole, 1, "", requests{pod: "a", from: seconds5, to: whole})
	c.catalog.limit(ownOnly{})
	theirs := strings.Replace(objectHPA("rps", objectQuery, `type: Value, value: "10"`), "namespace: test", "namespace: other", 1)
	ours := objectHPA("rps", objectQuery, `type: Value, value: "10"`)
	c.catalog.Replace([]hpas.HPA{hpaFrom(t, theirs), hpaFrom(t, ours)})
	ask := func(namespace string) (string, error) {
		value, err := c.GetMetricByName(t.Context(), types.NamespacedName{Namespace: namespace, Name: "podinfo"}, infoOf("deployments.apps", "rps"), labels.Everything())
		if err != nil {
			return "", err
		}
		return value.Value.String(), nil
	}
	if got, err := ask("test"); got != "5" {
		t.Errorf("its own: %s, %v", got, err)
	}
	if got, err := ask("other"); err == nil || !strings.Contains(err.Error(), "no sidecar that could have one reports") {
		t.Errorf("another's: %q, %v", got, err)
	}
	told := ""
	for _, h := range c.catalog.current.Load().hpas {
		for _, p := range h.problems {
			told += h.Namespace + " " + p.Reason
		}
	}
	if told != "other "+hpas.ReasonNotRead {
		t.Errorf("told %q", told)
	}
	if got := c.ofPods(t, "istio-requests-per-second"); got != "a=5" {
		t.Errorf("of pods: %s", got)
	}
}

func TestWhatThereIsNoCustomMetricOfIsRefused(t *testing.T) {
	c := customMesh(t, 2*time.Minute, 1, "", requests{pod: "a", from: seconds5, to: 2 * time.Minute})
	everything := labels.Everything()
	_, err := c.GetMetricBySelector(t.Context(), "test", everything, infoOf("services", "istio-requests-per-second"), everything)
	if status, ok := err.(apierrors.APIStatus); !ok || status.Status().Code != http.StatusBadRequest {
		t.Errorf("services by a selector: %v", err)
	}
	_, err = c.GetMetricByName(t.Context(), types.NamespacedName{Namespace: "test", Name: "a"}, infoOf("ingresses.networking.k8s.io", "istio-requests-per-second"), everything)
	if err == nil || !strings.Contains(err.Error(), "describe a Service, a Deployment") {
		t.Errorf("an Ingress: %v", err)
	}
}

// An API server takes the discovery document over, in both forms.
func TestCustomMetricsAreListed(t *testing.T) {
	c := customMesh(t, time.Minute, 1, objectHPA("rps", objectQuery, `type: Value, value: "10"`))
	if got := c.ListAllMetrics(); len(got) != 1 || got[0] != infoOf("deployments.apps", "rps") {
		t.Errorf("%+v", got)
	}
	if names := c.ListAllExternalMetrics(); len(names) != 0 {
		t.Errorf("external metrics %v", names)
	}
	api := newFakeAPI(t, hpaFrom(t, objectHPA("rps", objectQuery, `type: Value, value: "10"`)))
	s := startServer(t, func(o *Options) {
		o.Standalone, o.HPADir, o.BindAddress, o.Kubeconfig, o.CustomMetrics = false, "", "127.0.0.1", api.kubeconfig(t), true
	})
	s.token = "hpa"
	eventually(t, func() bool {
		_, body := s.get("/apis/custom.metrics.k8s.io/v1beta2")
		return strings.Contains(body, `"name":"deployments.apps/rps"`)
	}, func() string { return "the metric is not listed" })
	client, err := discovery.NewDiscoveryClientForConfig(&rest.Config{Host: "https://" + s.Addr().String(), BearerToken: "hpa", TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	_, resources, failed, err := client.GroupsAndMaybeResources()
	if err != nil || len(failed) > 0 || resources[cmv1beta2.SchemeGroupVersion] == nil {
		t.Fatalf("aggregated discovery: %v, failed %v, resources %v", err, failed, resources)
	}
	if of := resources[cmv1beta2.SchemeGroupVersion].APIResources; len(of) != 1 || of[0].Name != "deployments.apps/rps" || of[0].Kind != "MetricValueList" {
		t.Errorf("aggregated discovery: %+v", of)
	}
	code, body := s.get("/apis/custom.metrics.k8s.io/v1beta2/namespaces/test/deployments.apps/podinfo/rps")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "no sidecar") {
		t.Errorf("%d %s", code, body)
	}
}

// What /debug/hpas shows of pods is their sum: no author has to aggregate what is asked of each.
func TestCustomMetricsAreShown(t *testing.T) {
	whole := 2 * time.Minute
	hpa := fixture.HPA("podinfo", "", `{type: Pods, pods: {metric: {name: istio-requests-per-second}, target: {type: AverageValue, averageValue: "10"}}}`)
	c := customMesh(t, whole, 2, hpa, requests{pod: "a", from: seconds5, to: whole}, requests{pod: "b", from: seconds5, to: whole})
	s := &Server{provider: c.provider, source: &fileSource{}}
	shown := s.Status(t.Context()).Metrics
	if len(shown) != 1 || shown[0].Type != "Pods" || shown[0].Value != "10" || shown[0].Error != "" || len(shown[0].Events) > 0 {
		t.Errorf("%+v", shown)
	}
}
