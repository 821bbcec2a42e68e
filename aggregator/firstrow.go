package aggregator

import (
	"math"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// The first row of a table. It is known what its flush counted, and not yet how long that took:
// what the node tells may not be kept, and who tells nothing may flush every 5 s or every 100.
// Taken for shorter than it is, its rate is too high by as much. So until the second flush measures
// it:
//
//   - it counts as it is: its length is the longest that may be, and no rate goes beyond what was
//     counted (over.plain);
//   - where nothing bounds the length within a query's window it has no rate at all: the row before
//     it is not shown;
//   - the pod is not known beyond it (table.state), and no surge is looked for in it
//     (internal/surge).
//
// Prometheus' engine is shown the row before it where a bound is known, and extrapolates there as
// everywhere (differences.md).

// toldFlush is the flush interval of a pod of which none has been observed: what its node tells,
// within bounds. A sidecar that does not know the annotation goes on with the usual interval, and
// nobody waits for hours on a node's word.
func (p *Pod) toldFlush() int64 {
	return min(max(p.FlushInterval.Milliseconds(), defaultFlushMs), maxToldFlushMs)
}

const maxToldFlushMs = 30_000

// age returns how old the pod is at a time, 0 if that is not known.
func (s *store) age(p *Pod, at int64) int64 {
	pods := s.pods.Load()
	if pods == nil {
		return 0
	}
	_, created, ok := (*pods).Known(p.Namespace, p.Name)
	if !ok {
		return 0
	}
	return max(0, at-created.UnixMilli())
}

// openFirst opens the row before the first, which begins with what the first flush counted.
func (t *table) openFirst(at int64) {
	length, bound := t.firstLength(at)
	t.born = at
	t.ring.BoundFirst(bound)
	t.ring.Open(at - length)
	t.rowTime = at - length
	if last := t.store.tables.recall(t.pod.Load()); last != 0 {
		t.gap.Store(&gap{from: last, to: at - length})
	}
}

// firstLength returns how long the first flush may have taken at most, as far as is known, and what
// bounds that: MaxInt64 if nothing does.
func (t *table) firstLength(at int64) (length, bound int64) {
	p := t.pod.Load()
	told, seen, age := p.FlushInterval.Milliseconds(), t.store.tables.longest(p), t.store.age(p, at)
	length, bound = max(told, seen, defaultFlushMs), math.MaxInt64
	if told > 0 || seen > 0 && age == 0 { // another one of the workload may differ: an age says more
		bound = length
	}
	if age > 0 {
		length, bound = min(length, age), min(bound, age)
	}
	return length, bound
}

// measureFirst corrects the length of the first flush when two have followed each other in one
// stream: by their distance on our clock, or by the sidecar's where the first of them came late.
func (t *table) measureFirst(length, stamps int64) {
	if stamps <= ring.MaxUnmeasuredMs {
		length = max(length, stamps)
	}
	t.ring.MeasureFirst(length)
	t.second.Store(int64(t.ring.Newest() + 1)) // it is opened next
}

// pullBack corrects the rows of a stream that came late, all by as much: the first messages may
// wait long for a process that is busy.
func (t *table) pullBack(st *Stream, late int64) {
	g, first := t.ring.Rows(), st.firstRow
	if first < max(1, g.First()) || t.flushTime != t.rowTime || t.ring.Newest() < first { // the newest flush has no row, or this stream has none
		return
	}
	room := g.Time(first) - t.store.started.UnixMilli() // nobody sent before we listened
	if first == 1 && g.First() == 0 {
		first = 0
	} else {
		room = min(room, g.Time(first)-g.Time(first-1)-1)
	}
	if late = min(late, room); late <= 0 {
		return
	}
	t.gap.Store(t.gap.Load().pullBack(g.Time(first), late))
	t.ring.PullBack(first, late)
	t.rowTime -= late
	t.flushTime -= late
}

// workloadKey names a workload.
type workloadKey struct{ namespace, name string }

// maxWorkloads bounds the workloads whose flush interval is remembered.
const maxWorkloads = 50_000

// longest returns the longest flush interval that was observed of the pod's workload, 0 if none
// was.
func (ts *tables) longest(p *Pod) int64 {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	flush, _ := ts.flushes.get(workloadKey{p.Namespace, p.Workload})
	return flush
}

// observed notes a flush interval of the pod's workload.
func (ts *tables) observed(p *Pod, flush int64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	k := workloadKey{p.Namespace, p.Workload}
	if was, _ := ts.flushes.get(k); p.Workload != "" && flush > was {
		ts.flushes.keep(k, flush, maxWorkloads)
	}
}
