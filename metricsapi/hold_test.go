package metricsapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// fixedPods are the pods of a test's cluster.
type fixedPods []cluster.Pod

// Each calls f with the pods of the sets, workload by workload.
func (f fixedPods) Each(sets []aggregator.Meant, since time.Time, call func(*cluster.Pod)) {
	in := func(m aggregator.Meant, p *cluster.Pod) bool {
		return (m.Namespace == "" || m.Namespace == p.Identity.Namespace) && (m.Workload == "" || m.Workload == p.Identity.Workload) &&
			(m.CanonicalService == "" || m.CanonicalService == p.Identity.CanonicalService)
	}
	found := slices.DeleteFunc(slices.Clone(f), func(p cluster.Pod) bool {
		gone := !p.Left.IsZero() && !p.Left.After(since)
		return gone || !slices.ContainsFunc(sets, func(m aggregator.Meant) bool { return in(m, &p) })
	})
	left := func(p cluster.Pod) int { // those that exist come first
		if p.Left.IsZero() {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(found, func(a, b cluster.Pod) int {
		return cmp.Or(strings.Compare(a.Identity.Workload, b.Identity.Workload), left(a)-left(b))
	})
	for i := range found {
		call(&found[i])
	}
}

func (f fixedPods) Get(namespace, name string) (cluster.Pod, bool) {
	for _, p := range f {
		if p.Identity.Namespace == namespace && p.Identity.Name == name {
			return p, true
		}
	}
	return cluster.Pod{}, false
}

func (f fixedPods) Synced() error { return nil }

// unreadPods have not been read yet.
type unreadPods struct{ fixedPods }

func (unreadPods) Synced() error { return errors.New("the pods have not been read") }

// fixedScale is every target's scale; -1 may not be read, -2 cannot, -3 is not there, -4 is of a
// kind that is not there.
type fixedScale int32

func (n fixedScale) Recent(context.Context, string, autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	switch {
	case n == -3:
		return nil, fmt.Errorf("scale: %w", apierrors.NewNotFound(schema.GroupResource{Resource: "deployments/scale"}, "podinfo"))
	case n == -1:
		return nil, apierrors.NewForbidden(schema.GroupResource{Resource: "deployments/scale"}, "podinfo", errors.New("no"))
	case n == -4:
		return nil, fmt.Errorf("scaleTargetRef: %w", &meta.NoKindMatchError{GroupKind: schema.GroupKind{Kind: "Deploymint"}})
	case n < 0:
		return nil, errors.New("timeout")
	}
	return scaleOf(horizontal.Target{Spec: int32(n), Status: int32(n)}), nil
}

// scaleOf is a target's scale as the API server tells it.
func scaleOf(t horizontal.Target) *autoscalingv1.Scale {
	return &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: t.Spec}, Status: autoscalingv1.ScaleStatus{Replicas: t.Status}}
}

// requests is what a pod's sidecar sends: 5 requests a second with a flush every 5 s.
type requests struct {
	pod        string
	from, to   time.Duration // of its flushes, since the store's start
	unreadable bool          // a series of it cannot be read
	refused    bool          // nothing of it can be read
	begun      bool          // it had requests before
	idle       bool          // it has none
	sends      bool          // its node says that it sends how many are open
	open       float64       // and those are so many; 0: it has not sent any
}

type requestLabels struct{ unreadable, refused bool }

func (d requestLabels) Describe(i int) (string, []aggregator.Label, error) {
	if i == 2 && d.unreadable || d.refused {
		return "", nil, errors.New("not UTF-8")
	}
	if i == 2 {
		return aggregator.ActiveMetric, []aggregator.Label{{Name: "workload", Value: "podinfo"}, {Name: "http_conn_manager_prefix", Value: "inbound_0.0.0.0_80"}}, nil
	}
	return []string{"istio_requests_total", "istio_request_duration_milliseconds"}[i], []aggregator.Label{
		{Name: "reporter", Value: "destination"}, {Name: "destination_workload", Value: "podinfo"}, {Name: "destination_workload_namespace", Value: "test"},
	}, nil
}

