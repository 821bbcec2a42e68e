package aggregator

import (
	"strconv"
	"strings"
	"sync/atomic"
	"unique"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// view says which of a class's series is meant: a counter's or gauge's own, or one of those that
// Prometheus shows for a histogram.
type view uint8

const (
	viewCounter view = iota
	viewBucket
	viewSum
	viewCount
	viewNative // the finer view, a native histogram under the metric's own name (quantile.go)
	viewGauge
)

// suffixes are the name suffixes of the views.
var suffixes = [...]string{viewCounter: "", viewBucket: "_bucket", viewSum: "_sum", viewCount: "_count", viewNative: "", viewGauge: ""}

// views returns the first and the last view of a class.
func (c *class) views() (first, last view) {
	switch c.kind {
	case Counter:
		return viewCounter, viewCounter
	case Gauge:
		return viewGauge, viewGauge
	}
	return viewBucket, viewNative
}

// selector is a PromQL vector selector over the store's classes.
type selector struct {
	matchers []*labels.Matcher
	name     string // the metric name where the selector gives it by equality, else ""
	// The matchers again, by what they look at: the metric name (but for name itself), the labels
	// that a series gets from its pod, the bucket, and the labels of its class.
	onName, onPod, onBucket []*labels.Matcher
	onLabels                []labelMatcher
	sides                   sides

	reads *readLimit // nil: whatever there is

	// watched is the mark of the query that committed rows of the selected series mark, nil if they
	// mark none.
	watched atomic.Pointer[mark]
	// could are the tables whose pods could have the selected series, where the selector is
	// prepared.
	could atomic.Pointer[candidates]

	prepared   bool // selections is kept up to date
	selections selections

	// Under classes.mu, of a prepared one:
	classes map[*class]struct{} // that have it among their selectors
	indexed []indexed
}

// labelMatcher is a matcher of a class's label. Handles are compared without looking at the text.
type labelMatcher struct {
	*labels.Matcher
	name, value unique.Handle[string]
}

func newSelector(ms []*labels.Matcher) *selector {
	s := &selector{matchers: make([]*labels.Matcher, len(ms))}
	for i, m := range ms {
		m = canonicalLE(m)
		s.matchers[i] = m
		switch {
		case m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual && m.Value != "" && s.name == "":
			s.name = m.Value
		case m.Name == model.MetricNameLabel:
			s.onName = append(s.onName, m)
		case m.Name == labelNamespace || m.Name == labelPod:
			s.onPod = append(s.onPod, m)
		default:
			if m.Name == labels.BucketLabel {
				s.onBucket = append(s.onBucket, m)
			}
			s.onLabels = append(s.onLabels, labelMatcher{m, unique.Make(m.Name), unique.Make(m.Value)})
		}
	}
	s.sides = newSides(s.name, s.matchers)
	return s
}

// canonicalLE lets le="1.0" (as Prometheus 3 writes it) and le="1" (as Envoy and Prometheus 2 do)
// mean the same bucket.
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

// bases are the class names that can have the selected metric name: itself, and a histogram's
// without the view's suffix.
func (s *selector) bases() []string {
	names := []string{s.name}
	for _, v := range []view{viewBucket, viewSum, viewCount} {
		if base, ok := strings.CutSuffix(s.name, suffixes[v]); ok {
			names = append(names, base)
		}
	}
	return names
}

// matches reports whether the view of the class is selected, as far as the class tells: not its pod
// and not its buckets.
func (s *selector) matches(c *class, v view) bool {
	if !s.fitsName(c, v) {
		return false
	}
	for i := range s.onLabels {
		if m := &s.onLabels[i]; (v != viewBucket || m.Name != labels.BucketLabel) && !m.matches(c.labels) {
			return false
		}
	}
	return true
}

// fitsName reports whether the view of the class has a selected metric name.
func (s *selector) fitsName(c *class, v view) bool {
	if s.name != "" && (!strings.HasPrefix(s.name, c.name) || s.name[len(c.name):] != suffixes[v]) {
		return false
	}
	for _, m := range s.onName {
		if !m.Matches(c.name + suffixes[v]) {
			return false
		}
	}
	return true
}

func (m *labelMatcher) matches(set labelSet) bool {
	for _, l := range set {
		if l.name == m.name {
			if m.Type == labels.MatchEqual {
				return l.value == m.value
			}
			return m.Matches(l.value.Value())
		}
	}
	return m.Matches("")
}

// viewOf returns the first view of the class that is selected. A selector with a metric name
// selects no other.
func (s *selector) viewOf(c *class) (view, bool) {
	for v, last := c.views(); v <= last; v++ {
		if s.matches(c, v) {
			return v, true
		}
	}
	return 0, false
}

// matchesPod reports whether series of the pod are selected, as far as namespace and pod tell.
func (s *selector) matchesPod(p *Pod) bool {
	for _, m := range s.onPod {
		of := p.Name
		if m.Name == labelNamespace {
			of = p.Namespace
		}
		if !m.Matches(of) {
			return false
		}
	}
	return true
}

// takes reports whether the selector selects a series of the class, of which it selects a view, by
// the pod that reports it and by what its author sees.
func (s *selector) takes(c *class, p *Pod) bool {
	return s.matchesPod(p) && (s.reads == nil || s.reads.series(c.labels, p))
}

func (s *selector) asksForPod() bool { return len(s.onPod) > 0 }

// matchesBound reports whether the bucket with the upper bound is selected.
func (s *selector) matchesBound(le string) bool {
	for _, m := range s.onBucket {
		if !m.Matches(le) {
			return false
		}
	}
	return true
}
