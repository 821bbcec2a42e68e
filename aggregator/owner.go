package aggregator

import "github.com/meshpulse/meshpulse/aggregator/internal/ring"

// Who counts for a pod. Several streams may say that they are one: an Envoy that has connected anew
// while its old connection is not seen to have ended, two processes in one pod, a forger. Of those
// that send one counts, the table's owner:
//
//   - the one with the better proof; of equal ones the newer, as long as it sends;
//   - when the owner ends, or one of no better proof has sent nothing for two flushes, whoever
//     sends next, but nobody who proves less than the pod has proven with a certificate
//     (identity.go).
//
// So a stream that lives is never deaf for good, and none has to be ended. Which of two equal ones
// is right cannot be told, and the rows may be of either: such a pod is contested, and whoever
// answers has to hold.

// Proof is how well a stream has shown that it is the pod that it says it is: parts, added up. More
// is better.
type Proof uint8

// Each part outweighs all that stand before it.
const (
	// ProofNone is the node's word alone.
	ProofNone Proof = 0
	// ProofAddress is a connection that comes from an address of the pod's.
	ProofAddress Proof = 1
	// ProofIdentity is a certificate of the mesh, for the namespace and the service account that
	// the node tells.
	ProofIdentity Proof = 2
	// ProofPod is such a one, and the cluster runs the pod as that service account.
	ProofPod Proof = 4
)

// Rivals are the peers' addresses of two streams that report as one pod, as Pod.Address tells them.
type Rivals struct {
	Counts, Other string
	// Sure: both have sent since the other did. Else the other one may be a connection that is dead
	// and not seen to have ended.
	Sure bool
}

// contest is what is known of the rivals for a table. It is never changed once published.
type contest struct {
	counts, other string
	at            int64 // when rows were last known to be of either; 0: never
	until         int64 // until then the other one may still be alive
}

// counts makes the stream, a message of which has come, the owner of its table, or says why it is
// not. The table's mutex is held.
func (st *Stream) counts(arrival int64, timestamp ring.Stamp) error {
	t := st.table
	if t.downgrades(st) {
		return ErrDowngrade
	}
	if o := t.owner; o != nil && !o.ended && (o.proof > st.proof || o.proof == st.proof && o.number > st.number && !o.silent(arrival)) {
		st.outranked(arrival, timestamp)
		return ErrSuperseded
	}
	st.takeOver(arrival)
	return nil
}

// silent reports whether the stream has sent nothing for two flushes.
func (st *Stream) silent(at int64) bool { return at-st.heard > 2*st.table.flush.Load() }

// takeOver makes the stream the owner. What it sends follows on nothing: the newest rows are
// another's.
func (st *Stream) takeOver(arrival int64) {
	t := st.table
	t.closeRow()
	switch o := t.owner; {
	case o == nil:
	case st.heard != 0: // it lived all the while that the other one counted
		t.contested(st, o, arrival)
	case !o.ended && !o.silent(arrival):
		o.lost, o.since = arrival, 0
		t.rival = o
		t.dispute(st, o, 0, o.heard+2*t.flush.Load())
	}
	t.owner, t.strange = st, nil
	t.sentBy(st.pod.Sender)
	st.flushes, st.messages, st.single, st.lost, st.since = 0, 0, 0, 0, 0
	if was := t.pod.Swap(st.pod); !was.sameWorkload(st.pod) {
		t.store.tables.renamed()
	}
}

// outranked notes a message that does not count. One flush of a connection that is gone may have
// been on its way; a second one is of a process that lives.
func (st *Stream) outranked(arrival int64, timestamp ring.Stamp) {
	t, o := st.table, st.table.owner
	if st.since == 0 || timestamp != st.stamp {
		st.since++
	}
	st.heard, st.stamp = arrival, timestamp
	switch equal := o.proof == st.proof; {
	case equal && st.since == 1:
		t.rival = st
		t.dispute(o, st, 0, arrival+2*t.flush.Load())
	case equal:
		t.contested(o, st, arrival)
	case st.lost != 0 && st.since > 1: // rows of before are of the one that proves less
		t.contested(o, st, st.lost)
	}
}

// contested notes that rows up to a time may be of either stream.
func (t *table) contested(counts, other *Stream, at int64) {
	t.dispute(counts, other, at, 0)
	t.store.metrics.contested.Inc()
}

func (t *table) dispute(counts, other *Stream, at, until int64) {
	c := &contest{counts.pod.Address, other.pod.Address, at, until}
	if was := t.contest.Load(); was != nil {
		c.at, c.until = max(c.at, was.at), max(c.until, was.until)
	}
	t.contest.Store(c)
}

// end notes that the stream has ended: whoever sends next counts, and nobody waits for it any more.
// The table's mutex is held.
func (st *Stream) end() {
	t := st.table
	if st.ended = true; t.owner == st {
		t.closeRow()
	}
	if was := t.contest.Load(); t.rival == st && was != nil {
		t.rival = nil
		t.contest.Store(&contest{counts: was.counts, other: was.other, at: was.at})
	}
}

// rivals returns who may have sent the table's rows within a time before an instant, beside who
// counts; nil if nobody.
func (t *table) rivals(at, reach int64) *Rivals {
	c := t.contest.Load()
	if c == nil {
		return nil
	}
	sure := c.at != 0 && c.at > at-reach-2*t.flush.Load() // answers go by the newest time that all have covered: so much earlier at most
	if !sure && at > c.until {
		return nil
	}
	return &Rivals{Counts: c.counts, Other: c.other, Sure: sure}
}
