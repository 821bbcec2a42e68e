package aggregator

import (
	"iter"
	"slices"
)

// index knows which series selectors mean. Those of registered queries are kept prepared: each new
// class is matched against them once, and what they select is kept up to date. All of it is under
// classes.mu.
type index struct {
	store      *store
	registered selectorIndex
	meeting    map[*class][]*selector // the registered ones that select a class, as far as it tells
}

func newIndex(s *store) *index {
	x := &index{store: s, registered: selectorIndex{}, meeting: map[*class][]*selector{}}
	s.classes.follower = x
	return x
}

// meets notes that the selector selects the class, as far as the class tells.
func (x *index) meets(s *selector, c *class) {
	x.meeting[c] = append(x.meeting[c], s)
	s.classes[c] = struct{}{}
}

func (x *index) unmeet(s *selector, c *class) {
	left := slices.DeleteFunc(x.meeting[c], func(o *selector) bool { return o == s })
	if x.meeting[c] = left; len(left) == 0 {
		delete(x.meeting, c)
	}
}

// appears finds the selectors of a new class, but those that go by its pods.
func (x *index) appears(c *class) {
	for s := range x.registered.matching(c) {
		x.meets(s, c)
	}
}

func (x *index) vanishes(c *class) {
	for _, s := range x.meeting[c] {
		delete(s.classes, c)
	}
	delete(x.meeting, c)
}

func (x *index) joins(c *column) {
	x.each(c, func(s *selector, v view) { s.selections.put(c, v) })
}

func (x *index) leaves(c *column) {
	x.each(c, func(s *selector, v view) { s.selections.take(c, v) })
}

func (x *index) marks(columns []*column) (found []*mark) {
	for _, c := range columns {
		x.each(c, func(s *selector, _ view) {
			if m := s.watched.Load(); m != nil && !slices.Contains(found, m) {
				found = append(found, m)
			}
		})
	}
	return found
}

// prepare keeps the selector's columns up to date from now on, until forget. A selector without a
// metric name is not prepared: it is matched when it is asked.
func (x *index) prepare(s *selector) {
	if s.name == "" {
		return
	}
	x.store.classes.mu.Lock()
	defer x.store.classes.mu.Unlock()
	s.prepared, s.classes = true, map[*class]struct{}{}
	for _, base := range s.bases() {
		at := x.registered.put(base, s)
		s.indexed = append(s.indexed, at)
		for _, c := range x.store.classes.named(base) {
			v, ok := s.viewOf(c)
			if !ok || c.gone {
				continue
			}
			if !at.byPod {
				x.meets(s, c)
			}
			for _, col := range c.columns.all() {
				if !col.left && s.takes(c, col.table.pod.Load()) {
					s.selections.put(col, v)
				}
			}
		}
	}
}

func (x *index) forget(s *selector) {
	if !s.prepared {
		return
	}
	x.store.classes.mu.Lock()
	defer x.store.classes.mu.Unlock()
	for _, at := range s.indexed {
		x.registered.take(at, s)
	}
	s.indexed = nil
	for c := range s.classes {
		x.unmeet(s, c)
	}
	clear(s.classes)
}

// selectionsOf returns what the selector selects now, with some that are gone, and some columns
// that are: those have no block.
func (x *index) selectionsOf(sel *selector) []*selection {
	if sel.prepared {
		return sel.selections.all()
	}
	var found selections
	for c := range x.classesOf(sel) {
		for v, last := c.views(); v <= last; v++ {
			if !sel.matches(c, v) {
				continue
			}
			for _, col := range c.columns.all() {
				if col.block.Load() != nil && sel.takes(c, col.table.pod.Load()) {
					found.put(col, v)
				}
			}
		}
	}
	return found.all()
}

// classesOf yields the classes of the metrics that the selector may name.
func (x *index) classesOf(sel *selector) iter.Seq[*class] {
	return func(yield func(*class) bool) {
		each := func(cs []*class) (more bool) {
			return !slices.ContainsFunc(cs, func(c *class) bool { return !yield(c) })
		}
		if sel.name == "" {
			x.store.classes.byName.Range(func(_, l any) bool { return each(l.(*list[*class]).all()) })
			return
		}
		for _, base := range sel.bases() {
			if !each(x.store.classes.named(base)) {
				return
			}
		}
	}
}

// selects reports whether a prepared selector selects a series of the table.
func (x *index) selects(sel *selector, t *table) bool {
	x.store.classes.mu.Lock()
	defer x.store.classes.mu.Unlock()
	for v := range view(len(suffixes)) {
		if sel.selections.byTable[selectionKey{t, v}] != nil {
			return true
		}
	}
	return false
}
