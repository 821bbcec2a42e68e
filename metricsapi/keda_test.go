package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

const kedaAddress = "meshpulse-keda.meshpulse-system:9091"

// scaler is a server that KEDA asks, the gateway whose pods may have the requests, and the
// workload's replicas. Its store's clock begins at 0 and is moved by at.
type scaler struct {
	*Server
	t       *testing.T
	catalog *catalog
	now     time.Duration // since the store's start
	clock   atomic.Int64  // the same, for whoever answers meanwhile
	stream  *aggregator.Stream
	count   float64
}

// allRead is a source whose HPAs have been read.
type allRead struct{}

func (allRead) Run(context.Context) error { return nil }
func (allRead) Synced() error             { return nil }
func (allRead) Known(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool) {
	return nil, false
}

func newScaler(t *testing.T, replicas int32) *scaler {
	c, _ := newTestCatalog(t)
	s := &scaler{t: t, catalog: c}
	c.store.Started()
	gateway := cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "edge", Name: "gateway-1", Workload: "gateway"}, Created: c.store.Started().Add(-time.Hour)}
	h := &holder{pods: fixedPods{gateway}, scales: fixedScale(replicas), settings: horizontal.Settings{Tolerance: 0.1}, store: c.store, started: c.store.Started(), hold: 5 * time.Minute}
	s.Server = &Server{
		source: allRead{}, api: &cluster.API{}, options: Options{Store: c.store, ScalerAddresses: []string{kedaAddress}},
		provider: &provider{
			catalog: c, metrics: newMetrics(nil), readers: newReaders(100, nil), now: func() time.Time { return c.store.Started().Add(time.Duration(s.clock.Load())) },
			rules: rules{holder: h, retention: 5 * time.Minute, started: c.store.Started()},
		},
	}
	return s
}

// has makes these triggers, in JSON, those of ScaledObject test/a.
func (s *scaler) has(triggers ...string) {
	s.t.Helper()
	object := fmt.Sprintf(`{"metadata": {"name": "a", "namespace": "test", "uid": "u", "generation": %d}, "spec": {"scaleTargetRef": {"name": "a"}, "triggers": [%s]}}`, time.Now().UnixNano(), strings.Join(triggers, ", "))
	h, ok, err := hpas.ReadScaledObject([]byte(object), func(address string) bool { return address == kedaAddress })
	if err != nil || !ok {
		s.t.Fatalf("%t, %v: %s", ok, err, object)
	}
	s.catalog.Replace([]hpas.HPA{h})
}

// demand is the metadata of a trigger by what callers say, and more of it.
func demand(pairs ...string) map[string]string {
	metadata := map[string]string{
		"scalerAddress": kedaAddress, "metric": "istio-requests-per-second", "threshold": "10",
		"selector": "reporter=source,destination_service_name=a,namespace=edge,source_workload=gateway",
	}
	for i := 0; i < len(pairs); i += 2 {
		metadata[pairs[i]] = pairs[i+1]
	}
	return metadata
}

func triggerOf(kind string, metadata map[string]string) string {
	var pairs []string
	for k, v := range metadata {
		pairs = append(pairs, fmt.Sprintf("%q: %q", k, v))
	}
	return fmt.Sprintf(`{"type": %q, "metadata": {%s}}`, kind, strings.Join(pairs, ", "))
}

// unreached is what a gateway's sidecar says of requests for a service without pods.
type unreached struct{}

func (unreached) Describe(i int) (string, []aggregator.Label, error) {
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[i], []aggregator.Label{
		{Name: "reporter", Value: "source"},
		{Name: "source_workload", Value: "gateway"},
		{Name: "destination_workload", Value: "unknown"},
		{Name: "destination_workload_namespace", Value: "unknown"},
		{Name: "destination_service_name", Value: "a"},
		{Name: "destination_service_namespace", Value: "test"},
		{Name: "response_code", Value: "503"},
		{Name: "response_flags", Value: "UH"},
	}, nil
}

