package metricsapi

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Acting at a surge: the HPA controller looks once in its sync period, and nothing short of an edit
// of the HPA wakes it. Where an HPA's annotation says so, its target's scale is raised in the
// meantime, to what the HPA would ask for at that instant (package horizontal). The controller
// stays the authority: at its next look it adopts what holds and takes back the rest.
//
// Committed rows mark the queries that they belong to (aggregator.Store.Watch); one goroutine looks
// at the marked ones, and a raise, which has to ask the API server, is a goroutine of its own, one
// at a time for an HPA: one that hangs holds up nobody else's.

// actor raises the targets of HPAs at surges.
type actor struct {
	catalog  *catalog
	rules    *rules
	store    *aggregator.Store
	targets  targets                                                                                           // nil in standalone mode: whatever an annotation says, it observes
	pods     pods                                                                                              // nil in standalone mode
	hpa      func(namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, bool)                       // as the informer has it
	fresh    func(ctx context.Context, namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, error) // as the API server has it now; nil as targets is
	report   func(h hpas.HPA, p hpas.Problem)                                                                  // makes a Normal event
	metrics  *metrics
	log      *slog.Logger
	now      func() time.Time
	leads    func(q *aggregator.Query, namespace string) bool                           // whether this replica acts on it
	tell     func(ctx context.Context, q *aggregator.Query, namespace string, r raised) // others of a raise
	settings horizontal.Settings                                                        // of the HPA controller; its tolerance comes from outside

	raising sync.WaitGroup

	mu     sync.Mutex
	watch  map[*aggregator.Query]bool
	states map[types.UID]*action
}

// surgeActionOn is the option that lets HPAs have their targets raised.
const surgeActionOn = "on"

const (
	// raiseTimeout bounds one raise, its repetitions after conflicts included.
	raiseTimeout = 5 * time.Second
	// afterYielding is how long a target that somebody has lowered in a surge is left alone after
	// the surge.
	afterYielding = 5 * time.Minute
	// longestLook bounds how long after a raise the controller may write what it has computed from
	// a look before it (seen: 2.2 s on a machine under load), and its status tell so.
	longestLook = 5 * time.Second
)

// newActor fills in what does not come from outside.
func newActor(x *actor) *actor {
	x.watch, x.states = map[*aggregator.Query]bool{}, map[types.UID]*action{}
	x.settings.DownscaleStabilization = horizontal.DefaultDownscaleStabilization
	return x
}

// action is what is known of an HPA that is acted on.
type action struct {
	watched time.Time // since when

	mu   sync.Mutex
	busy bool // a raise is in progress
	past horizontal.Past
	// seen is the target at the newest look, at the time looked.
	seen   horizontal.Target
	looked time.Time

	// raised is the time of the newest raise. In this surge the target was raised to `to`, 0 if it
	// was not.
	raised time.Time
	to     int32
	// overtaken is what the controller has written since, going by a look at the target from before
	// the raise; 0 if it has not.
	overtaken int32
	yielded   bool      // somebody lowered it: nothing more in this surge
	leftTill  time.Time // nothing until then: five minutes after such a surge, a flush after an attempt that failed

	agreed agreement
}

// acting is an HPA whose target is raised, or would be.
type acting struct {
	hpaState
	// metrics are those that can surge and may be acted on.
	metrics []actingMetric
}

// actingMetric is one metric of an acting HPA; place is its place in the HPA's spec.
type actingMetric struct {
	*offer
	place int
}

// follow takes the HPAs of a new snapshot, before queries that it no longer holds are closed.
func (x *actor) follow(s *snapshot) {
	x.mu.Lock()
	defer x.mu.Unlock()
	wanted := map[*aggregator.Query]bool{}
	states := map[types.UID]*action{}
	for q, hpas := range s.acting {
		wanted[q] = true
		for _, h := range hpas {
			id := types.UID(h.Identity())
			if states[id] = x.states[id]; states[id] == nil {
				states[id] = &action{watched: x.now()}
			}
		}
	}
	x.states = states
	for q := range x.watch {
		if !wanted[q] {
			x.catalog.wakes.unwatch(q)
		}
	}
	for q := range wanted {
		if !x.watch[q] {
			x.catalog.wakes.watch(q)
		}
	}
	x.watch = wanted
}

// state returns what is known of an acting HPA, nil if it is none.
func (x *actor) state(h hpas.HPA) *action {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.states[types.UID(h.Identity())]
}

