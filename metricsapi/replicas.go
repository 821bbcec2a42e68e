package metricsapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"k8s.io/metrics/pkg/apis/external_metrics"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Several replicas, one answer. What a namespace's pods send is kept whole by its owners, two
// replicas. The one that is asked says at once what it knows in full. Only where it does not, since
// it has just begun, or a flush did not reach it, it asks the other owner: what is known in full
// counts before what is held, a value before none, and of two that are alike that of the owner who
// comes first. So a replica that is away, slow or cut off costs nothing but its word. One that owns
// nothing of it hands the question on.

// Replicas are all replicas of meshpulse, as one of them sees them. It is safe for concurrent use.
type Replicas interface {
	// Self is this one's name.
	Self() string
	// Owners returns the names of those that answer for a namespace, the first in front.
	Owners(namespace string) []string
	// Several reports whether there are so many that one may not keep what all namespaces send.
	Several() bool
	// Leads reports whether this one does for a namespace what only one should.
	Leads(namespace string) bool
	// Silent is for how long nothing was heard of a replica.
	Silent(name string) time.Duration
	// Cold says why this one is not to be asked yet, nil if it is.
	Cold() error
	// Ask asks a replica and returns its answer, which Answer sets how it is made.
	Ask(ctx context.Context, name string, request []byte) ([]byte, error)
	Answer(f func(ctx context.Context, request []byte) []byte)
}

// Labels of an answer where there are several replicas.
const (
	labelReplica = "meshpulse_replica" // whose answer it is
	labelOther   = "meshpulse_other"   // what the other owner said, where it was asked: meshpulse-1: 1 sidecar silent (…)
)

const (
	// askOwner is how long an owner waits for what the other one knows, an answer of its own in
	// hand: the HPA controller waits for both.
	askOwner = 200 * time.Millisecond
	// askAny is how long is waited for an owner by who has no answer.
	askAny = time.Second
	// askAfter is for how long a replica may be silent and is still asked.
	askAfter = time.Second
)

// Outcomes of asking: the closed set of the outcome label of
// meshpulse_metricsapi_asked_replicas_total.
const (
	askedBetter = "better" // its answer counts
	askedWorse  = "worse"  // it knows no more
	askedSilent = "silent" // it was not heard of lately, and not asked
	askedFailed = "failed" // it did not answer in time
)

func askOutcomes() []string { return []string{askedBetter, askedWorse, askedSilent, askedFailed} }

// said is what a replica says to a request.
type said struct {
	list    *external_metrics.ExternalMetricValueList
	custom  []custom_metrics.MetricValue // of the custom metrics API, in the place of list
	refused *refusal
	// incomplete says why that is not all that could be known, "" if it is.
	incomplete string
	// unasked: no HPA that is known here asks for it, so it is of a name alone.
	unasked bool
	// held: it is what keeps the replicas.
	held bool
}

// rank orders what replicas say: what is known in full, a value, nothing. One that does not know
// the HPA yet, or could not evaluate its query, knows nothing.
func (s *said) rank() int {
	switch {
	case s.unasked, s.refused != nil && !s.refused.ofValues():
		return 0
	case s.incomplete == "":
		return 2
	case s.refused == nil:
		return 1
	}
	return 0
}

// describe is what is said of it beside another one's answer.
func (s *said) describe(name string) string {
	if s.refused != nil && !s.refused.ofValues() {
		return name + ": " + s.refused.message
	}
	return name + ": " + cmp.Or(s.incomplete, "complete")
}

// question is what one replica asks another: for the answer to a request, or it tells of a raise.
type question struct {
	Namespace, Metric, Selector string
	// Alone: what the replica has itself is asked for, whatever others have.
	Alone bool
	// Custom is not nil where it is of the custom metrics API.
	Custom *customQuestion `json:",omitempty"`
	// View is not nil where something is to be shown.
	View *view `json:",omitempty"`
	// Raised is not nil where a raise is told.
	Raised *raised `json:",omitempty"`
}

// reply is said as it is sent.
type reply struct {
	List       *external_metrics.ExternalMetricValueList `json:",omitempty"`
	Custom     []custom_metrics.MetricValue              `json:",omitempty"`
	Outcome    string                                    `json:",omitempty"`
	Message    string                                    `json:",omitempty"`
	Incomplete string                                    `json:",omitempty"`
	Held       bool                                      `json:",omitempty"`
	View       json.RawMessage                           `json:",omitempty"`
}

// placeOf is the namespace whose owners answer a query: that whose pods it selects, else that of
// whoever asks. It is "" where the pods of several namespaces may be selected, whose owners are
// not the same.
func (p *provider) placeOf(q *aggregator.Query, namespace string) string {
	if q != nil && q.Namespace() != "" {
		return q.Namespace()
	}
	if p.replicas.Several() {
		return ""
	}
	return namespace
}

// get is what all replicas together say.
func (p *provider) get(ctx context.Context, namespace, metric string, selector labels.Selector) (*external_metrics.ExternalMetricValueList, *refusal) {
	s := p.sayAll(ctx, namespace, metric, selector)
	return s.list, s.refused
}

