package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
	"github.com/meshpulse/meshpulse/metricsapi/shadow"
)

// What became of a metric's turn to be compared.
const (
	shadowAgreed        = "agreed"
	shadowDiffered      = "differed"
	shadowOursMissing   = "ours_missing"
	shadowTheirsMissing = "theirs_missing"
	shadowBothMissing   = "both_missing"
	shadowNoAnswer      = "no_answer"
	shadowNotSent       = "not_sent"
	shadowIncomplete    = "incomplete"
)

func shadowOutcomes() []string {
	return []string{shadowAgreed, shadowDiffered, shadowOursMissing, shadowTheirsMissing, shadowBothMissing, shadowNoAnswer, shadowNotSent, shadowIncomplete}
}

// shadowSource is what is compared with: a Prometheus, or another adapter.
type shadowSource interface {
	// run keeps what is needed to ask until the context ends.
	run(ctx context.Context)
	// begin is told of each round.
	begin(ctx context.Context)
	// knows says whether a metric of its kind can be asked for there.
	knows(w hpas.Metric) bool
	// accepts says whether an HPA of a namespace may know what is said of an expression there.
	accepts(p *prepared, namespace string) bool
	// read asks for an HPA's metric. The error is [shadow.ErrNoValue], or that there is no answer.
	read(ctx context.Context, h hpas.HPA, w hpas.Metric, o *offer, at time.Time) (shadow.Reading, error)
}

// shadowing asks another what is answered here and remembers how far both are apart. Nothing goes
// by it. A nil one remembers nothing.
type shadowing struct {
	*Server
	to      shadowSource
	flag    string // which names it
	every   time.Duration
	records shadow.Records[shadowKey]
	mu      sync.Mutex // of scaled
	scaled  *scaledObjects
	log     *slog.Logger

	compared  *prometheus.CounterVec // by outcome
	decisions prometheus.Counter
	failing   sync.Once // the first failure is logged, all are counted
}

// shadowKey is an HPA's metric as long as it asks for the same.
type shadowKey struct {
	historyKey
	expr string
}

func shadowKeyOf(h hpas.HPA, w hpas.Metric) shadowKey {
	return shadowKey{historyKey{h.Identity(), w.Place}, w.Expr}
}

// shadowAtOnce is how many questions are out at once.
const shadowAtOnce = 4

// addShadow makes what compares, where it is asked for.
func (s *Server) addShadow(o Options) error {
	x := &shadowing{Server: s, every: o.ShadowInterval, log: o.Log, scaled: newScaledObjects(s.provider.catalog)}
	var err error
	switch {
	case o.Shadow != "":
		x.flag = "--shadow"
		x.to, err = newAdapterShadow(o, s.api)
	case o.ShadowPrometheus != "":
		x.flag = "--shadow-prometheus"
		x.to, err = newPrometheusShadow(o, s.provider.rules.words)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", x.flag, err)
	}
	f := promauto.With(o.Registerer)
	x.compared = f.NewCounterVec(prometheus.CounterOpts{
		Name: "meshpulse_shadow_comparisons_total",
		Help: "Comparisons of an HPA's metric with what the other of --shadow or --shadow-prometheus says, by what became of them.",
	}, []string{"outcome"})
	for _, outcome := range shadowOutcomes() {
		x.compared.WithLabelValues(outcome)
	}
	x.decisions = f.NewCounter(prometheus.CounterOpts{
		Name: "meshpulse_shadow_decisions_differed_total",
		Help: "Comparisons by which the HPA would have asked for other replicas than by the answer here.",
	})
	if s.api != nil {
		s.api.ScaledObjects.Replace = x.take
	}
	s.shadow = x
	return nil
}

// run compares every metric again and again until the context ends. A round that takes longer than
// the interval delays the next.
func (x *shadowing) run(ctx context.Context) {
	var keeping sync.WaitGroup
	keeping.Go(func() { x.to.run(ctx) })
	defer x.scaled.Close()
	defer keeping.Wait()
	tick := time.NewTicker(x.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			x.round(ctx)
		}
	}
}

// round compares each metric once, so many at once.
func (x *shadowing) round(ctx context.Context) {
	x.to.begin(ctx)
	known := map[shadowKey]bool{}
	var all errgroup.Group
	all.SetLimit(shadowAtOnce)
	for _, c := range x.all() {
		if ctx.Err() != nil {
			break
		}
		known[shadowKeyOf(c.h, c.w)] = true
		all.Go(func() error {
			x.compare(ctx, c.h, c.w, c.o)
			return nil
		})
	}
	_ = all.Wait()
	x.records.Keep(func(key shadowKey) bool { return known[key] })
}

// compare asks both for one metric, and counts what becomes of it.
func (x *shadowing) compare(ctx context.Context, h hpas.HPA, w hpas.Metric, o *offer) {
	if !o.prepared.acquire() {
		return
	}
	defer o.prepared.release()
	if !x.to.accepts(o.prepared, h.Namespace) {
		x.compared.WithLabelValues(shadowNotSent).Inc()
		return
	}
	at := x.provider.now()
	ours := x.ours(ctx, h, o, at)
	if refused := ours.refused; x.provider.replicas != nil && x.provider.rules.incomplete(ours.v, ours.a, refused) != "" {
		x.compared.WithLabelValues(shadowIncomplete).Inc()
		return
	}
	theirs, err := x.to.read(ctx, h, w, o, at)
	if ctx.Err() != nil {
		return
	}
	if err != nil && !errors.Is(err, shadow.ErrNoValue) {
		x.compared.WithLabelValues(shadowNoAnswer).Inc()
		x.failing.Do(func() { x.log.Warn("what is compared with gives no answer", "flag", x.flag, "error", err) })
		return
	}
	c := shadow.Comparison{At: at}
	if ours.refused == nil {
		c.Ours = new(float64(ours.v.sum()) / 1000)
	}
	if !ours.a.Newest.IsZero() {
		c.OursAge = new(at.Sub(ours.a.Newest))
	}
	if err == nil {
		c.Theirs, c.TheirsAge = &theirs.Value, theirs.Age
	}
	x.asks(&c, h, w, ours.a)
	if d, ok := c.Difference(); ok && (d > shadow.Agrees || c.OursAsks != c.TheirsAsks) {
		c.Reason = x.reason(ctx, c, ours, o)
	}
	x.count(c)
	x.records.Add(shadowKeyOf(h, w), c)
}

