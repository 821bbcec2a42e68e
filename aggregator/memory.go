package aggregator

import (
	"cmp"
	runtimemetrics "runtime/metrics"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// What is kept of senders is counted before it is taken, for each of them (Shares): pods, series,
// and bytes. Bytes are the words of rows, which are exact, and what lies around them, by size:
const (
	// tableBytes is a pod without series: the table with its place in maps and lists, and its
	// node's identity.
	tableBytes = 1700
	// columnBytes is a series beside its rows: the column, its keys, its places in lists.
	columnBytes = 500
	// classBytes is a label set of a metric, labelBytes each of its labels, and textBytes what a
	// label's value takes beside its text.
	classBytes, labelBytes, textBytes = 400, 16, 330
	// tombstoneBytes is a counter that is remembered.
	tombstoneBytes = 100

	// leastSeries and leastBytes are what nobody is refused while there is any left: a sidecar.
	leastPods, leastSeries, leastBytes = 16, 1000, 1 << 20
	// firstSlots are the rows of a pod without series: all that it has is times.
	firstSlots = 8
)

// account is who has taken so many bytes for a table, and how many of them rows were promised that
// are yet to come.
type account struct {
	sender          string
	taken, promised int64
}

// bytes is what the table holds.
func (t *table) bytes() int64 {
	return tableBytes + t.rowBytes(t.baseSlots()) + t.promised + columnBytes*int64(len(t.byClass)) + tombstoneBytes*int64(len(t.past.values))
}

// rowBytes is what rows of so many slots take: a time, and the words of all columns.
func (t *table) rowBytes(slots int64) int64 { return 8 * slots * (1 + t.words()) }

// words is what a row takes beside its time.
func (t *table) words() int64 {
	live, dead := t.ring.Words()
	return live + dead
}

// afford takes memory for what the table is about to allocate. It returns ErrMemory if the sender
// may not have it.
func (t *table) afford(bytes int64) error {
	if !t.store.memory.Take(t.sender, bytes) {
		return ErrMemory
	}
	t.taken += bytes
	return nil
}

// affordSeries takes a series more, and memory for it: as many words a row as it is expected to
// have are promised to it.
func (t *table) affordSeries(words int) error {
	if !t.store.series.Take(t.sender, 1) {
		return ErrSeriesLimit
	}
	rows := 8 * t.slots() * int64(words)
	if err := t.afford(columnBytes + rows); err != nil {
		t.store.series.Give(t.sender, 1)
		return err
	}
	t.promised += rows
	return nil
}

// slots is how many rows a series will have.
func (t *table) slots() int64 {
	return max(t.baseSlots(), t.store.slotsFor(t.flush.Load()))
}

// affordRows takes memory for a column's rows, that which was promised first.
func (t *table) affordRows(c *column) error {
	rows := 8 * t.baseSlots() * int64(c.shape().Words())
	promised := min(rows, t.promised)
	if err := t.afford(rows - promised); err != nil {
		return err
	}
	t.promised -= promised
	return nil
}

// expectedWords is how many words a row of a new series will have.
func expectedWords(s *Sample) int {
	switch s.Kind {
	case Counter, Gauge:
		return 1
	case Histogram:
		return ring.Histogram(int(s.Last-s.First), true).Words()
	default: // its histogram follows, and has Istio's buckets
		return ring.Histogram(20, true).Words()
	}
}

// short notes that the sender may have no more of something: nothing more is described in vain in
// this flush.
func (t *table) short(of error) error {
	t.limit, t.shortOf, t.shortAt = of, of, t.flushes
	return of
}

// recount gives back what has been taken for the table and is not held any more.
func (t *table) recount() {
	if over := t.taken - t.bytes(); over > 0 {
		t.store.memory.Give(t.sender, over)
		t.taken -= over
	}
	if over := t.lent - t.rowBytes(t.ring.Slots()) + t.rowBytes(t.baseSlots()); t.lent > 0 && over > 0 {
		t.store.ranges.memory.Give(t.author, over)
		t.lent -= over
	}
}

// sentBy makes what the table holds the sender's.
func (t *table) sentBy(sender string) {
	if t.sender == sender {
		return
	}
	t.store.podShares.Move(t.sender, sender, 1)
	t.store.series.Move(t.sender, sender, int64(len(t.byClass)))
	t.store.memory.Move(t.sender, sender, t.taken)
	t.sender = sender
}

// giveUp gives all of it back.
func (t *table) giveUp() {
	t.store.podShares.Give(t.sender, 1)
	t.store.memory.Give(t.sender, t.taken)
	t.taken = 0
	if t.lent > 0 {
		t.store.ranges.memory.Give(t.author, t.lent)
		t.lent = 0
	}
}

// giveWay leaves to rows beyond the retention what senders do not need.
func (s *store) giveWay() {
	if s.config.MemoryBudget == 0 {
		return
	}
	s.ranges.memory.Outside(max(0, s.memory.Used()-s.config.MemoryBudget+s.config.MemoryBudget/rangesPart))
}

// newShares returns the shares of what the store keeps.
func (c Config) newShares() (pods, series, memory *Shares) {
	return NewShares(int64(c.MaxPods), leastPods), NewShares(int64(c.MaxSeries), leastSeries), NewShares(cmp.Or(c.MemoryBudget, unlimited), leastBytes)
}

// heapInUse is what the collector found alive when it last ran, in bytes. Near GOMEMLIMIT it runs
// often, and every two minutes in any case.
func heapInUse() uint64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(sample)
	return sample[0].Value.Uint64()
}

// watchMemory looks what the collector has found beyond what is counted: what streams and answers
// hold leaves less for series.
func (s *store) watchMemory() {
	if s.config.MemoryBudget == 0 {
		return
	}
	defer s.giveWay()
	live := s.liveHeap()
	if live == s.live {
		return // the collector has not run since
	}
	s.live = live
	outside := max(0, int64(live)-s.memory.Taken()-s.ranges.memory.Taken())
	s.memory.Outside(outside)
}
