package metricsapi

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/metrics/pkg/apis/external_metrics"
	adapter "sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Labels that each item of an answer carries beside its series' own. No label of Istio's starts
// with meshpulse_, and a query that makes one up loses it.
const (
	labelCoverage = "meshpulse_coverage" // reporting/expected sidecars: 3/3
	labelWindow   = "meshpulse_window"   // how much of the window is known, while it is not all: 23s/1m0s
	labelReason   = "meshpulse_reason"   // why the value is not simply the expression's
	labelSurge    = "meshpulse_surge"    // the surge whose value it is: 60/s over 5s to 12:00:05Z, 2/s before
)

// provider is where a request of the external metrics API comes in and the number goes out.
type provider struct {
	catalog *catalog
	rules   rules
	metrics *metrics
	readers *readers
	history *history // of what was answered; nil remembers nothing
	now     func() time.Time
	// replicas are nil where this is the only one.
	replicas Replicas
	custom   *customProvider // nil where the custom metrics API is not served
	// show is what this replica has to be shown; set where there are replicas.
	show func(context.Context, view) reply
	// theirs are the other adapter's metrics; nil where there is none.
	theirs *theirs
}

var _ adapter.ExternalMetricsProvider = (*provider)(nil)

// ListAllExternalMetrics names the metrics that an HPA asks for now, and those of the adapter that
// has the rest: the discovery document.
func (p *provider) ListAllExternalMetrics() []adapter.ExternalMetricInfo {
	names := p.catalog.current.Load().metrics
	if p.theirs != nil {
		names = slices.Concat(names, p.theirs.external())
		slices.Sort(names)
		names = slices.Compact(names)
	}
	infos := make([]adapter.ExternalMetricInfo, len(names))
	for i, name := range names {
		infos[i].Metric = name
	}
	return infos
}

// GetExternalMetric answers a request, or says in an API status why there is no answer.
func (p *provider) GetExternalMetric(ctx context.Context, namespace string, selector labels.Selector, info adapter.ExternalMetricInfo) (*external_metrics.ExternalMetricValueList, error) {
	leave, refused := p.enter(ctx)
	if refused != nil {
		return nil, toStatus(refused)
	}
	defer leave()
	start := time.Now()
	list, refused := p.get(ctx, namespace, info.Metric, selector)
	p.metrics.duration.Observe(time.Since(start).Seconds())
	if refused != nil {
		p.metrics.answers.WithLabelValues(refused.outcome).Inc()
		return nil, toStatus(refused)
	}
	p.metrics.answers.WithLabelValues(outcomeOK).Inc()
	return list, nil
}

// enter takes a place of whoever asks, which leave gives back, or refuses.
func (p *provider) enter(ctx context.Context) (leave func(), refused *refusal) {
	user := userOf(ctx)
	if refused = p.readers.enter(user); refused != nil {
		p.metrics.answers.WithLabelValues(refused.outcome).Inc()
	}
	return func() { p.readers.leave(user) }, refused
}

// Flagger's externalmetrics provider takes a metrics API for healthy that answers for this metric
// without an error (IsOnline), and reads no value. Nobody scales by it.
const (
	flaggerNamespace = metav1.NamespaceSystem
	flaggerMetric    = "dummy-metric"
)

// say is what this replica knows of a request.
func (p *provider) say(ctx context.Context, namespace, metric string, selector labels.Selector) said {
	query, offer, refused := p.catalog.find(namespace, metric, selector)
	if refused != nil && refused.outcome == outcomeUnknown && namespace == flaggerNamespace && metric == flaggerMetric {
		return said{list: &external_metrics.ExternalMetricValueList{Items: []external_metrics.ExternalMetricValue{}}}
	}
	if refused != nil {
		return notFound(refused)
	}
	defer query.release()
	verdict, answer, refused := p.answer(ctx, metric, namespace, offer, query, p.now())
	incomplete := p.rules.incomplete(verdict, answer, refused)
	if refused != nil {
		return said{refused: refused, incomplete: incomplete}
	}
	list := &external_metrics.ExternalMetricValueList{}
	for _, it := range verdict.items {
		list.Items = append(list.Items, toValue(metric, selector, it, verdict, answer))
	}
	return said{list: list, incomplete: incomplete, held: verdict.held}
}

// answer evaluates a query for whoever asks, and tells the HPAs that do what they should know.
func (p *provider) answer(ctx context.Context, metric, namespace string, o *offer, query *prepared, at time.Time) (verdict, aggregator.Answer, *refusal) {
	rules, acc := p.rules, &account{}
	rules.account = acc
	v, answer, refused := rules.evaluate(ctx, subjectOf(metric, namespace, o), o, query, at)
	p.history.note(o, acc, v, answer, refused, at)
	for _, problem := range v.problems {
		p.tell(o, problem)
	}
	if refused != nil {
		return v, answer, refused
	}
	if v.held {
		p.metrics.held.Inc()
	}
	if v.surge != nil {
		p.metrics.surged.Inc()
	}
	if o != nil && len(v.items) > 1 {
		p.tell(o, severalSeries(o))
	}
	if !answer.Newest.IsZero() {
		p.metrics.age.Observe(at.Sub(answer.Newest).Seconds())
	}
	return v, answer, nil
}

