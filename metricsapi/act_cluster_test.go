package metricsapi

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/client-go/scale/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

// fakeScales is an API server's scale subresource of one Deployment, as far as a raise needs it: a
// write with another resource version than the newest is a conflict. The lab shows the real one.
type fakeScales struct {
	mu           sync.Mutex
	spec, status int32
	version      int
	conflicts    int         // writes by others that come before our next ones
	other        func(int32) // what they write
	forbidden    bool
	denied       error    // by admission
	granted      []string // resources that may be written all the same, as in --resource of kubectl create clusterrole
	written      []int32
}

// client is a client of it, through client-go's fake. Its reads are shared by nobody, for the times
// here are the tests' own.
func (f *fakeScales) client() *cluster.Scales {
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, meta.RESTScopeNamespace)
	mapper.Add(schema.GroupVersionKind{Group: "argoproj.io", Version: "v1alpha1", Kind: "Rollout"}, meta.RESTScopeNamespace)
	c := &fake.FakeScaleClient{}
	c.AddReactor("get", "*", func(a kubetesting.Action) (bool, runtime.Object, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return true, f.object(a.GetNamespace()), nil
	})
	c.AddReactor("update", "*", func(a kubetesting.Action) (bool, runtime.Object, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		resource := a.GetResource().GroupResource()
		return true, f.object(a.GetNamespace()), f.update(resource, a.(kubetesting.UpdateAction).GetObject().(*autoscalingv1.Scale))
	})
	return cluster.ScalesOver(c, mapper)
}

// hangingTargets are those of an API server that does not answer for some.
type hangingTargets struct{ *cluster.Scales }

func (t hangingTargets) Now(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	if strings.HasPrefix(target.Name, "hanging") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return t.Scales.Now(ctx, namespace, target)
}

func (f *fakeScales) object(namespace string) *autoscalingv1.Scale {
	return &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "podinfo", ResourceVersion: strconv.Itoa(f.version)},
		Spec:       autoscalingv1.ScaleSpec{Replicas: f.spec}, Status: autoscalingv1.ScaleStatus{Replicas: f.status},
	}
}

func (f *fakeScales) update(resource schema.GroupResource, s *autoscalingv1.Scale) error {
	if f.forbidden && !slices.Contains(f.granted, resource.String()+"/scale") {
		return responsewriters.ForbiddenStatusError(authorizer.AttributesRecord{
			User: &user.DefaultInfo{Name: "system:serviceaccount:meshpulse-system:meshpulse"}, Verb: "update", Namespace: s.Namespace,
			APIGroup: resource.Group, Resource: resource.Resource, Subresource: "scale", Name: s.Name, ResourceRequest: true,
		}, "")
	}
	if f.denied != nil {
		return f.denied
	}
	if f.conflicts > 0 {
		f.conflicts--
		f.version++
		if f.other != nil {
			f.other(f.spec)
		}
	}
	if s.ResourceVersion != strconv.Itoa(f.version) {
		return apierrors.NewConflict(resource, s.Name, errors.New("written since"))
	}
	f.version++
	f.spec = s.Spec.Replicas
	f.written = append(f.written, f.spec)
	return nil
}

// fixedSurge is what a detector says; its times are the test's.
type fixedSurge struct {
	surge    aggregator.Surge
	inFlight bool
}

func (f *fixedSurge) At(time.Time) aggregator.Surge { return f.surge }
func (f *fixedSurge) Actable() bool                 { return !f.inFlight }

// actTest is an actor over a store in which pod a has served 5 requests a second for two minutes.
type actTest struct {
	*testing.T
	x      *actor
	scales *fakeScales
	at     time.Time
	events *told
	object *autoscalingv2.HorizontalPodAutoscaler // as the informer has it
	newest *autoscalingv2.HorizontalPodAutoscaler // as the API server has it, nil: as the informer has
	getErr error                                  // of the API server's answer
	gets   int
	surges map[string]*fixedSurge // by metric
	pods   map[string]*actPod
}

// actPod is a pod that serves 5 requests a second while it flushes.
type actPod struct {
	stream *aggregator.Stream
	count  float64
	last   time.Time
}

// flush is a pod's flush at a time of the test.
func (a *actTest) flush(name string, at time.Time) {
	a.Helper()
	p := a.pods[name]
	if p == nil {
		p = &actPod{stream: a.x.store.Connect(aggregator.Pod{Namespace: "test", Name: name, Workload: "podinfo", FlushInterval: 5 * time.Second}), last: at.Add(-5 * time.Second)}
		a.pods[name] = p
		a.Cleanup(p.stream.Close)
	}
	n := 5 * at.Sub(p.last).Seconds()
	p.count, p.last = p.count+n, at
	b := &aggregator.Batch{Timestamp: at.UnixMilli()}
	b.Samples = []aggregator.Sample{
		{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: p.count},
		{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(n), Value: 10 * n},
	}
	if err := p.stream.Commit(at, b, requestLabels{}); err != nil {
		a.Fatal(err)
	}
}

