package metricsapi

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Outcomes of a request: the closed set of the outcome label of meshpulse_metricsapi_answers_total.
const (
	outcomeOK          = "ok"
	outcomeUnknown     = "unknown_metric" // no HPA says how to compute it
	outcomeBadSelector = "bad_selector"
	outcomeBadQuery    = "bad_query"    // the store refuses the expression
	outcomeFailed      = "failed"       // the store could not evaluate it
	outcomeNoSidecar   = "no_sidecar"   // no series, and no sidecar that could have one
	outcomeHeld        = "held"         // incomplete, and what keeps the replicas cannot be told
	outcomeNoValue     = "no_value"     // series, but no value of the expression
	outcomeNaN         = "not_a_number" // 0/0
	outcomeInfinite    = "infinite"
	outcomeNegative    = "negative"
	outcomeOverflow    = "overflow"
	outcomeTooMany     = "too_many" // the user waits for as many answers as it may
)

// outcomeElsewhere is that of what another adapter has, which is counted by itself
// (passedOutcomes).
const outcomeElsewhere = "elsewhere"

// outcomes are all of them.
func outcomes() []string {
	return []string{
		outcomeOK, outcomeUnknown, outcomeBadSelector, outcomeBadQuery, outcomeFailed, outcomeNoSidecar, outcomeHeld,
		outcomeNoValue, outcomeNaN, outcomeInfinite, outcomeNegative, outcomeOverflow, outcomeTooMany,
	}
}

// refusal is an answer that is not given, and why. A refused metric makes an HPA hold its replicas;
// a wrong number would move them.
type refusal struct {
	outcome string
	message string
}

func (r *refusal) Error() string { return r.message }

// ofValues says whether it is what is known of the query that is no answer, whoever is asked.
func (r *refusal) ofValues() bool {
	return slices.Contains([]string{outcomeNoValue, outcomeNaN, outcomeInfinite, outcomeNegative, outcomeOverflow}, r.outcome)
}

func refuse(outcome, format string, args ...any) *refusal {
	return &refusal{outcome: outcome, message: fmt.Sprintf(format, args...)}
}

// rules are what an answer may be.
type rules struct {
	// words are what sidecars can send.
	words hpas.Vocabulary
	// retention is how long a workload must have stood still for its latency to be 0.
	retention time.Duration
	// started is when the store began to listen.
	started time.Time
	// holder compares an answer with the pods that exist; nil in standalone mode, where nobody
	// knows them.
	holder *holder
	// actor raises targets at surges; nil where that is off.
	actor *actor
	// account is told how an answer comes about; nil where nobody asks.
	account *account
}

// item is one series of an answer in the API's precision.
type item struct {
	labels map[string]string
	milli  int64
}

// verdict is an answer that may be given.
type verdict struct {
	items []item
	// reason explains a value that is not simply the expression's, "" otherwise.
	reason string
	// rule is how it follows from what is seen, "" where it is that.
	rule explain.Rule
	// held: the items are what keeps the replicas, or those of them that unheard pods may need, not
	// what was seen.
	held bool
	// surge is the surge whose rate the value is, nil if it is not a surge's.
	surge *aggregator.Surge
	// problems are what the authors of the HPAs that ask should know.
	problems []hpas.Problem
	// expected is how many sidecars should report.
	expected int
	// missing says why what is known is incomplete, "" where it is not or nobody can tell.
	missing string
}

