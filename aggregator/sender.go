package aggregator

import (
	"fmt"
	"net/netip"
	"time"
)

// Who sends, in a cluster: what the API server knows of pods is held against what streams say of themselves, and against the address that they
// come from. A sidecar's own traffic is not redirected, and a Service keeps the source, so as a rule the peer is the pod. Where an
// address is translated on the way it is nobody's. So being the pod's proves something, being another pod's refuses, and being
// nobody's does neither. A relay hands on what others send: its address is nobody's (Pod.Address).

// Pods is what is known of the cluster's pods beside what they say of themselves. It is safe for concurrent use.
type Pods interface {
	// Known returns who a pod that exists or has left is and when it was created, false if it is not known.
	Known(namespace, name string) (identity Pod, created time.Time, ok bool)
	// Exists reports whether the named pod does, pending ones included, and when one that does not has left, zero if that is not known.
	Exists(namespace, name string) (exists bool, left time.Time)
	// Fresh reports whether all pods are known, as of a minute ago at most; InStep whether they are now.
	Fresh() bool
	InStep() bool
	// Holder returns whose an address is: the named pod's own, or another one's (NAMESPACE/NAME), or nobody's that is known. What pods share
	// with others is no other one's.
	Holder(namespace, name string, address netip.Addr) (own bool, other string)
	// Changes is how often that, or which pods are known, may have changed so far.
	Changes() uint64
}

// SetPods makes the cluster's pods known. It is called once, before streams connect.
func (s *Store) SetPods(p Pods) { s.pods.Store(&p) }

// sender is what a stream's address says of who sends. Only the stream's own goroutine uses it.
type sender struct {
	address netip.Addr // invalid where it is not known
	proof   Proof
	whose   string // addressOwn, addressOther, addressNobodys; "" before it was looked at
	refused error
	looked  int64  // when, 0: never
	changes uint64 // Pods.Changes then
	doubt   bool   // it was another pod's by what is not in step
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

// lookAgain is how often, in milliseconds, a stream's address is looked at where pods come and go without end.
const lookAgain = 1000

// identify says why the stream is refused for its address, nil if it is not. It looks when something has changed, once a second at most.
func (st *Stream) identify(at int64) error {
	pods := st.store.pods.Load()
	if pods == nil || !st.from.address.IsValid() {
		return nil
	}
	changes := (*pods).Changes()
	if f := &st.from; f.looked == 0 || (changes != f.changes || f.doubt) && at-f.looked >= lookAgain {
		f.looked, f.changes = at, changes
		st.look(*pods)
	}
	return st.from.refused
}

// look finds out whose the stream's address is.
func (st *Stream) look(pods Pods) {
	f, p := &st.from, st.pod
	own, other := pods.Holder(p.Namespace, p.Name, f.address)
	was := f.whose
	f.proof, f.whose, f.refused, f.doubt = p.Proof, addressNobodys, nil, false
	switch {
	case own:
		f.proof, f.whose = max(p.Proof, ProofAddress), addressOwn
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
