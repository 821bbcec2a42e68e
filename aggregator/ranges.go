package aggregator

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// ranges are the registered queries that ask pods for more than they keep by themselves: that name
// metrics which are not kept (asked.go), or look further back than the retention. The rings of the
// pods that such a query means are stretched: they have so many times the rows. What that takes is
// lent to the namespace that asks for it, of a quarter of the memory budget (Shares), and given way
// where senders need it: nobody's new pod or series is refused for a long range. When the query
// goes, the rings shrink.
type ranges struct {
	memory *Shares
	mu     sync.Mutex
	long   []*demand
	// epoch is another one after each change of the queries.
	epoch atomic.Uint64
}

// stretched is how far back a table's rows reach that are kept, in milliseconds, and how many times
// as many they are as the retention needs; so many bytes of that are lent to the author, a
// namespace. It is what the queries of the epoch ask for.
type stretched struct {
	keep, stretch, lent int64
	author              string
	rangeEpoch          uint64
}

// demand is a query that looks so far back, in milliseconds, and names metrics that are not kept.
type demand struct {
	reach  int64 // 0: no further than the retention
	author string
	means  func(*table) bool               // whether the table's rows are what it looks at
	asks   func(*Pod, func(prefix string)) // which metrics that are not kept it names of the pod; nil: none
}

// rangesPart is the part of the memory budget that rows beyond the retention may take.
const rangesPart = 4

func (r *ranges) add(q *demand) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.long = append(r.long, q)
	r.epoch.Add(1)
}

func (r *ranges) remove(q *demand) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.long, q); i >= 0 {
		r.long = slices.Delete(r.long, i, i+1)
		r.epoch.Add(1)
	}
}

// all returns the queries, of another slice at each change.
func (r *ranges) all() []*demand {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.long)
}

// refit looks again at the rings that a query of an author has stretched, after it has gone.
func (s *store) refit(author string) {
	for _, t := range s.tables.all.all() {
		t.mu.Lock()
		if t.stretch > 1 && t.author == author && !t.removed && t.aside.Load() == nil {
			t.try(t.fit)
		}
		t.mu.Unlock()
	}
}

// fit has the table keep what the registered queries ask of it: it reads what they name, and
// stretches or shrinks the ring, as far as there is memory.
func (t *table) fit() {
	t.rangeEpoch = t.store.ranges.epoch.Load()
	queries := t.store.ranges.all()
	t.ask(queries)
	reach, author := t.store.retention, ""
	for _, q := range queries {
		if ms := q.reach; (ms > reach || ms == reach && q.author == t.author) && q.means(t) {
			reach, author = ms, q.author
		}
	}
	stretch := int64(1) << bits.Len64(uint64((reach-1)/t.store.retention))
	if !t.stretchTo(stretch, author) && !t.stretchTo(min(stretch, t.stretch), t.author) {
		t.stretchTo(1, "")
	}
	t.keep = min(reach, t.stretch*t.store.retention)
}

// stretchTo gives the ring so many times the rows that the retention needs. It returns false, and
// all is as it was but the loan, if the author may not have them.
func (t *table) stretchTo(stretch int64, author string) bool {
	base, r := t.baseSlots(), &t.store.ranges
	if t.lent > 0 && author != t.author {
		r.memory.Give(t.author, t.lent)
		t.lent = 0
	}
	extra := t.rowBytes(base*stretch) - t.rowBytes(base)
	switch more := extra - t.lent; { // what it has it keeps, whatever others have borrowed since
	case more < 0:
		r.memory.Give(author, -more)
	case more > 0 && !r.memory.Take(author, more):
		return false
	}
	t.lent, t.author = extra, author
	if stretch != t.stretch {
		t.stretch = stretch
		t.move(base * stretch)
	}
	return true
}

// baseSlots are the rows that the retention needs.
func (t *table) baseSlots() int64 { return t.ring.Slots() / t.stretch }

// lend takes what more words a row, and more rows for the retention, which are there by now, take
// beyond it. Where that is too much, the ring shrinks.
func (t *table) lend(bytes int64) {
	if t.stretch == 1 {
		return
	}
	if t.store.ranges.memory.Take(t.author, bytes) {
		t.lent += bytes
		return
	}
	t.shrink()
}

// shrink gives the rows beyond the retention up.
func (t *table) shrink() {
	t.stretchTo(1, "")
	t.keep = t.store.retention
	t.store.metrics.shrunk.Inc()
}

// refit looks whether the ring is what the queries ask for, before a row.
func (t *table) refit() {
	switch r := &t.store.ranges; {
	case t.stretch > 1 && r.memory.Over():
		t.shrink()
	case t.rangeEpoch != r.epoch.Load():
		t.fit()
	}
}
