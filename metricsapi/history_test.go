package metricsapi

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
)

var (
	histories = flag.Uint64("histories", 40, "random histories that TestNoHistoryScalesDownOnConstantLoad goes through")
	firstSeed = flag.Uint64("first-history", 1, "the first of them; one that fails is repeated with -histories 1")
)

// simQuery is what the simulated HPA asks for.
type simQuery struct {
	metric string
	match  map[string]string // the metric's selector; nil: of type prometheus
	expr   string            // W is the window
	scale  float64           // the query's value at one request per second; 0: what a request takes
	value  bool              // the target is of type Value: the truth lies on it, so the replicas stay
	typo   bool              // it is misspelt, so that nothing is ever known
}

func simQueries() []simQuery {
	const by = `{destination_workload="podinfo",destination_workload_namespace="test",reporter="destination"}`
	return []simQuery{
		{metric: "rps", scale: 1, expr: `sum(rate(istio_requests_total{destination_workload_namespace="test",reporter="destination"}[W]))`},
		{metric: "rps", scale: 1, expr: `sum(rate(istio_requests_total` + by + `[W]))`},
		{metric: "rps", scale: 1, expr: `sum(rate(istio_requests_total{destination_canonical_service="podinfo"}[W]))`},
		{metric: "rps", scale: 1, expr: `sum(rate(istio_request_duration_milliseconds_count` + by + `[W]))`},
		{metric: "rps", scale: 1, expr: `sum(sum by (pod) (rate(istio_requests_total` + by + `[W])))`},
		{metric: "rpm", scale: 60, expr: `60 * sum(rate(istio_requests_total` + by + `[W]))`},
		{metric: "istio-requests-per-second", scale: 1, match: map[string]string{"destination_workload": "podinfo"}},
		{metric: "istio-requests-in-flight", scale: simLatency / 1000., match: map[string]string{"destination_workload": "podinfo"}},
		{metric: "rps", scale: 1, value: true, expr: `sum(rate(istio_requests_total` + by + `[W]))`},
		{metric: "mean", value: true, expr: `sum(rate(istio_request_duration_milliseconds_sum` + by + `[W])) / sum(rate(istio_request_duration_milliseconds_count` + by + `[W]))`},
		{metric: "rps", scale: 1, expr: `sum(rate(istio_requests_total{destination_workload="podinfo",reporter="destination"}[W]))`},
		{metric: "rps", scale: 1, expr: `sum(rate(istio_requests_total{reporter="destination"}[W]))`},
		{metric: "rps", scale: 1, expr: `sum(rate(istio_requests_total{response_code=~"2..",destination_workload="podinfo"}[W])) or vector(0)`},
	}
}

// simTypos are queries that nothing can answer.
func simTypos() []simQuery {
	var qs []simQuery
	for _, q := range []string{
		`istio_requests_total{destination_workload="podinf0",reporter="destination"}`,
		`istio_requests_total{destination_workload="podinf0",destination_workload_namespace="test",reporter="destination"}`,
		`istio_requests_total{destination_canonical_service="pod-info"}`,
		`istio_requests_total{destination_workload="podinfo",destination_workload_namespace="tets",reporter="destination"}`,
		`istio_requests_total{destination_workload="podinfo",reporter="destinaton"}`,
		`istio_request_total{destination_workload="podinfo",reporter="destination"}`,
		`istio_requests_total{destination_wrkload="podinfo",reporter="destination"}`,
	} {
		rate := "sum(rate(" + q + "[W]))"
		for _, form := range []string{rate, rate + " or vector(0)", "vector(0) + " + rate} {
			qs = append(qs, simQuery{metric: "rps", scale: 1, typo: true, expr: form})
		}
	}
	return append(qs, simQuery{metric: "istio-requests-per-second", scale: 1, typo: true, match: map[string]string{"destination_workload": "podinf0"}},
		simQuery{metric: "istio-requests-per-second", scale: 1, typo: true, match: map[string]string{"destination_wrkload": "podinfo"}})
}