// sayAll is get with what is known of the answer.
func (p *provider) sayAll(ctx context.Context, namespace, metric string, selector labels.Selector) said {
	if p.replicas == nil {
		return p.say(ctx, namespace, metric, selector)
	}
	return p.together(ctx, p.inquire(ctx, question{Namespace: namespace, Metric: metric, Selector: selector.String()}, selector), true)
}

// inquiry is a question as a replica looks into it. The caller of find releases the query.
type inquiry struct {
	question
	find func() (*prepared, *offer, *refusal)
	say  func() said // what this replica knows
}

// inquire is of the external metrics API.
func (p *provider) inquire(ctx context.Context, q question, selector labels.Selector) inquiry {
	return inquiry{
		q,
		func() (*prepared, *offer, *refusal) { return p.catalog.find(q.Namespace, q.Metric, selector) },
		func() said { return p.say(ctx, q.Namespace, q.Metric, selector) },
	}
}

// notFound is what is said where no query is. Of an HPA that is not known here another replica may
// know.
func notFound(refused *refusal) said {
	s := said{refused: refused}
	if refused.outcome == outcomeUnknown {
		s.incomplete = refused.message
	}
	return s
}

// together says what this replica knows, or what an owner does that knows more. onward: the
// question may be handed on.
func (p *provider) together(ctx context.Context, q inquiry, onward bool) said {
	place := q.Namespace // of an HPA that is not known here
	query, _, refused := q.find()
	if refused == nil {
		place = p.placeOf(query.query, q.Namespace)
		query.release()
	} else if refused.outcome != outcomeUnknown { // of what is asked for, not of what is known
		return q.say()
	}
	if place == "" {
		return said{refused: refuse(outcomeHeld, "metric %s in namespace %s: its query may select pods of several namespaces, which more than two replicas do not keep in one place: "+
			"demand reporter=\"destination\" and destination_workload_namespace, or run two replicas", q.Metric, q.Namespace)}
	}
	owners := p.replicas.Owners(place)
	switch at := slices.Index(owners, p.replicas.Self()); {
	case at >= 0:
		return p.compare(ctx, q.question, q.say(), owners, at)
	case !onward:
		return q.say()
	}
	return p.handOn(ctx, q.question, owners)
}

// compare asks the other owner where what this one says is not complete, and returns what counts.
// at is this one's place among the owners.
func (p *provider) compare(ctx context.Context, q question, own said, owners []string, at int) said {
	chosen, whose, beside := own, p.replicas.Self(), ""
	for i, name := range owners {
		if i == at || own.incomplete == "" {
			continue
		}
		q.Alone = true
		other, outcome := p.ask(ctx, name, q, askOwner)
		if outcome == "" {
			outcome, beside = askedWorse, other.describe(name)
			if r := other.rank(); r > own.rank() || r == own.rank() && i < at {
				chosen, whose, outcome, beside = other, name, askedBetter, own.describe(p.replicas.Self())
				chosen.custom = withPods(other.custom, own.custom)
			} else {
				chosen.custom = withPods(own.custom, other.custom)
			}
		} else {
			beside = name + ": " + outcome
		}
		p.metrics.asked.WithLabelValues(outcome).Inc()
	}
	return chosen.by(whose, beside)
}

// by adds to each item whose answer it is, and what the other owner said.
func (s said) by(replica, beside string) said {
	if s.list == nil {
		return s
	}
	for i := range s.list.Items {
		shown := s.list.Items[i].MetricLabels
		if shown == nil {
			shown = map[string]string{}
		}
		shown[labelReplica] = replica
		if beside != "" {
			shown[labelOther] = beside
		}
		s.list.Items[i].MetricLabels = shown
	}
	return s
}

// handOn asks the owners, one after the other.
func (p *provider) handOn(ctx context.Context, q question, owners []string) said {
	for _, name := range owners {
		s, outcome := p.ask(ctx, name, q, askAny)
		if outcome == "" {
			p.metrics.asked.WithLabelValues(askedBetter).Inc()
			return s
		}
		p.metrics.asked.WithLabelValues(outcome).Inc()
	}
	return said{refused: refuse(outcomeHeld, "metric %s in namespace %s: replicas %v have what it is computed from, and none of them answers", q.Metric, q.Namespace, owners)}
}

// ask returns what another replica says, or why it says nothing.
func (p *provider) ask(ctx context.Context, name string, q question, patience time.Duration) (s said, outcome string) {
	r, outcome := p.askReply(ctx, name, q, patience)
	switch {
	case outcome != "":
		return said{}, outcome
	case r.Outcome != "":
		return said{refused: &refusal{outcome: outcomeNamed(r.Outcome), message: r.Message}, incomplete: r.Incomplete}, ""
	case q.Custom == nil && r.List == nil, q.Custom != nil && !q.Custom.answered(r):
		return said{}, askedFailed
	}
	return said{list: r.List, custom: r.Custom, incomplete: r.Incomplete, held: r.Held}, ""
}