// scaled notes a scaling of the controller's own, as its status tells it: it counts against the
// HPA's policies.
func (x *actor) scaled(old, now *autoscalingv2.HorizontalPodAutoscaler) {
	at := now.Status.LastScaleTime
	if at.IsZero() || at.Equal(old.Status.LastScaleTime) {
		return
	}
	st := x.state(hpas.HPA{HorizontalPodAutoscaler: now})
	if st == nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	to, by := now.Status.DesiredReplicas, now.Status.DesiredReplicas-now.Status.CurrentReplicas // current is from before the scaling
	st.note(x.now(), by)
	if by > 0 && to < st.to && x.now().Sub(st.raised) < longestLook {
		st.overtaken = to
	}
}

// lowered says whether the target is below what it was raised to, and ends the action for the surge
// where somebody means it. The controller does not where it has raised the target from what that
// was before our raise: on a conflict it writes all the same. What may be that is left alone until
// its status has told. The action is locked.
func (st *action) lowered(spec int32, at time.Time) bool {
	if st.overtaken > 0 && spec == st.overtaken {
		st.to = spec
	}
	if spec >= st.to {
		return false
	}
	if at.Sub(st.raised) >= longestLook {
		st.yielded, st.agreed = true, agreement{}
	}
	return true
}

// longestPolicy is the longest period that Kubernetes lets a policy look back.
const longestPolicy = 30 * time.Minute

func (st *action) note(at time.Time, by int32) {
	if by <= 0 {
		return
	}
	kept := slices.DeleteFunc(st.past.Changes, func(c horizontal.Change) bool { return at.Sub(c.At) > longestPolicy })
	st.past.Changes = append(kept, horizontal.Change{At: at, By: by})
}

// run looks at what rows have marked until the context ends, and returns when no raise is in
// progress.
func (x *actor) run(ctx context.Context) {
	x.store.Watch(ctx, func(q *aggregator.Query) time.Duration {
		x.catalog.wakes.wake(q)
		return x.evaluate(ctx, q)
	})
	x.raising.Wait()
}

// evaluate looks at one query for all HPAs that act on it. It returns the longest flush interval of
// its pods.
func (x *actor) evaluate(ctx context.Context, q *aggregator.Query) time.Duration {
	hpas := x.catalog.current.Load().acting[q]
	if len(hpas) == 0 {
		return 0
	}
	at := x.now()
	var flush time.Duration
	for _, h := range hpas {
		x.store.Contain("act", h.Key().String(), func() {
			l := x.look(h, at)
			flush = max(flush, l.flush)
			if st := x.state(h.HPA); st != nil {
				x.consider(ctx, h, st, l, at)
			}
		})
	}
	return flush
}

// look is what the rows say of an acting HPA's metrics at an instant.
type look struct {
	// surge is the surge that asks for most, by its rate over its baseline; nil without one.
	surge *aggregator.Surge
	of    *offer // whose it is
	// newest row and longest flush interval of all its metrics.
	newest time.Time
	flush  time.Duration
	ready  bool // the baselines are there
}

func (x *actor) look(h acting, at time.Time) look {
	l := look{ready: true}
	for _, m := range h.metrics {
		if !m.prepared.acquire() { // the HPAs have just changed
			continue
		}
		s := m.prepared.surge.At(at)
		m.prepared.release()
		l.ready = l.ready && s.Ready
		l.flush = max(l.flush, s.Flush)
		if s.Newest.After(l.newest) {
			l.newest = s.Newest
		}
		if s.Active && (l.surge == nil || s.Rate*l.surge.Baseline > l.surge.Rate*s.Baseline) {
			l.surge, l.of = &s, m.offer
		}
	}
	return l
}

// consider begins a raise, or a look at the target, where there is reason for one.
func (x *actor) consider(ctx context.Context, h acting, st *action, l look, at time.Time) {
	if !x.due(ctx, h, st, l, at) {
		return
	}
	x.raising.Go(func() {
		x.store.Contain("act", h.Key().String(), func() { x.act(ctx, h, st, l) })
		st.mu.Lock()
		st.busy = false
		st.mu.Unlock()
	})
}

