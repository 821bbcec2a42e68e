package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// What KEDA asks an external scaler, answered as an HPA is. A ScaledObject that asks here is in the
// catalog as the HPA that KEDA makes of it; a question whose trigger no ScaledObject has costs one
// look into a map, and leaves nothing behind.

// ScalerError is why KEDA gets no answer.
type ScalerError struct{ kind, message string }

// Kinds of a ScalerError.
const (
	ScalerInvalid    = "invalid"    // the trigger's metadata cannot be served
	ScalerUnknown    = "unknown"    // no ScaledObject has the trigger
	ScalerBusy       = "busy"       // too many answers are in the making
	ScalerUnanswered = "unanswered" // what there is to answer is not known now
)

func (e *ScalerError) Error() string { return e.message }

// Kind is one of the constants above.
func (e *ScalerError) Kind() string { return e.kind }

func scalerError(kind, format string, args ...any) *ScalerError {
	return &ScalerError{kind, fmt.Sprintf(format, args...)}
}

// kedasUser is who asks in KEDA's place, for the bound of answers in the making.
const kedasUser = "keda"

// triggered is a trigger that KEDA asks about, as a ScaledObject has it.
type triggered struct {
	trigger hpas.ScaledTrigger
	of      *hpas.Wants
	offer   *offer
}

// trigger finds what KEDA asks about.
func (s *Server) trigger(namespace, name string, metadata map[string]string) (t triggered, err error) {
	snapshot := s.provider.catalog.current.Load()
	if t.of = snapshot.scaled[types.NamespacedName{Namespace: namespace, Name: name}]; t.of == nil {
		if err := errors.Join(s.source.Synced(), s.api.ScaledObjects.Read()); err != nil {
			return t, scalerError(ScalerUnanswered, "%v", err)
		}
		return t, scalerError(ScalerUnknown, "no ScaledObject %s/%s is known with a trigger whose scalerAddress is one of --keda-scaler-addresses (%s)", namespace, name, strings.Join(s.options.ScalerAddresses, ", "))
	}
	all := t.of.Scaled.Triggers
	i := slices.IndexFunc(all, func(t hpas.ScaledTrigger) bool { return t.Is(metadata) })
	if i < 0 {
		return t, scalerError(ScalerUnknown, "ScaledObject %s/%s has no trigger with this metadata, or had it changed a moment ago", namespace, name)
	}
	bad := func(err error) error {
		return scalerError(ScalerInvalid, "trigger %d of ScaledObject %s/%s: %v", all[i].Place, namespace, name, err)
	}
	if t.trigger = all[i]; t.trigger.Err != nil {
		return t, bad(t.trigger.Err)
	}
	t.offer = snapshot.offers[offerKey{namespace, t.trigger.HPAsName(), hpas.Canonical(t.of.Scaled.Selector())}]
	switch {
	case t.offer == nil:
		return t, scalerError(ScalerUnknown, "ScaledObject %s/%s is not served: it, or its namespace, is annotated %s", namespace, name, hpas.Serve)
	case t.offer.prepared.err != nil && !t.offer.prepared.later():
		return t, bad(fmt.Errorf("metadata key %s: %w", hpas.TriggerQuery, t.offer.prepared.err))
	}
	return t, nil
}

// TriggerTarget is the metric's name that a trigger has and what one replica should have of it, by
// its metadata alone: what is known of the metric does not matter. The error is a *ScalerError.
func (s *Server) TriggerTarget(namespace, name string, metadata map[string]string) (metric string, target float64, err error) {
	t, err := s.trigger(namespace, name, metadata)
	if err != nil {
		return "", 0, err
	}
	return t.trigger.Metric, t.trigger.Threshold.AsApproximateFloat64(), nil
}

// TriggerValue is the value of a trigger's metric, as the external metrics API would answer it:
// while what is known is incomplete it keeps the replicas. What is not known is a *ScalerError,
// never 0.
func (s *Server) TriggerValue(ctx context.Context, namespace, name string, metadata map[string]string) (metric string, value float64, err error) {
	t, err := s.trigger(namespace, name, metadata)
	if err != nil {
		return "", 0, err
	}
	said, err := s.sayOf(ctx, t)
	if err != nil {
		return "", 0, err
	}
	return t.trigger.Metric, float64(milliOf(said)) / 1000, nil
}

// TriggerActive says whether a trigger's value is above its activation threshold. It is false only
// where that is known in full: of what is not known the error is a *ScalerError. A value that keeps
// the replicas is active while there are some, since KEDA throws a value away where this is an
// error.
func (s *Server) TriggerActive(ctx context.Context, namespace, name string, metadata map[string]string) (bool, error) {
	t, err := s.trigger(namespace, name, metadata)
	if err != nil {
		return false, err
	}
	said, err := s.sayOf(ctx, t)
	if err != nil {
		return false, err
	}
	return s.activity(ctx, t, said)
}

func (s *Server) activity(ctx context.Context, t triggered, said said) (bool, error) {
	if said.held {
		target, err := s.provider.rules.holder.replicas(ctx, t.of)
		if err == nil && target.Spec > 0 {
			return true, nil
		}
		return false, scalerError(ScalerUnanswered, "it is not known whether it is active: %s", said.incomplete)
	}
	if float64(milliOf(said)) > t.trigger.Activation*1000 {
		return true, nil
	}
	if said.incomplete != "" {
		return false, scalerError(ScalerUnanswered, "it is not known to be inactive: %s", said.incomplete)
	}
	return false, nil
}