func subjectOf(metric, namespace string, o *offer) string {
	if o != nil {
		metric = o.String()
	}
	return fmt.Sprintf("metric %s in namespace %s", metric, namespace)
}

// see asks the store and judges what it says, a surge included, whatever pods there should be.
func (r rules) see(ctx context.Context, subject string, p *prepared, at time.Time) (verdict, aggregator.Answer, *refusal) {
	if p.err != nil {
		return verdict{}, aggregator.Answer{}, refuse(outcomeBadQuery, "%s: %v", subject, p.err)
	}
	answer, err := p.query.Eval(ctx, at)
	if err != nil {
		return verdict{}, answer, refuse(outcomeFailed, "%s: %v", subject, err)
	}
	v, refused := r.judge(subject, p, answer, at)
	r.account.saw(v, refused)
	if earlier, ok := r.beforeTheGap(ctx, subject, p, answer, at); ok && refused == nil && earlier.sum() > v.sum() {
		v.items, v.rule, v.reason = earlier.items, explain.RuleEarlier, "as of the newest time that every sidecar has covered"
	}
	if p.surge != nil && refused == nil {
		v = v.raise(p.surge.At(at))
	}
	v.expected = answer.Reporting + answer.Silent
	return v, answer, refused
}

// evaluate is what is seen, compared with the pods that exist and with what was raised. offer is
// nil where no HPA asks.
func (r rules) evaluate(ctx context.Context, subject string, o *offer, p *prepared, at time.Time) (verdict, aggregator.Answer, *refusal) {
	v, answer, refused := r.see(ctx, subject, p, at)
	if refused != nil && (refused.outcome == outcomeBadQuery || refused.outcome == outcomeFailed) {
		if o != nil && p.query != nil && p.query.TooMuch() {
			v.problems = append(v.problems, hpas.Problemf(hpas.ReasonTooMuch, "metric %s gets no value: its query took more samples or time than one may, and is refused for two minutes: %v", o, aggregator.ErrTooMuch))
		}
		return v, answer, refused
	}
	var remarks []hpas.Problem
	if o != nil {
		remarks = r.remarks(o, p, answer)
		if answer.Beyond != "" {
			remarks = append(remarks, readsBeyond(o, p.firstBeyond(answer.Beyond)))
		}
		if name, why := p.query.Refused(at); name != "" {
			remarks = append(remarks, refusedProblem(o, name, why))
		}
	}
	if r.holder == nil {
		v.problems = remarks
		return r.alone(subject, o, p, v, answer, refused)
	}
	namespace := ""
	if o != nil {
		namespace = o.namespace
	}
	k := r.holder.look(p, namespace, answer, at)
	r.account.knew(k)
	if refused == nil && answer.Matched == 0 && p.Selects() && k.unknown+k.mute+k.unheard > 0 && k.missing == "" {
		refused = refuse(outcomeNoSidecar, "%s: no series yet, and not every pod that could have one reports, so it is not known to be 0: %s", subject, p.Text)
	}
	if refused == nil && k.known == 0 && answer.Reporting > 0 {
		refused = refuse(outcomeNoValue, "%s: all that the sidecars that report could have sent of it was refused (meshpulse_store_dropped_samples_total tells the reason): %s", subject, p.Text)
	}
	if refused == nil {
		v = r.beforeTheMove(ctx, subject, p, answer, k, v, at)
		v, refused = r.holder.estimate(ctx, o, k, v, p, answer, at)
	}
	v, refused = r.holder.apply(ctx, o, subject, k, v, refused)
	v.expected, v.missing = k.expected, k.missing
	if o != nil {
		v.problems = append(k.problems(o), remarks...)
		if name := p.query.Foreign(at); name != "" {
			v.problems = append(v.problems, foreignProblem(o, name))
		}
	}
	if refused == nil {
		v, refused = r.actor.agree(ctx, o, v, at)
	}
	return v, answer, refused
}

// alone is what evaluate says in standalone mode, where nobody knows which pods and replicas there
// are: what is seen, unless it may be somebody else's.
func (r rules) alone(subject string, o *offer, p *prepared, v verdict, a aggregator.Answer, refused *refusal) (verdict, aggregator.Answer, *refusal) {
	pods := r.holder.contested(p.query, a)
	if len(pods) == 0 || refused != nil {
		return v, a, refused
	}
	if problem, ok := contestedProblem(o, pods); ok && o != nil {
		v.problems = append(v.problems, problem)
	}
	return v, a, refuse(outcomeHeld, "%s: 1 or more sidecars %s (%s): %s", subject, flawTexts[flawRival], describeContest(pods[0]), p.Text)
}

// lateFlushes is how many flush intervals the newest row of a pod may be old before its silence
// begins to pull a rate down: a [1m] rate is 0.94 of the truth with a newest row 6 s old, 0.875 at
// 10 s.
const lateFlushes = 1.1