// askReply is ask before it is looked into.
func (p *provider) askReply(ctx context.Context, name string, q question, patience time.Duration) (r reply, outcome string) {
	if p.replicas.Silent(name) > askAfter {
		return reply{}, askedSilent
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := json.Marshal(q)
	if err != nil {
		return reply{}, askedFailed
	}
	body, err := p.replicas.Ask(ctx, name, request)
	if err != nil || json.Unmarshal(body, &r) != nil {
		return reply{}, askedFailed
	}
	return r, ""
}

// outcomeNamed is an outcome of another replica's, which may be of another version.
func outcomeNamed(outcome string) string {
	if slices.Contains(outcomes(), outcome) {
		return outcome
	}
	return outcomeFailed
}

// asked answers another replica.
func (p *provider) asked(ctx context.Context, request []byte) []byte {
	var q question
	if err := json.Unmarshal(request, &q); err != nil {
		return encode(said{refused: refuse(outcomeBadSelector, "a question that cannot be read: %v", err), incomplete: "not understood"})
	}
	if q.Raised != nil {
		if x := p.rules.actor; x != nil {
			x.wasTold(*q.Raised)
		}
		return encode(said{list: &external_metrics.ExternalMetricValueList{}})
	}
	if q.View != nil {
		return marshal(p.show(ctx, *q.View))
	}
	selector, err := labels.Parse(q.Selector)
	if err != nil {
		return encode(said{refused: refuse(outcomeBadSelector, "selector %q: %v", q.Selector, err), incomplete: "not understood"})
	}
	i := p.inquire(ctx, q, selector)
	if q.Custom != nil {
		if i, err = p.custom.inquire(ctx, q, selector); err != nil {
			return encode(said{refused: refuse(outcomeBadSelector, "%v", err), incomplete: "not understood"})
		}
	}
	if q.Alone {
		return encode(i.say())
	}
	return encode(p.together(ctx, i, false))
}

func encode(s said) []byte {
	r := reply{List: s.list, Custom: s.custom, Incomplete: s.incomplete, Held: s.held}
	if s.refused != nil {
		r.List, r.Custom, r.Outcome, r.Message = nil, nil, s.refused.outcome, s.refused.message
	}
	return marshal(r)
}

func marshal(r reply) []byte {
	body, err := json.Marshal(r)
	if err != nil { // a value that JSON has no form for
		return fmt.Appendf(nil, `{"Outcome":%q,"Message":%q,"Incomplete":"not told"}`, outcomeFailed, err.Error())
	}
	return body
}

// incomplete says why an answer is not all that could be known, "" if it is.
func (r rules) incomplete(v verdict, a aggregator.Answer, refused *refusal) string {
	switch {
	case refused != nil && slices.Contains([]string{outcomeHeld, outcomeNoSidecar, outcomeNoValue}, refused.outcome):
		return refused.message
	case v.missing != "":
		return v.missing
	case v.held:
		return v.reason
	case r.holder != nil:
		return ""
	case a.Silent > 0: // nobody knows which pods there are: what the store has tells
		return fmt.Sprintf("%d sidecars silent", a.Silent)
	case len(a.Partial) > 0:
		return fmt.Sprintf("%d sidecars not known over the whole window", len(a.Partial))
	}
	return ""
}

// raised is what the other owner has to know of a raise: its answers agree with it, and it is who
// raises next where this replica is gone.
type raised struct {
	UID      string
	From, To int32
	// Observed: it would have been raised, and was not.
	Observed bool `json:",omitempty"`
	// Flush is how long a flush of the pods takes.
	Flush time.Duration
}

// tellOwners tells the others of a raise. Who does not hear it sees the target's new replicas.
func (p *provider) tellOwners(ctx context.Context, q *aggregator.Query, namespace string, r raised) {
	if p.replicas == nil {
		return
	}
	request, err := json.Marshal(question{Raised: &r})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askAny)
	defer cancel()
	for _, name := range p.replicas.Owners(p.placeOf(q, namespace)) {
		if name != p.replicas.Self() && p.replicas.Silent(name) <= askAfter {
			_, _ = p.replicas.Ask(ctx, name, request) // it will find what was done
		}
	}
}

// knownElsewhere reports whether another owner knows whose a metric is of which no HPA is known
// here: one that has just been made reaches the watch of one replica before that of the other.
func (p *provider) knownElsewhere(ctx context.Context, q question) bool {
	if p.replicas == nil {
		return false
	}
	q.Alone = true
	for _, name := range p.replicas.Owners(q.Namespace) {
		if name == p.replicas.Self() {
			continue
		}
		r, outcome := p.askReply(ctx, name, q, askOwner)
		if outcome != "" {
			p.metrics.asked.WithLabelValues(outcome).Inc()
			continue
		}
		if r.Outcome != outcomeUnknown && r.Outcome != outcomeBadSelector {
			p.metrics.asked.WithLabelValues(askedBetter).Inc()
			return true
		}
		p.metrics.asked.WithLabelValues(askedWorse).Inc()
	}
	return false
}

// leads reports whether this replica acts on a query.
func (p *provider) leads(q *aggregator.Query, namespace string) bool {
	if p.replicas == nil {
		return true
	}
	place := p.placeOf(q, namespace)
	return place != "" && p.replicas.Leads(place)
}
