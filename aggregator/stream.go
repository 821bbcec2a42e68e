package aggregator

import (
	"slices"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// Stream is one connection of a pod: the only writer of the pod's table while it is the one that
// counts (owner.go).
type Stream struct {
	store  *store
	table  *table
	pod    *Pod
	number uint64 // a newer stream of the store has a higher one
	from   sender

	// Under the table's mutex.
	proof Proof
	ended bool
	heard int64      // arrival of its newest message, 0 before the first
	lost  int64      // arrival of the message by which a stream that it does not know to be dead took over from it; 0: none did
	since int        // flushes since another stream counts
	stamp ring.Stamp // timestamp_ms of the newest of them

	clock    ring.Clock
	flushes  int      // flushes of this connection since it has owned the table
	firstRow ring.Row // the row of the first of them
	messages int      // messages of the newest one
	eviction eviction
	single   int         // how many flushes in a row were one message each
	timer    *time.Timer // closes the open row; nil before the first
}

// Connect opens a stream of the pod. Whether it counts is told at each of its messages.
func (s *store) Connect(p Pod) *Stream {
	st := &Stream{store: s, pod: &p, number: s.streams.Add(1), from: p.sender()}
	if st.identify(s.millis(time.Now())) == nil {
		st.table, _ = s.tables.get(s, &p) // nil: tried again at its first message
	}
	return st
}

// lock returns the pod's table with its mutex held: a new one where the stream's has been freed, or
// set aside after a fault. The error is that of a limit, with which there is none.
func (st *Stream) lock() (*table, error) {
	for {
		if st.table == nil {
			t, err := st.store.tables.get(st.store, st.pod)
			if err != nil {
				return nil, err
			}
			st.table = t
		}
		t := st.table
		t.mu.Lock()
		if t.aside.Load() != nil && !t.removed {
			t.discard()
		}
		if !t.removed {
			return t, nil
		}
		t.mu.Unlock()
		if st.timer != nil { // it is the old table's
			st.timer.Stop()
			st.timer = nil
		}
		st.table = nil
	}
}

// sameWorkload reports whether two pods of one name say the same of who they are.
func (p *Pod) sameWorkload(o *Pod) bool {
	return p.Workload == o.Workload && p.App == o.App && p.Version == o.Version && p.CanonicalService == o.CanonicalService && p.CanonicalRevision == o.CanonicalRevision
}

// Close ends the stream: its open row is closed. What it sent stays.
func (st *Stream) Close() {
	if st.table == nil {
		return
	}
	st.table.mu.Lock()
	defer st.table.mu.Unlock()
	if st.timer != nil {
		st.timer.Stop()
	}
	st.table.try(st.end)
}

// Missed says that a message of the stream, which arrived at the given time, was rejected as a
// whole: what its flush does not hold may have been in it. Where it was the next flush's, a counter
// that was in the newest one is missing from none that is taken for whole.
func (st *Stream) Missed(arrival time.Time) {
	t := st.table
	if t == nil { // refused at a limit
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.owner == st && !t.removed {
		t.torn = true
		t.refuse(st.store.millis(arrival))
	}
}

// enter makes the flush of the timestamp the table's newest. A known timestamp after its row was
// closed gets a row more: what the first one holds is final.
func (st *Stream) enter(timestamp ring.Stamp, arrival int64) {
	t := st.table
	if t.open && t.timestamp == timestamp {
		st.messages++
		return
	}
	if st.messages == 1 {
		st.single++
	} else {
		st.single = 0
	}
	again := st.flushes > 0 && t.timestamp == timestamp
	t.beginRow(st, timestamp, arrival)
	st.messages = 1
	if again {
		st.single = 0
	}
}

// leave closes the row where the stream's flushes are one message each and this one is no part
// whose histograms are to come, else soon.
func (st *Stream) leave() {
	if st.single >= 2 && st.messages == 1 && !st.table.awaits() {
		st.table.closeRow()
		return
	}
	t := st.table
	t.closeAt = time.Now().Add(rowCloseDelay)
	if st.timer == nil {
		st.timer = time.AfterFunc(rowCloseDelay, t.late)
		return
	}
	st.timer.Reset(rowCloseDelay)
}

// awaits reports whether a request counter of the open flush is new and without its histogram, as
// in no other flush of the pod.
func (t *table) awaits() bool {
	return t.pairs && slices.ContainsFunc(t.pending, func(p pendingCounter) bool {
		return p.col.class.name == requestsName && p.col.partner == nil && p.col.row < 0 && !p.col.pastKnown
	})
}

// late closes a row for which no message has come in a while, whichever stream's timer tells. One
// that fired while a message was being taken finds a later time to close.
func (t *table) late() {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.contain(nil, 0)
	if !time.Now().Before(t.closeAt) {
		t.closeRow()
	}
}
