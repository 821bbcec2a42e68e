package aggregator

import (
	"fmt"
	"sync"
	"time"
)

// Who proves what. A certificate of the mesh proves a namespace and a service account, which pods
// have in common. What the cluster runs the named pod as tells whether it may be that pod's. As of
// addresses, a contradiction refuses, by what is in step, and absence does not: of a pod that is
// not known yet the certificate counts for what it is.
//
// And what a pod has once proven it goes on proving, as long as it is that pod: its sidecar's
// wiring is read when it starts. So a sender that proves less is not the pod, and takes over from
// nobody, in a moment between two connections neither. The table knows it, and when that is freed,
// after a retention without a flush, it is remembered of pods that the cluster runs so: others
// cannot be made up, to have those forgotten.

// provisional is how long, in milliseconds, a pod may be unknown that has to prove itself: the
// informer lags behind the pod's start, and behind what it missed when it is in step again.
const provisional = 10_000

// identity is the part of a proof that a certificate makes, whatever the address.
func (p Proof) identity() Proof { return p &^ ProofAddress }

// lookAtAccount holds the service account that the sender has proven against the one that the
// cluster runs the pod as. Which pod that is it takes from the same news: a sidecar may connect
// before its pod runs, while another one of its name is remembered.
func (st *Stream) lookAtAccount(pods Pods, at int64) {
	f, p := &st.from, st.pod
	account, created := pods.ServiceAccount(p.Namespace, p.Name)
	if account != "" {
		f.created = created.UnixMilli()
	}
	switch {
	case p.Proof&ProofIdentity == 0:
		return
	case account == "":
		st.unknown(pods, at)
	case account == p.ServiceAccount:
		f.runsAs = true
	case pods.InStep():
		f.refused = fmt.Errorf("%w: %s proves service account %s, and %s/%s runs as %s", ErrIdentity, p.Peer, p.ServiceAccount, p.Namespace, p.Name, account)
	default: // it may be another pod by now
		f.runsAs, f.doubt = false, true
	}
	if f.runsAs {
		f.proof |= ProofPod
	}
}

// unknown is of a pod that the cluster does not have, or not yet, or not any more.
func (st *Stream) unknown(pods Pods, at int64) {
	f, p := &st.from, st.pod
	if f.runsAs {
		return
	}
	f.doubt = true
	if f.unknown == 0 || !pods.InStep() {
		f.unknown = at
	}
	if p.Strict && at-f.unknown >= provisional {
		f.refused = fmt.Errorf("%w: the cluster knows no pod %s/%s, and in its namespace all have to be known: "+
			"leave it out of --ingest-strict-namespaces for virtual machines and pods of other clusters", ErrIdentity, p.Namespace, p.Name)
	}
}

// downgrades reports whether the stream proves less than the pod of the table has proven: the pod
// that it says it is, not one of its name that came later. The table's mutex is held.
func (t *table) downgrades(st *Stream) bool {
	same := st.from.created == t.created || st.from.created == 0
	return same && st.proof.identity() < t.proof()
}

// prove notes what the table's owner proves. The table's mutex is held.
func (t *table) prove(st *Stream) {
	proof := st.proof.identity()
	if st.from.created == t.created && proof <= t.proof() {
		return
	}
	t.created = st.from.created
	t.proven.Store(uint32(proof))
}

// provenPod is what a pod has proven that was created at a time.
type provenPod struct {
	created int64
	proof   Proof
}

// remember has a new table know what its pod has proven before, if it has.
func (t *table) remember(was provenPod, ok bool) {
	if ok {
		t.created = was.created
		t.proven.Store(uint32(was.proof))
	}
}

// proof is what the pod has proven beside its address.
func (t *table) proof() Proof { return Proof(t.proven.Load()) }

// namedPods are pods that are refused, and why. There are only so many, and what is told of a query
// does not change with each. It is safe for concurrent use.
type namedPods struct {
	mu   sync.Mutex
	pods map[podKey]namedPod
}

// namedPod is a pod that is refused, and when it was first and last.
type namedPod struct {
	pod       *Pod
	why       string
	since, at int64
}

// note remembers a pod that is refused.
func (n *namedPods) note(p *Pod, why string, now int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := podKey{p.Namespace, p.Name}
	was, known := n.pods[k]
	if !known {
		was.why, was.since = why, now
	}
	if !known && len(n.pods) >= maxForeign {
		for k, o := range n.pods {
			if now-o.at > caughtFor {
				delete(n.pods, k)
			}
		}
		if len(n.pods) >= maxForeign {
			return
		}
	}
	if n.pods == nil {
		n.pods = map[podKey]namedPod{}
	}
	n.pods[k] = namedPod{p, was.why, was.since, now}
}

// first returns the one of those that are selected which was refused first, by name, and why; ""
// where there is none.
func (n *namedPods) first(selects func(*Pod) bool, now int64) (name, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	first := now + 1
	for k, o := range n.pods {
		if now-o.at <= caughtFor && o.since < first && selects(o.pod) {
			name, why, first = k.namespace+"/"+k.name, o.why, o.since
		}
	}
	return name, why
}

// NoteRefused remembers for an hour that somebody was refused who said that he is the pod, and why:
// a text that does not change from one time to the next. Query.Refused tells it. Of 64 pods it is
// remembered at once.
func (s *store) NoteRefused(p Pod, why string) { s.refused.note(&p, why, s.millis(time.Now())) }
