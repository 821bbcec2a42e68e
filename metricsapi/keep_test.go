package metricsapi

import (
	"context"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
)

// besides is a target that has more pods, or fewer, than it should.
type besides struct{ target horizontal.Target }

func (b *besides) replicas(context.Context, string, autoscalingv2.CrossVersionObjectReference) (horizontal.Target, error) {
	return b.target, nil
}

// TestHeldAnswersKeepReplicasWhilePodsComeAndGo lets the controller look again and again while the knowledge is incomplete and
// the target has other pods than it should, as in a rollout: the replicas stay. The controller takes status.replicas for
// what there should be where they are within its tolerance, so a value of target x spec.replicas would add one at each look.
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
			h.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{Target: h.metrics[0].target}}}
			p := register(store, preparedKey{expr: expr})
			o := &offer{offerKey: offerKey{namespace: "test", metric: "rps"}, prepared: p, owner: h, askers: []*autoscaler{h}}
			scale := &besides{}
			absent := knownPod{wired: true, identity: aggregator.Pod{Namespace: "test", Name: "a", Workload: "podinfo"}, created: store.Started().Add(-time.Hour)}
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
