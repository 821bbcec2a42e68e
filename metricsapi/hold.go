package metricsapi

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
)

// The rule for incomplete knowledge. While what is known is incomplete, the answer is the larger of what is seen and what
// keeps the replicas as they are, or none where the controller would make fewer of either. Scaling up stays possible, scaling down
// does not, and nothing has to survive a restart.

// pods is what the cluster says of the pods that exist.
type pods interface {
	// in returns the pods of a namespace, of all where it is "", and those that have left.
	in(namespace string) []knownPod
	// get returns a pod that exists or has left, false if it is not known.
	get(podKey) (knownPod, bool)
	// synced says why the pods are not known yet, nil once they are.
	synced() error
}

// holder applies the rule. A nil holder, in standalone mode, knows no pods and never holds.
type holder struct {
	pods   pods
	scales scales
	// settings are the HPA controller's.
	settings horizontal.Settings
	// status is the larger of an HPA's status.currentReplicas and status.desiredReplicas, false if it is gone.
	status  func(namespace, name string) (int32, bool)
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
	// mute pods have not reported for longer than the holder waits, nor within the window, or all that is asked for was refused
	// for as long. They are counted as the mean of the known pods: those whose series make the value, some of which may have
	// left by now. Of the mute ones, bare ones report, but nothing that is asked for.
	mute, bare, known int
	// unheard pods are younger than our start and have not reported since, for longer than the holder waits: either they
	// serve nobody, or their sidecar does not reach us. They may keep replicas, as the mean of those that report, and never
	// add any.
	unheard int
	// refusing pods have had samples refused for longer than the holder waits, and still have: what they send counts without
	// them.
	refusing int
	// unknown pods exist and could have the series, but have no sidecar.
	unknown int
	// lasting pods have told all of the window and are to stay.
	lasting int
	// moved: a pod has come or left within the window, so load has gone from pod to pod.
	moved bool
	// contested pods may be reported by somebody else, so that what is seen may be too much.
	contested []aggregator.PodState
}

// flaws counts why an answer is incomplete, with the name of one pod each.
type flaws struct {
	counts   [7]int
	examples [7]string
}

const (
	flawSilent  = iota // was reporting
	flawAbsent         // has not come back since our start
	flawUnheard        // is younger, and has not reported yet
	flawPartial        // its rows do not tell all of the window
	flawRefused        // samples were refused
	flawLeft           // has left, and not told all that it served
	flawRival          // two senders report as it
)

var flawTexts = [...]string{
	flawSilent:  "silent",
	flawAbsent:  "not back since the start of meshpulse",
	flawUnheard: "not heard of since it began",
	flawPartial: "not known over the whole window",
	flawRefused: "with refused samples",
	flawLeft:    "deleted, and not all is known that it served or left to others",
	flawRival:   "that two senders report as",
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
	var f flaws
	departed := "" // a pod that left within the window and had told all
	partial := map[podKey]aggregator.PodState{}
	reporting, young, from := a.Reporting, 0, since(a, at)
	for _, p := range a.Partial {
		partial[podKey{p.Namespace, p.Name}] = p
		switch {
		case !p.Reporting:
		case p.Bare:
			reporting--
		case p.Oldest.After(from):
			young++
		}
	}
	if k.known = reporting - young; k.known == 0 {
		k.known = reporting
	}
	k.contested = h.contested(q, a)
	if err := h.pods.synced(); err != nil {
		k.missing, k.expected = err.Error(), a.Reporting+a.Silent
		return k
	}
	judged := map[podKey]bool{}
	if q.NamesPods() {
		for _, p := range h.pods.in(q.Namespace()) {
			if p.batch { // it comes and goes by the clock and serves nobody: not expected, unless it has such series all the same
				continue
			}
			gone := !p.left.IsZero()
			if gone && !p.left.After(from) || !q.Selects(p.identity) {
				continue
			}
			if !p.wired && !gone {
				k.unknown++
				continue
			}
			key := podKey{p.identity.Namespace, p.identity.Name}
			judged[key] = true
			state, ok := partial[key]
			if !ok {
				state = h.store.Pod(key.namespace, key.name, at, a.Window)
			}
			h.judge(p, state, a, at, &k, &f)
			if gone && p.wired && state.Newest.After(from) {
				departed = key.name
			}
		}
	}
	for key, state := range partial { // pods that have such series though nothing in their metadata says so
		if p, known := h.pods.get(key); known && !judged[key] && !state.Newest.IsZero() {
			h.judge(p, state, a, at, &k, &f)
		}
	}
	if !q.NamesPods() {
		k.expected = max(k.expected, a.Reporting+a.Silent)
	}
	for _, s := range k.contested {
		f.add(flawRival, describeContest(s))
	}
	if departed != "" && k.mute+k.unheard > 0 { // others serve in its place, mute ones among them: nobody's mean tells how much
		f.add(flawLeft, departed)
	}
	k.missing = f.String()
	return k
}

