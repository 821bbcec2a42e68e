package aggregator

import (
	"iter"
	"slices"
	"sync/atomic"
	"unique"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// selection is what a selector selects of one pod: columns of one view. What they share (the times
// of their rows, whether the pod is selected) is then looked at once a pod and not once a series,
// and they lie next to each other in memory.
type selection struct {
	table   *table
	view    view
	columns list[*column]
	gone    atomic.Bool // none of the columns is left
}

// selections are what a selector selects, by pod. A prepared selector's are written under
// classes.mu and read without it.
type selections struct {
	list[*selection]
	byTable map[selectionKey]*selection
}

type selectionKey struct {
	table *table
	view  view
}

func (ss *selections) put(c *column, v view) {
	k := selectionKey{c.table, v}
	sel := ss.byTable[k]
	if sel == nil {
		if ss.byTable == nil {
			ss.byTable = map[selectionKey]*selection{}
		}
		sel = &selection{table: c.table, view: v}
		ss.byTable[k] = sel
		sel.columns.add(c) // before a reader finds it
		ss.publish(sel)
		return
	}
	sel.columns.add(c)
}

func (ss *selections) publish(sel *selection) {
	ss.add(sel)
	sel.table.store.hook.After(stepSelected)
}

func (ss *selections) take(c *column, v view) {
	k := selectionKey{c.table, v}
	sel := ss.byTable[k]
	if sel == nil || sel.columns.leave(func(o *column) bool { return o.left }) > 0 {
		return
	}
	delete(ss.byTable, k)
	sel.gone.Store(true)
	ss.leave(func(o *selection) bool { return o.gone.Load() })
}

// selectorIndex finds the registered selectors that may select a series of a metric name without
// looking at those of other workloads and namespaces: each is kept under one of the label values
// that it asks for by equality. All are under classes.mu.
type selectorIndex map[string]*namedSelectors

// namedSelectors are those of one metric name. A selector without a value to go by is under the
// zero label.
type namedSelectors struct {
	byLabel map[internedLabel][]*selector
	byPod   int // how many are under a label that series get from their pod
}

// put keeps the selector for the metric name, under the label that has the fewest.
func (x selectorIndex) put(base string, s *selector) indexed {
	named := x[base]
	if named == nil {
		named = &namedSelectors{byLabel: map[internedLabel][]*selector{}}
		x[base] = named
	}
	var under internedLabel
	for i, l := range s.values() {
		if i == 0 || len(named.byLabel[l]) < len(named.byLabel[under]) {
			under = l
		}
	}
	at := indexed{base: base, under: under, byPod: isPodLabel(under)}
	named.byLabel[under] = append(named.byLabel[under], s)
	if at.byPod {
		named.byPod++
	}
	return at
}

// indexed is where an index keeps a selector.
type indexed struct {
	base  string
	under internedLabel
	byPod bool
}

func isPodLabel(l internedLabel) bool {
	return l != internedLabel{} && (l.name.Value() == labelNamespace || l.name.Value() == labelPod)
}

func (x selectorIndex) take(at indexed, s *selector) {
	named := x[at.base]
	if at.byPod {
		named.byPod--
	}
	left := slices.DeleteFunc(named.byLabel[at.under], func(o *selector) bool { return o == s })
	if named.byLabel[at.under] = left; len(left) > 0 {
		return
	}
	if delete(named.byLabel, at.under); len(named.byLabel) == 0 {
		delete(x, at.base)
	}
}

// matching visits the selectors that select a class, as far as it tells, but those that go by its
// pods.
func (x selectorIndex) matching(c *class) iter.Seq[*selector] {
	return func(yield func(*selector) bool) {
		named := x[c.name]
		if named == nil {
			return
		}
		for i := range len(c.labels) + 1 {
			var under internedLabel
			if i > 0 {
				under = c.labels[i-1]
			}
			for _, s := range named.byLabel[under] {
				if _, ok := s.viewOf(c); ok && !yield(s) {
					return
				}
			}
		}
	}
}

// each calls visit with the registered selectors that select the column, and with its view.
func (x *index) each(c *column, visit func(*selector, view)) {
	p := c.table.pod.Load()
	meet := func(ss []*selector) {
		for _, s := range ss {
			if !s.takes(c.class, p) {
				continue
			}
			if v, ok := s.viewOf(c.class); ok {
				visit(s, v)
			}
		}
	}
	meet(x.meeting[c.class])
	if named := x.registered[c.class.name]; named != nil && named.byPod > 0 {
		meet(named.byLabel[internedLabel{unique.Make(labelNamespace), unique.Make(p.Namespace)}])
		meet(named.byLabel[internedLabel{unique.Make(labelPod), unique.Make(p.Name)}])
	}
}

// values are the label values that the selector asks for by equality, where a series can have them.
func (s *selector) values() []internedLabel {
	var ls []internedLabel
	for _, m := range s.matchers {
		if m.Type == labels.MatchEqual && m.Value != "" && m.Name != model.MetricNameLabel && m.Name != labels.BucketLabel {
			ls = append(ls, internedLabel{unique.Make(m.Name), unique.Make(m.Value)})
		}
	}
	return ls
}