// flush has the gateway flush every 5 s until a time, with so many requests each, 0 for none at
// all.
func (s *scaler) flush(until time.Duration, requests float64) {
	s.t.Helper()
	if s.stream == nil {
		s.stream = s.catalog.store.Connect(aggregator.Pod{Namespace: "edge", Name: "gateway-1", Workload: "gateway", FlushInterval: 5 * time.Second})
	}
	for s.now+5*time.Second <= until {
		s.set(s.now + 5*time.Second)
		at := s.catalog.store.Started().Add(s.now)
		s.count += requests
		b := &aggregator.Batch{Timestamp: at.UnixMilli()}
		if s.count > 0 {
			b.Samples = []aggregator.Sample{
				{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: s.count},
				{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(requests), Value: 10 * requests},
			}
		}
		if err := s.stream.Commit(at, b, unreached{}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// set moves the clock.
func (s *scaler) set(now time.Duration) {
	s.now = now
	s.clock.Store(int64(now))
}

func (s *scaler) active(metadata map[string]string) (bool, error) {
	return s.TriggerActive(s.t.Context(), "test", "a", metadata)
}

// kindOfError is the kind of a ScalerError, "" of none.
func kindOfError(t *testing.T, err error) string {
	t.Helper()
	var e *ScalerError
	if err != nil && !errors.As(err, &e) {
		t.Fatalf("%v is none of a scaler", err)
	}
	if e == nil {
		return ""
	}
	return e.Kind()
}

// A workload without pods is asked for by a gateway, which answers 503 (UH) and knows the service.
func TestRequestsThatFindNoPodWakeAWorkload(t *testing.T) {
	s := newScaler(t, 0)
	s.has(triggerOf("external", demand()))
	if _, err := s.active(demand()); kindOfError(t, err) != ScalerUnanswered {
		t.Errorf("before the gateway has told anything: %v", err)
	}
	s.flush(2*time.Minute, 0)
	if active, err := s.active(demand()); active || err != nil {
		t.Errorf("it has told that there is nothing for a window: %t, %v", active, err)
	}
	s.flush(s.now+5*time.Second, 1)
	if active, err := s.active(demand()); !active || err != nil {
		t.Errorf("with the first request: %t, %v", active, err)
	}
	metric, target, err := s.TriggerTarget("test", "a", demand())
	if metric != "istio-requests-per-second" || target != 10 || err != nil {
		t.Errorf("target %s %g, %v", metric, target, err)
	}
	if _, value, err := s.TriggerValue(t.Context(), "test", "a", demand()); value <= 0 || err != nil {
		t.Errorf("value %g, %v", value, err)
	}
	s.flush(s.now+2*time.Minute, 0)
	if active, err := s.active(demand()); active || err != nil {
		t.Errorf("nothing has been asked for over the window: %t, %v", active, err)
	}
}

// Whoever does not report may have requests: a workload is put to sleep by none of that.
func TestAWorkloadIsNotPutToSleepWhileACallerIsSilent(t *testing.T) {
	for replicas, want := range map[int32]bool{0: false, 3: true} {
		s := newScaler(t, replicas)
		s.has(triggerOf("external", demand()))
		s.flush(2*time.Minute, 0)
		s.set(s.now + 30*time.Second)
		active, err := s.active(demand())
		if active != want || !want && kindOfError(t, err) != ScalerUnanswered || want && err != nil {
			t.Errorf("with %d replicas: %t, %v", replicas, active, err)
		}
		_, value, err := s.TriggerValue(t.Context(), "test", "a", demand())
		if replicas > 0 && (value != 30 || err != nil) {
			t.Errorf("the value is %g, %v, want what keeps 3 replicas", value, err)
		}
	}
}

// Above its activation threshold a workload is active, and not at it.
func TestActivationThreshold(t *testing.T) {
	s := newScaler(t, 1)
	low, at := demand("activationThreshold", "0.9"), demand("activationThreshold", "1")
	s.has(triggerOf("external", low), triggerOf("external", at))
	s.flush(3*time.Minute, 5)
	for _, test := range []struct {
		metadata map[string]string
		want     bool
	}{{low, true}, {at, false}} {
		if active, err := s.active(test.metadata); active != test.want || err != nil {
			t.Errorf("at 1/s, above %s: %t, %v", test.metadata["activationThreshold"], active, err)
		}
	}
}

func TestWhatKEDAIsToldOfWhatCannotBeServed(t *testing.T) {
	s := newScaler(t, -2) // what replicas there are to keep cannot be told
	bad, broken := demand("threshold", "none"), map[string]string{"scalerAddress": kedaAddress, "threshold": "1", "query": `sum(rate({namespace="edge"}[1m]))`}
	s.has(triggerOf("external", demand()), triggerOf("external", bad), triggerOf("external", broken))
	for name, test := range map[string]struct {
		object, kind, text string
		metadata           map[string]string
	}{
		"no such ScaledObject":       {"b", ScalerUnknown, kedaAddress, demand()},
		"no such trigger":            {"a", ScalerUnknown, "no trigger with this metadata", demand("threshold", "11")},
		"metadata that is wrong":     {"a", ScalerInvalid, "trigger 1 of ScaledObject test/a: metadata key threshold", bad},
		"a query that is not served": {"a", ScalerInvalid, "metadata key query", broken},
		"nothing reports":            {"a", ScalerUnanswered, "replicas", demand()},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := s.TriggerValue(t.Context(), "test", test.object, test.metadata)
			if kindOfError(t, err) != test.kind || !strings.Contains(err.Error(), test.text) {
				t.Errorf("told %v", err)
			}
		})
	}
	if _, _, err := s.TriggerTarget("test", "a", demand()); err != nil {
		t.Errorf("the target is by what is written, whatever reports: %v", err)
	}
}

// What no ScaledObject has leaves nothing behind, however often it is asked for.
func TestMadeUpReferencesTakeNoMemory(t *testing.T) {
	s := newScaler(t, 1)
	s.has(triggerOf("external", demand()))
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	ask := func(from, to int) {
		for i := from; i < to; i++ {
			name := fmt.Sprintf("made-up-%d", i)
			query := map[string]string{"scalerAddress": kedaAddress, "threshold": "1", "query": fmt.Sprintf("sum(rate(istio_requests_total{destination_workload=%q}[1h]))", name)}
			_, _, first := s.TriggerTarget("test", name, query)
			_, _, second := s.TriggerValue(t.Context(), "test", "a", query)
			if kindOfError(t, first) != ScalerUnknown || kindOfError(t, second) != ScalerUnknown {
				t.Fatalf("%v, %v", first, second)
			}
		}
	}
	ask(0, 1000)
	before := heap()
	ask(1000, 100_000)
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	if n := len(s.catalog.current.Load().offers); n != 1 {
		t.Errorf("%d metrics are kept", n)
	}
}

// The external metrics API beside KEDA's is asked for the HPA that KEDA makes by somebody else's
// rules (fallback, formulas): what is passed on stays so.
func TestWhatKEDAsHPAAsksForIsKEDAsToAnswer(t *testing.T) {
	s := newScaler(t, 1)
	s.catalog.sharing = sharing{passes: true}
	s.has(triggerOf("external", demand()))
	snapshot := s.catalog.current.Load()
	of := snapshot.scaled[s.catalog.current.Load().hpas[0].Key()]
	for _, a := range snapshot.scaled {
		of = a
	}
	if len(snapshot.metrics) > 0 || snapshot.ours("test", "s0-istio-requests-per-second", of.Scaled.Selector()) {
		t.Errorf("listed are %v", snapshot.metrics)
	}
	if _, _, err := s.TriggerTarget("test", "a", demand()); err != nil {
		t.Errorf("and KEDA is not answered: %v", err)
	}
}

// A stream that follows a trigger is told of the first request a moment after its flush, again
// while there are some, and no more than that.
func TestAStreamIsToldOfTheFirstRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScaler(t, 0)
		s.has(triggerOf("external-push", demand()))
		s.flush(2*time.Minute, 0)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var all, told []time.Duration
		began := time.Now()
		var running sync.WaitGroup
		running.Go(func() { s.followRows(ctx) })
		running.Go(func() {
			err := s.FollowTrigger(ctx, "test", "a", demand(), func() error {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, time.Since(began))
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("it has ended: %v", err)
			}
		})
		time.Sleep(12 * time.Second)
		synctest.Wait()
		mu.Lock()
		told = slices.Clone(all)
		mu.Unlock()
		if len(told) > 0 {
			t.Errorf("told at %v of nothing", told)
		}
		at := time.Since(began)
		s.flush(s.now+5*time.Second, 1)
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		told = slices.Clone(all)
		mu.Unlock()
		if len(told) != 1 || told[0]-at > followPause+100*time.Millisecond {
			t.Errorf("told at %v, the flush was at %s", told, at)
		}
		for range 4 { // flushes within a moment
			s.flush(s.now+5*time.Second, 1)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		mu.Lock()
		told = slices.Clone(all)
		mu.Unlock()
		if len(told) != 1 {
			t.Errorf("told at %v within %s", told, activeAgain)
		}
		time.Sleep(2 * followEvery)
		synctest.Wait()
		mu.Lock()
		told = slices.Clone(all)
		mu.Unlock()
		if len(told) < 2 {
			t.Error("it is active, and that is not told again")
		}
		cancel()
		running.Wait()
		if n := len(s.catalog.wakes.waiting) + len(s.catalog.wakes.watched); n > 0 {
			t.Errorf("%d are kept of a stream that has ended", n)
		}
	})
}

