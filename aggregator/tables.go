package aggregator

import (
	"sync"
	"sync/atomic"
	"time"
)

// tables are the pods' tables, by identity and by namespace. The mutex is taken when a pod connects
// or is freed.
type tables struct {
	mu          sync.Mutex
	byPod       map[podKey]*table
	made        uint64       // tables so far
	all         list[*table] // with some that are gone
	byNamespace sync.Map     // string -> *list[*table]
	// log are the tables in the order in which they came, those that are gone included, until it is
	// begun anew: selectors keep their place in it.
	log atomic.Pointer[list[*tableRef]]
	// gone are the newest rows of pods whose tables were freed: they may still exist, and come
	// back. The oldest are given up.
	gone bounded[podKey, int64]
	// proven are what pods whose tables were freed had proven: a pod that is silent for long is
	// still that pod, and nobody else's for the taking. The oldest are given up.
	proven bounded[podKey, provenPod]
	// flushes are the longest flush intervals that were observed, by workload.
	flushes bounded[workloadKey, int64]
}

// tableRef is a table's place in the log: nil once the table is gone, so that the log does not keep
// its rings.
type tableRef struct{ table atomic.Pointer[table] }

// enter comes into a log, for readers that have its place by then.
func (t *table) enter(log *list[*tableRef]) {
	log.add(t.ref)
	t.store.hook.After(stepLogged)
}

// maxGone bounds what is remembered of pods whose tables were freed.
const maxGone = 50_000

type podKey struct{ namespace, name string }

// get returns the pod's table, made if it is new; else the error is ErrForeignPod, ErrPods or
// ErrMemory.
func (ts *tables) get(s *store, p *Pod) (*table, error) {
	k := podKey{p.Namespace, p.Name}
	ts.mu.Lock()
	t := ts.byPod[k]
	ts.mu.Unlock()
	if t != nil {
		return t, nil
	}
	if s.refuses(p, s.millis(time.Now())) || s.denied(p) { // asks for the cluster's pods, whose readers ask for tables: not with the mutex held
		return nil, ErrForeignPod
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.byPod[k]; t != nil {
		return t, nil
	}
	if !s.podShares.Take(p.Sender, 1) {
		return nil, ErrPods
	}
	t = newTable(s, p)
	t.remember(ts.proven.get(k))
	if err := t.afford(t.bytes()); err != nil {
		s.podShares.Give(p.Sender, 1)
		return nil, err
	}
	ts.made++
	t.number = ts.made
	if ts.byPod == nil {
		ts.byPod = map[podKey]*table{}
	}
	ts.byPod[k] = t
	ts.all.add(t)
	if ts.log.Load() == nil {
		ts.log.Store(&list[*tableRef]{})
	}
	t.ref = &tableRef{}
	t.ref.table.Store(t)
	t.enter(ts.log.Load())
	l, _ := ts.byNamespace.LoadOrStore(p.Namespace, &list[*table]{})
	l.(*list[*table]).add(t)
	return t, nil
}

// find returns the pod's table, or nil and the newest row of the one that was freed, 0 if there was
// none.
func (ts *tables) find(namespace, name string) (*table, int64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	k := podKey{namespace, name}
	last, _ := ts.gone.get(k)
	return ts.byPod[k], last
}

// count returns how many pods have a table.
func (ts *tables) count() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.byPod)
}

// recall returns the newest row of the pod's table that was freed, and forgets it; 0 if there was
// none.
func (ts *tables) recall(p *Pod) int64 {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	k := podKey{p.Namespace, p.Name}
	last, _ := ts.gone.get(k)
	ts.gone.forget(k)
	return last
}

func (ts *tables) remove(t *table) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.ref.table.Load() == nil {
		return // by a sweep, between a fault and the pod's next flush
	}
	p := t.pod.Load()
	k := podKey{p.Namespace, p.Name}
	delete(ts.byPod, k)
	if newest, ok := t.newest(); ok {
		ts.gone.keep(k, newest, maxGone)
	}
	if proof := t.proof(); proof&ProofPod != 0 {
		ts.proven.keep(k, provenPod{t.created, proof}, maxGone)
	} else {
		ts.proven.forget(k)
	}
	t.ref.table.Store(nil)
	gone := func(o *table) bool { return o.gone.Load() }
	ts.all.leave(gone)
	if len(ts.log.Load().all()) > 2*len(ts.byPod)+64 {
		ts.relog()
	}
	l, ok := ts.byNamespace.Load(p.Namespace) // not there: the table has left it with another that was gone
	if ok && l.(*list[*table]).leave(gone) == 0 {
		ts.byNamespace.Delete(p.Namespace)
	}
}

// relog begins a new log, without the tables that are gone. The mutex is held.
func (ts *tables) relog() {
	l := &list[*tableRef]{}
	for _, t := range ts.all.all() {
		if t.ref.table.Load() != nil {
			l.add(t.ref)
		}
	}
	ts.log.Store(l)
}

// renamed is called when a pod of a known name says that it is another workload's.
func (ts *tables) renamed() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.relog()
}

// in returns the tables of a namespace, with some that are gone.
func (ts *tables) in(namespace string) []*table {
	if l, ok := ts.byNamespace.Load(namespace); ok {
		return l.(*list[*table]).all()
	}
	return nil
}