// judge turns what the store says at an instant into what may be answered. subject names the query
// and its namespace for messages.
func (r rules) judge(subject string, p *prepared, a aggregator.Answer, at time.Time) (verdict, *refusal) {
	absent := p.absent(a)
	why, certain := r.missing(p, a, absent)
	switch {
	case certain:
		return verdict{}, refuse(outcomeNoValue, "%s: %s: %s", subject, why, p.Text)
	case r.holder == nil && unread(a) != "":
		return verdict{}, refuse(outcomeHeld, "%s: %s is kept since an HPA asks for it (what every pod keeps, --keep says), which is not yet as long as the window: %s", subject, unread(a), p.Text)
	case a.Reporting > 0 && unsent(a) != "" && (a.Matched == 0 || r.holder == nil):
		return verdict{}, refuse(outcomeNoValue, "%s: not all of its sidecars send %s, so it is not known: %s: %s", subject, unsent(a), remedyForUnsent, p.Text)
	case p.Selects() && a.Matched == 0 && otherForm(a):
		return verdict{}, refuse(outcomeNoValue, "%s: no series, and it is not known to be 0: its %s: %s", subject, otherFormText, p.Text)
	case p.Selects() && a.Reporting == 0 && (a.Matched == 0 || r.holder != nil || nothingLeft(a)):
		if others := r.othersReport(p, at); others != "" {
			why = strings.TrimPrefix(why+"; "+others, "; ")
		}
		return verdict{}, r.noSidecar(subject, p, a, why)
	case why != "":
		return verdict{}, refuse(outcomeNoValue, "%s: %s: %s", subject, why, p.Text)
	}
	if nan, all := countNaN(a.Values); a.Matched == 0 && p.Selects() && all {
		return r.judgeNothing(subject, p, a)
	} else if s := absent.inScalar(p.Tree); nan > 0 && s != nil {
		return verdict{}, refuse(outcomeNoValue, "%s: not a number, since scalar() has nothing to take: no series matches %s: %s", subject, s, p.Text)
	}
	if len(a.Values) == 0 {
		return verdict{}, r.noValue(subject, p, a, absent)
	}
	if refused := shortWindow(subject, p, a); refused != nil {
		return verdict{}, refused
	}
	if nan, all := countNaN(a.Values); nan > 0 {
		if all && r.stoodStill(a, at) {
			return verdict{items: zeros(a.Values), rule: explain.RuleIdle, reason: "no request for " + r.retention.String()}, nil
		}
		if a.Moved && severalInScalar(p.Tree) {
			return verdict{}, refuse(outcomeNaN, "%s: not a number: scalar() has several series to take (add them up in it: scalar(sum(…))), or 0 is divided by 0: %s", subject, p.Text)
		}
		if p.Irate() {
			return verdict{}, refuse(outcomeNaN, "%s: not a number (0/0): there was no request between the last two flushes, and irate looks at no more. Better: rate: %s", subject, p.Text)
		}
		return verdict{}, refuse(outcomeNaN, "%s: not a number (0/0): there was no request within %s. It is 0 once nothing has moved for %s and every sidecar reports: %s", subject, a.Window, r.retention, p.Text)
	}
	return toItems(subject, p, a.Values)
}

// judgeNothing is the verdict where no series matches: 0 where it is known that there was no
// request. scalar() makes NaN of nothing, which is no other answer.
func (r rules) judgeNothing(subject string, p *prepared, a aggregator.Answer) (verdict, *refusal) {
	seen := heardOf(a)
	foreign := slices.IndexFunc(p.Parts, func(part hpas.Part) bool { return !part.Istio() && !part.SentOnceUsed() })
	switch {
	case p.Waypoint() && !seen:
		return verdict{}, r.noSidecar(subject, p, a, "")
	case foreign >= 0 && !refusing(a): // whichever pods it would be of
		return verdict{}, refuse(outcomeNoValue, "%s: no series matches. It is not known to be 0: %s: %s", subject, r.words.RemedyForMetric(p.Parts[foreign].Named()), p.Text)
	case !p.Waypoint() && !p.namesPods():
		return verdict{}, refuse(outcomeNoSidecar, "%s: no series, and the query does not say which pods report it (destination_workload, destination_canonical_service, destination_workload_namespace, …; with reporter=source the callers: source_workload, source_workload_namespace, …), so it is not known to be 0: %s", subject, p.Text)
	case refusing(a):
		return verdict{}, refuse(outcomeNoValue, "%s: no series, but samples of its pods were refused, so it is not known to be 0 (meshpulse_store_dropped_samples_total tells the reason): %s", subject, p.Text)
	}
	return verdict{items: []item{{}}, rule: explain.RuleIdle, reason: "no request yet"}, nil
}

// shortWindow refuses a window in which there need not be two flushes.
func shortWindow(subject string, p *prepared, a aggregator.Answer) *refusal {
	if a.Matched == 0 || a.Reporting == 0 || 2*a.Flush <= a.Window || a.Window == 0 {
		return nil
	}
	return refuse(outcomeNoValue, "%s: sidecars flush every %s, and a window of %s needs two flushes: take a longer one, or lower sidecar.istio.io/statsFlushInterval: %s", subject, a.Flush, a.Window, p.Text)
}

// heardOf says whether each of the selectors that select nothing has pods that report the metric.
func heardOf(a aggregator.Answer) bool {
	return !slices.ContainsFunc(a.Absent, func(s aggregator.Absent) bool { return s.Kin == 0 })
}

// noValue says which part of an expression has no series, where others have.
func (r rules) noValue(subject string, p *prepared, a aggregator.Answer, absent absentParts) *refusal {
	if s := absent.in(p.Tree); s != nil {
		return refuse(outcomeNoValue, "%s: no value, since no series matches %s, one of its parts%s: %s", subject, s, p.asNone(s, absent), p.Text)
	}
	return refuse(outcomeNoValue, "%s: %d series match, but the expression gives no value now: %s", subject, a.Matched, p.Text)
}

// manyReporting is how many workloads an error names.
const manyReporting = 5