func (r requests) send(s *aggregator.Store) {
	p := aggregator.Pod{Namespace: "test", Name: r.pod, Workload: "podinfo", FlushInterval: 5 * time.Second}
	p.SendsActive = r.sends
	st := s.Connect(p)
	count := 0.0
	if r.begun {
		count = 1000
	}
	for at := r.from; at <= r.to; at += 5 * time.Second {
		arrival, n := s.Started().Add(at), 25
		if r.idle {
			n = 0
		}
		count += float64(n)
		b := &aggregator.Batch{Timestamp: arrival.UnixMilli()}
		b.Samples = []aggregator.Sample{
			{Key: 1, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: count},
			{Key: 2, Timestamp: b.Timestamp, Kind: aggregator.Histogram, Count: uint64(n), Value: float64(10 * n)},
		}
		if r.refused { // keys that are never read again
			b.Samples[0].Key, b.Samples[1].Key = 11, 12
		}
		if r.unreadable {
			b.Samples = append(b.Samples, aggregator.Sample{Key: 3, Timestamp: b.Timestamp, Kind: aggregator.Counter, Value: 1})
		}
		if r.open > 0 {
			b.Samples = append(b.Samples, aggregator.Sample{Key: 4, Timestamp: b.Timestamp, Kind: aggregator.Gauge, Value: r.open})
		}
		if st.Commit(arrival, b, requestLabels{r.unreadable, r.refused}) != nil {
			panic("superseded")
		}
	}
	st.Close()
}

// asking is an HPA of podinfo with a target for the query of the tests.
func asking(name string, kind autoscalingv2.MetricTargetType, target string, status int32) *hpas.Wants {
	q := resource.MustParse(target)
	goal := autoscalingv2.MetricTarget{Type: kind}
	if kind == autoscalingv2.ValueMetricType {
		goal.Value = &q
	} else {
		goal.AverageValue = &q
	}
	h := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: name},
		Status:     autoscalingv2.HorizontalPodAutoscalerStatus{CurrentReplicas: status, DesiredReplicas: status},
	}
	return &hpas.Wants{HPA: hpas.HPA{HorizontalPodAutoscaler: h}, Metrics: []hpas.Metric{{Name: "rps", Target: goal}}}
}

