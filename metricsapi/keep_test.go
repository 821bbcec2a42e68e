package metricsapi

import (
	"context"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// besides is a target that has more pods, or fewer, than it should.
type besides struct{ target horizontal.Target }

func (b *besides) Recent(context.Context, string, autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	return scaleOf(b.target), nil
}

// TestHeldAnswersKeepReplicasWhilePodsComeAndGo lets the controller look again and again while the
// knowledge is incomplete and the target has other pods than it should, as in a rollout: the
// replicas stay. The controller takes status.replicas for what there should be where they are
// within its tolerance, so a value of target x spec.replicas would add one at each look.
func TestHeldAnswersKeepReplicasWhilePodsComeAndGo(t *testing.T) {
	const expr = `sum(rate(istio_requests_total{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}[1m]))`
	for name, tc := range map[string]struct{ spec, more, limit int32 }{
		"none":                         {20, 0, 100},
		"one more of twenty":           {20, 1, 100},
		"one fewer of twenty":          {20, -1, 100},
		"one more of ten":              {10, 1, 100},
		"two more of ten":              {10, 2, 100},
		"a quarter more":               {20, 5, 100},
		"one more at the HPA's limit":  {20, 1, 20},
		"one fewer of two":             {2, -1, 100},
		"a tenth fewer of a hundred":   {100, -10, 200},
		"all are gone for that moment": {3, -3, 100},
	} {
		t.Run(name, func(t *testing.T) {
			store, err := aggregator.New(aggregator.Config{})
			if err != nil {
				t.Fatal(err)
			}
			h := asking("podinfo", autoscalingv2.AverageValueMetricType, "10", tc.spec)
			h.Spec.MaxReplicas = tc.limit
			h.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{Target: h.Metrics[0].Target}}}
			p := register(store, preparedKey{namespace: "test", expr: expr})
			o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: h, askers: []*hpas.Wants{h}}
			scale := &besides{}
			absent := cluster.Pod{Wired: true, Identity: aggregator.Pod{Namespace: "test", Name: "a", Workload: "podinfo"}, Created: store.Started().Add(-time.Hour)}
			settings := horizontal.Settings{Tolerance: horizontal.DefaultTolerance}
			r := rules{retention: 5 * time.Minute, started: store.Started(), holder: &holder{
				pods: fixedPods{absent}, scales: scale, settings: settings, store: store, started: store.Started(), hold: 5 * time.Minute,
			}}
			at, spec, past := store.Started().Add(time.Minute), tc.spec, horizontal.Past{}
			for range 10 {
				scale.target = horizontal.Target{Spec: spec, Status: spec + tc.more}
				reading := horizontal.Reading{}
				if v, _, refused := r.evaluate(t.Context(), "metric rps", o, p, at); refused == nil {
					reading = horizontal.Reading{Milli: v.sum(), Known: true}
				} else if tc.more == 0 {
					t.Fatalf("refused: %v", refused)
				}
				d := settings.Decide(&h.Spec, scale.target, []horizontal.Reading{reading}, &past, at)
				past.Note(settings, &h.Spec, scale.target, d, at)
				spec, at = d.Replicas, at.Add(15*time.Second)
			}
			if spec != tc.spec {
				t.Errorf("%d replicas have become %d while nothing was known", tc.spec, spec)
			}
		})
	}
}

// TestWhatIsSeenTakesNoReplicasWhileIncomplete: what is seen may be a little more than what keeps
// the replicas, and be within the controller's tolerance of fewer pods that are there, which it
// then asks for.
func TestWhatIsSeenTakesNoReplicasWhileIncomplete(t *testing.T) {
	for name, tc := range map[string]struct {
		target horizontal.Target
		limit  int32
		seen   int64
		want   int64 // -1: no answer
	}{
		"more than the tolerance, and one is still to come": {horizontal.Target{Spec: 20, Status: 19}, 200, 210_000, 210_000},
		"a little more, and all are there":                  {horizontal.Target{Spec: 20, Status: 20}, 200, 205_000, 205_000},
		"a little more, and one is still to come":           {horizontal.Target{Spec: 20, Status: 19}, 200, 205_000, -1},
		"as much as they serve, and one is still to come":   {horizontal.Target{Spec: 20, Status: 19}, 200, 200_000, -1},
		"less than they serve, and two are still to come":   {horizontal.Target{Spec: 20, Status: 18}, 200, 198_500, 200_000},
		"a little more, and one has still to go":            {horizontal.Target{Spec: 20, Status: 21}, 200, 200_500, 200_500},
		"a little more, and a tenth is still to come":       {horizontal.Target{Spec: 100, Status: 91}, 200, 1_000_500, -1},
		"a little more, and two beyond the limit leave":     {horizontal.Target{Spec: 22, Status: 21}, 20, 221_000, 221_000},
	} {
		t.Run(name, func(t *testing.T) {
			h := asking("podinfo", autoscalingv2.AverageValueMetricType, "10", tc.target.Spec)
			h.Spec.MaxReplicas = tc.limit
			h.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{Target: h.Metrics[0].Target}}}
			o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, owner: h, askers: []*hpas.Wants{h}}
			settings := horizontal.Settings{Tolerance: horizontal.DefaultTolerance}
			x := &holder{scales: &besides{tc.target}, settings: settings}
			v, refused := x.apply(t.Context(), o, "rps", knowledge{missing: "1 sidecar silent (a)"}, verdict{items: []item{{milli: tc.seen}}}, nil)
			got, reading := int64(-1), horizontal.Reading{}
			if refused == nil {
				got, reading = v.sum(), horizontal.Reading{Milli: v.sum(), Known: true}
			}
			if got != tc.want {
				t.Errorf("answer %d, want %d (%s, %v)", got, tc.want, v.reason, refused)
			}
			d := settings.Decide(&h.Spec, tc.target, []horizontal.Reading{reading}, &horizontal.Past{}, time.Unix(0, 0))
			if d.Computed && d.Recommended < min(tc.target.Spec, tc.limit) {
				t.Errorf("the controller asks for %d of %d replicas", d.Recommended, tc.target.Spec)
			}
		})
	}
}
