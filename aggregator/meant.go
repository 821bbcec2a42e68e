package aggregator

import (
	"slices"

	"github.com/prometheus/prometheus/model/labels"
)

// Meant is a set of pods by what they say of themselves; "" is any.
type Meant struct{ Namespace, Workload, CanonicalService string }

// manyMeant bounds into how many sets the alternatives of a regular expression are taken apart.
const manyMeant = 16

// Meant returns sets of pods that together hold every pod that the query names (Query.Names says
// which of them it does): where to look for pods that have not reported. Sets may overlap. One
// without a name is every pod.
func (q *Query) Meant() []Meant { return q.meant }

// meantBy returns the sets for the selectors that name pods.
func meantBy(selectors []*selector) []Meant {
	var sets []Meant
	for _, sel := range selectors {
		if sel.namesPods() {
			sets = sel.meant(sets)
		}
	}
	var all []Meant // but for those that lie within others
	for i, m := range sets {
		within := func(o Meant) bool { return o != m && o.holds(m) }
		if !slices.ContainsFunc(sets, within) && !slices.Contains(sets[:i], m) {
			all = append(all, m)
		}
	}
	return all
}

// holds reports whether every pod of the other set is in this one.
func (m Meant) holds(other Meant) bool {
	return (m.Namespace == "" || m.Namespace == other.Namespace) && (m.Workload == "" || m.Workload == other.Workload) &&
		(m.CanonicalService == "" || m.CanonicalService == other.CanonicalService)
}

// meant appends the selector's sets: one for each end of a call that can report what is selected.
func (s *selector) meant(to []Meant) []Meant {
	ns, _ := s.equals(labelNamespace)
	d, o := &s.sides.destination, &s.sides.source
	if !d.reports && !o.reports {
		return append(to, Meant{Namespace: ns})
	}
	for _, end := range []*side{d, o} {
		if end.reports {
			to = end.meant(to, Meant{Namespace: ns})
		}
	}
	return to
}

// meant appends the sets of one end within a set.
func (s *side) meant(to []Meant, within Meant) []Meant {
	sets := []Meant{within}
	for _, id := range s.identity {
		switch id.id.Name {
		case "workload_namespace":
			sets = narrow(sets, id.Matcher, func(m *Meant, name string) { m.Namespace = name })
		case "workload":
			sets = narrow(sets, id.Matcher, func(m *Meant, name string) { m.Workload = name })
		case "canonical_service":
			sets = narrow(sets, id.Matcher, func(m *Meant, name string) { m.CanonicalService = name })
		}
	}
	return append(to, sets...)
}

// narrow leaves of each set what a matcher lets through, where that is a few names.
func narrow(sets []Meant, m *labels.Matcher, set func(*Meant, string)) []Meant {
	var names []string
	switch m.Type {
	case labels.MatchEqual:
		names = []string{m.Value}
	case labels.MatchRegexp:
		names = m.SetMatches()
	}
	if len(names) == 0 || len(names)*len(sets) > manyMeant || slices.Contains(names, "") {
		return sets
	}
	var narrowed []Meant
	for _, within := range sets {
		for _, name := range names {
			set(&within, name)
			narrowed = append(narrowed, within)
		}
	}
	return narrowed
}