// usualFlush is Istio's statsFlushInterval where no pod tells another.
const usualFlush = 5 * time.Second

// judge takes one expected pod into account.
func (h *holder) judge(p knownPod, s aggregator.PodState, a aggregator.Answer, at time.Time, k *knowledge, f *flaws) {
	name := p.identity.Name
	older, from := p.created.Before(h.started), since(a, at)
	if s.Newest.Before(p.created) { // a name used again: that was another pod
		s = aggregator.PodState{}
	}
	k.moved = k.moved || p.created.After(from) || p.left.After(from)
	if !p.left.IsZero() {
		if !h.told(p, s, a, at) {
			f.add(flawLeft, name)
		}
		return
	}
	silence, age := at.Sub(s.Newest), at.Sub(p.created)
	switch {
	case s.Newest.IsZero() && !older && age <= h.hold: // it may serve already, and its first flush is still to come
		f.add(flawUnheard, name)
	case s.Newest.IsZero() && !older:
		k.unheard++
	case s.Newest.IsZero() && at.Sub(h.started) <= h.hold:
		f.add(flawAbsent, name)
	case s.Newest.IsZero():
		k.mute++
	case !s.Reporting && (silence <= h.hold || s.Newest.After(from)): // what it sent leaves the window bit by bit
		f.add(flawSilent, name)
	case !s.Reporting:
		k.mute++
	case s.Oldest.After(from) && (older || !s.Whole):
		f.add(flawPartial, name)
	case !s.GapTo.IsZero() && s.GapFrom.After(p.created):
		f.add(flawPartial, name)
	case s.Refused.IsZero():
	case at.Sub(s.RefusedSince) <= h.hold, s.Refused.Before(at.Add(-2 * max(a.Flush, usualFlush))): // or it is over
		f.add(flawRefused, name)
	case s.Bare:
		k.mute++
		k.bare++
		fallthrough
	default:
		k.refusing++
	}
	if s.Reporting && !s.Bare && !s.Oldest.After(from) && p.created.Before(from.Add(-a.Window)) { // it was ready all the window
		k.lasting++
	}
	k.expected++
}

// since is the beginning of what an answer stands on: of its window at the newest time that every reporting sidecar has covered.
func since(a aggregator.Answer, at time.Time) time.Time {
	if a.Reporting > 0 && a.Watermark.Before(at) {
		at = a.Watermark
	}
	return at.Add(-a.Window)
}

// told says whether a pod that has left has told all that it served within the window. Others serve in its place now, and only
// from now on: what it did not tell is missing until it has left the window.
func (h *holder) told(p knownPod, s aggregator.PodState, a aggregator.Answer, at time.Time) bool {
	from, last := since(a, at), s.Newest
	if last.After(p.left) && s.GapFrom.Before(p.left) && !s.GapFrom.IsZero() { // the name has been used again
		last = s.GapFrom
	}
	if last.Before(p.created) {
		last = p.created
	}
	switch {
	case !p.left.After(from), !p.wired:
		return true
	case s.Newest.IsZero(): // it did not begin, or nobody heard of it
		return p.left.Sub(p.created) <= 2*max(a.Flush, usualFlush)
	case last.Before(p.left.Add(-time.Second)): // API servers cut times to seconds
		return false // its next flush tells, or the last one that an Envoy sends when it ends
	}
	return s.Refused.IsZero() && (s.GapTo.IsZero() || !s.GapFrom.After(p.created)) &&
		(!s.Oldest.After(from) || !p.created.Before(h.started) && s.Whole)
}