// othersReport says which workloads report where none that a query means does: its name may be
// misspelt. It is "" where there is none.
func (r rules) othersReport(p *prepared, at time.Time) string {
	if p.query == nil || p.Waypoint() || !p.namesPods() {
		return ""
	}
	names := p.query.ReportingWorkloads(at, r.holder == nil)
	if len(names) == 0 {
		return ""
	}
	more := ""
	if len(names) > manyReporting {
		names, more = names[:manyReporting], ", …"
	}
	return "others do report: " + strings.Join(names, ", ") + more
}

func (r rules) noSidecar(subject string, p *prepared, a aggregator.Answer, doubt string) *refusal {
	if a.Silent > 0 {
		return refuse(outcomeNoSidecar, "%s: none of the %d sidecars that could have the series reports any more%s. Check that the pods run and reach meshpulse: %s", subject, a.Silent, newest(a), p.Text)
	}
	if doubt != "" {
		doubt = "; " + doubt
	}
	if p.Waypoint() {
		return refuse(outcomeNoSidecar, "%s: no series, and no waypoint reports one. Check that there is a waypoint that sends its stats to meshpulse (envoyMetricsService), and the labels in the query%s: %s", subject, doubt, p.Text)
	}
	return refuse(outcomeNoSidecar, "%s: no series, and no sidecar that could have one reports. Check that the pods carry a sidecar that sends its stats to meshpulse (envoyMetricsService; it counts from a pod's start), "+
		"and the labels in the query%s: %s", subject, doubt, p.Text)
}

// nothingLeft says whether the answer has nothing but zeros: what silent sidecars sent has left the
// window, which is not to say that there are no requests.
func nothingLeft(a aggregator.Answer) bool {
	return !slices.ContainsFunc(a.Values, func(v aggregator.Value) bool { return v.V != 0 && !math.IsNaN(v.V) })
}

// refusing says whether samples of the selected pods were refused.
func refusing(a aggregator.Answer) bool {
	return slices.ContainsFunc(a.Partial, func(p aggregator.PodState) bool { return !p.Refused.IsZero() })
}

// otherForm says whether a selected pod sends what it has counted under names that are not read.
func otherForm(a aggregator.Answer) bool {
	return slices.ContainsFunc(a.Partial, func(p aggregator.PodState) bool { return p.OtherForm })
}

// unread is what the query names of metrics of which a selected pod keeps rows for less long than
// the window, since nobody had asked for them; "" if there is none.
func unread(a aggregator.Answer) string {
	for _, p := range a.Partial {
		if p.Unread != "" {
			return p.Unread
		}
	}
	return ""
}

// unsent is a metric of sidecars' own that one of the selected pods does not send, "" if all do.
func unsent(a aggregator.Answer) string {
	for _, p := range a.Partial {
		if p.Unsent != "" {
			return p.Unsent
		}
	}
	return ""
}

const remedyForUnsent = "the annotation " + hpas.InclusionAnnotation + " of their pods has them sent, from a restart on (manifests/istio/README.md)"

const otherFormText = "sidecars send Istio's metrics in a form that is not read: names of Istio 1.17 and before, or another stats prefix than istiocustom. (an EnvoyFilter, stat_prefix)"

func newest(a aggregator.Answer) string {
	if a.Newest.IsZero() {
		return ""
	}
	return ", the newest sample is of " + a.Newest.UTC().Format(time.RFC3339)
}

// stoodStill says whether it is known that nothing moved for the whole retention.
func (r rules) stoodStill(a aggregator.Answer, at time.Time) bool {
	return !a.Moved && a.Silent == 0 && a.Covered >= a.Window && at.Sub(r.started) >= r.retention
}

func countNaN(values []aggregator.Value) (n int, all bool) {
	for _, v := range values {
		if math.IsNaN(v.V) {
			n++
		}
	}
	return n, n == len(values)
}

func zeros(values []aggregator.Value) []item {
	items := make([]item, len(values))
	for i, v := range values {
		items[i].labels = v.Labels.Map()
	}
	return items
}

// toItems rounds to the nearest thousandth. The HPA adds the items up, so their sum has to fit as
// well.
func toItems(subject string, p *prepared, values []aggregator.Value) (verdict, *refusal) {
	items := make([]item, len(values))
	sum := 0.0
	for i, v := range values {
		milli := math.Round(v.V * 1000)
		sum += milli
		switch {
		case math.IsInf(v.V, 0):
			return verdict{}, refuse(outcomeInfinite, "%s: infinite (%s), a division by 0 or a quantile beyond the last bucket: %s", subject, number(v.V), p.Text)
		case milli < 0:
			return verdict{}, refuse(outcomeNegative, "%s: negative (%s), which an HPA would read as maxReplicas: %s", subject, number(v.V), p.Text)
		case sum >= math.MaxInt64:
			return verdict{}, refuse(outcomeOverflow, "%s: too large for a quantity (%s): %s", subject, number(v.V), p.Text)
		}
		items[i] = item{labels: v.Labels.Map(), milli: int64(milli)}
	}
	return verdict{items: items}, nil
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
