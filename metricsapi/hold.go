package metricsapi

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/aggregator"
)

// The rule for incomplete knowledge. While what is known is incomplete, the answer is the larger of what is seen and what
// keeps the replicas as they are. Scaling up stays possible, scaling down does not, and nothing has to survive a restart.

// pods is what the cluster says of the pods that exist.
type pods interface {
	// in returns the pods of a namespace, of all where it is "".
	in(namespace string) []knownPod
	// get returns a pod, false if it does not exist or has finished.
	get(podKey) (knownPod, bool)
	// synced says why the pods are not known yet, nil once they are.
	synced() error
}

// holder applies the rule. A nil holder, in standalone mode, knows no pods and never holds.
type holder struct {
	pods    pods
	scales  scales
	store   *aggregator.Store
	started time.Time     // when the store began to listen
	hold    time.Duration // how long a sidecar that does not report is waited for
}

// knowledge is what is known of the pods behind an answer.
type knowledge struct {
	// expected pods should report: they exist, carry a sidecar and could have the series, or had them.
	expected int
	// missing says why the answer is incomplete, "" if it is complete.
	missing string
	// mute pods have not reported for longer than the holder waits. They are counted as the mean of those that report.
	mute int
	// unwired pods could have the series, had they a sidecar.
	unwired int
}

// flaws counts why an answer is incomplete, with the name of one pod each.
type flaws struct {
	counts   [4]int
	examples [4]string
}

const (
	flawSilent  = iota // was reporting
	flawAbsent         // has not come back since our start
	flawYoung          // its rows do not reach back over the window
	flawRefused        // samples were refused
)

var flawTexts = [...]string{
	flawSilent:  "silent",
	flawAbsent:  "not back since the start of meshpulse",
	flawYoung:   "not yet known over the whole window",
	flawRefused: "with refused samples",
}

func (f *flaws) add(kind int, name string) {
	if f.counts[kind]++; f.examples[kind] == "" || name < f.examples[kind] {
		f.examples[kind] = name
	}
}

func (f *flaws) String() string {
	var parts []string
	for kind, n := range f.counts {
		switch {
		case n == 1:
			parts = append(parts, fmt.Sprintf("1 sidecar %s (%s)", flawTexts[kind], f.examples[kind]))
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d sidecars %s (%s, …)", n, flawTexts[kind], f.examples[kind]))
		}
	}
	return strings.Join(parts, ", ")
}

// look compares what the store has of a query's pods with the pods that exist.
func (h *holder) look(q *aggregator.Query, a aggregator.Answer, at time.Time) knowledge {
	var k knowledge
	if err := h.pods.synced(); err != nil {
		k.missing = err.Error()
		return k
	}
	var f flaws
	partial := map[podKey]aggregator.PodState{}
	for _, p := range a.Partial {
		partial[podKey{p.Namespace, p.Name}] = p
	}
	judged := map[podKey]bool{}
	if q.NamesPods() {
		for _, p := range h.pods.in(q.Namespace()) {
			if p.leaving || !q.Selects(p.identity) {
				continue
			}
			if !p.wired {
				k.unwired++
				continue
			}
			key := podKey{p.identity.Namespace, p.identity.Name}
			judged[key] = true
			state, ok := partial[key]
			if !ok {
				state, _ = h.store.Pod(key.namespace, key.name, at)
			}
			h.judge(p, state, a, at, &k, &f)
		}
	}
	for key, state := range partial { // pods that have such series though nothing in their metadata says so
		if p, exists := h.pods.get(key); exists && !p.leaving && !judged[key] && !state.Newest.IsZero() {
			h.judge(p, state, a, at, &k, &f)
		}
	}
	if !q.NamesPods() {
		k.expected = max(k.expected, a.Reporting+a.Silent)
	}
	k.missing = f.String()
	return k
}