// keeping is what it takes to keep the replicas of all HPAs that ask for an offer.
type keeping struct {
	// milli is the answer that does, in the API's milli-units.
	milli int64
	// moves is not nil where that answer would move the replicas of one all the same.
	moves *refusal
	// enough: what is seen asks for at least that answer, and none of the HPAs for fewer replicas than its target is to have.
	enough bool
}

// keep returns what keeps the replicas, beside what is seen: a sum in milli-units.
func (h *holder) keep(ctx context.Context, o *offer, seen int64) (kept keeping, cannot *refusal) {
	kept, by := keeping{milli: -1, enough: true}, ""
	for _, a := range o.askers {
		for _, w := range a.metrics {
			if w.metric != o.metric || w.canonical != o.selector {
				continue
			}
			goal := targetQuantity(w.target)
			if goal == nil || goal.Sign() <= 0 {
				continue
			}
			n, milli := int64(1), goal.MilliValue()
			average := w.target.Type != autoscalingv2.ValueMetricType
			var target horizontal.Target
			if average {
				var err error
				if target, err = h.replicas(ctx, a); err != nil {
					return keeping{}, refuse(outcomeHeld, "%s: %v", o, err)
				}
				n = int64(target.Spec)
			}
			if n > 0 && milli > math.MaxInt64/n {
				milli = math.MaxInt64 / n
			}
			asks := func(sum int64) int32 { return a.withinLimits(h.settings.Asks(a.Spec.Behavior, *goal, target, sum)) }
			has := a.withinLimits(target.Spec)
			if average && asks(milli*n) != has {
				kept.moves = refuse(outcomeHeld, "%s: incomplete, and only without an answer does HPA %s keep its %d replicas: its target has %d pods now, which the controller would ask for, since they are within its tolerance", o, a.Name, target.Spec, target.Status)
			}
			if seen < milli*n || average && asks(seen) < has {
				kept.enough = false
			}
			if kept.milli >= 0 && kept.milli != milli*n {
				return keeping{}, refuse(outcomeHeld, "%s: HPAs %s and %s ask for it and would need different values to keep their replicas: no answer until the knowledge is complete", o, by, a.Name)
			}
			kept.milli, by = milli*n, a.Name
		}
	}
	if kept.milli < 0 {
		return keeping{}, refuse(outcomeHeld, "%s: no HPA that asks for it has a target", o)
	}
	return kept, nil
}

// withinLimits is what the HPA's limits leave of a number of replicas.
func (h sourceHPA) withinLimits(n int32) int32 {
	return min(max(n, h.minReplicas()), h.Spec.MaxReplicas)
}

// replicas are what the HPA's target is meant to have: its scale's spec.replicas. The HPA's own status is from before its
// last scaling, and only stands in where the scale may not be read or is not there.
func (h *holder) replicas(ctx context.Context, a *autoscaler) (horizontal.Target, error) {
	target, err := h.scales.replicas(ctx, a.Namespace, a.Spec.ScaleTargetRef)
	if err == nil {
		return target, nil
	}
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		if n, ok := h.status(a.Namespace, a.Name); ok {
			return horizontal.Target{Spec: n, Status: n}, nil
		}
	}
	return horizontal.Target{}, fmt.Errorf("the replicas that HPA %s has to keep cannot be read: %w", a.Name, err)
}

