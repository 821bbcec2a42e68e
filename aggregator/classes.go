package aggregator

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"unique"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// class is what series of different pods have in common: kind, name and labels. Matching runs once
// per class.
type class struct {
	name    string
	kind    Kind // Counter, Histogram or Gauge
	labels  labelSet
	hash    uint64 // of labels
	columns list[*column]

	// Under classes.mu:
	users    int       // columns that hold the class
	sameHash *class    // another one in classes.byHash
	wire     [2]uint64 // under which classes.byWire has it: tags come in the name or as labels; 0: none
	gone     bool      // the last user has released it
	sender   string    // whose share of the memory it is of
}

// labelsOf returns the labels of a column of the class as a query sees them; suffix is "",
// "_bucket", "_sum" or "_count".
func (c *class) labelsOf(b *labels.ScratchBuilder, p *Pod, suffix, le string) labels.Labels {
	b.Reset()
	b.Add(model.MetricNameLabel, c.name+suffix)
	for _, l := range c.labels {
		if n := l.name.Value(); le == "" || n != labels.BucketLabel {
			b.Add(n, l.value.Value())
		}
	}
	b.Add(labelNamespace, p.Namespace)
	b.Add(labelPod, p.Name)
	if le != "" {
		b.Add(labels.BucketLabel, le)
	}
	b.Sort()
	return b.Labels()
}

// classes interns classes and keeps them by metric name. Its mutex is taken once per new series,
// never per sample.
type classes struct {
	memory *Shares
	mu     sync.Mutex
	texts  map[unique.Handle[string]]*text // label values that are held
	seed   maphash.Seed
	byHash map[uint64]*class
	byWire map[uint64]*class // by Batch.Space ^ Sample.Key, both random
	byName sync.Map          // string -> *list[*class], written under mu
	// labelNames counts the classes that have a label of the name.
	labelNames map[unique.Handle[string]]int
	follower   follower
}

func newClasses(memory *Shares) *classes {
	return &classes{
		memory:     memory,
		texts:      map[unique.Handle[string]]*text{},
		seed:       maphash.MakeSeed(),
		byHash:     map[uint64]*class{},
		byWire:     map[uint64]*class{},
		labelNames: map[unique.Handle[string]]int{},
	}
}

// text is a label's value, of which the memory is the first sender's.
type text struct {
	users  int
	sender string
}

// bytes is what the class itself takes.
func (c *class) bytes() int64 { return classBytes + labelBytes*int64(len(c.labels)) }

// afford takes memory for a class and for those of its label values that are new. The mutex is
// held.
func (cs *classes) afford(c *class) bool {
	bytes := c.bytes()
	fresh := map[unique.Handle[string]]bool{}
	for _, l := range c.labels {
		if cs.texts[l.value] == nil && !fresh[l.value] {
			fresh[l.value] = true
			bytes += textBytes + int64(len(l.value.Value()))
		}
	}
	if !cs.memory.Take(c.sender, bytes) {
		return false
	}
	for _, l := range c.labels {
		if cs.texts[l.value] == nil {
			cs.texts[l.value] = &text{sender: c.sender}
		}
		cs.texts[l.value].users++
	}
	return true
}

// giveUp gives back what a class has taken, and its values that no other has. The mutex is held.
func (cs *classes) giveUp(c *class) {
	cs.memory.Give(c.sender, c.bytes())
	for _, l := range c.labels {
		x := cs.texts[l.value]
		if x.users--; x.users == 0 {
			cs.memory.Give(x.sender, textBytes+int64(len(l.value.Value())))
			delete(cs.texts, l.value)
		}
	}
}

// acquire returns the class of a series, made if it is new; nil if the sender has no memory left
// for it. Every acquire needs its release.
func (cs *classes) acquire(sender, name string, kind Kind, in []Label) *class {
	set := newLabelSet(in)
	hash := cs.hashLabels(set)
	h := cs.hash(name, kind, hash)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if c := cs.find(h, name, kind, set); c != nil {
		c.users++
		return c
	}
	c := &class{name: strings.Clone(name), kind: kind, labels: set, hash: hash, users: 1, sameHash: cs.byHash[h], sender: sender}
	if !cs.afford(c) {
		return nil
	}
	cs.byHash[h] = c
	l, _ := cs.byName.LoadOrStore(c.name, &list[*class]{})
	l.(*list[*class]).add(c)
	for _, label := range set {
		cs.labelNames[label.name]++
	}
	cs.follower.appears(c)
	return c
}

// recall returns the class that remember was told of, with a user more; nil if there is none.
func (cs *classes) recall(wire uint64, kind Kind) *class {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.byWire[wire]
	if c == nil || c.kind != kind {
		return nil
	}
	c.users++
	return c
}

// known returns the class of a series, nil if there is none or it cannot be described. It may go at
// any time.
func (cs *classes) known(space, key uint64, kind Kind, describe func() (string, []Label, error)) *class {
	cs.mu.Lock()
	c := cs.byWire[space^key]
	cs.mu.Unlock()
	if space != 0 && c != nil && c.kind == kind {
		return c
	}
	name, in, err := describe()
	if err != nil {
		return nil
	}
	set := newLabelSet(in)
	h := cs.hash(name, kind, cs.hashLabels(set))
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.find(h, name, kind, set)
}

