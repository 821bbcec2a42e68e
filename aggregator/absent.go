package aggregator

import (
	"math"
	"slices"
	"unique"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// Absent is a selector of a query that selects no series now, and what the store knows of why.
// Whether that is 0 is the caller's to say: a request that nobody has sent yet is, a name that
// nobody uses is not.
type Absent struct {
	// Selector is its place among the query's selectors, in the order of the expression, from 0.
	Selector int
	// UnknownMetric: no pod has a series of the metric, whatever its labels.
	UnknownMetric bool
	// UnknownLabels are the labels that it demands and that no series of any pod has.
	UnknownLabels []string
	// Kin counts the series of the metric that the pods meant report from the end that is meant. It
	// is 0 where the selector tells no pods, and where it demands nothing beyond them.
	Kin int
	// Unreported are the matchers that none of these series fits, where some of them move: their
	// pods report, and something else.
	Unreported []Unreported
}

// Unreported is a matcher that demands what none of the pods meant reports.
type Unreported struct {
	Label, Matcher string // Matcher as in PromQL: response_code="2OO"
	// Values are the label's values of the series that move, sorted; the first few. Empty where
	// those series lack the label.
	Values []string
	// Own: the label says something of the pods that report or of the mesh, and so cannot be new
	// with the next request as a code, a flag or a caller can be.
	Own bool
}

// maxReported is how many values of a label are told: enough to see what is meant.
const maxReported = 8

// absent says why the query's i-th selector selects nothing.
func (q *Query) absent(i int, at int64) Absent {
	sel := q.selectors[i]
	a := Absent{Selector: i, UnknownMetric: !q.store.knowsMetric(sel), UnknownLabels: q.store.classes.unknown(sel)}
	if kin := q.kin[i]; kin != nil {
		kin.report(q.store, at, &a)
	}
	return a
}

// demands reports whether the matcher holds for a label that is there only.
func demands(m *labels.Matcher) bool { return !m.Matches("") }

// knowsMetric reports whether there is a series of a metric that the selector may name.
func (x *index) knowsMetric(s *selector) bool {
	named := func(c *class) bool {
		for v, last := c.views(); v <= last; v++ {
			if s.fitsName(c, v) {
				return true
			}
		}
		return false
	}
	if s.reads != nil {
		return x.store.classes.sees(s.reads, named)
	}
	for c := range x.classesOf(s) {
		if named(c) {
			return true
		}
	}
	return false
}

// unknown returns the labels that the selector demands and that no series has.
func (cs *classes) unknown(s *selector) (names []string) {
	for _, m := range s.onLabels {
		if m.Name != labels.BucketLabel && demands(m.Matcher) && !slices.Contains(names, m.Name) && !cs.knowsLabel(s.reads, m.name) {
			names = append(names, m.Name)
		}
	}
	return names
}

// knowsLabel reports whether a series that is seen has the label.
func (cs *classes) knowsLabel(l *readLimit, name unique.Handle[string]) bool {
	cs.mu.Lock()
	known := cs.labelNames[name] > 0
	cs.mu.Unlock()
	return known && (l == nil || cs.sees(l, func(c *class) bool {
		return slices.ContainsFunc(c.labels, func(of internedLabel) bool { return of.name == name })
	}))
}

// kin are the series that a selector means but for the values that it demands: of its metric, of
// its pods, reported from its end of a call. What none of them says is said by nobody.
type kin struct {
	selector *selector
	// demanded are the selector's other matchers, and own says which of them describe the pods that
	// report, or the mesh.
	demanded []labelMatcher
	own      []bool
}

// newKin returns nil for a selector that does not tell its pods, or demands nothing beyond them.
func newKin(s *selector) *kin {
	if isProxys(s.name) { // their labels say what the pod has, not what is asked of it
		return nil
	}
	d, o := s.sides.destination.reports, s.sides.source.reports
	k := &kin{}
	kept := make([]*labels.Matcher, 0, len(s.matchers)+1)
	tells := false // the pods
	for _, m := range s.matchers {
		id := d && isIdentity(m.Name, "destination_") || o && isIdentity(m.Name, "source_") ||
			!d && !o && isOf(m.Name, "destination_") // what a waypoint stands before is all that tells it
		pod := m.Name == labelNamespace || m.Name == labelPod
		switch {
		case id, pod, m.Name == model.MetricNameLabel, m.Name == labelReporter:
			kept = append(kept, m)
			tells = tells || id || pod
		case m.Name != labels.BucketLabel && demands(m):
			i := slices.IndexFunc(s.onLabels, func(l labelMatcher) bool { return l.Matcher == m })
			k.demanded = append(k.demanded, s.onLabels[i])
			k.own = append(k.own, isMeshWide(m.Name) || d != o && (d && isOf(m.Name, "destination_") || o && isOf(m.Name, "source_")))
		}
	}
	if !tells || len(k.demanded) == 0 {
		return nil
	}
	switch {
	case d && !o:
		kept = append(kept, labels.MustNewMatcher(labels.MatchEqual, labelReporter, "destination"))
	case o && !d:
		kept = append(kept, labels.MustNewMatcher(labels.MatchEqual, labelReporter, "source"))
	}
	k.selector = newSelector(kept)
	k.selector.reads = s.reads
	return k
}

func isOf(label, end string) bool { return len(label) > len(end) && label[:len(end)] == end }

// isIdentity knows the labels that sidecars give their own pod's word for, whatever a request says.
func isIdentity(label, end string) bool {
	return slices.ContainsFunc(IdentityLabels[:], func(id IdentityLabel) bool { return id.Certain && label == end+id.Name })
}

// isMeshWide knows the labels that say how the mesh is set up.
func isMeshWide(label string) bool {
	return label == "request_protocol" || label == "connection_security_policy"
}

// report looks at the kin of an absent selector until an instant.
func (k *kin) report(s *Store, at int64, a *Absent) {
	fits := make([]bool, len(k.demanded))
	values := make([][]string, len(k.demanded))
	moving := false
	for sc := newScan(s.index, k.selector, math.MinInt64, at, 1); sc.begin(); {
		var moved [scanBatch]bool
		for i := range sc.batch[:sc.n] {
			moved[i] = sc.batch[i].moved()
		}
		if sc.torn() {
			continue
		}
		a.Kin += sc.n
		for i := range sc.batch[:sc.n] {
			moving = moving || moved[i]
			for j := range k.demanded {
				m, set := &k.demanded[j], sc.batch[i].column.class.labels
				fits[j] = fits[j] || m.matches(set)
				if v := set.get(m.Name); moved[i] && !fits[j] && v != "" && !slices.Contains(values[j], v) && len(values[j]) < 16*maxReported {
					values[j] = append(values[j], v)
				}
			}
		}
		sc.done()
	}
	if !moving {
		return
	}
	for j, m := range k.demanded {
		if fits[j] {
			continue
		}
		slices.Sort(values[j])
		a.Unreported = append(a.Unreported, Unreported{Label: m.Name, Matcher: m.String(), Values: values[j][:min(len(values[j]), maxReported)], Own: k.own[j]})
	}
}

// askedBound is whether a selector that asks for buckets by their upper bound (le) selects one of
// those that there are.
type askedBound struct {
	*selector
	fits bool
	seen *layout
}

// look takes the batch of a scan into account.
func (b *askedBound) look(sc *scan) {
	if len(b.onBucket) == 0 || sc.view != viewBucket {
		return
	}
	for i := range sc.batch[:sc.n] {
		if l := sc.batch[i].column.layout; l != nil && l != b.seen && !b.fits {
			b.seen, b.fits = l, slices.ContainsFunc(l.le, b.matchesBound)
		}
	}
}

// missing is the bound that no histogram has; ok is false where one has it or none is asked for.
func (b *askedBound) missing() (u Unreported, ok bool) {
	if b.seen == nil || b.fits {
		return Unreported{}, false
	}
	return Unreported{Label: labels.BucketLabel, Matcher: b.onBucket[0].String(), Values: b.seen.le[:min(len(b.seen.le), 4*maxReported)], Own: true}, true
}