// beforeTheGap is the verdict at the newest time that every reporting sidecar has covered, where
// one of them is late.
func (r rules) beforeTheGap(ctx context.Context, subject string, p *prepared, a aggregator.Answer, at time.Time) (verdict, bool) {
	covered := r.coveredByAll(a, at)
	if a.Reporting == 0 || at.Sub(covered).Seconds() <= lateFlushes*a.Flush.Seconds() {
		return verdict{}, false
	}
	return r.asOf(ctx, subject, p, covered)
}

// lostFlushes is how many flush intervals a sidecar's newest row may be old before it is not waited
// for any more where nobody knows the pods: one that loses the flush that is in flight at a replica
// that dies, and the next, which finds its connection dead, is silent for 15 s.
const lostFlushes = 4

// coveredByAll is the newest time that every sidecar has covered that reports, or, where nobody
// knows which pods there are, may just have lost its flushes. Where they are known the answer is
// held for a silent one.
func (r rules) coveredByAll(a aggregator.Answer, at time.Time) time.Time {
	covered := a.Watermark
	if r.holder != nil {
		return covered
	}
	for _, s := range a.Partial {
		if !s.Reporting && s.Newest.Before(covered) && at.Sub(s.Newest) <= lostFlushes*a.Flush {
			covered = s.Newest
		}
	}
	return covered
}

// beforeTheMove is the larger of what is seen and what was at the newest time that every sidecar
// has covered, where pods have come or left: at a flush of 10 s, those that load has left tell so
// up to 10 s before those that it has gone to.
func (r rules) beforeTheMove(ctx context.Context, subject string, p *prepared, a aggregator.Answer, k knowledge, seen verdict, at time.Time) verdict {
	if !k.moved || a.Reporting == 0 || !a.Watermark.Before(at) {
		return seen
	}
	if earlier, ok := r.asOf(ctx, subject, p, a.Watermark); ok && earlier.sum() > seen.sum() {
		seen.items, seen.surge, seen.rule, seen.reason = earlier.items, nil, explain.RuleEarlier, "as of the newest time that every sidecar has covered"
	}
	return seen
}

// asOf is the verdict at an earlier time.
func (r rules) asOf(ctx context.Context, subject string, p *prepared, at time.Time) (verdict, bool) {
	earlier, err := p.query.Eval(ctx, at)
	if err != nil {
		return verdict{}, false
	}
	v, refused := r.judge(subject, p, earlier, at)
	return v, refused == nil
}

// sum is what an HPA makes of the items.
func (v verdict) sum() int64 {
	sum := int64(0)
	for _, it := range v.items {
		sum += it.milli
	}
	return sum
}

// tell gives everyone who asks for the offer a Warning event.
func (p *provider) tell(o *offer, problem hpas.Problem) {
	for _, a := range o.askers {
		p.catalog.warn.tell(a.HPA, problem)
	}
}

func severalSeries(o *offer) hpas.Problem {
	return hpas.Problemf(hpas.ReasonSeveralSeries, "metric %s: the query gives several series, and the HPA adds them up (kube-metrics-adapter took the first). If that is not meant, aggregate in the query: sum(…)", o)
}

// toValue is an item in the API's form. Its time is that of the newest sample, unset where none
// went in; never that of the call.
func toValue(metric string, selector labels.Selector, it item, v verdict, a aggregator.Answer) external_metrics.ExternalMetricValue {
	shown := map[string]string(hpas.Demanded(selector))
	maps.Copy(shown, it.labels)
	shown[labelCoverage] = strconv.Itoa(a.Reporting) + "/" + strconv.Itoa(v.expected)
	if a.Covered < a.Window {
		shown[labelWindow] = a.Covered.Round(time.Second).String() + "/" + a.Window.String()
	}
	if v.reason != "" {
		shown[labelReason] = v.reason
	}
	if v.surge != nil {
		shown[labelSurge] = describeSurge(v.surge)
	}
	value := external_metrics.ExternalMetricValue{
		MetricName:   metric,
		MetricLabels: shown,
		Value:        *resource.NewMilliQuantity(it.milli, resource.DecimalSI),
	}
	if !a.Newest.IsZero() {
		value.Timestamp = metav1.NewTime(a.Newest)
	}
	if a.Window > 0 {
		seconds := int64(math.Ceil(a.Window.Seconds()))
		value.WindowSeconds = &seconds
	}
	return value
}

// toStatus is a refusal in the API's form.
func toStatus(r *refusal) error {
	status := metav1.Status{Status: metav1.StatusFailure, Message: r.message}
	switch r.outcome {
	case outcomeTooMany:
		return apierrors.NewTooManyRequests(r.message, 1)
	case outcomeUnknown:
		status.Code, status.Reason = http.StatusNotFound, metav1.StatusReasonNotFound
	case outcomeBadSelector, outcomeBadQuery:
		status.Code, status.Reason = http.StatusBadRequest, metav1.StatusReasonBadRequest
	default:
		status.Code, status.Reason = http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable
	}
	return &apierrors.StatusError{ErrStatus: status}
}