const actQuery = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`

// newActTest takes the HPA's annotations and what is to be changed of it.
func newActTest(t *testing.T, annotations string, change ...func(*autoscalingv2.HorizontalPodAutoscaler)) *actTest {
	t.Helper()
	h := hpaFrom(t, fixture.HPA("podinfo", `metric-config.external.prometheus-query.prometheus/rps: '`+actQuery+`', `+annotations,
		fixture.External("prometheus-query", "{matchLabels: {query-name: rps}}", `type: AverageValue, averageValue: "10"`)))
	h.UID, h.Spec.MaxReplicas, h.Status.CurrentReplicas = types.UID("1"), 10, 1
	for _, c := range change {
		c(h.HorizontalPodAutoscaler)
	}
	store := newTestStore(t)
	at := &actTest{T: t, at: store.Started().Add(2 * time.Minute), scales: &fakeScales{spec: 1, status: 1}, events: &told{}, object: h.HorizontalPodAutoscaler, surges: map[string]*fixedSurge{}, pods: map[string]*actPod{}}
	m := newMetrics(nil)
	c := newCatalog(store, newWarner(at.events.deliver, m))
	r := &rules{retention: 5 * time.Minute, started: store.Started()}
	at.x = newActor(&actor{
		settings: horizontal.Settings{Tolerance: horizontal.DefaultTolerance},
		catalog:  c, rules: r, store: store, targets: at.scales.client(), pods: fixedPods{}, metrics: m, log: discardLog(),
		report: at.events.deliver, now: func() time.Time { return at.at },
		hpa: func(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool) { return at.object, true }, fresh: at.get,
	})
	r.actor = at.x
	c.follow = at.x.follow
	c.Replace([]hpas.HPA{h})
	t.Cleanup(c.Close)
	at.fake()
	for d := 5 * time.Second; d <= 2*time.Minute; d += 5 * time.Second {
		at.flush("a", store.Started().Add(d))
	}
	return at
}

// get is the API server's answer for the HPA.
func (a *actTest) get(_ context.Context, _, name string) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	a.gets++
	switch {
	case a.getErr != nil:
		return nil, a.getErr
	case a.newest != nil:
		return a.newest, nil
	}
	for _, h := range a.x.catalog.current.Load().hpas {
		if h.Name == name {
			return h.HorizontalPodAutoscaler, nil
		}
	}
	return a.object, nil
}

// fake puts surges of the test's own in place of the detectors.
func (a *actTest) fake() {
	for _, h := range a.x.catalog.current.Load().hpas {
		for i, o := range h.offers {
			if o == nil || o.prepared.surge == nil {
				continue
			}
			s := &fixedSurge{inFlight: !o.prepared.surge.Actable(), surge: aggregator.Surge{Ready: true, Flush: 5 * time.Second, Newest: a.at}}
			o.prepared.surge, a.surges[h.Metrics[i].Name] = s, s
		}
	}
}

// surge lets the first metric surge to a rate, as of the newest row.
func (a *actTest) surge(rate float64) {
	f := a.surges["prometheus-query"]
	f.surge.Active, f.surge.Value, f.surge.Rate, f.surge.Baseline, f.surge.Tail = true, rate, rate, 5, 1e-30
	f.surge.Newest, f.surge.To, f.surge.From = a.at, a.at, a.at.Add(-5*time.Second)
}

// wait lets pod a go on for a while, with its last flush at the end of it.
func (a *actTest) wait(d time.Duration) {
	a.Helper()
	for d > 0 {
		step := min(d, 5*time.Second)
		d -= step
		a.at = a.at.Add(step)
		a.flush("a", a.at)
	}
}

// look is what a committed row leads to.
func (a *actTest) look() {
	a.Helper()
	ctx, cancel := context.WithCancel(a.Context())
	for q := range a.x.catalog.current.Load().acting {
		a.x.evaluate(ctx, q)
	}
	a.x.raising.Wait()
	cancel() // what is to be looked at again later is not
}

func (a *actTest) expect(what string, written []int32, events ...string) {
	a.Helper()
	if d := cmp.Diff(written, a.scales.written); d != "" {
		a.Errorf("%s: replicas written (-want +got):\n%s", what, d)
	}
	if d := cmp.Diff(events, a.events.take()); d != "" {
		a.Errorf("%s: events (-want +got):\n%s", what, d)
	}
	a.scales.written = nil
}

// controller tells in the HPA's status that the controller has scaled the target.
func (a *actTest) controller(from, to int32) {
	before, now := a.object.DeepCopy(), metav1.NewTime(a.at)
	a.object.Status.LastScaleTime, a.object.Status.CurrentReplicas, a.object.Status.DesiredReplicas = &now, from, to
	a.x.scaled(before, a.object)
}

func (a *actTest) raises(outcome string) float64 {
	return testutil.ToFloat64(a.x.metrics.raises.WithLabelValues(outcome))
}

const scaleAction = "meshpulse.io/surge-action: scale"

// behavior sets a behavior as the API server fills it in.
func behavior(up, down *autoscalingv2.HPAScalingRules) func(*autoscalingv2.HorizontalPodAutoscaler) {
	return func(h *autoscalingv2.HorizontalPodAutoscaler) {
		h.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: up, ScaleDown: down}
	}
}

func policies(ps ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	return &autoscalingv2.HPAScalingRules{Policies: ps}
}