// sayOf is what all replicas together say of a trigger's metric.
func (s *Server) sayOf(ctx context.Context, t triggered) (said, error) {
	p := s.provider
	if refused := p.readers.enter(kedasUser); refused != nil {
		p.metrics.answers.WithLabelValues(refused.outcome).Inc()
		return said{}, scalerError(ScalerBusy, "%s", refused.message)
	}
	defer p.readers.leave(kedasUser)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	start := time.Now()
	said := p.sayAll(ctx, t.of.Namespace, t.offer.metric, t.of.Scaled.Selector())
	p.metrics.duration.Observe(time.Since(start).Seconds())
	if said.refused != nil {
		p.metrics.answers.WithLabelValues(said.refused.outcome).Inc()
		return said, scalerError(ScalerUnanswered, "%s", said.refused.message)
	}
	p.metrics.answers.WithLabelValues(outcomeOK).Inc()
	return said, nil
}

// milliOf is what an HPA makes of an answer: the sum of its items.
func milliOf(s said) (sum int64) {
	for _, it := range s.list.Items {
		sum += it.Value.MilliValue()
	}
	return sum
}

// followRows tells who waits for them of rows that have come, where nothing is done at surges.
func (s *Server) followRows(ctx context.Context) {
	s.options.Store.Watch(ctx, func(q *aggregator.Query) time.Duration {
		s.provider.catalog.wakes.wake(q)
		return 0
	})
}

const (
	// followEvery is how often a stream's trigger is looked at without a row that calls for it:
	// rows of pods that another replica keeps do not, and ScaledObjects change.
	followEvery = 5 * time.Second
	// followPause is how long after a look the next one comes at the earliest, whatever rows come.
	followPause = 500 * time.Millisecond
	// activeAgain is how long after it was told that a trigger is active it is told anew.
	activeAgain = 5 * time.Second
)

// FollowTrigger calls active when a trigger becomes active and again while it is, a moment after
// the rows that tell so have come, until the context ends or there is an error: that of active, or
// a *ScalerError where the trigger is no more.
func (s *Server) FollowTrigger(ctx context.Context, namespace, name string, metadata map[string]string, active func() error) error {
	var was bool
	var told time.Time
	return s.follow(ctx, namespace, name, metadata, func(t triggered) error {
		said, err := s.sayOf(ctx, t)
		is := false
		if err == nil && !said.held { // what keeps replicas wakes nobody
			is, err = s.activity(ctx, t, said)
		}
		if err != nil {
			return nil // it is not known now: KEDA polls too, and is told why
		}
		tell := is && (!was || time.Since(told) >= activeAgain)
		if was = is; !tell {
			return nil
		}
		told = time.Now()
		return active()
	})
}

// FollowTarget calls changed with what TriggerTarget says, at once and whenever that changes, until
// the context ends or there is an error: that of changed, or a *ScalerError.
func (s *Server) FollowTarget(ctx context.Context, namespace, name string, metadata map[string]string, changed func(metric string, target float64) error) error {
	var metric string
	var target float64
	return s.follow(ctx, namespace, name, metadata, func(t triggered) error {
		now := t.trigger.Threshold.AsApproximateFloat64()
		if t.trigger.Metric == metric && now == target {
			return nil
		}
		metric, target = t.trigger.Metric, now
		return changed(metric, target)
	})
}

// follow looks at a trigger at once, every followEvery, and when rows of its query have come.
func (s *Server) follow(ctx context.Context, namespace, name string, metadata map[string]string, look func(triggered) error) error {
	wakes := &s.provider.catalog.wakes
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		t, err := s.trigger(namespace, name, metadata)
		if err != nil {
			return err
		}
		woken := make(chan struct{}, 1)
		stop := wakes.add(t.offer.prepared, woken)
		if err = look(t); err == nil {
			err = pause(ctx, followPause)
		}
		if err == nil {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-woken:
			case <-tick.C:
			}
		}
		stop()
		if err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// wakes tells who waits for rows of a query that some have come. The zero value is ready.
type wakes struct {
	mu      sync.Mutex
	waiting map[*aggregator.Query]map[chan struct{}]bool
	watched map[*aggregator.Query]int // by how many
}

// add has a channel told until stop is called, which is called once. A query that is closed already
// tells nothing.
func (w *wakes) add(p *prepared, told chan struct{}) (stop func()) {
	if p.query == nil || !p.acquire() {
		return func() {}
	}
	w.watch(p.query)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = map[*aggregator.Query]map[chan struct{}]bool{}
	}
	if w.waiting[p.query] == nil {
		w.waiting[p.query] = map[chan struct{}]bool{}
	}
	w.waiting[p.query][told] = true
	return func() {
		w.mu.Lock()
		if delete(w.waiting[p.query], told); len(w.waiting[p.query]) == 0 {
			delete(w.waiting, p.query)
		}
		w.mu.Unlock()
		w.unwatch(p.query)
		p.release()
	}
}

// wake tells those who wait for a query's rows.
func (w *wakes) wake(q *aggregator.Query) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for told := range w.waiting[q] {
		select {
		case told <- struct{}{}:
		default:
		}
	}
}

// watch has rows mark a query for one more who asks for it, unwatch for one less.
func (w *wakes) watch(q *aggregator.Query) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watched == nil {
		w.watched = map[*aggregator.Query]int{}
	}
	if w.watched[q]++; w.watched[q] == 1 {
		q.Watch(true)
	}
}

func (w *wakes) unwatch(q *aggregator.Query) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watched[q]--; w.watched[q] == 0 {
		delete(w.watched, q)
		q.Watch(false)
	}
}
