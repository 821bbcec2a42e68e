package aggregator

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Who sends, in a cluster: what the API server knows of pods is held against what streams say of
// themselves, and against the address that they come from. A sidecar's own traffic is not
// redirected, and a Service keeps the source, so as a rule the peer is the pod. Where an address is
// translated on the way it is nobody's. So being the pod's proves something, being another pod's
// refuses, and being nobody's does neither. A relay hands on what others send: its address is
// nobody's (Pod.Address).

// Pods is what is known of the cluster's pods beside what they say of themselves. It is safe for
// concurrent use.
type Pods interface {
	// Known returns who a pod that exists or has left is and when it was created, false if it is
	// not known.
	Known(namespace, name string) (identity Pod, created time.Time, ok bool)
	// Exists reports whether the named pod does, pending ones included, and when one that does not
	// has left, zero if that is not known.
	Exists(namespace, name string) (exists bool, left time.Time)
	// ServiceAccount is the name of the service account that the named pod runs as, pending ones
	// included, and when it was created; "" where it is not known to exist.
	ServiceAccount(namespace, name string) (account string, created time.Time)
	// Denies asks the cluster itself, for a second at most, and reports whether it says that there
	// is no such pod.
	Denies(namespace, name string) bool
	// Fresh reports whether all pods are known, as of some seconds ago at most; InStep whether they
	// are now.
	Fresh() bool
	InStep() bool
	// Holder returns whose an address is: the named pod's own, or another one's (NAMESPACE/NAME),
	// or nobody's that is known. What pods share with others is no other one's.
	Holder(namespace, name string, address netip.Addr) (own bool, other string)
	// Changes is how often that, or which pods are known, may have changed so far.
	Changes() uint64
}

// SetPods makes the cluster's pods known. It is called once, before streams connect.
func (s *store) SetPods(p Pods) { s.pods.Store(&p) }

// sender is what a stream's address says of who sends. Only the stream's own goroutine uses it.
type sender struct {
	address netip.Addr // invalid where it is not known
	whose   string     // addressOwn, addressOther, addressNobodys; "" before it was looked at
	refused error
	looked  int64  // when, 0: never
	changes uint64 // Pods.Changes then
	proof   Proof
	doubt   bool  // it was another pod's, or a waypoint, by what is not in step
	poses   bool  // where it says that it reports as a waypoint: it is none
	runsAs  bool  // the pod that it says it is runs as the service account that is proven
	created int64 // when the pod of that name was that exists, 0: not known
	unknown int64 // since when there is no such pod by what is in step, 0: not looked for one
}

// Values of the whose label of meshpulse_store_stream_addresses_total.
const (
	addressOwn     = "own"
	addressOther   = "other"
	addressNobodys = "nobody"
)

func (p *Pod) sender() sender {
	a, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		return sender{proof: p.Proof}
	}
	return sender{address: a.Addr().Unmap().WithZone(""), proof: p.Proof}
}

const (
	// lookAgain is how often, in milliseconds, a stream's address is looked at where pods come and
	// go without end.
	lookAgain = 1000
	// settledFor is how long that is not done again, in milliseconds, once the address was the
	// pod's: in a large cluster pods come and go between any two flushes.
	settledFor = 30_000
)

// identify says why the stream is refused for its address, nil if it is not. It looks when
// something has changed, once a second at most, and once in half a minute where the address was the
// pod's.
func (st *Stream) identify(at int64) error {
	pods := st.store.pods.Load()
	if pods == nil {
		return nil
	}
	changes, f, again := (*pods).Changes(), &st.from, int64(lookAgain)
	if f.whose == addressOwn && !f.doubt {
		again = settledFor
	}
	if f.looked == 0 || (changes != f.changes || f.doubt) && at-f.looked >= again {
		f.looked, f.changes = at, changes
		st.look(*pods, at)
	}
	return st.from.refused
}

// look finds out what the cluster says of who sends, and whether its pod is a waypoint.
func (st *Stream) look(pods Pods, at int64) {
	f, p := &st.from, st.pod
	identity, _, known := pods.Known(p.Namespace, p.Name)
	f.doubt = !known && !pods.Fresh()
	f.poses = !identity.Waypoint && !f.doubt
	f.proof, f.refused = p.Proof, nil
	st.lookAtAccount(pods, at)
	if f.address.IsValid() {
		st.lookAtAddress(pods)
	}
}

// lookAtAddress finds out whose the stream's address is.
func (st *Stream) lookAtAddress(pods Pods) {
	f, p := &st.from, st.pod
	own, other := pods.Holder(p.Namespace, p.Name, f.address)
	was := f.whose
	f.whose = addressNobodys
	switch {
	case own:
		f.proof, f.whose = f.proof|ProofAddress, addressOwn
	case other != "" && pods.InStep():
		f.whose = addressOther
		f.refused = fmt.Errorf("%w: %s is %s's, and who sends from it says that it is %s/%s", ErrAddress, f.address, other, p.Namespace, p.Name)
	case other != "":
		f.doubt = true
	}
	if f.whose != was {
		st.store.metrics.addresses.WithLabelValues(f.whose).Inc()
	}
}

// reporterWaypoint is the value of the label reporter that waypoints alone send.
const reporterWaypoint = "waypoint"

// posing notes whether the table's pod only poses as a waypoint, by its stream's word. Where that
// has changed its series are named anew.
func (t *table) posing(poses bool) {
	if t.poses == poses {
		return
	}
	t.poses, t.cursor, t.strange = poses, nil, nil
	for k, c := range t.keys { // what it has counted goes on under the other name
		if !c.removed && c.class.kind == Counter {
			t.past.keep(k, tombstone{c.raw, c.total, c.flush}, 4*t.store.config.MaxSeriesPerPod)
		}
	}
	clear(t.keys)
	for _, c := range t.columns { // a link leads to the series of a key
		c.next = nil
	}
}

// said returns a series' labels as they count: without the reporter of one that poses as a
// waypoint.
func (t *table) said(ls []Label) []Label {
	i := slices.Index(ls, Label{labelReporter, reporterWaypoint})
	if !t.poses || i < 0 {
		return ls
	}
	misread := labelReporter + "." + reporterWaypoint
	kept := make([]Label, 0, len(ls))
	for j, l := range ls {
		switch {
		case j == i:
		case l.Name == MisreadTags:
			misread += "." + l.Value
		default:
			kept = append(kept, l)
		}
	}
	return append(kept, Label{MisreadTags, misread})
}

// space is that of the batch's keys: the same name has other labels where they are of one that
// poses.
func (t *table) space(b *Batch) uint64 {
	if t.poses && b.Space != 0 {
		return b.Space ^ posingSpace
	}
	return b.Space
}

// posingSpace tells two spaces apart; they are odd.
const posingSpace = 1 << 63
