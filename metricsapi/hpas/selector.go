package hpas

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// Canonical writes a selector so that two that mean the same by their form are equal: the request's
// a=b, a==b and a in (b) are the a: b of an HPA's matchLabels.
func Canonical(s labels.Selector) string {
	requirements, _ := s.Requirements()
	parts := make([]string, 0, len(requirements))
	for _, r := range sortedRequirements(requirements) {
		values := r.ValuesUnsorted()
		slices.Sort(values)
		operator := r.Operator()
		switch {
		case operator == selection.DoubleEquals, operator == selection.In && len(values) == 1:
			operator = selection.Equals
		case operator == selection.NotIn && len(values) == 1:
			operator = selection.NotEquals
		}
		// Keys and values cannot hold a comma, a space or an operator, so the text is unambiguous.
		parts = append(parts, r.Key()+" "+string(operator)+" "+strings.Join(values, "|"))
	}
	return strings.Join(slices.Compact(parts), ",")
}

// sortedRequirements returns the requirements in an order that depends on nothing but them.
func sortedRequirements(rs labels.Requirements) labels.Requirements {
	sorted := slices.Clone(rs)
	slices.SortFunc(sorted, func(a, b labels.Requirement) int {
		return cmp.Or(cmp.Compare(a.Key(), b.Key()), cmp.Compare(a.String(), b.String()))
	})
	return sorted
}

// onlyValue is the value that the requirement demands, if it demands exactly one.
func onlyValue(r labels.Requirement) (string, bool) {
	switch r.Operator() {
	case selection.Equals, selection.DoubleEquals, selection.In:
		if values := r.ValuesUnsorted(); len(values) == 1 {
			return values[0], true
		}
	}
	return "", false
}

// Demanded holds the labels for which the selector demands one value.
func Demanded(s labels.Selector) labels.Set {
	set := labels.Set{}
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		if v, ok := onlyValue(r); ok {
			set[r.Key()] = v
		}
	}
	return set
}
