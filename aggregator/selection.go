package aggregator

import (
	"slices"
	"sync/atomic"
	"unique"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// selection is what a selector selects of one pod: columns of one view. What they share (the times of their rows, whether the
// pod is selected) is then looked at once a pod and not once a series, and they lie next to each other in memory.
type selection struct {
	table   *table
	view    view
	columns list[*column]
	gone    atomic.Bool // none of the columns is left
}

// selections are what a selector selects, by pod. A prepared selector's are written under classes.mu and read without it.
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

// selectionsOf returns what the selector selects now, with some that are gone, and some columns that are: those have no block.
func (s *Store) selectionsOf(sel *selector) []*selection {
	if sel.prepared {
		return sel.selections.all()
	}
	var found selections
	for _, c := range s.classesOf(sel) {
		for v, last := c.views(); v <= last; v++ {
			if !sel.matches(c, v) {
				continue
			}
			for _, col := range c.columns.all() {
				if col.block.Load() != nil && sel.matchesPod(col.table.pod.Load()) {
					found.put(col, v)
				}
			}
		}
	}
	return found.all()
}

// classesOf returns the classes that the selector may select, by looking at all of its metric's.
func (s *Store) classesOf(sel *selector) []*class {
	var found []*class
	add := func(cs []*class) {
		for _, c := range cs {
			if _, ok := sel.viewOf(c); ok {
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

// selectorIndex finds the registered selectors that may select a series of a metric name without looking at those of
// other workloads and namespaces: each is kept under one of the label values that it asks for by equality. All are under classes.mu.
type selectorIndex map[string]*namedSelectors

// namedSelectors are those of one metric name. A selector without a value to go by is under the zero label.
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

// match finds the selectors of a new class, but those that go by its pods.
func (x selectorIndex) match(c *class) {
	named := x[c.name]
	if named == nil {
		return
	}
	named.match(c, internedLabel{})
	for _, l := range c.labels {
		named.match(c, l)
	}
}

func (n *namedSelectors) match(c *class, under internedLabel) {
	for _, s := range n.byLabel[under] {
		if _, ok := s.viewOf(c); ok {
			s.meets(c)
		}
	}
}

// meets notes that the selector selects the class, as far as the class tells.
func (s *selector) meets(c *class) {
	c.selectors = append(c.selectors, s)
	s.classes[c] = struct{}{}
}

// each calls visit with the registered selectors that select the column, and with its view.
func (x selectorIndex) each(c *column, visit func(*selector, view)) {
	p := c.table.pod.Load()
	meet := func(ss []*selector) {
		for _, s := range ss {
			if !s.matchesPod(p) {
				continue
			}
			if v, ok := s.viewOf(c.class); ok {
				visit(s, v)
			}
		}
	}
	meet(c.class.selectors)
	if named := x[c.class.name]; named != nil && named.byPod > 0 {
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

// prepare keeps the selector's columns up to date from now on, until forget. A selector without a metric name is not
// prepared: it is matched when it is asked.
func (cs *classes) prepare(s *selector) {
	if s.name == "" {
		return
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	s.prepared, s.classes = true, map[*class]struct{}{}
	for _, base := range s.bases() {
		at := cs.registered.put(base, s)
		s.indexed = append(s.indexed, at)
		for _, c := range cs.named(base) {
			v, ok := s.viewOf(c)
			if !ok || c.gone {
				continue
			}
			if !at.byPod {
				s.meets(c)
			}
			for _, col := range c.columns.all() {
				if !col.left && s.matchesPod(col.table.pod.Load()) {
					s.selections.put(col, v)
				}
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
	for _, at := range s.indexed {
		cs.registered.take(at, s)
	}
	s.indexed = nil
	for c := range s.classes {
		c.selectors = slices.DeleteFunc(c.selectors, func(o *selector) bool { return o == s })
	}
	clear(s.classes)
}

// join makes a column one of its class, and one of the registered selectors that select it.
func (cs *classes) join(c *column) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.class.columns.add(c)
	cs.registered.each(c, func(s *selector, v view) { s.selections.put(c, v) })
}

// leave takes a column out again, and gives up its hold of the class. Without its block nothing of it is read any more.
func (cs *classes) leave(c *column) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.left = true
	c.block.Store(nil)
	c.class.columns.leave(func(o *column) bool { return o.left })
	cs.registered.each(c, func(s *selector, v view) { s.selections.take(c, v) })
	cs.releaseLocked(c.class)
}

// selecting calls visit with the registered selectors that select the columns, with each as often as it does.
func (cs *classes) selecting(columns []*column, visit func(*selector)) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range columns {
		cs.registered.each(c, func(s *selector, _ view) { visit(s) })
	}
}