// apply is the rule: seen is the verdict on what is known, refused why there is none.
func (h *holder) apply(ctx context.Context, o *offer, subject string, k knowledge, seen verdict, refused *refusal) (verdict, *refusal) {
	if k.missing == "" {
		return seen, refused
	}
	if o == nil {
		return verdict{}, refuse(outcomeHeld, "%s: incomplete: %s. No HPA asks for it, so there are no replicas to keep", subject, k.missing)
	}
	sum := seen.sum()
	kept, cannot := h.keep(ctx, o, sum)
	switch {
	case cannot != nil:
		return verdict{}, cannot
	case refused == nil && kept.enough && len(k.contested) == 0:
		seen.reason = "incomplete, and what is seen asks for more: " + k.missing
		return seen, nil
	case kept.moves != nil:
		return verdict{}, kept.moves
	}
	was := "nothing seen"
	if refused == nil {
		was = "seen " + resource.NewMilliQuantity(sum, resource.DecimalSI).String()
	}
	return verdict{items: []item{{milli: kept.milli}}, held: true, reason: fmt.Sprintf("held to keep the replicas, %s: %s", was, k.missing)}, nil
}

// fill counts mute pods as the mean of those that report, where the expression adds up over pods and nothing else is missing:
// while replicas are kept, only what is seen may ask for more.
func (k knowledge) fill(v verdict, p *prepared) verdict {
	if k.mute == 0 || !p.additive || k.known == 0 || k.missing != "" {
		return v
	}
	v = v.times(float64(k.known+k.mute) / float64(k.known))
	v.reason = fmt.Sprintf("%d sidecars have been mute for long and are counted as the mean of the %d that report", k.mute, k.known)
	return v
}

// times multiplies the items.
func (v verdict) times(factor float64) verdict {
	v.items = slices.Clone(v.items)
	for i := range v.items {
		v.items[i].milli = int64(math.Round(float64(v.items[i].milli) * factor))
	}
	return v
}

// doubt lets pods of which nothing is known keep replicas: as if they served as much as those do that have been there all the
// window and are to stay, up to what keeps the replicas as they are. More would be a service whose pods fail at their start and
// are made more and more. filled is what is seen with the mute pods as the mean of all that report, which is too little where some
// of those have just come or are about to go.
func (h *holder) doubt(ctx context.Context, o *offer, k knowledge, seen, filled verdict, p *prepared) (verdict, *refusal) {
	doubtful := k.mute + k.unheard
	if doubtful == 0 || k.missing != "" || !p.additive || o == nil || seen.sum() == 0 {
		return filled, nil
	}
	kept, cannot := h.keep(ctx, o, filled.sum())
	if cannot != nil || kept.enough {
		return filled, nil
	}
	reason := fmt.Sprintf("%d sidecars have not been heard of for long, and may serve as much as the others", doubtful)
	if k.lasting > 0 {
		full := seen.times(float64(k.expected) / float64(k.lasting))
		if full.sum() <= filled.sum() {
			return filled, nil
		}
		if full.sum() < kept.milli {
			full.reason = reason
			return full, nil
		}
	}
	return verdict{items: []item{{milli: kept.milli}}, held: true, reason: "held to keep the replicas: " + reason}, kept.moves
}

// problems are what the askers' authors should know of the pods behind an answer.
func (k knowledge) problems(o *offer) []Problem {
	var ps []Problem
	if p, ok := contestedProblem(o, k.contested); ok {
		ps = append(ps, p)
	}
	if k.mute-k.bare+k.unheard > 0 {
		ps = append(ps, Problem{ReasonMuteSidecars, fmt.Sprintf("metric %s: sidecars of pods that exist have not reported for longer than --hold. A sum counts them as the mean of the others, those that never reported only as far as that keeps replicas. "+
			"Restart the pods that were started before the wiring, and check that all reach meshpulse", o)})
	}
	if k.refusing > 0 {
		ps = append(ps, Problem{ReasonRefusedSamples, fmt.Sprintf("metric %s: samples of its pods have been refused for longer than --hold, and the value stands without them (a sum counts a pod of which nothing is left as the mean of the others). "+
			"meshpulse_store_dropped_samples_total and meshpulse_ingest_dropped_samples_total tell the reason", o)})
	}
	return ps
}
