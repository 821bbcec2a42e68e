package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// targets are the scale subresources of what HPAs scale.
type targets interface {
	scales
	// Now reads a target's, as it is at this moment.
	Now(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error)
	// Update writes what now has returned, with other replicas. It fails with a conflict where the
	// target has been written since.
	Update(ctx context.Context, target autoscalingv2.CrossVersionObjectReference, s *autoscalingv1.Scale) error
}

// Outcomes of a raise: the closed set of the outcome label of
// meshpulse_metricsapi_surge_raises_total.
const (
	raiseDone      = "raised"
	raiseObserved  = "observed"  // surge-action: observe, or standalone
	raiseConflict  = "conflict"  // the target was written by others each time
	raiseForbidden = "forbidden" // no permission
	raiseFailed    = "failed"
	raiseYielded   = "yielded" // somebody has lowered the target in this surge
	raiseStale     = "stale"   // the HPA is gone, or asks for something else than when it was looked at
)

func raiseOutcomes() []string {
	return []string{raiseDone, raiseObserved, raiseConflict, raiseForbidden, raiseFailed, raiseYielded, raiseStale}
}

// errNotFit ends a raise whose reason has been told.
var errNotFit = errors.New("the HPA is not one to raise for")

// staleError ends a raise for an HPA that is not there any more as it was looked at.
type staleError struct{ why string }

func (e *staleError) Error() string { return "the HPA " + e.why }

// raiseAttempts bounds how often a raise is computed: anew after each conflict.
const raiseAttempts = 3

// act reads the target and raises it where the HPA would, once. The HPA's action is busy meanwhile.
func (x *actor) act(ctx context.Context, h acting, st *action, l look) {
	ctx, cancel := context.WithTimeout(ctx, raiseTimeout)
	defer cancel()
	var err error
	for range raiseAttempts {
		if err = x.attempt(ctx, h, st, l); !apierrors.IsConflict(err) {
			break
		}
	}
	if err == nil {
		return
	}
	st.mu.Lock()
	st.leftTill = x.now().Add(max(l.flush, time.Second)) // rows come more often than that
	st.mu.Unlock()
	var stale *staleError
	var denied *cluster.DeniedError
	switch {
	case errors.Is(err, errNotFit):
	case errors.As(err, &stale):
		x.metrics.raises.WithLabelValues(raiseStale).Inc()
		x.log.Info("surge not scaled", "namespace", h.Namespace, "hpa", h.Name, "why", err)
	case errors.As(err, &denied):
		x.metrics.raises.WithLabelValues(raiseForbidden).Inc()
		x.catalog.warn.tell(h.HPA, notActed("meshpulse may not update the scale of %s %s: %s", h.Spec.ScaleTargetRef.Kind, h.Spec.ScaleTargetRef.Name, denied.Remedy()))
	case apierrors.IsConflict(err):
		x.metrics.raises.WithLabelValues(raiseConflict).Inc()
		x.log.Warn("surge not scaled: others write the target", "namespace", h.Namespace, "hpa", h.Name, "err", err)
	case errors.Is(err, context.Canceled): // the process ends
	default:
		x.metrics.raises.WithLabelValues(raiseFailed).Inc()
		x.log.Error("surge not scaled", "namespace", h.Namespace, "hpa", h.Name, "err", err)
	}
}

// observes says whether all is done but the write.
func (x *actor) observes(h acting) bool {
	return x.targets == nil || h.Surge.Action == hpas.SurgeObserve
}

// attempt reads the target and the HPA, computes and writes.
func (x *actor) attempt(ctx context.Context, h acting, st *action, l look) error {
	sc, err := x.read(ctx, h)
	if err != nil {
		return err
	}
	if h, err = x.afresh(ctx, h); err != nil {
		return err
	}
	target := targetOf(sc)
	target, d, left := x.compute(h, st, l, target, x.now())
	switch {
	case left:
		x.metrics.raises.WithLabelValues(raiseYielded).Inc()
		x.catalog.warn.tell(h.HPA, yielded(h))
		x.log.Info("surge left alone: the target was lowered", "namespace", h.Namespace, "hpa", h.Name, "replicas", target.Spec)
		return nil
	case errors.Is(d.Err, horizontal.ErrDisabled):
		x.catalog.warn.tell(h.HPA, notActed("%s %s has 0 replicas, which disables the HPA", h.Spec.ScaleTargetRef.Kind, h.Spec.ScaleTargetRef.Name))
		return nil
	case d.Replicas <= target.Spec:
		return nil
	case !x.observes(h):
		sc.Spec.Replicas = d.Replicas
		if err := x.targets.Update(ctx, h.Spec.ScaleTargetRef, sc); err != nil {
			return err
		}
	}
	x.done(h, st, l, target, d.Replicas)
	if x.tell != nil {
		x.tell(ctx, l.of.prepared.query, h.Namespace, raised{UID: h.Identity(), From: target.Spec, To: d.Replicas, Flush: l.flush, Observed: x.observes(h)})
	}
	return nil
}