// TestNoHistoryScalesDownOnConstantLoad lets an HPA watch a Deployment under constant load through
// random histories of lost streams, restarts of meshpulse and of sidecars, rollouts and churn,
// second streams, an API server that tells nothing, beside workloads that never report. Whatever
// meshpulse knows and does not know, the HPA, by the controller's own arithmetic, must never ask
// for fewer replicas than the load needs, and for more than there are only up to a quarter more
// than it needs, unless sidecars are mute and others stand for them. The load is at least 5 % away
// from where a replica more or less would do. An answer that is not held is at most 1.10 times the
// truth, but where others stand for the mute. Of what is misspelt nothing is known, and the
// replicas stay.
func TestNoHistoryScalesDownOnConstantLoad(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+*histories; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { playHistory(t, seed) })
		})
	}
}

func playHistory(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	var log strings.Builder
	began := time.Now()
	c := &simCluster{random: random, last: began, api: simAPI{pods: map[string]*corev1.Pod{}}}
	c.note = func(format string, args ...any) {
		fmt.Fprintf(&log, "%8.1fs %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	c.flush = []time.Duration{1, 2, 5, 5, 10}[random.IntN(5)] * time.Second
	if c.untold = random.IntN(3) == 0; c.untold {
		c.flush = []time.Duration{10, 15, 20, 30}[random.IntN(4)] * time.Second
	}
	if random.IntN(2) == 0 {
		c.eviction = 1 + random.IntN(6)
	}
	c.rollouts = random.IntN(3) == 0
	c.elsewhere = random.IntN(3) == 0
	c.hold = []time.Duration{30, 300}[random.IntN(2)] * time.Second
	if c.flush > 10*time.Second { // who flushes that seldom waits for longer
		c.hold = 5 * time.Minute
	}
	window := []string{"1m", "1m", "2m", "5m"}[random.IntN(4)]
	switch { // with fewer than a dozen flushes a rate's own edges come near 5 %
	case c.flush > 20*time.Second:
		window = "6m"
	case c.flush > 10*time.Second:
		window = "5m"
	case c.flush == 10*time.Second && window == "1m":
		window = "2m"
	}
	need := 1 + random.IntN(9)
	each := []float64{1, 10, 250}[random.IntN(3)] // requests per second for a replica
	low, high := float64(need-1)*1.05, float64(need)*0.95
	c.load = each * (low + (high-low)*random.Float64())
	if need == 1 {
		c.load = each * (0.5 + 0.45*random.Float64())
	}
	qs := simQueries()
	if random.IntN(8) == 0 {
		qs = simTypos()
	}
	q := qs[random.IntN(len(qs))]
	q.expr = strings.ReplaceAll(q.expr, "W", window)
	if q.match != nil {
		q.match["window"] = window
	}
	c.spec = int32(need + random.IntN(3))
	c.hpa = q.hpa(c.load, each, random)
	for i := range random.IntN(3) { // without a sidecar, they serve nobody
		c.tell(simObject("test", "podinfo", fmt.Sprint("idle-", i), 0, began, false, c.rollouts))
	}
	for range max(0, random.IntN(6)-2) {
		c.besides(time.Hour)
	}
	sync := []time.Duration{5, 15}[random.IntN(2)] * time.Second
	c.note("%s %s: %.1f rps, %d replicas needed, %d there, flush %s (untold: %v), eviction after %d, %d pods beside, window %s, hold %s, sync %s",
		q.metric, q.expr, c.load, need, c.spec, c.flush, c.untold, c.eviction, len(c.beside), window, c.hold, sync)
	for range c.spec {
		p := c.create(c.between(time.Second, 10*time.Second))
		p.created = p.created.Add(-time.Hour)
	}
	c.after(10*time.Second, func() { c.boot(aggregator.Config{}) })
	defer func() {
		if c.meshpulse != nil {
			c.crash()
		}
	}()

	settings := horizontal.Settings{Tolerance: horizontal.DefaultTolerance}
	var past horizontal.Past
	var look func()
	look = func() {
		c.after(sync, look)
		target := c.target()
		reading, why := c.read(q)
		d := settings.Decide(&c.hpa.Spec, target, []horizontal.Reading{reading}, &past, time.Now())
		if truth := q.truth(c.load); reading.Known && !q.typo && float64(reading.Milli) > 1.1*truth+2 && !mayExceed(why) {
			t.Errorf("history %d: %dm is answered and %.0fm is the truth: %s\n%s", seed, reading.Milli, truth, why, log.String())
			t.FailNow()
		}
		floor := int32(need)
		if q.value || q.typo {
			floor = c.spec
		}
		ceiling := max(c.spec, target.Status) // what keeps them
		switch {
		case strings.Contains(why, "mute for long"): // an estimate
			ceiling = c.hpa.Spec.MaxReplicas
		case q.value:
			ceiling = max(ceiling, int32(math.Ceil(1.25*float64(c.spec))))
		case !q.typo:
			ceiling = max(ceiling, int32(math.Ceil(1.25*c.load/each)))
		}
		if d.Replicas != c.spec {
			c.note("from %d to %d replicas, value %dm: %s", c.spec, d.Replicas, reading.Milli, why)
		}
		if d.Replicas < floor {
			t.Errorf("history %d: %d replicas asked for, %d needed:\n%s", seed, d.Replicas, floor, log.String())
			t.FailNow()
		}
		if d.Replicas > ceiling {
			t.Errorf("history %d: %d replicas asked for, at most %d can be meant:\n%s", seed, d.Replicas, ceiling, log.String())
			t.FailNow()
		}
		past.Note(settings, &c.hpa.Spec, target, d, time.Now())
		c.spec = d.Replicas
		c.scale()
	}
	c.after(20*time.Second+time.Duration(random.Int64N(int64(sync))), look)

	var trouble func()
	trouble = func() {
		c.fault()
		c.after(c.between(5*time.Second, 5*time.Minute), trouble)
	}
	c.after(c.between(10*time.Second, 5*time.Minute), trouble)
	c.run(30 * time.Minute)
	if t.Failed() || testing.Verbose() {
		t.Log(log.String())
	}
}

// truth is the query's value under a load, in thousandths.
func (q simQuery) truth(load float64) float64 {
	if q.scale == 0 {
		return simLatency * 1000
	}
	return load * q.scale * 1000
}

// mayExceed says whether an answer stands for more than what was seen, by its labels.
func mayExceed(why string) bool {
	return strings.Contains(why, labelReason+":held ") || strings.Contains(why, "mute for long")
}

// hpa asks for the query with a target that makes each a replica's load, or the truth where the
// target is of type Value.
func (q simQuery) hpa(load, each float64, random *rand.Rand) *autoscalingv2.HorizontalPodAutoscaler {
	milli := func(v float64) *resource.Quantity {
		return resource.NewMilliQuantity(int64(math.Round(1000*v)), resource.DecimalSI)
	}
	target := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: milli(each * q.scale)}
	switch {
	case q.value && q.scale == 0:
		target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: milli(simLatency)}
	case q.value:
		target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: milli(load * q.scale)}
	}
	h := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: "podinfo", Annotations: map[string]string{}},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "podinfo"},
			MaxReplicas:    20,
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
				Metric: autoscalingv2.MetricIdentifier{Name: q.metric, Selector: &metav1.LabelSelector{MatchLabels: q.matchLabels()}},
				Target: target,
			}}},
		},
	}
	if q.match == nil {
		h.Annotations["metric-config.external."+q.metric+".prometheus/query"] = q.expr
	}
	if !q.value && random.IntN(2) == 0 { // the tolerance forgives much
		h.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
			ScaleDown: &autoscalingv2.HPAScalingRules{Tolerance: resource.NewQuantity(0, resource.DecimalSI), StabilizationWindowSeconds: new(int32(0))},
		}
	}
	return h
}

func (q simQuery) matchLabels() map[string]string {
	if q.match == nil {
		return map[string]string{"type": "prometheus"}
	}
	return q.match
}

// read asks meshpulse as the controller does.
func (c *simCluster) read(q simQuery) (horizontal.Reading, string) {
	if c.meshpulse == nil {
		return horizontal.Reading{}, "meshpulse is down"
	}
	list, refused := c.meshpulse.get(context.Background(), "test", q.metric, labels.SelectorFromSet(q.matchLabels()))
	if refused != nil {
		return horizontal.Reading{}, refused.message
	}
	r := horizontal.Reading{Known: true}
	why := ""
	for _, it := range list.Items {
		r.Milli += it.Value.MilliValue()
		why = fmt.Sprint(it.MetricLabels)
	}
	return r, why
}
