package metricsapi

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// catalog is what all current HPAs together ask for, and the prepared queries for it. Requests read
// a snapshot and take no lock that a writer holds while it works.
type catalog struct {
	store   *aggregator.Store
	warn    *warner
	adhoc   *adhocQueries
	words   hpas.Vocabulary // what sidecars can send
	reading reading         // nil: queries read whatever there is
	sharing sharing         // what is answered here
	current atomic.Pointer[snapshot]
	wakes   wakes // who is told of rows of a query
	// follow is told of each new snapshot before the queries that it no longer holds are closed;
	// nil if nobody asks for it.
	follow func(*snapshot)
	// history forgets HPAs that are gone; nil where nothing is remembered.
	history *history

	mu       sync.Mutex // one Replace at a time
	parsed   map[types.NamespacedName]*hpas.Wants
	prepared map[preparedKey]*prepared
}

// snapshot is never changed once it is published.
type snapshot struct {
	hpas    []hpaState // in the order of namespace and name
	metrics []string   // names of external metrics for discovery, sorted
	customs []string   // and of custom ones, resource/metric
	offers  map[offerKey]*offer
	// byMetric has the offers of a namespace's metric in the order of their selectors.
	byMetric map[offerKey][]*offer
	// scaled are the HPAs that KEDA makes of ScaledObjects which ask here, by those.
	scaled map[types.NamespacedName]*hpas.Wants
	// acting are the HPAs whose targets are raised at surges of a query.
	acting map[*aggregator.Query][]acting
	// others are what HPAs ask for and is not answered here.
	others others
}

// offerKey names an offer; selector is canonical, and "" as a key of byMetric.
type offerKey struct{ namespace, metric, selector string }

// offer is what a request for (namespace, metric, selector) gets.
type offer struct {
	offerKey
	written  string     // the metric, as the owner has it
	labels   labels.Set // what the selector demands
	prepared *prepared
	owner    *hpas.Wants // whose query it is
	// perReplica: the value is divided by the pods of the owner's target that are ready.
	perReplica bool
	// triggered: it is of a ScaledObject, and KEDA asks for it.
	triggered bool
	askers    []*hpas.Wants // all who ask for it, the owner first
}

// hpaState is an HPA with everything that its author should know.
type hpaState struct {
	*hpas.Wants
	offers   []*offer      // for each of metrics; nil where nothing says how to compute it
	others   []hpas.Metric // that are not answered here
	problems []hpas.Problem
	// cannot says why the target is never raised at a surge though the annotations ask for it.
	cannot []hpas.Problem
}

func newCatalog(store *aggregator.Store, warn *warner) *catalog {
	c := &catalog{store: store, warn: warn, adhoc: newAdhocQueries(store, adhocLimit)}
	c.parsed, c.prepared = map[types.NamespacedName]*hpas.Wants{}, map[preparedKey]*prepared{}
	c.current.Store(&snapshot{})
	return c
}

// Replace makes these HPAs the current ones. Of two with one name the first counts: a source sees
// to it that there are none.
func (c *catalog) Replace(list []hpas.HPA) {
	c.mu.Lock()
	defer c.mu.Unlock()

	parsed := map[types.NamespacedName]*hpas.Wants{}
	for _, h := range list {
		a := c.parsed[h.Key()]
		if a == nil || !a.ReadsAs(h) {
			if !c.store.Contain("hpas", h.Key().String(), func() { a = c.words.Read(h) }) {
				continue
			}
		}
		if parsed[h.Key()] == nil {
			parsed[h.Key()] = a
		}
	}
	byAge := slices.SortedFunc(maps.Values(parsed), func(a, b *hpas.Wants) int { return a.Compare(b.HPA) })

	own, others := c.sharing.divide(byAge, c.words)
	needed := c.prepare(own)
	s := newSnapshot(own, needed, others)
	c.current.Store(s)
	if c.follow != nil {
		c.follow(s)
	}

	for key, p := range c.prepared {
		if needed[key] != p {
			p.release()
		}
	}
	gone := c.parsed
	c.parsed, c.prepared = parsed, needed
	c.warn.metrics.hpas.Set(float64(len(parsed)))
	c.warn.metrics.queries.Set(float64(len(needed)))
	for key, old := range gone {
		if now := parsed[key]; now == nil || now.UID != old.UID {
			c.warn.forget(old.HPA)
			c.history.forget(old.HPA)
		}
	}
	for _, h := range s.hpas {
		for _, p := range h.problems {
			c.warn.tell(h.HPA, p)
		}
	}
}

