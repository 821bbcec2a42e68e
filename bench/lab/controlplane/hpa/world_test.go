package hpa

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	defaults "k8s.io/kubernetes/pkg/apis/autoscaling/v2"
	"k8s.io/kubernetes/pkg/apis/autoscaling/validation"
)

// world is a namespace with one random HPA and a target that changes at random. Only the
// controller's worker that has the HPA in hand touches it.
type world struct {
	namespace string
	random    *rand.Rand
	written   autoscalingv2.HorizontalPodAutoscalerSpec
	// before are the replicas that the target was meant to have before its last change.
	spec, before int32
	looks        []look
	began        time.Time
	decided      bool // the look in hand has taken its time
}

// newWorld draws an HPA that the API server would accept.
func newWorld(t *testing.T, namespace string, seeds ...uint64) *world {
	w := &world{namespace: namespace, began: time.Now(), random: rand.New(rand.NewPCG(seeds[0], seeds[1]<<32|seeds[2]))}
	w.written = w.randomSpec()
	w.spec = w.pick(1, 1, 2, 3, 5, 8, 13, 40, w.written.MaxReplicas, w.written.MaxReplicas/2)
	w.before = w.spec
	internal := autoscaling.HorizontalPodAutoscaler{}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{autoscaling.AddToScheme, defaults.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	if err := scheme.Convert(w.hpa(), &internal, nil); err != nil {
		t.Fatal(err)
	}
	if problems := validation.ValidateHorizontalPodAutoscaler(&internal, validation.HorizontalPodAutoscalerSpecValidationOptions{}); len(problems) > 0 {
		t.Fatalf("the API server would refuse %+v: %v", w.written, problems)
	}
	return w
}

// hpa is what the controller gets to see: with the API server's defaults.
func (w *world) hpa() *autoscalingv2.HorizontalPodAutoscaler {
	h := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "hpa", UID: types.UID(w.namespace), Generation: 1},
		Spec:       *w.written.DeepCopy(),
	}
	defaults.SetObjectDefaults_HorizontalPodAutoscaler(h)
	return h
}

// pick draws one of several.
func (w *world) pick(of ...int32) int32 { return of[w.random.IntN(len(of))] }

// chance is true once in n times.
func (w *world) chance(n int) bool { return w.random.IntN(n) == 0 }

func (w *world) randomSpec() autoscalingv2.HorizontalPodAutoscalerSpec {
	s := autoscalingv2.HorizontalPodAutoscalerSpec{
		MaxReplicas:    w.pick(1, 2, 6, 10, 25, 100, 1000, 20_000),
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "target"},
	}
	if w.chance(2) {
		lowest := min(w.pick(0, 0, 1, 2, 5), s.MaxReplicas)
		s.MinReplicas = &lowest
	}
	for i := range int(w.pick(1, 1, 1, 2, 3)) {
		s.Metrics = append(s.Metrics, w.randomMetric(i))
	}
	if w.chance(4) {
		return s
	}
	s.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{}
	if !w.chance(4) {
		s.Behavior.ScaleUp = w.randomRules(0, 0, 0, 15, 60)
	}
	if !w.chance(4) {
		s.Behavior.ScaleDown = w.randomRules(0, 0, 5, 15, 60, 300, 3600)
	}
	return s
}

func (w *world) randomMetric(i int) autoscalingv2.MetricSpec {
	if i > 0 && w.chance(8) {
		half := int32(50)
		return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &half},
		}}
	}
	goal := resource.MustParse([]string{"10", "10", "1", "100m", "2500m", "1500u", "7", "1k", "0.3"}[w.random.IntN(9)])
	target := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &goal}
	if w.chance(4) {
		target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: &goal}
	}
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: fmt.Sprintf("metric-%d", i)}, Target: target,
	}}
}

