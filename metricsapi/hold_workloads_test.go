package metricsapi

import (
	"context"
	"fmt"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/meshpod"
)

// sentBy is what the sidecars of a workload's pods send: each so many requests a second of so many milliseconds, with a flush every 5 s.
type sentBy struct {
	workload string
	pods     []string
	from, to time.Duration // of the flushes, since the store's start
	rps, ms  float64
	source   bool // as the caller of somebody else
	waypoint bool // as podinfo's waypoint
}

func (s sentBy) Describe(i int) (string, []aggregator.Label, error) {
	labels := []aggregator.Label{
		{Name: "reporter", Value: "destination"}, {Name: "destination_workload", Value: s.workload}, {Name: "destination_workload_namespace", Value: "test"},
	}
	switch {
	case s.source:
		labels = []aggregator.Label{{Name: "reporter", Value: "source"}, {Name: "source_workload", Value: s.workload}, {Name: "source_workload_namespace", Value: "test"}}
	case s.waypoint:
		labels[0].Value, labels[1].Value = "waypoint", "podinfo"
	}
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[i], labels, nil
}

func (s sentBy) send(store *aggregator.Store) {
	for _, pod := range s.pods {
		st := store.Connect(aggregator.Pod{Namespace: "test", Name: pod, Workload: s.workload, CanonicalService: s.workload, FlushInterval: 5 * time.Second})
		count := 0.0
		for at := s.from; at <= s.to; at += 5 * time.Second {
			arrival := store.Started().Add(at)
			count += 5 * s.rps
			b := &aggregator.Batch{Timestamp: arrival.UnixMilli()}
			b.Samples = []aggregator.Sample{
				{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: count},
				{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(5 * s.rps), Value: 5 * s.rps * s.ms, Last: 1},
			}
			b.Buckets = []aggregator.Bucket{{UpperBound: 1000, Count: uint64(5 * s.rps)}}
			if st.Commit(arrival, b, s) != nil {
				panic("superseded")
			}
		}
		st.Close()
	}
}

// heldCluster is a namespace with an HPA of podinfo.
type heldCluster struct {
	store  *aggregator.Store
	pods   fixedPods
	target string // of the HPA, an average
	scale  int32  // podinfo has so many replicas
}

func newHeldCluster(t *testing.T, sent ...sentBy) *heldCluster {
	t.Helper()
	store, err := aggregator.New(aggregator.Config{Retention: 15 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sent {
		s.send(store)
	}
	return &heldCluster{store: store, target: "10", scale: 3}
}

// add makes pods that exist since a time after the store's start.
func (c *heldCluster) add(workload string, created time.Duration, names ...string) {
	for _, name := range names {
		c.pods = append(c.pods, knownPod{
			wired: true, created: c.store.Started().Add(created),
			identity: aggregator.Pod{Namespace: "test", Name: name, Workload: workload, CanonicalService: workload},
		})
	}
}

// answer is what the HPA gets at a time after the store's start.
func (c *heldCluster) answer(expr string, at time.Duration) (verdict, *refusal) {
	asker := asking("podinfo", autoscalingv2.AverageValueMetricType, c.target, c.scale)
	asker.Spec.MaxReplicas = 100
	p := register(c.store, preparedKey{expr: expr})
	defer p.close()
	o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: asker, askers: []*autoscaler{asker}}
	r := rules{retention: 5 * time.Minute, started: c.store.Started(), holder: &holder{
		pods: c.pods, scales: fixedScale(c.scale), store: c.store, started: c.store.Started(), hold: 5 * time.Minute,
		status: func(string, string) (int32, bool) { return c.scale, true },
	}}
	v, _, refused := r.evaluate(context.Background(), "metric rps", o, p, c.store.Started().Add(at))
	return v, refused
}

// shown is a verdict in short.
func shown(v verdict) string {
	s := resource.NewMilliQuantity(v.sum(), resource.DecimalSI).String()
	if v.held {
		s += " held"
	}
	return fmt.Sprintf("%s, %d expected", s, v.expected)
}

// One of four pods is back after a restart of meshpulse: whatever makes the pods, the replicas stay.
func TestPodsOfEveryKindOfWorkloadAreWaitedFor(t *testing.T) {
	injected := map[string]string{meshpod.StatusAnnotation: "{}"}
	const inbound = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`
	for what, tc := range map[string]struct {
		kind, owner string
		labels      map[string]string
		annotations map[string]string
		expr        string
		source      bool
	}{
		"Deployment":          {kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"pod-template-hash": "abc"}, annotations: injected},
		"Rollout":             {kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"rollouts-pod-template-hash": "abc"}, annotations: injected},
		"workload-name":       {kind: "ReplicaSet", owner: "podinfo-blue-abc", labels: map[string]string{"pod-template-hash": "abc", meshpod.WorkloadNameLabel: "podinfo"}, annotations: injected},
		"DeploymentConfig":    {kind: "ReplicationController", owner: "podinfo-7", labels: map[string]string{"deploymentconfig": "podinfo"}, annotations: injected},
		"StatefulSet":         {kind: "StatefulSet", owner: "podinfo", annotations: injected},
		"native sidecar":      {kind: "StatefulSet", owner: "podinfo", annotations: map[string]string{meshpod.StatusAnnotation: `{"initContainers":["istio-init","istio-proxy"],"containers":null}`}},
		"Gateway API gateway": {kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"pod-template-hash": "abc", meshpod.ManagedLabel: "istio.io-gateway-controller"}},
		"a gateway as a caller": {
			kind: "ReplicaSet", owner: "podinfo-abc", labels: map[string]string{"pod-template-hash": "abc", meshpod.ManagedLabel: "istio.io-gateway-controller"},
			expr: `sum(rate(istio_requests_total{source_workload="podinfo",reporter="source"}[1m]))`, source: true,
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := newHeldCluster(t, sentBy{workload: "podinfo", pods: []string{"p-0"}, from: 5 * time.Second, to: 2 * time.Minute, rps: 5, source: tc.source})
			c.target, c.scale = "5", 4
			for i := range 4 {
				kept, err := keepIdentity(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
					Namespace: "test", Name: fmt.Sprintf("p-%d", i), GenerateName: "p-", Labels: tc.labels, Annotations: tc.annotations,
					CreationTimestamp: metav1.NewTime(c.store.Started().Add(-time.Hour)),
					OwnerReferences:   []metav1.OwnerReference{{Kind: tc.kind, Name: tc.owner, Controller: new(true)}},
				}})
				if err != nil {
					t.Fatal(err)
				}
				c.pods = append(c.pods, kept.(*cachedPod).known())
			}
			expr := tc.expr
			if expr == "" {
				expr = inbound
			}
			if v, refused := c.answer(expr, 2*time.Minute); refused != nil || shown(v) != "20 held, 4 expected" {
				t.Errorf("got %s (%s), refused %v, want 20 held, 4 expected", shown(v), v.reason, refused)
			}
		})
	}
}
