package aggregator

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// view says which of a class's series is meant: a counter's own, or one of those that Prometheus shows for a histogram.
type view uint8

const (
	viewCounter view = iota
	viewBucket
	viewSum
	viewCount
	viewNative // the finer view, a native histogram under the metric's own name (fine.go)
)

// suffixes are the name suffixes of the views.
var suffixes = [...]string{viewCounter: "", viewBucket: "_bucket", viewSum: "_sum", viewCount: "_count", viewNative: ""}

// views returns the views of a class.
func (c *class) views() []view {
	if c.kind == Counter {
		return []view{viewCounter}
	}
	return []view{viewBucket, viewSum, viewCount, viewNative}
}

// selector is a PromQL vector selector over the store's classes.
type selector struct {
	matchers []*labels.Matcher
	name     string // the metric name where the selector gives it by equality, else ""
	prepared bool   // members is kept up to date
	members  list[*class]
	// watched is the query that committed rows of the selected series mark, nil if they mark none.
	watched atomic.Pointer[Query]
}

func newSelector(ms []*labels.Matcher) *selector {
	s := &selector{matchers: make([]*labels.Matcher, len(ms))}
	for i, m := range ms {
		s.matchers[i] = canonicalLE(m)
		if m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual {
			s.name = m.Value
		}
	}
	return s
}

// canonicalLE lets le="1.0" (as Prometheus 3 writes it) and le="1" (as Envoy and Prometheus 2 do) mean the same bucket.
func canonicalLE(m *labels.Matcher) *labels.Matcher {
	if m.Name != labels.BucketLabel || (m.Type != labels.MatchEqual && m.Type != labels.MatchNotEqual) {
		return m
	}
	v, err := strconv.ParseFloat(m.Value, 64)
	if err != nil {
		return m
	}
	return labels.MustNewMatcher(m.Type, m.Name, formatBound(v))
}

// formatBound writes an upper bound as Envoy's Prometheus exposition does.
func formatBound(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

// bases are the class names that can have the selected metric name: itself, and a histogram's without the view's suffix.
func (s *selector) bases() []string {
	names := []string{s.name}
	for _, v := range []view{viewBucket, viewSum, viewCount} {
		if base, ok := strings.CutSuffix(s.name, suffixes[v]); ok {
			names = append(names, base)
		}
	}
	return names
}

// matches reports whether the view of the class is selected, as far as the class tells: not its pod and not its buckets.
func (s *selector) matches(c *class, v view) bool {
	for _, m := range s.matchers {
		switch m.Name {
		case model.MetricNameLabel:
			if s.name != "" {
				if !strings.HasPrefix(s.name, c.name) || s.name[len(c.name):] != suffixes[v] {
					return false
				}
			} else if !m.Matches(c.name + suffixes[v]) {
				return false
			}
		case labelNamespace, labelPod:
		case labels.BucketLabel:
			if v != viewBucket && !m.Matches(c.labels.get(m.Name)) {
				return false
			}
		default:
			if !m.Matches(c.labels.get(m.Name)) {
				return false
			}
		}
	}
	return true
}

func (s *selector) matchesClass(c *class) bool {
	for _, v := range c.views() {
		if s.matches(c, v) {
			return true
		}
	}
	return false
}

// matchesPod reports whether series of the pod are selected, as far as namespace and pod tell.
func (s *selector) matchesPod(p *Pod) bool {
	for _, m := range s.matchers {
		switch m.Name {
		case labelNamespace:
			if !m.Matches(p.Namespace) {
				return false
			}
		case labelPod:
			if !m.Matches(p.Name) {
				return false
			}
		}
	}
	return true
}

// asksFor reports whether the selector has a matcher for the label.
func (s *selector) asksFor(label string) bool {
	return slices.ContainsFunc(s.matchers, func(m *labels.Matcher) bool { return m.Name == label })
}

func (s *selector) asksForPod() bool { return s.asksFor(labelNamespace) || s.asksFor(labelPod) }

// matchesBound reports whether the bucket with the upper bound is selected.
func (s *selector) matchesBound(le string) bool {
	for _, m := range s.matchers {
		if m.Name == labels.BucketLabel && !m.Matches(le) {
			return false
		}
	}
	return true
}

// classesOf returns the classes that the selector may select.
func (s *Store) classesOf(sel *selector) []*class {
	if sel.prepared {
		return sel.members.all()
	}
	var found []*class
	add := func(cs []*class) {
		for _, c := range cs {
			if sel.matchesClass(c) {
				found = append(found, c)
			}
		}
	}
	if sel.name != "" {
		for _, base := range sel.bases() {
			add(s.classes.named(base))
		}
		return found
	}
	s.classes.byName.Range(func(_, l any) bool {
		add(l.(*list[*class]).all())
		return true
	})
	return found
}

// prepare keeps the selector's classes up to date from now on, until forget. A selector without a metric name is not
// prepared: it is matched when it is asked.
func (cs *classes) prepare(s *selector) {
	if s.name == "" {
		return
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	s.prepared = true
	for _, base := range s.bases() {
		cs.selectors[base] = append(cs.selectors[base], s)
		for _, c := range cs.named(base) {
			if s.matchesClass(c) {
				s.members.add(c)
				c.selectors.add(s)
			}
		}
	}
}

func (cs *classes) forget(s *selector) {
	if !s.prepared {
		return
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, base := range s.bases() {
		var left []*selector
		for _, o := range cs.selectors[base] {
			if o != s {
				left = append(left, o)
			}
		}
		if left == nil {
			delete(cs.selectors, base)
		} else {
			cs.selectors[base] = left
		}
	}
	gone := func(o *selector) bool { return o == s }
	for _, c := range s.members.all() {
		c.selectors.remove(gone)
	}
}