// remember keeps under which key a class, which has a user, comes on the wire.
func (cs *classes) remember(wire uint64, c *class) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for i := range c.wire {
		if c.wire[i] == 0 && cs.byWire[wire] == nil {
			c.wire[i], cs.byWire[wire] = wire, c
		}
	}
}

// retain adds a user to a class that has one.
func (cs *classes) retain(c *class) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.users++
}

// sibling returns the class of another metric with the same labels, nil if there is none.
func (cs *classes) sibling(of *class, name string, kind Kind) *class {
	h := cs.hash(name, kind, of.hash)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.find(h, name, kind, of.labels)
}

// find returns the class, nil if there is none. The mutex is held.
func (cs *classes) find(hash uint64, name string, kind Kind, set labelSet) *class {
	for c := cs.byHash[hash]; c != nil; c = c.sameHash {
		if c.name == name && c.kind == kind && slices.Equal(c.labels, set) {
			return c
		}
	}
	return nil
}

// release gives a class up; the last one to do so removes it everywhere.
func (cs *classes) release(c *class) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.releaseLocked(c)
}

func (cs *classes) releaseLocked(c *class) {
	if c.users--; c.users > 0 {
		return
	}
	h := cs.hash(c.name, c.kind, c.hash)
	cs.unhash(h, c)
	for _, wire := range c.wire {
		if wire != 0 {
			delete(cs.byWire, wire)
		}
	}
	c.gone = true
	cs.giveUp(c)
	l, _ := cs.byName.Load(c.name)
	if l.(*list[*class]).leave(func(o *class) bool { return o.gone }) == 0 {
		cs.byName.Delete(c.name)
	}
	for _, label := range c.labels {
		if cs.labelNames[label.name]--; cs.labelNames[label.name] == 0 {
			delete(cs.labelNames, label.name)
		}
	}
	cs.follower.vanishes(c)
}

// unhash takes a class out of byHash.
func (cs *classes) unhash(h uint64, c *class) {
	first := cs.byHash[h]
	switch {
	case first != c:
		for first.sameHash != c {
			first = first.sameHash
		}
		first.sameHash = c.sameHash
	case c.sameHash != nil:
		cs.byHash[h] = c.sameHash
	default:
		delete(cs.byHash, h)
	}
}

// named returns the classes of a metric name, with some that are gone: those have no columns.
func (cs *classes) named(name string) []*class {
	if l, ok := cs.byName.Load(name); ok {
		return l.(*list[*class]).all()
	}
	return nil
}

func (cs *classes) hash(name string, kind Kind, labels uint64) uint64 {
	return labels ^ maphash.String(cs.seed, name) ^ uint64(kind)
}

func (cs *classes) hashLabels(set labelSet) uint64 {
	var h maphash.Hash
	h.SetSeed(cs.seed)
	for _, l := range set {
		maphash.WriteComparable(&h, l)
	}
	return h.Sum64()
}

// follower is told of what comes and goes, with classes.mu held: the index.
type follower interface {
	appears(*class)
	vanishes(*class)
	joins(*column)
	leaves(*column)
	// marks are those of the watched queries that select one of the columns.
	marks(columns []*column) []*mark
}

// join makes a column one of its class.
func (cs *classes) join(c *column) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.class.columns.add(c)
	cs.follower.joins(c)
}

// leave takes a column out again, and gives up its hold of the class. Without its block nothing of
// it is read any more.
func (cs *classes) leave(c *column) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.left = true
	c.block.Store(nil)
	c.class.columns.leave(func(o *column) bool { return o.left })
	cs.follower.leaves(c)
	cs.releaseLocked(c.class)
}

// marks are those of the watched queries that select one of the columns.
func (cs *classes) marks(columns []*column) []*mark {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return cs.follower.marks(columns)
}

// labelSet is the labels of a series without its name and without the pod's: sorted, without empty
// values, shared by all metrics and pods that have the same. 16 bytes a label; labels.Labels of the
// same would be about 1 KB.
type labelSet []internedLabel

type internedLabel struct{ name, value unique.Handle[string] }

// get returns the label's value, "" if it is not there: to PromQL the two are the same.
func (s labelSet) get(name string) string {
	for _, l := range s {
		if l.name.Value() == name {
			return l.value.Value()
		}
	}
	return ""
}

func newLabelSet(in []Label) labelSet {
	s := make(labelSet, 0, len(in))
	for _, l := range in {
		if l.Value == "" {
			continue
		}
		name := l.Name
		if name == labelNamespace || name == labelPod { // the reporting pod's: as Prometheus does without honor_labels
			for slices.ContainsFunc(in, func(o Label) bool { return o.Name == name }) {
				name = "exported_" + name
			}
		}
		s = append(s, internedLabel{unique.Make(name), unique.Make(l.Value)})
	}
	slices.SortFunc(s, func(a, b internedLabel) int { return strings.Compare(a.name.Value(), b.name.Value()) })
	return s
}

// Labels that every series gets from the reporting sidecar's node. A metric's own label of such a
// name is called exported_….
const (
	labelNamespace = "namespace"
	labelPod       = "pod"
)

// Istio's label for the end of a call that reports.
const labelReporter = "reporter"