// judge takes one expected pod into account.
func (h *holder) judge(p knownPod, s aggregator.PodState, a aggregator.Answer, at time.Time, k *knowledge, f *flaws) {
	name := p.identity.Name
	older := p.created.Before(h.started)
	switch {
	case s.Newest.IsZero() && !older: // it has not begun, so it serves nobody yet
		return
	case s.Newest.IsZero() && at.Sub(h.started) <= h.hold:
		f.add(flawAbsent, name)
	case s.Newest.IsZero():
		k.mute++
	case !s.Reporting && at.Sub(s.Newest) <= h.hold:
		f.add(flawSilent, name)
	case !s.Reporting:
		k.mute++
	case older && s.Oldest.After(at.Add(-a.Window)):
		f.add(flawYoung, name)
	case !s.Refused.IsZero() && at.Sub(s.Refused) <= min(h.hold, a.Window):
		f.add(flawRefused, name)
	}
	k.expected++
}

// keep returns what keeps the replicas of all HPAs that ask for the offer as they are, in the API's milli-units.
func (h *holder) keep(ctx context.Context, o *offer) (int64, *refusal) {
	kept, by := int64(-1), ""
	for _, a := range o.askers {
		for _, w := range a.metrics {
			if w.metric != o.metric || w.canonical != o.selector {
				continue
			}
			goal := targetQuantity(w.target)
			if goal == nil || goal.Sign() <= 0 {
				continue
			}
			n := int64(1)
			if w.target.Type != autoscalingv2.ValueMetricType {
				n = int64(h.replicas(ctx, a))
			}
			milli := goal.MilliValue()
			if n > 0 && milli > math.MaxInt64/n {
				milli = math.MaxInt64 / n
			}
			if kept >= 0 && kept != milli*n {
				return 0, refuse(outcomeHeld, "%s: HPAs %s and %s ask for it and would need different values to keep their replicas: no answer until the knowledge is complete", o, by, a.Name)
			}
			kept, by = milli*n, a.Name
		}
	}
	if kept < 0 {
		return 0, refuse(outcomeHeld, "%s: no HPA that asks for it has a target", o)
	}
	return kept, nil
}

// replicas are what the HPA's target is meant to have: its scale's spec.replicas. The HPA's own status is from before its
// last scaling, and only stands in where the scale may not be read.
func (h *holder) replicas(ctx context.Context, a *autoscaler) int32 {
	n, err := h.scales.replicas(ctx, a.Namespace, a.Spec.ScaleTargetRef)
	if err != nil {
		return max(a.Status.CurrentReplicas, a.Status.DesiredReplicas)
	}
	return n
}

// apply is the rule: seen is the verdict on what is known, refused why there is none.
func (h *holder) apply(ctx context.Context, o *offer, subject string, k knowledge, seen verdict, refused *refusal) (verdict, *refusal) {
	if k.missing == "" {
		return seen, refused
	}
	if o == nil {
		return verdict{}, refuse(outcomeHeld, "%s: incomplete: %s. No HPA asks for it, so there are no replicas to keep", subject, k.missing)
	}
	keep, cannot := h.keep(ctx, o)
	if cannot != nil {
		return verdict{}, cannot
	}
	sum := seen.sum()
	if refused == nil && sum >= keep {
		seen.reason = "incomplete, and what is seen asks for more: " + k.missing
		return seen, nil
	}
	was := "nothing seen"
	if refused == nil {
		was = "seen " + resource.NewMilliQuantity(sum, resource.DecimalSI).String()
	}
	return verdict{items: []item{{milli: keep}}, held: true, reason: fmt.Sprintf("held to keep the replicas, %s: %s", was, k.missing)}, nil
}

// fill counts mute pods as the mean of those that report, where the expression adds up over pods.
func (k knowledge) fill(v verdict, p *prepared, a aggregator.Answer) verdict {
	if k.mute == 0 || !p.additive || a.Reporting == 0 {
		return v
	}
	factor := float64(a.Reporting+k.mute) / float64(a.Reporting)
	for i := range v.items {
		v.items[i].milli = int64(math.Round(float64(v.items[i].milli) * factor))
	}
	v.reason = fmt.Sprintf("%d sidecars have been mute for long and are counted as the mean of the %d that report", k.mute, a.Reporting)
	return v
}
