package metricsapi

import (
	"math"
	"slices"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// history remembers the decisions of the last hour: of each HPA's metric one point a sync of the
// controller, 40 bytes each, so 9.4 KB a metric once an hour is full. It survives nothing. It is
// safe for concurrent use; a nil one remembers nothing.
type history struct {
	settings horizontal.Settings
	known    func(namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, bool)

	mu    sync.Mutex
	rings map[historyKey]*decisions
}

// historyKey is a metric of an HPA, by its place in the spec.
type historyKey struct {
	identity string
	place    int
}

const (
	// syncPeriod is the controller's, which no managed cluster lets one change: of what is answered
	// within one, the newest is kept.
	syncPeriod = 15 * time.Second
	// historyPoints are an hour's.
	historyPoints = int(time.Hour / syncPeriod)
	// nowFor is how long a decision counts as of now: four syncs.
	nowFor = 4 * syncPeriod
)

// decision is one point. Its time is in seconds since 1970 and milliseconds of the next, values are
// in thousandths, noValue where there was none.
type decision struct {
	seen, answered          int64
	at                      uint32
	wanted, asked, replicas int32
	baseline                float32 // in units; below 0 where there is none
	ms                      uint16
	rule                    uint8 // its place in historyRules
}

const (
	noValue    = math.MinInt64
	noBaseline = -1
)

// historyRules are numbered by their places.
func historyRules() []explain.Rule {
	return []explain.Rule{
		explain.RuleSeen, explain.RuleIdle, explain.RuleEarlier, explain.RuleSurge, explain.RuleMore, explain.RuleEstimated, explain.RuleHeld, explain.RuleRaised,
		explain.RuleRefused,
	}
}

// decisions are those of one metric, the oldest at next once the ring is full.
type decisions struct {
	namespace string
	points    []decision
	next      int
	mute      int // sidecars that were not heard of for long, at the newest one
}

func newHistory(settings horizontal.Settings, known func(string, string) (*autoscalingv2.HorizontalPodAutoscaler, bool)) *history {
	return &history{settings: settings, known: known, rings: map[historyKey]*decisions{}}
}

// note remembers what was answered for an offer, for each HPA that asks for it.
func (h *history) note(o *offer, acc *account, v verdict, a aggregator.Answer, refused *refusal, at time.Time) {
	if h == nil || o == nil {
		return
	}
	for _, asker := range o.askers {
		for _, w := range asker.Metrics {
			if w.Name == o.metric && w.Canonical == o.selector {
				h.add(asker.HPA, w.Place, h.decide(asker, w, acc, v, a.Reporting, refused, at), acc.known.mute+acc.known.unheard)
			}
		}
	}
}

// decide is a decision as a point. The sidecars that report stand in for replicas that nobody
// knows.
func (h *history) decide(a *hpas.Wants, w hpas.Metric, acc *account, v verdict, reporting int, refused *refusal, at time.Time) decision {
	d := decision{seen: noValue, answered: noValue, baseline: noBaseline, at: uint32(at.Unix()), ms: uint16(at.UnixMilli() % 1000), replicas: int32(reporting), rule: ruleNumber(explain.RuleRefused)}
	if acc.unseen == nil && acc.seen.items != nil {
		d.seen = acc.seen.sum()
	}
	if now, ok := h.known(a.Namespace, a.Name); ok {
		d.replicas, d.asked = now.Status.CurrentReplicas, now.Status.DesiredReplicas
	}
	if refused != nil {
		return d
	}
	d.answered, d.rule = v.sum(), ruleNumber(v.rule)
	if s := v.surge; s != nil && s.Rate > 0 {
		d.baseline = float32(s.Value * s.Baseline / s.Rate)
	}
	n := d.replicas
	if goal := w.Goal(); goal != nil && goal.Sign() > 0 && n > 0 {
		d.wanted = h.settings.Ask(a.Spec.Behavior, w.Target, horizontal.Target{Spec: n, Status: n, Pods: n, Ready: n}, d.answered).Replicas
	}
	return d
}

// ruleNumber is a rule's place in historyRules; "" is that of what is seen.
func ruleNumber(r explain.Rule) uint8 { return uint8(max(0, slices.Index(historyRules(), r))) }

// add takes a point in place of one of the same sync.
func (h *history) add(of hpas.HPA, place int, d decision, mute int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := historyKey{of.Identity(), place}
	r := h.rings[key]
	if r == nil {
		r = &decisions{namespace: of.Namespace}
		h.rings[key] = r
	}
	r.mute = mute
	const sync = uint32(syncPeriod / time.Second)
	switch newest := r.newest(); {
	case newest != nil && d.at/sync <= newest.at/sync:
		*newest = d
	case len(r.points) < historyPoints:
		r.points = append(r.points, d)
	default:
		r.points[r.next] = d
		r.next = (r.next + 1) % historyPoints
	}
}

// newest is the newest point, nil if there is none.
func (r *decisions) newest() *decision {
	if len(r.points) == 0 {
		return nil
	}
	return &r.points[(r.next+len(r.points)-1)%len(r.points)]
}

// of returns a metric's decisions, the oldest first.
func (h *history) of(hpa hpas.HPA, place int) []explain.Point {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.rings[historyKey{hpa.Identity(), place}]
	if r == nil {
		return nil
	}
	points := make([]explain.Point, len(r.points))
	for i := range points {
		d := r.points[(r.next+i)%len(r.points)]
		points[i] = explain.Point{At: time.Unix(int64(d.at), int64(d.ms)*int64(time.Millisecond)).UTC(), Seen: unit(d.seen), Answered: unit(d.answered), Rule: historyRules()[d.rule], Wanted: d.wanted, Asked: d.asked, Replicas: d.replicas}
		if d.baseline >= 0 {
			points[i].Baseline = new(float64(d.baseline))
		}
	}
	return points
}

// unit is a value of thousandths, nil where there is none.
func unit(milli int64) *float64 {
	if milli == noValue {
		return nil
	}
	return new(float64(milli) / 1000)
}

// forget drops what is known of an HPA that is gone.
func (h *history) forget(hpa hpas.HPA) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for key := range h.rings {
		if key.identity == hpa.Identity() {
			delete(h.rings, key)
		}
	}
}

// standing counts by namespace the HPAs of which a metric was held within the last syncs, and the
// sidecars that were not heard of for long: of each HPA the most that one of its metrics means.
func (h *history) standing(at time.Time) (held, mute map[string]int) {
	type hpa struct{ namespace, identity string }
	h.mu.Lock()
	defer h.mu.Unlock()
	holds, silent := map[hpa]bool{}, map[hpa]int{}
	for key, r := range h.rings {
		d, of := r.newest(), hpa{r.namespace, key.identity}
		if d == nil || at.Sub(time.Unix(int64(d.at), 0)) > nowFor {
			continue
		}
		if historyRules()[d.rule] == explain.RuleHeld {
			holds[of] = true
		}
		if r.mute > 0 {
			silent[of] = max(silent[of], r.mute)
		}
	}
	held, mute = map[string]int{}, map[string]int{}
	for of := range holds {
		held[of.namespace]++
	}
	for of, n := range silent {
		mute[of.namespace] += n
	}
	return held, mute
}