// A target that is edited is told, and a trigger that is gone ends its stream.
func TestAStreamIsToldOfANewTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScaler(t, 1)
		s.has(triggerOf("external-push", demand()))
		var told []float64
		ended := make(chan error, 1)
		go func() {
			ended <- s.FollowTarget(t.Context(), "test", "a", demand(), func(_ string, target float64) error {
				told = append(told, target)
				return nil
			})
		}()
		time.Sleep(2 * followEvery)
		synctest.Wait()
		if len(told) != 1 || told[0] != 10 {
			t.Errorf("told %v", told)
		}
		s.has(triggerOf("external-push", demand("threshold", "20")))
		time.Sleep(2 * followEvery)
		synctest.Wait()
		if kindOfError(t, <-ended) != ScalerUnknown {
			t.Error("a trigger that is no more is followed")
		}
	})
}

// With several replicas what is not known here is asked of the other one.
func TestTheOtherReplicaKnowsWhetherAWorkloadIsActive(t *testing.T) {
	crew := newCrew("a", "b")
	var both [2]*scaler
	for i, name := range []string{"a", "b"} {
		s := newScaler(t, 0)
		s.has(triggerOf("external", demand()))
		s.provider.replicas = &mate{crew, name}
		s.provider.replicas.Answer(s.provider.asked)
		both[i] = s
	}
	both[1].flush(2*time.Minute, 0)
	both[0].set(both[1].now)
	if active, err := both[0].active(demand()); active || err != nil {
		t.Errorf("the other knows that nothing is asked for: %t, %v", active, err)
	}
	both[1].flush(both[1].now+5*time.Second, 1)
	if active, err := both[0].active(demand()); !active || err != nil {
		t.Errorf("the other knows of a request: %t, %v", active, err)
	}
}