// wasTold notes a raise of another replica's as its own.
func (x *actor) wasTold(r raised) {
	x.mu.Lock()
	st := x.states[types.UID(r.UID)]
	x.mu.Unlock()
	if st == nil {
		return
	}
	at := x.now() // who raises tells at once, and does not wait long to be heard
	st.mu.Lock()
	defer st.mu.Unlock()
	st.raised, st.to, st.overtaken = at, r.To, 0
	st.seen = horizontal.Target{Spec: r.To, Status: r.From}
	st.note(at, r.To-r.From)
	if !r.Observed {
		st.agreed.raise(r.From, r.To, at, r.Flush)
	}
}

// read returns the target's scale. Where nobody knows one, the sidecars that report stand in for
// it.
func (x *actor) read(ctx context.Context, h acting) (*autoscalingv1.Scale, error) {
	if x.targets != nil {
		return x.targets.Now(ctx, h.Namespace, h.Spec.ScaleTargetRef)
	}
	n := x.reporting(ctx, h)
	return &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: n}, Status: autoscalingv1.ScaleStatus{Replicas: n}}, nil
}

// afresh is the HPA as the API server has it at this moment: the informer's may be of before it was
// deleted, changed or disabled, and what is raised for such a one nobody takes back. Its limits and
// its behavior may be others; what is acted on may not.
func (x *actor) afresh(ctx context.Context, h acting) (acting, error) {
	if x.fresh == nil {
		return h, nil
	}
	now, err := x.fresh(ctx, h.Namespace, h.Name)
	switch {
	case apierrors.IsNotFound(err):
		return h, &staleError{"is gone"}
	case err != nil:
		return h, fmt.Errorf("the HPA as it is now: %w", err)
	case now.UID != h.UID || !now.DeletionTimestamp.IsZero():
		return h, &staleError{"is gone"}
	case !hpas.SameAnnotations(now.Annotations, h.Annotations) || now.Spec.ScaleTargetRef != h.Spec.ScaleTargetRef || !equality.Semantic.DeepEqual(now.Spec.Metrics, h.Spec.Metrics):
		return h, &staleError{"has changed since it was looked at"}
	}
	a := *h.Wants
	a.HorizontalPodAutoscaler = now
	h.Wants = &a
	problems := cannotAct(h)
	if p := refuses(now); p != nil {
		problems = append(problems, *p)
	}
	for _, p := range problems {
		x.catalog.warn.tell(h.HPA, p)
	}
	if len(problems) > 0 {
		return h, errNotFit
	}
	return h, nil
}

// compute notes how the target was found, and returns what the HPA would ask for now, and whether
// somebody has lowered the target.
func (x *actor) compute(h acting, st *action, l look, target horizontal.Target, at time.Time) (_ horizontal.Target, d horizontal.Decision, left bool) {
	st.mu.Lock()
	defer st.mu.Unlock() // whatever a value's evaluation does
	if x.observes(h) {   // as if the target had been raised, so that each step is told once
		target.Spec, target.Status = max(target.Spec, st.to), max(target.Status, st.to)
	}
	st.seen, st.looked = target, at
	if !st.lowered(target.Spec, at) {
		if d = x.decide(h, st, target, at); x.tooSoon(h, st, l, d, at) {
			d = horizontal.Decision{}
		}
	}
	return target, d, st.yielded
}

// done notes a raise and tells of it.
func (x *actor) done(h acting, st *action, l look, target horizontal.Target, to int32) {
	at := x.now()
	outcome, event, verb, told := raiseDone, hpas.ReasonSurgeScaled, "raised ", "surge scaled"
	if x.observes(h) {
		outcome, event, verb, told = raiseObserved, hpas.ReasonSurgeObserved, "would raise ", "surge observed"
	}
	st.mu.Lock()
	st.raised, st.to, st.overtaken = at, to, 0
	st.seen = horizontal.Target{Spec: to, Status: target.Status}
	st.note(at, to-target.Spec)
	if outcome == raiseDone {
		st.agreed.raise(target.Spec, to, at, l.flush)
		x.metrics.raiseDelay.Observe(at.Sub(l.newest).Seconds())
	}
	st.mu.Unlock()
	x.metrics.raises.WithLabelValues(outcome).Inc()
	x.report(h.HPA, hpas.Problem{Reason: event, Message: verb + describeRaise(h, target.Spec, to, l.of, l.surge)})
	x.log.Info(told, "namespace", h.Namespace, "hpa", h.Name, "from", target.Spec, "to", to, "metric", l.of.String(),
		"rate", l.surge.Rate, "window", l.surge.To.Sub(l.surge.From), "baseline", l.surge.Baseline, "tail", l.surge.Tail, "seconds", at.Sub(l.newest).Seconds())
}

// reporting stands in for the replicas where nobody knows a scale: the sidecars that report.
func (x *actor) reporting(ctx context.Context, h acting) int32 {
	n := 0
	for _, m := range h.metrics {
		if !m.prepared.acquire() {
			continue
		}
		if a, err := m.prepared.query.Eval(ctx, x.now()); err == nil {
			n = max(n, a.Reporting)
		}
		m.prepared.release()
	}
	return int32(n)
}
