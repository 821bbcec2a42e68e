package aggregator

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// unkept is what a selector names of metrics that are not kept for whoever asks (asked.go): those
// that begin so.
type unkept struct {
	selector *selector
	prefix   string
}

// unkeptBy returns what the selectors name of such metrics.
func (q *Query) unkeptBy(selectors []*selector) (found []unkept) {
	if q.store == nil { // nobody's
		return nil
	}
	for _, sel := range selectors {
		prefix := istioPrefix // of all, where no name is told
		if sel.name != "" {
			bases := sel.bases()
			prefix = bases[len(bases)-1]
		} else if !q.store.config.mayLack(sel.onName) {
			continue
		}
		if strings.HasPrefix(prefix, istioPrefix) && !q.store.config.keeps(prefix) {
			found = append(found, unkept{sel, prefix})
		}
	}
	return found
}

// mayLack reports whether a selector that tells no name may select metrics of Istio's that are not
// kept for whoever asks.
func (c *Config) mayLack(onName []*labels.Matcher) bool {
	for _, m := range onName {
		if m.Type != labels.MatchRegexp || strings.Contains(m.Value, "(?") { // a flag of which a prefix does not tell
			continue
		}
		begins, names := m.Prefix(), m.SetMatches()
		switch {
		case c.keeps(begins), !strings.HasPrefix(begins, istioPrefix) && !strings.HasPrefix(istioPrefix, begins):
			return false
		case len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, istioPrefix) && !c.keeps(name) }):
			return false
		}
	}
	return true
}

// asks calls ask with what the query names of metrics that are not kept, as far as the pod may have
// their series.
func (q *Query) asks(p *Pod, ask func(prefix string)) {
	for _, u := range q.unkept {
		if u.selector.mayBear(p) {
			ask(u.prefix)
		}
	}
}

// unheard reports whether the query asks for what is not read of the pod yet.
func (q *Query) unheard(t *table) (found bool) {
	asked := t.asking.Load()
	q.asks(t.pod.Load(), func(prefix string) { found = found || asked.of(prefix) == nil })
	return found
}

// onlyKept says which metric of the query has no rows for whoever asks, nil if there is none.
func (q *Query) onlyKept() error {
	if len(q.unkept) == 0 {
		return nil
	}
	name := q.unkept[0].prefix
	return &QueryError{Expr: q.expr, Unkept: true, Reason: fmt.Sprintf("%s is kept for the pods that an HPA means which asks for it, and for nobody else: "+
		"add it to --keep, beside what that has, and every pod keeps it from then on", name)}
}

// state returns what is known of a pod for the query, which is limited to since when the pod is
// read for what the query names.
func (q *Query) state(t *table, at int64) PodState {
	s := t.state(at, q.reach)
	for _, u := range q.unkept {
		if s.Newest.IsZero() || !u.selector.mayBear(t.pod.Load()) {
			continue
		}
		since, ok := t.readSince(u.prefix)
		if !ok {
			since = s.Newest.UnixMilli()
		}
		if begun := time.UnixMilli(since); begun.After(s.Oldest) {
			s.Oldest, s.Whole, s.Unread = begun, false, u.prefix
		}
	}
	return s
}

// since returns the time from which on rows of the pod tell all that a plan's terms name, MinInt64
// where they do from its first; false if they do not yet.
func (p *surgePlan) since(t *table) (since int64, ok bool) {
	since = math.MinInt64
	for _, u := range p.unkept {
		if !u.selector.mayBear(t.pod.Load()) {
			continue
		}
		from, ok := t.readSince(u.prefix)
		if !ok {
			return 0, false
		}
		since = max(since, from)
	}
	return since, true
}