// Close gives up all queries.
func (c *catalog) Close() {
	c.Replace(nil)
	c.adhoc.close()
}

// prepare returns the queries of all expressions, kept or registered anew.
func (c *catalog) prepare(hpas []*hpas.Wants) map[preparedKey]*prepared {
	needed := map[preparedKey]*prepared{}
	for _, a := range hpas {
		for _, w := range a.Metrics {
			key := queryKeyOf(a, w)
			if w.Expr == "" || needed[key] != nil {
				continue
			}
			p := c.prepared[key]
			if p == nil || p.later() || p.changes != c.changes(key.namespace) {
				changes := c.changes(key.namespace) // before it is registered: what changes meanwhile is a reason to do it again
				p = register(c.store, key)
				p.changes, p.never, p.unread = changes, p.Never(c.words), c.unread(p, key.namespace)
			}
			needed[key] = p
		}
	}
	return needed
}

// newSnapshot takes the HPAs oldest first: the oldest's query wins a conflict.
func newSnapshot(byAge []*hpas.Wants, queries map[preparedKey]*prepared, others others) *snapshot {
	s := &snapshot{offers: map[offerKey]*offer{}, byMetric: map[offerKey][]*offer{}, acting: map[*aggregator.Query][]acting{}, scaled: map[types.NamespacedName]*hpas.Wants{}, others: others}
	targets := map[string][]string{}
	for _, a := range byAge {
		targets[a.Target()] = append(targets[a.Target()], a.Name)
		if a.Scaled != nil {
			s.scaled[types.NamespacedName{Namespace: a.Namespace, Name: a.Scaled.Name}] = a
		}
		for _, w := range a.Metrics {
			s.offer(a, w, queries)
		}
	}
	for _, a := range byAge { // one whose query another HPA has asks for it all the same
		for _, w := range a.Metrics {
			if o := s.offers[offerKey{a.Namespace, w.Name, w.Canonical}]; o != nil && w.Expr == "" && !slices.Contains(o.askers, a) {
				o.askers = append(o.askers, a)
			}
		}
	}
	for _, a := range byAge {
		h := hpaState{Wants: a, problems: slices.Clone(a.Problems), others: others.of[a.Key()]}
		for _, w := range a.Metrics {
			o := s.offers[offerKey{a.Namespace, w.Name, w.Canonical}]
			if w.Expr == "" {
				o = nil
			}
			h.offers = append(h.offers, o)
			h.problems = append(h.problems, offerProblems(a, w, o, queries)...)
		}
		h.problems = append(h.problems, others.problems[a.Key()]...)
		if same := targets[a.Target()]; len(same) > 1 && !others.whole[a.Key()] {
			h.problems = append(h.problems, sharedTarget(a, same[0]))
		}
		s.hpas = append(s.hpas, s.act(h))
	}
	slices.SortFunc(s.hpas, func(a, b hpaState) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, offers := range s.byMetric {
		slices.SortFunc(offers, func(a, b *offer) int { return cmp.Compare(a.selector, b.selector) })
	}
	slices.Sort(s.metrics)
	s.metrics = slices.Compact(s.metrics)
	slices.Sort(s.customs)
	s.customs = slices.Compact(s.customs)
	return s
}

// act files an HPA whose target is to be raised at surges under its queries.
func (s *snapshot) act(h hpaState) hpaState {
	x, ok := actsOn(h)
	if !ok {
		return h
	}
	h.cannot = cannotAct(x)
	h.problems = append(h.problems, h.cannot...)
	if len(h.cannot) > 0 {
		return h
	}
	x.hpaState = h
	filed := map[*aggregator.Query]bool{} // several of its metrics may share a query
	for _, m := range x.metrics {
		if q := m.prepared.query; !filed[q] {
			filed[q] = true
			s.acting[q] = append(s.acting[q], x)
		}
	}
	return h
}

func (s *snapshot) offer(a *hpas.Wants, w hpas.Metric, queries map[preparedKey]*prepared) {
	if w.Expr == "" {
		return
	}
	key := offerKey{a.Namespace, w.Name, w.Canonical}
	if o := s.offers[key]; o != nil {
		if !slices.Contains(o.askers, a) {
			o.askers = append(o.askers, a)
		}
		return
	}
	o := &offer{offerKey: key, written: w.Written, labels: hpas.Demanded(w.Selector), prepared: queries[queryKeyOf(a, w)], owner: a, askers: []*hpas.Wants{a}, perReplica: w.PerReplica, triggered: w.Triggered}
	s.offers[key] = o
	if w.Triggered {
		return
	}
	if w.Custom() {
		s.customs = append(s.customs, customName(w.Name))
		return
	}
	s.metrics = append(s.metrics, w.Name)
	name := offerKey{namespace: a.Namespace, metric: w.Name}
	s.byMetric[name] = append(s.byMetric[name], o)
}

// sharedTarget names one other HPA and not all: with a list, each HPA that comes would be a new
// event on all before it.
func sharedTarget(a *hpas.Wants, oldest string) hpas.Problem {
	other := "HPA " + oldest
	if oldest == a.Name {
		other = "younger HPAs"
	}
	return hpas.Problemf(hpas.ReasonSharedTarget, "%s %s is also the target of %s: an HPA controller refuses to act while several HPAs select the same pods (AmbiguousSelector). "+
		"Put the metrics into one HPA", a.Spec.ScaleTargetRef.Kind, a.Spec.ScaleTargetRef.Name, other)
}

// offerProblems are those of one metric that need the store or the other HPAs.
func offerProblems(a *hpas.Wants, w hpas.Metric, o *offer, queries map[preparedKey]*prepared) []hpas.Problem {
	if o == nil {
		return nil
	}
	var problems []hpas.Problem
	if err := queries[queryKeyOf(a, w)].err; err != nil {
		problems = append(problems, hpas.Problemf(hpas.ReasonBadQuery, "metric %s: %v", o, err))
	}
	for _, why := range queries[queryKeyOf(a, w)].never {
		problems = append(problems, hpas.Problemf(hpas.ReasonNotReported, "metric %s gets no value: %s", o, why))
	}
	if unread := queries[queryKeyOf(a, w)].unread; len(unread) > 0 {
		problems = append(problems, notRead(o, unread))
	}
	const better = "Better: a query name of its own for each query"
	does := "answers for both"
	if err := o.prepared.err; err != nil {
		does = fmt.Sprintf("counts for both, and is broken: %v", err)
	}
	switch {
	case o.written != w.Written:
		problems = append(problems, sameInLowerCase(w, o.written, o.owner.Name))
	case o.prepared.Text != w.Expr:
		problems = append(problems, hpas.Problemf(hpas.ReasonQueryConflict, "metric %s has another query in HPA %s, which is older: its query %s. %s", o, o.owner.Name, does, better))
	}
	if o.owner != a {
		return problems
	}
	for _, other := range o.askers[1:] {
		for _, x := range other.Metrics {
			switch same := x.Name == w.Name && x.Canonical == w.Canonical && x.Expr != ""; {
			case same && x.Written != w.Written:
				problems = append(problems, sameInLowerCase(w, x.Written, other.Name))
			case same && x.Expr != w.Expr:
				problems = append(problems, hpas.Problemf(hpas.ReasonQueryConflict, "metric %s has another query in HPA %s, which is younger: this one %s. %s", o, other.Name, does, better))
			}
		}
	}
	return problems
}

func sameInLowerCase(w hpas.Metric, other, hpa string) hpas.Problem {
	return hpas.Problemf(hpas.ReasonQueryConflict, "metric %s and metric %s of HPA %s differ by case only, and Kubernetes' client asks for both as %s: "+
		"the query of the older HPA, in one HPA that of the first, answers for both. Better: names that differ in lower case too", w.Written, other, hpa, w.Name)
}

// String names the offer as an author knows it.
func (o *offer) String() string {
	return hpas.NameOf(cmp.Or(o.written, o.metric), o.labels)
}

// find returns what answers a request: the HPA's query with this very selector, else a metric that
// needs no PromQL, else the one query of that metric that the selector leaves (kubectl get --raw
// without a selector). The caller releases the query. offer is nil for a metric that no HPA asks
// for.
func (c *catalog) find(namespace, metric string, selector labels.Selector) (*prepared, *offer, *refusal) {
	metric = strings.ToLower(metric)
	for {
		p, o, refused := c.current.Load().find(namespace, metric, selector)
		switch {
		case refused != nil:
			return nil, nil, refused
		case p == nil:
			return c.findNamed(namespace, metric, selector)
		case p.acquire():
			return p, o, nil
		}
		// Closed since the snapshot was loaded: there is a newer one.
	}
}

func (s *snapshot) find(namespace, metric string, selector labels.Selector) (*prepared, *offer, *refusal) {
	if o := s.offers[offerKey{namespace, metric, hpas.Canonical(selector)}]; o != nil {
		return o.prepared, o, nil
	}
	if _, named := hpas.Named(metric); named {
		return nil, nil, nil
	}
	var matching []*offer
	offers := s.byMetric[offerKey{namespace: namespace, metric: metric}]
	for _, o := range offers {
		if selector.Matches(o.labels) && (len(matching) == 0 || matching[0].prepared != o.prepared) {
			matching = append(matching, o)
		}
	}
	switch {
	case len(matching) == 1:
		return matching[0].prepared, matching[0], nil
	case len(matching) > 1:
		return nil, nil, refuse(outcomeBadSelector, "metric %s in namespace %s: the selector %q leaves several queries: name one of %s", metric, namespace, selector, choices(matching))
	case len(offers) > 0:
		return nil, nil, refuse(outcomeUnknown, "metric %s in namespace %s: no HPA has a query for the selector %q; there are %s", metric, namespace, selector, choices(offers))
	}
	return nil, nil, refuse(outcomeUnknown, "no HPA in namespace %s has a query for metric %s: check its annotations and the Warning events on it, or the log, for files that cannot be read", namespace, metric)
}

// choices lists the selectors of a few offers.
func choices(offers []*offer) string {
	const most = 10
	texts := make([]string, 0, most+1)
	for i, o := range offers {
		if i == most {
			texts = append(texts, fmt.Sprintf("and %d more", len(offers)-most))
			break
		}
		texts = append(texts, fmt.Sprintf("%q", labels.FormatLabels(o.labels)))
	}
	return strings.Join(texts, ", ")
}

func (c *catalog) findNamed(namespace, metric string, selector labels.Selector) (*prepared, *offer, *refusal) {
	expr, _, err := hpas.NamedExpression(metric, namespace, selector)
	if err != nil {
		return nil, nil, refuse(outcomeBadSelector, "metric %s in namespace %s: %v", metric, namespace, err)
	}
	return c.adhoc.acquire(namespace, expr), nil, nil
}
