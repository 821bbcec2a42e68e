package metricsapi

import (
	"context"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// After a raise the answer agrees with it: the new pods have not flushed yet, what is seen dips,
// and an HPA that looks at that moment would take the raise back. Then it lets go, and the HPA
// adopts what still holds.

// agreement is what the answers for an HPA have to ask for.
type agreement struct {
	from, to int32 // to 0: nothing
	// since is the time of the first raise that has not been let go, until when all of them are.
	since, until time.Time
	flush        time.Duration
}

// A raise is let go when its pods have two rows each, after longestAgreement or flushesAgreed
// flushes at the latest (whichever is longer: with a flush of a minute no pod has two rows after
// half of one).
const (
	longestAgreement = 30 * time.Second
	flushesAgreed    = 4
)

// recently is how old a scale that was read lately may be.
const recently = time.Second

// raise notes a raise.
func (g *agreement) raise(from, to int32, at time.Time, flush time.Duration) {
	if g.to == 0 || !at.Before(g.until) {
		g.from, g.since = from, at
	}
	g.to, g.until, g.flush = to, at.Add(max(longestAgreement, flushesAgreed*flush)), flush
}

// agree returns the verdict, or what keeps an HPA's replicas as they were raised where it asks for
// less. There is no answer while the controller would take the raise back all the same: with most
// of its pods there, those are within its tolerance.
func (x *actor) agree(ctx context.Context, o *offer, v verdict, at time.Time) (verdict, *refusal) {
	if x == nil || o == nil || !o.canBeActedOn() {
		return v, nil
	}
	for _, a := range o.askers {
		st := x.state(a.HPA)
		if st == nil {
			continue
		}
		to, target := x.agreed(ctx, a, st, o.prepared.query, at)
		for _, w := range a.Metrics {
			goal := o.goalOf(w)
			if goal == nil || to == 0 || w.Target.Type == autoscalingv2.ValueMetricType { // that asks for a multiple of the replicas, whatever they are
				continue
			}
			if milli := goal.MilliValue(); milli <= math.MaxInt64/int64(to) && v.sum() < milli*int64(to) {
				v.items, v.surge = []item{{milli: milli * int64(to)}}, nil
				v.rule, v.reason = explain.RuleRaised, fmt.Sprintf("raised to %d replicas at a surge: kept until the new pods have reported twice", to)
			}
			if x.settings.Asks(a.Spec.Behavior, *goal, target, v.sum()) < to {
				return v, refuse(outcomeHeld, "%s: raised to %d replicas at a surge, and only without an answer does HPA %s keep them: its target has %d pods now, which the controller would ask for, since they are within its tolerance", o, to, a.Name, target.Status)
			}
		}
	}
	return v, nil
}

// agreed is how many replicas are to be kept, 0 for none, and what the target has, as far as that
// can be read. Nobody who has lowered it since is contradicted.
func (x *actor) agreed(ctx context.Context, a *hpas.Wants, st *action, q *aggregator.Query, at time.Time) (int32, horizontal.Target) {
	st.mu.Lock()
	g, raised := st.agreed, st.raised
	st.mu.Unlock()
	if g.to == 0 {
		return 0, horizontal.Target{}
	}
	target, over := horizontal.Target{Spec: g.to, Status: g.to}, !at.Before(g.until) || x.haveReported(q, g, at)
	if !over {
		now, err := x.targets.Recent(ctx, a.Namespace, a.Spec.ScaleTargetRef)
		if err == nil && (now.Spec.Replicas >= g.to || at.Sub(raised) >= recently) { // else it may be from before another replica's raise
			target = targetOf(now)
		}
		over = target.Spec < g.to
	}
	if !over {
		return g.to, target
	}
	st.mu.Lock()
	if st.agreed == g { // else there has been another raise
		st.agreed = agreement{}
	}
	st.mu.Unlock()
	return 0, target
}

// haveReported says whether as many pods as were added since are there, and each has two rows. Pods
// are known by their metadata, which does not tell whether they are ready: one that starts slowly
// is waited for, until the agreement ends by itself.
func (x *actor) haveReported(q *aggregator.Query, g agreement, at time.Time) bool {
	all, reported := x.newPods(q, g, 2, at)
	return all == reported && reported >= g.to-g.from
}

// newPods counts the pods that came since, and those of them that have so many rows.
func (x *actor) newPods(q *aggregator.Query, g agreement, rows int, at time.Time) (all, reported int32) {
	if x.pods == nil || !q.NamesPods() {
		return 0, 0
	}
	x.pods.Each(q.Meant(), at, func(p *cluster.Pod) {
		if !p.Left.IsZero() || !p.Wired || p.Created.Before(g.since.Truncate(time.Second)) || !q.Selects(&p.Identity) { // created is in seconds
			return
		}
		s := x.store.Pod(p.Identity.Namespace, p.Identity.Name, at, 0)
		all++
		if rows == 1 && s.Single || s.Newest.Sub(s.Oldest) > time.Duration(rows)*g.flush-g.flush/2 { // Oldest is one flush before the first
			reported++
		}
	})
	return all, reported
}