// shadowed is what is answered here.
type shadowed struct {
	v       verdict
	a       aggregator.Answer
	refused *refusal
	subject string
}

func (x *shadowing) ours(ctx context.Context, h hpas.HPA, o *offer, at time.Time) shadowed {
	r := x.provider.rules
	r.account = &account{}
	subject := subjectOf(o.metric, h.Namespace, o)
	v, a, refused := r.evaluate(ctx, subject, o, o.prepared, at)
	return shadowed{v, a, refused, subject}
}

// asks tells the replicas that both would ask for, by the controller's own arithmetic, within the
// HPA's limits.
func (x *shadowing) asks(c *shadow.Comparison, h hpas.HPA, w hpas.Metric, a aggregator.Answer) {
	goal := w.Goal()
	if c.Ours == nil || c.Theirs == nil || goal == nil || goal.Sign() <= 0 {
		return
	}
	n := int32(a.Reporting)
	if now, known := x.source.Known(h.Namespace, h.Name); known {
		n = now.Status.CurrentReplicas
	}
	target := horizontal.Target{Spec: n, Status: n, Pods: n, Ready: n}
	ask := func(v float64) int32 {
		if w.PerReplica { // which the controller multiplies by again
			v /= float64(max(n, 1))
		}
		asked := x.settings().Ask(h.Spec.Behavior, w.Target, target, int64(math.Round(min(v, 1e15)*1000)))
		return h.WithinLimits(asked.Replicas)
	}
	c.OursAsks, c.TheirsAsks = ask(*c.Ours), ask(*c.Theirs)
}

// reason is why both are likely apart.
func (x *shadowing) reason(ctx context.Context, c shadow.Comparison, ours shadowed, o *offer) shadow.Reason {
	switch ours.v.rule {
	case "", explain.RuleSeen, explain.RuleMore, explain.RuleIdle:
	default:
		return shadow.ReasonRule
	}
	if ours.a.Covered < ours.a.Window {
		return shadow.ReasonWindow
	}
	apart := math.Abs(*c.Ours - *c.Theirs)
	if c.TheirsAge != nil {
		then, ok := x.provider.rules.asOf(ctx, ours.subject, o.prepared, c.At.Add(-*c.TheirsAge))
		if ok && math.Abs(float64(then.sum())/1000-*c.Theirs) <= apart/2 {
			return shadow.ReasonStale
		}
	}
	const near = 0.1 // of twice as much
	smaller, larger := min(*c.Ours, *c.Theirs), max(*c.Ours, *c.Theirs)
	if !o.prepared.OneReporter() && smaller > 0 && math.Abs(larger/smaller-2) <= 2*near {
		return shadow.ReasonReporter
	}
	if *c.Theirs < *c.Ours {
		for _, r := range o.prepared.query.Reports(c.At) {
			if stateOf(r.PodState, since(ours.a, c.At)) == explain.StateYoung {
				return shadow.ReasonFirst
			}
		}
	}
	return shadow.ReasonUnknown
}

func (x *shadowing) count(c shadow.Comparison) {
	outcome := shadowBothMissing
	switch d, both := c.Difference(); {
	case both && d <= shadow.Agrees:
		outcome = shadowAgreed
	case both:
		outcome = shadowDiffered
	case c.Ours != nil:
		outcome = shadowTheirsMissing
	case c.Theirs != nil:
		outcome = shadowOursMissing
	}
	x.compared.WithLabelValues(outcome).Inc()
	if c.OursAsks != c.TheirsAsks {
		x.decisions.Inc()
	}
}

// of is what is remembered of an HPA's metric, nil where nothing is.
func (x *shadowing) of(h hpas.HPA, w hpas.Metric) *explain.Shadow {
	if x == nil {
		return nil
	}
	s, ok := x.records.Summary(shadowKeyOf(h, w))
	if !ok {
		return nil
	}
	told := &explain.Shadow{
		Compared: s.Compared, Agreed: s.Agreed, Decisions: s.Decisions, OursMissing: s.OursMissing, TheirsMissing: s.TheirsMissing,
		Newest: *toComparison(s.Newest),
	}
	if s.Compared > 0 {
		told.Largest = toComparison(s.Largest)
	}
	return told
}

func toComparison(c shadow.Comparison) *explain.Comparison {
	told := &explain.Comparison{At: c.At.UTC(), Here: c.Ours, There: c.Theirs, HereAsks: c.OursAsks, ThereAsks: c.TheirsAsks, Reason: string(c.Reason)}
	if c.OursAge != nil {
		told.HereAgeSeconds = new(c.OursAge.Seconds())
	}
	if c.TheirsAge != nil {
		told.ThereAgeSeconds = new(c.TheirsAge.Seconds())
	}
	return told
}
