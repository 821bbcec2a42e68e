package aggregator

import (
	"errors"
	"math"
)

// introduce is the slow path, once per new series of a pod: it decodes name and labels and makes
// the column.
func (t *table) introduce(s *Sample, b *Batch, i int, d Describer) (*column, error) {
	if _, bad := t.unreadable[s.Key]; bad {
		return nil, ErrBadSeries
	}
	if t.flushTime-t.vainSince >= defaultFlushMs {
		t.vain, t.vainSince = 0, t.flushTime
	}
	if t.vain >= t.store.config.MaxSeriesPerPod {
		return nil, ErrBadSeries
	}
	kind := s.Kind
	if kind == Summary {
		kind = Histogram
	}
	describe := func() (string, []Label, error) {
		name, labels, err := d.Describe(i)
		return name, t.said(labels), err
	}
	if err := t.limited(); err != nil {
		if c := t.known(s.Key, t.space(b), kind, describe); c != nil {
			return c, nil
		}
		t.limit = err
		return nil, err
	}
	cl, err := t.classOf(s.Key, t.space(b), kind, describe)
	if errors.Is(err, ErrMemory) {
		return nil, t.short(err)
	}
	if err != nil {
		t.vain++
		if t.unreadable == nil {
			t.unreadable = map[uint64]struct{}{}
		}
		if len(t.unreadable) < maxUnreadable {
			t.unreadable[s.Key] = struct{}{}
		}
		return nil, errors.Join(ErrBadSeries, err)
	}
	if c := t.byClass[cl]; c != nil { // the same series under another name on the wire: the pod's naming mode has changed
		t.store.classes.release(cl)
		t.keys[s.Key], c.key = c, s.Key
		return c, nil
	}
	if err := t.affordSeries(expectedWords(s)); err != nil {
		t.store.classes.release(cl)
		return nil, t.short(err)
	}
	return t.addColumn(s.Key, cl), nil
}

// known returns the column of a series that comes under a new key while the table takes no new
// ones, nil if it is not known. What is refused is described once, and at most a few for each
// series that could be found: not at every flush of a flood.
func (t *table) known(key, space uint64, kind Kind, describe func() (string, []Label, error)) *column {
	if _, refused := t.strange[key]; refused || len(t.strange) >= 4*len(t.columns) || t.keysFull() {
		return nil
	}
	if c := t.byClass[t.store.classes.known(space, key, kind, describe)]; c != nil {
		t.keys[key], c.key = c, key
		return c
	}
	if t.strange == nil {
		t.strange = map[uint64]struct{}{}
	}
	t.strange[key] = struct{}{}
	return nil
}

// keysFull reports whether the table takes no key more. One series may come under many, by the
// order of its labels: they are bounded as the tombstones are.
func (t *table) keysFull() bool { return len(t.keys) >= 4*t.store.config.MaxSeriesPerPod }

// limited says why the table takes no new series, nil if it does.
func (t *table) limited() error {
	switch {
	case len(t.byClass) >= t.store.config.MaxSeriesPerPod || t.keysFull():
		return ErrPodLimit
	case t.shortOf != nil && t.shortAt == t.flushes:
		return t.shortOf
	}
	return nil
}

// classOf returns the class of a series, with a user more.
func (t *table) classOf(key, space uint64, kind Kind, describe func() (string, []Label, error)) (*class, error) {
	cs := t.store.classes
	if space != 0 {
		if cl := cs.recall(space^key, kind); cl != nil {
			return cl, nil
		}
	}
	name, ls, err := describe()
	if err != nil {
		return nil, err
	}
	cl := cs.acquire(t.sender, name, kind, ls)
	if cl == nil {
		return nil, ErrMemory
	}
	if space != 0 {
		cs.remember(space^key, cl)
	}
	return cl, nil
}

// maxUnreadable bounds the keys of a pod that are remembered as unreadable, so that they are
// decoded once and not every flush.
const maxUnreadable = 1024

func (t *table) addColumn(key uint64, cl *class) *column {
	const never = math.MinInt64
	c := &column{class: cl, table: t, key: key, row: -1, flush: neverSeen, timestamp: never}
	if cl.kind == Histogram {
		c.intervals = &intervals{intervalAt: never, quantilesAt: never}
	}
	if t.keys == nil {
		t.keys, t.byClass = map[uint64]*column{}, map[*class]*column{}
	}
	t.keys[key] = c
	t.byClass[cl] = c
	t.columns = append(t.columns, c)
	if tomb, ok := t.past.get(key); ok {
		c.raw, c.total, c.past, c.pastKnown, c.flush = tomb.raw, tomb.total, tomb.total, true, tomb.flush
	}
	t.pair(c)
	t.store.classes.join(c)
	t.watchEpoch, t.rangeEpoch = 0, 0
	return c
}

// pair links a request counter with the duration histogram of its label set, whichever comes first.
func (t *table) pair(c *column) {
	other, kind := durationsName, Histogram
	switch {
	case c.class.kind == Counter && c.class.name == requestsName:
	case c.class.kind == Histogram && c.class.name == durationsName:
		other, kind = requestsName, Counter
	default:
		return
	}
	if o := t.byClass[t.store.classes.sibling(c.class, other, kind)]; o != nil {
		c.partner, o.partner = o, c
		t.pairs = true
	}
}