// due says whether the target has to be read, and raised if that still is more than it has then.
func (x *actor) due(ctx context.Context, h acting, st *action, l look, at time.Time) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case l.surge == nil:
		st.calm(at)
		if !l.ready && x.leadsOn(h) {
			x.adviseHistory(h, st, at)
		}
		return false
	case !x.leadsOn(h):
		return false
	case st.yielded || at.Before(st.leftTill) || st.busy:
		return false
	case at.Sub(st.watched) < watchPeriod(h.HorizontalPodAutoscaler): // raises of before may count against its policies
		return false
	case !l.newest.After(st.raised):
		return false
	}
	if wait := st.raised.Add(l.flush).Sub(at); wait > 0 {
		x.again(ctx, l.of.prepared.query, wait)
		return false
	}
	if at.Sub(st.looked) < l.flush { // the target is known
		if d := x.decide(h, st, st.seen, at); d.Replicas <= st.seen.Spec || x.tooSoon(h, st, l, d, at) {
			return false
		}
	}
	st.busy = true
	return true
}

// leadsOn says whether this replica is the one that raises for an HPA.
func (x *actor) leadsOn(h acting) bool {
	return x.leads == nil || len(h.metrics) == 0 || x.leads(h.metrics[0].prepared.query, h.Namespace)
}

// again marks the query once more, when the next raise may be.
func (x *actor) again(ctx context.Context, q *aggregator.Query, wait time.Duration) {
	time.AfterFunc(wait, func() {
		if ctx.Err() == nil {
			q.Mark()
		}
	})
}

// calm notes that there is no surge.
func (st *action) calm(at time.Time) {
	if st.yielded {
		st.leftTill = at.Add(afterYielding)
	}
	st.yielded, st.to, st.overtaken = false, 0, 0
}

// watchPeriod is how long an HPA has to have been watched: the longest period of its scale-up
// policies.
func watchPeriod(h *autoscalingv2.HorizontalPodAutoscaler) time.Duration {
	if h.Spec.Behavior == nil || h.Spec.Behavior.ScaleUp == nil {
		return 0
	}
	var longest time.Duration
	for _, p := range h.Spec.Behavior.ScaleUp.Policies {
		longest = max(longest, time.Duration(p.PeriodSeconds)*time.Second)
	}
	return longest
}

// decide is what the HPA controller would do now. Metrics that are not acted on are left out; they
// do not stop the others. The values are those that were seen: what pods that do not report are
// reckoned to have raises nothing.
func (x *actor) decide(h acting, st *action, target horizontal.Target, at time.Time) horizontal.Decision {
	readings := make([]horizontal.Reading, len(h.Spec.Metrics))
	for _, m := range h.metrics {
		if !m.prepared.acquire() {
			continue
		}
		v, a, refused := x.rules.see(context.Background(), subjectOf(m.metric, h.Namespace, m.offer), m.prepared, at)
		contested := x.rules.holder.contested(m.prepared.query, a)
		m.prepared.release()
		if refused == nil && len(contested) == 0 {
			readings[m.place] = horizontal.Reading{Milli: v.sum(), Known: true}
		}
	}
	return x.settings.Decide(&h.Spec, target, readings, &st.past, at)
}

// tooSoon says whether a next raise is better left until the pods of the last one have flushed:
// what they serve is not seen yet, so it would fall short, and one after it has to wait for a flush
// interval. Where the HPA's limits are what stops it, or the pods take longer than two flushes, it
// is not. The action is locked.
func (x *actor) tooSoon(h acting, st *action, l look, d horizontal.Decision, at time.Time) bool {
	if st.agreed.to == 0 || at.Sub(st.raised) >= 2*l.flush {
		return false
	}
	if _, flushed := x.newPods(l.of.prepared.query, st.agreed, 1, at); flushed >= st.agreed.to-st.agreed.from {
		return false
	}
	everything := make([]horizontal.Reading, len(h.Spec.Metrics))
	for _, m := range h.metrics {
		everything[m.place] = horizontal.Reading{Milli: math.MaxInt64, Known: true}
	}
	return d.Replicas < x.settings.Decide(&h.Spec, st.seen, everything, &st.past, at).Replicas
}

// describeRaise says what a raise is, or would be.
func describeRaise(h acting, from, to int32, of *offer, s *aggregator.Surge) string {
	ref := h.Spec.ScaleTargetRef
	return fmt.Sprintf("%s %s from %d to %d replicas: metric %s surges to %s/s over %s, %s/s before (tail probability %.1g)",
		ref.Kind, ref.Name, from, to, of, number(s.Rate), s.To.Sub(s.From).Round(time.Millisecond), number(s.Baseline), s.Tail)
}