func (w *world) randomRules(windows ...int32) *autoscalingv2.HPAScalingRules {
	r := &autoscalingv2.HPAScalingRules{}
	if !w.chance(3) {
		window := w.pick(windows...)
		r.StabilizationWindowSeconds = &window
	}
	if w.chance(2) {
		choice := []autoscalingv2.ScalingPolicySelect{
			autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect,
		}[w.random.IntN(4)]
		r.SelectPolicy = &choice
	}
	if !w.chance(4) {
		for range w.pick(1, 1, 2, 3) {
			p := autoscalingv2.HPAScalingPolicy{
				Type: autoscalingv2.PodsScalingPolicy, Value: w.pick(1, 2, 3, 4, 5, 10, 100, math.MaxInt32), PeriodSeconds: w.pick(1, 5, 15, 15, 30, 60, 600, 1800),
			}
			if w.chance(2) {
				p.Type, p.Value = autoscalingv2.PercentScalingPolicy, w.pick(1, 10, 33, 50, 99, 100, 100, 150, 900)
			}
			r.Policies = append(r.Policies, p)
		}
	}
	if w.chance(4) {
		q := resource.MustParse([]string{"0", "0.05", "0.1", "0.2", "1", "33m"}[w.random.IntN(6)])
		r.Tolerance = &q
	}
	return r
}

// begin draws what the controller sees at a look.
func (w *world) begin() *look {
	if w.chance(10) { // someone else scales the target
		w.before, w.spec = w.spec, max(0, w.pick(w.spec+1, w.spec-1, 2*w.spec, 0, w.written.MaxReplicas+3, 4))
	}
	l := look{Milliseconds: time.Since(w.began).Milliseconds(), Spec: w.spec, Status: w.spec, Replicas: w.spec}
	if w.chance(3) { // pods come and go later than they are meant to
		l.Status = w.before
	}
	l.Pods = max(0, l.Status+w.pick(0, 0, 0, 1, -1))
	l.Ready = min(l.Pods, max(0, l.Pods-w.pick(0, 0, 0, 1, 2)))
	for _, m := range w.written.Metrics {
		l.Milli = append(l.Milli, w.randomValue(m, l))
	}
	w.looks = append(w.looks, l)
	w.decided = false
	return &w.looks[len(w.looks)-1]
}

// decide lets a moment pass between what the look in hand has found and what it decides: the
// controller notes both times, and only on a clock that stands still are they the same.
func (w *world) decide() {
	if !w.decided {
		w.decided = true
		time.Sleep(deciding)
		w.looks[len(w.looks)-1].Milliseconds = time.Since(w.began).Milliseconds()
	}
}

// deciding is how long a look takes, unless it asks for nothing and changes nothing.
const deciding = time.Millisecond

// randomValue is near what keeps the replicas, often to the thousandth at an edge of the tolerance.
func (w *world) randomValue(m autoscalingv2.MetricSpec, l look) *int64 {
	if m.External == nil || w.chance(12) {
		return nil
	}
	var keep int64
	if q := m.External.Target.AverageValue; q != nil {
		keep = q.MilliValue() * int64(max(1, l.Status))
	} else {
		keep = m.External.Target.Value.MilliValue()
	}
	var v int64
	switch w.random.IntN(8) {
	case 0:
		v = 0
	case 1, 2, 3: // a load that wanders
		v = int64(float64(keep) * math.Exp(w.random.NormFloat64()))
	case 4, 5: // the edges of the tolerance
		edges := []float64{1, 1.1, 0.9, 1.25, 0.75, 1.05, 0.95, 1.2, 0.8}
		v = int64(float64(keep)*edges[w.random.IntN(len(edges))]) + int64(w.pick(-1, 0, 0, 0, 1))
	case 6: // whole replicas
		v = keep / int64(max(1, l.Status)) * int64(1+w.random.IntN(2*int(l.Status)+3))
	default:
		v = int64(float64(keep) * 10 * w.random.Float64())
		if l.Spec > 0 && w.chance(10) { // from 0 replicas the controller overflows, on each kind of processor in its own way
			v = math.MaxInt64
		}
	}
	v = max(0, v)
	return &v
}