func TestHold(t *testing.T) {
	const (
		expr  = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`
		mean  = `sum(rate(istio_request_duration_milliseconds_sum{destination_workload="podinfo"}[1m])) / sum(rate(istio_request_duration_milliseconds_count{destination_workload="podinfo"}[1m]))`
		any   = `sum(rate(istio_requests_total[1m]))`
		open  = `sum(envoy_http_downstream_rq_active{namespace="test",workload="podinfo"})`
		whole = 10 * time.Minute
		hold  = 5 * time.Minute
	)
	pod := func(name string, age time.Duration, change ...func(*cluster.Pod)) cluster.Pod { // age at the store's start
		p := cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "test", Name: name, Workload: "podinfo"}, Created: time.Time{}.Add(-age)}
		for _, c := range change {
			c(&p)
		}
		return p
	}
	young := func(after time.Duration) func(*cluster.Pod) {
		return func(p *cluster.Pod) { p.Created = time.Time{}.Add(after) }
	}
	left := func(after time.Duration) func(*cluster.Pod) {
		return func(p *cluster.Pod) { p.Left = time.Time{}.Add(after) }
	}
	unwired := func(p *cluster.Pod) { p.Wired = false }
	batch := func(p *cluster.Pod) { p.Batch = true }
	old := time.Hour
	average := func(target string) []*hpas.Wants {
		return []*hpas.Wants{asking("podinfo", autoscalingv2.AverageValueMetricType, target, 2)}
	}
	tests := map[string]struct {
		expr     string // default: the sum above
		pods     fixedPods
		unread   bool // the pods are
		sent     []requests
		at       time.Duration // since the store's start
		hold     time.Duration // default: that above
		hpas     []*hpas.Wants
		scale    int32
		want     string // quantity, "" is a refusal
		reason   string // part of the reason or of the refusal
		expected int
	}{
		"all report": {
			pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "10", expected: 2,
		},
		"one has gone silent: the replicas stay": {
			pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 90 * time.Second}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar silent (b)", expected: 2,
		},
		"the newest flush of one is late: the larger of now and of when both had told": {
			pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 110 * time.Second}},
			at: 2 * time.Minute, hpas: average("1"), scale: 3, want: "10", reason: "as of the newest time that every sidecar has covered", expected: 2,
		},
		"one has gone silent, and what is seen asks for more": {
			pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 105 * time.Second}},
			at: 2 * time.Minute, hpas: average("1"), scale: 3, want: "8958m", reason: "asks for more", expected: 2,
		},
		"one is deleted, and has told all until then": {
			pods: fixedPods{pod("a", old), pod("b", old, left(60500*time.Millisecond))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: time.Minute}},
			at: 2*time.Minute + time.Second, hpas: average("10"), scale: 3, want: "5", expected: 1,
		},
		"one is being deleted, and those to whom its load goes tell so later than it does": {
			pods: fixedPods{pod("a", old), pod("b", old, left(100500*time.Millisecond))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 100 * time.Second}},
			at: 124 * time.Second, hpas: average("10"), scale: 3, want: "8542m", reason: "as of the newest time that every sidecar has covered", expected: 1,
		},
		"mute for longer than the hold, and the one that reports has just come": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(whole-30*time.Second))}, sent: []requests{{pod: "b", from: whole - 20*time.Second, to: whole}},
			at: whole, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecars have not been heard of for long", expected: 2,
		},
		"mute for longer than the hold, and of those that report one has just come": {
			pods: fixedPods{pod("a", old), pod("b", old), pod("c", 0, young(whole-30*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "c", from: whole - 10*time.Second, to: whole}},
			at:   whole, hpas: average("10"), scale: 4, want: "18750m", reason: "1 sidecars have not been heard of for long", expected: 3,
		},
		"one is being deleted, and its next flush is still to come": {
			pods: fixedPods{pod("a", old), pod("b", old, left(118*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 115 * time.Second}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar deleted, and not all is known that it served or left to others (b)", expected: 1,
		},
		"one was silent when it was deleted: what it served then is missing": {
			pods: fixedPods{pod("a", old), pod("b", old, left(100*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 70 * time.Second}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar deleted, and not all is known that it served or left to others (b)", expected: 1,
		},
		"one was silent when it was deleted, longer than the window ago": {
			pods: fixedPods{pod("a", old), pod("b", old, left(100*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 3 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 70 * time.Second}},
			at: 3 * time.Minute, hpas: average("10"), scale: 3, want: "5", expected: 1,
		},
		"one was never heard of and is deleted": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(time.Minute), left(100*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar deleted, and not all is known that it served or left to others (b)", expected: 1,
		},
		"a Job's pod begins or ends: nobody waits for it": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(110*time.Second), batch), pod("c", 0, young(time.Minute), left(100*time.Second), batch)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at:   2 * time.Minute, hpas: average("10"), scale: 3, want: "5", expected: 1,
		},
		"a Job's pod has served and is silent": {
			pods: fixedPods{pod("a", old), pod("b", old, batch)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 90 * time.Second}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar silent (b)", expected: 2,
		},
		"one is deleted before it has begun": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(94*time.Second), left(100*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "5", expected: 1,
		},
		"one is deleted of which samples were refused": {
			pods: fixedPods{pod("a", old), pod("b", old, left(100*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 100 * time.Second, refused: true}},
			at:   2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar deleted, and not all is known that it served or left to others (b)", expected: 1,
		},
		"one that was before our start is deleted within a window of it": {
			pods: fixedPods{pod("a", 0, young(time.Second)), pod("b", old, left(30*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 45 * time.Second}, {pod: "b", from: 5 * time.Second, to: 30 * time.Second}},
			at:   45 * time.Second, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar deleted, and not all is known that it served or left to others (b)", expected: 1,
		},
		"one is deleted that carried no sidecar": {
			pods: fixedPods{pod("a", old), pod("b", old, unwired, left(100*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "5", expected: 1,
		},
		"one was silent when it was deleted, and its name is used again": {
			pods: fixedPods{pod("a", 0, young(105*time.Second)), pod("a", old, left(100*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 70 * time.Second}, {pod: "a", from: 110 * time.Second, to: 2 * time.Minute}},
			at:   2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar deleted, and not all is known that it served or left to others (a)", expected: 1,
		},
		"the silent one is gone": {
			pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: time.Minute}},
			at: 2*time.Minute + time.Second, hpas: average("10"), scale: 3, want: "5", expected: 1,
		},
		"one is not back since our start": {
			pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not back since the start of meshpulse (b)", expected: 2,
		},
		"one that began just before our start is not back either": {
			pods: fixedPods{pod("a", old), pod("b", 10*time.Second)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not back since the start of meshpulse (b)", expected: 2,
		},
		"nobody is back since our start": {
			pods: fixedPods{pod("a", old), pod("b", old)}, at: 2 * time.Second, hpas: average("10"), scale: 4, want: "40", reason: "nothing seen: 2 sidecars not back", expected: 2,
		},
		"the window is not covered since our start": {
			pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 30 * time.Second}},
			at: 30 * time.Second, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not known over the whole window (a)", expected: 1,
		},
		"a pod that came later is complete from its first row": {
			pods: fixedPods{pod("a", 0, young(10*time.Second))}, sent: []requests{{pod: "a", from: 20 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "5", expected: 1,
		},
		"a pod that came later, and was not heard for a while": {
			pods: fixedPods{pod("a", 0, young(10*time.Second))}, sent: []requests{{pod: "a", from: 80 * time.Second, to: 2 * time.Minute, begun: true}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not known over the whole window (a)", expected: 1,
		},
		"a pod that came later, was not heard for a while, and that is longer ago than the window": {
			pods: fixedPods{pod("a", 0, young(10*time.Second))}, sent: []requests{{pod: "a", from: 80 * time.Second, to: 3 * time.Minute, begun: true}},
			at: 3 * time.Minute, hpas: average("10"), scale: 4, want: "5", expected: 1,
		},
		"a pod that came just now is about to report": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(112*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not heard of since it began (b)", expected: 2,
		},
		"a pod that came later and has not been heard of may serve": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(time.Minute))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not heard of since it began (b)", expected: 2,
		},
		"not heard of for as long as the hold": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(whole-hold))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at: whole, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not heard of since it began (b)", expected: 2,
		},
		"not heard of for longer than the hold: counted as the mean of the others": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(time.Minute))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at: whole, hpas: average("10"), scale: 4, want: "10", reason: "held for what these may serve: 1 sidecars have not been heard of", expected: 2,
		},
		"not heard of for longer than the hold: never more than what keeps the replicas": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(time.Minute)), pod("c", 0, young(time.Minute))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at: whole, hpas: average("4"), scale: 3, want: "12", reason: "held to keep the replicas: 2 sidecars have not been heard of", expected: 3,
		},
		"not heard of for longer than the hold, and what is seen asks for more": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(time.Minute))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at: whole, hpas: average("1"), scale: 2, want: "5", expected: 2,
		},
		"a pod without a sidecar is not expected": {
			pods: fixedPods{pod("a", old), pod("b", old, unwired)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "5", expected: 1,
		},
		"samples were refused": {
			pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute, unreadable: true}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar with refused samples (a)", expected: 1,
		},
		"mute for longer than the hold: counted as the mean of the others": {
			pods: fixedPods{pod("a", old), pod("b", old), pod("c", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "b", from: 5 * time.Second, to: whole}},
			at:   whole, hpas: average("10"), scale: 4, want: "15", reason: "1 sidecars have been mute", expected: 3,
		},
		"mute for longer than the hold, and still in the window": {
			pods: fixedPods{pod("a", old), pod("b", old)}, hold: 30 * time.Second,
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: 85 * time.Second}},
			at:   2 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar silent (b)", expected: 2,
		},
		"all was refused for longer than the hold: counted as the mean of the others": {
			pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "b", from: 5 * time.Second, to: whole, refused: true}},
			at:   whole, hpas: average("10"), scale: 4, want: "10", reason: "1 sidecars have been mute", expected: 2,
		},
		"one is mute, and one that had told all is deleted: the mean does not tell who serves in its place": {
			pods: fixedPods{pod("a", old), pod("b", old), pod("c", old, left(whole-20*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "c", from: 5 * time.Second, to: whole - 20*time.Second}},
			at:   whole, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar deleted, and not all is known that it served or left to others (c)", expected: 2,
		},
		"two are mute, and one that had told all is deleted: what is missing does not ask for more": {
			pods: fixedPods{pod("a", old), pod("b", old), pod("d", old), pod("c", old, left(whole-20*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "c", from: 5 * time.Second, to: whole - 20*time.Second}},
			at:   whole, hpas: average("4"), scale: 3, want: "12", reason: "held to keep the replicas, seen 8", expected: 3,
		},
		"one is mute, and one is deleted before it has begun: nobody serves in its place": {
			pods: fixedPods{pod("a", old), pod("b", old), pod("c", 0, young(whole-20*time.Second), left(whole-14*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at:   whole, hpas: average("10"), scale: 3, want: "10", reason: "1 sidecars have been mute", expected: 2,
		},
		"one is not heard of, and one has told all the window and may not have been ready all of it": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(time.Minute)), pod("c", 0, young(whole-90*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "c", from: whole - 80*time.Second, to: whole}},
			at:   whole, hpas: average("10"), scale: 4, want: "30", reason: "1 sidecars have not been heard of for long", expected: 3, // three times what is seen
		},
		"one is mute, and one came within the window: as if both served as much as the one that was there": {
			pods: fixedPods{pod("a", old), pod("b", old), pod("c", 0, young(whole-10*time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "c", from: whole - 5*time.Second, to: whole}},
			at:   whole, hpas: average("10"), scale: 3, want: "17499m", reason: "1 sidecars have not been heard of for long", expected: 3,
		},
		"all was refused for longer than the hold, of pods that have left as well": {
			pods: fixedPods{pod("a", old), pod("b", old), pod("c", old, left(8*time.Minute))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "b", from: 5 * time.Second, to: whole, refused: true}, {pod: "c", from: 5 * time.Second, to: whole, refused: true}},
			at:   whole, hpas: average("10"), scale: 4, want: "10", reason: "1 sidecars have been mute for long and are counted as the mean of the 1 that report", expected: 2,
		},
		"all was refused for longer than the hold, and is not any more": {
			pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "b", from: 5 * time.Second, to: whole - 20*time.Second, refused: true}, {pod: "b", from: whole - 15*time.Second, to: whole}},
			at:   whole, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar with refused samples (b)", expected: 2,
		},
		"all was refused for longer than the hold, and has just been accepted": {
			pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "b", from: 5 * time.Second, to: whole - 5*time.Second, refused: true}, {pod: "b", from: whole, to: whole}},
			at:   whole, hpas: average("10"), scale: 4, want: "10001m", reason: "1 sidecars have been mute for long and are counted as the mean of the 1 that report", expected: 2,
		},
		"all was refused for longer than the hold, and of what is asked for nearly all the window has been accepted": {
			pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "b", from: 5 * time.Second, to: whole - 55*time.Second, refused: true}, {pod: "b", from: whole - 50*time.Second, to: whole, unreadable: true}},
			at:   whole, hpas: average("10"), scale: 4, want: "10", reason: "1 sidecars have been mute for long and are counted as the mean of the 1 that report", expected: 2,
		},
		"all was refused for longer than the hold, and the others have no requests: their mean is not the answer": {
			pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole, idle: true}, {pod: "b", from: 5 * time.Second, to: whole - 5*time.Second, refused: true}, {pod: "b", from: whole, to: whole}},
			at:   whole, hpas: average("10"), scale: 4, want: "40", reason: "held to keep the replicas: 1 sidecars have not been heard of for long", expected: 2,
		},
		"all of all was refused for longer than the hold": {
			pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole, refused: true}},
			at: whole, hpas: average("10"), scale: 4, reason: "refused",
		},
		"a mean does not grow by who is mute": {
			expr: mean, pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at: whole, hpas: average("10"), scale: 4, want: "10", expected: 2,
		},
		"target of type Value": {
			pods: fixedPods{pod("a", old), pod("b", old)}, at: 2 * time.Second, scale: 7,
			hpas: []*hpas.Wants{asking("podinfo", autoscalingv2.ValueMetricType, "250m", 2)}, want: "250m", reason: "held", expected: 2,
		},
		"the scale may not be read": {
			pods: fixedPods{pod("a", old)}, at: 2 * time.Second, scale: -1, hpas: average("10"), want: "20", reason: "held", expected: 1,
		},
		"the scale is not there": {
			pods: fixedPods{pod("a", old)}, at: 2 * time.Second, scale: -3, hpas: average("10"), want: "20", reason: "held", expected: 1,
		},
		"the scale cannot be read": {
			pods: fixedPods{pod("a", old)}, at: 2 * time.Second, scale: -2, hpas: average("10"), reason: "cannot be read: timeout",
		},
		"a gap in the window": {
			pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "a", from: 4 * time.Minute, to: 250 * time.Second}},
			at: 250 * time.Second, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not known over the whole window (a)", expected: 1,
		},
		"a gap before the window": {
			pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "a", from: 4 * time.Minute, to: 6 * time.Minute}},
			at: 6 * time.Minute, hpas: average("10"), scale: 4, want: "5", expected: 1,
		},
		"a name used again is another pod": {
			pods: fixedPods{pod("a", 0, young(3*time.Minute))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "a", from: 200 * time.Second, to: 5 * time.Minute}},
			at: 5 * time.Minute, hpas: average("10"), scale: 4, want: "5", expected: 1,
		},
		"a name used again within the window: what the other pod did not tell is not missing of this one": {
			pods: fixedPods{pod("a", 0, young(3*time.Minute))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "a", from: 200 * time.Second, to: 4 * time.Minute}},
			at: 4 * time.Minute, hpas: average("10"), scale: 4, want: "3542m", expected: 1,
		},
		"a name used again, and not heard of since for longer than the hold: what is seen asks for more": {
			pods: fixedPods{pod("a", old), pod("b", 0, young(2*time.Minute))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}, {pod: "b", from: 5 * time.Second, to: time.Minute}},
			at:   whole, hpas: average("1"), scale: 2, want: "5", expected: 2, // the other pod's silence does not make this one mute
		},
		"a young pod's first rows have been overwritten": {
			expr: strings.Replace(expr, "[1m]", "[30m]", 1), pods: fixedPods{pod("a", 0, young(time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 25 * time.Minute}},
			at: 25 * time.Minute, hpas: average("10"), scale: 4, want: "40", reason: "1 sidecar not known over the whole window (a)", expected: 1,
		},
		"a young pod that has been mute for long": {
			pods: fixedPods{pod("a", 0, young(time.Second)), pod("b", 0, young(time.Second))},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 40 * time.Minute}, {pod: "b", from: 5 * time.Second, to: time.Minute}},
			at:   40 * time.Minute, hpas: average("10"), scale: 4, want: "10", reason: "1 sidecars have been mute", expected: 2,
		},
		"samples have been refused for long": {
			pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole, unreadable: true}},
			at: whole, hpas: average("10"), scale: 4, want: "5", expected: 1,
		},
		"no series yet, and a pod without a sidecar": {
			pods: fixedPods{pod("a", old), pod("b", old, unwired)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			expr: strings.Replace(expr, "istio_requests_total{", `istio_requests_total{response_code="500",`, 1),
			at:   2 * time.Minute, hpas: average("10"), scale: 4, reason: "not every pod that could have one reports",
		},
		"flushes too far apart for the window": {
			expr: strings.Replace(expr, "[1m]", "[8s]", 1), pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 4, reason: "a window of 8s needs two flushes",
		},
		"two HPAs that agree": {
			pods: fixedPods{pod("a", old)}, at: 2 * time.Second, scale: 3, hpas: append(average("10"), average("10")...), want: "30", reason: "held", expected: 1,
		},
		"two HPAs that disagree": {
			pods: fixedPods{pod("a", old)}, at: 2 * time.Second, scale: 3,
			hpas: append(average("10"), asking("other", autoscalingv2.AverageValueMetricType, "20", 2)), reason: "HPAs podinfo and other",
		},
		"nobody asks": {
			pods: fixedPods{pod("a", old)}, at: 2 * time.Second, reason: "No HPA asks",
		},
		"no pod that could have the series": {
			pods: fixedPods{}, at: 2 * time.Second, scale: 3, hpas: average("10"), reason: "no sidecar that could have one",
		},
		"any pod may have the series, and one is not back since our start": {
			expr: any, pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar not back since the start of meshpulse (b)", expected: 2,
		},
		"any pod may have the series, and of the workload that has them one is mute": {
			expr: any, pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at: whole, hpas: average("10"), scale: 3, want: "10", reason: "1 sidecars have been mute", expected: 2,
		},
		"any pod may have the series, and of the workload that has them one has just begun": {
			expr: any, pods: fixedPods{pod("a", old), pod("b", 0, young(whole-5*time.Second))}, sent: []requests{{pod: "a", from: 5 * time.Second, to: whole}},
			at: whole, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar not heard of since it began (b)", expected: 2,
		},
		"any pod may have the series: a Job's and one without a sidecar have none": {
			expr: any, pods: fixedPods{pod("a", old), pod("b", old, batch), pod("c", old, unwired)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "5", expected: 1,
		},
		"the pods are not read yet: the replicas stay": {
			unread: true, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "seen 5: the pods have not been read", expected: 1,
		},
		"the pods are not read yet, and what is seen asks for more": {
			unread: true, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("1"), scale: 3, want: "5", reason: "asks for more: the pods have not been read", expected: 1,
		},
		"requests that are open: the sidecars report, and none has had one": {
			expr: open, pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute, idle: true, sends: true}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "0", reason: "no request yet", expected: 1,
		},
		"requests that are open, of one pod, and another has had none": {
			expr: open, pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute, sends: true, open: 7}, {pod: "b", from: 5 * time.Second, to: 2 * time.Minute, sends: true}},
			at:   2 * time.Minute, hpas: average("10"), scale: 3, want: "7", expected: 2,
		},
		"requests that are open, and a sidecar has gone silent": {
			expr: open, pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute, sends: true, open: 7}, {pod: "b", from: 5 * time.Second, to: time.Minute, sends: true, open: 3}},
			at:   2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar silent (b)", expected: 2,
		},
		"requests that are open, which one sidecar does not send": {
			expr: open, pods: fixedPods{pod("a", old), pod("b", old)},
			sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute, sends: true, open: 7}, {pod: "b", from: 5 * time.Second, to: 2 * time.Minute}},
			at:   2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "without the annotation " + hpas.InclusionAnnotation, expected: 2,
		},
		"requests that are open, which no sidecar sends": {
			expr: open, pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, reason: hpas.InclusionAnnotation,
		},
		"requests that are open, from the first flush after our start on": {
			expr: open, pods: fixedPods{pod("a", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 5 * time.Second, sends: true, open: 40}},
			at: 6 * time.Second, hpas: average("10"), scale: 3, want: "40", expected: 1,
		},
		"any pod may have the series, and one has gone silent": {
			expr: any, pods: fixedPods{pod("a", old), pod("b", old)}, sent: []requests{{pod: "a", from: 5 * time.Second, to: 2 * time.Minute}, {pod: "b", from: 5 * time.Second, to: time.Minute}},
			at: 2 * time.Minute, hpas: average("10"), scale: 3, want: "30", reason: "1 sidecar silent (b)", expected: 2,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			store, err := aggregator.New(aggregator.Config{Retention: 15 * time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range tc.sent {
				r.send(store)
			}
			for i := range tc.pods {
				tc.pods[i].Created = store.Started().Add(tc.pods[i].Created.Sub(time.Time{}))
				if left := tc.pods[i].Left; !left.IsZero() {
					tc.pods[i].Left = store.Started().Add(left.Sub(time.Time{}))
				}
			}
			if tc.expr == "" {
				tc.expr = expr
			}
			if tc.hold == 0 {
				tc.hold = hold
			}
			p := register(store, preparedKey{namespace: "test", expr: tc.expr})
			var o *offer
			if tc.hpas != nil {
				o = &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: tc.hpas[0], askers: tc.hpas}
			}
			var exist pods = tc.pods
			if tc.unread {
				exist = unreadPods{}
			}
			r := rules{
				retention: 5 * time.Minute, started: store.Started(),
				holder: &holder{pods: exist, scales: fixedScale(tc.scale), store: store, started: store.Started(), hold: tc.hold, status: func(string, string) (int32, bool) { return 2, true }},
			}
			v, _, refused := r.evaluate(context.Background(), "metric rps", o, p, store.Started().Add(tc.at))
			if tc.want == "" {
				if refused == nil || !strings.Contains(refused.message, tc.reason) {
					t.Fatalf("got %+v, refused %v, want a refusal with %q", v, refused, tc.reason)
				}
				return
			}
			if refused != nil {
				t.Fatalf("refused: %v", refused)
			}
			if got := resource.NewMilliQuantity(v.sum(), resource.DecimalSI).String(); got != tc.want || !strings.Contains(v.reason, tc.reason) || (tc.reason == "") != (v.reason == "") {
				t.Errorf("got %s (%s), want %s (%s)", got, v.reason, tc.want, tc.reason)
			}
			if held := strings.HasPrefix(v.reason, "held "); held != v.held {
				t.Errorf("held is %t: %s", v.held, v.reason)
			}
			if v.expected != tc.expected {
				t.Errorf("%d sidecars expected, want %d", v.expected, tc.expected)
			}
		})
	}
}
