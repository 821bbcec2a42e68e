package aggregator

import (
	"sync/atomic"
	"time"

	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// shown is what of a table readers see beside its columns. Its writer sets it; what was asked of
// the cluster, whoever asks.
type shown struct {
	pod   atomic.Pointer[Pod]       // as the newest connection's node says
	gen   atomic.Pointer[ring.Rows] // the ring's newest generation, for readers
	flush atomic.Int64              // observed flush interval in milliseconds
	gap   atomic.Pointer[gap]       // the newest one, nil if there was none
	// refused is the time of the newest sample that was refused or dropped, refusedSince when that
	// began; 0 if none was.
	refused, refusedSince atomic.Int64
	// otherForm is when some of them were last Istio's metrics under names that are not read.
	otherForm atomic.Int64
	gone      atomic.Bool // freed, for readers
	// aside is when what is known of the pod ends, of a table that was set aside after a fault
	// (faults.go); else nil.
	aside atomic.Pointer[int64]
	// begun: the pod's sidecar had counted requests before the first flush that came.
	begun atomic.Bool

	// closed is the newest row that no message can add to any more, for the surge fold. aged: the
	// pod had counted before its first row, so that what it counted before is not known to be
	// nothing; set before the first row closes.
	closed atomic.Int64
	aged   atomic.Bool
	second atomic.Int64 // the row with which the first flush was measured, 0 before

	asking  atomic.Pointer[Asked]   // what is read of it beside what is kept for whoever asks
	asked   atomic.Int64            // when the cluster did not know the pod, or knownPod; 0: not asked
	contest atomic.Pointer[contest] // the newest, for readers; nil if there never was one
	proven  atomic.Uint32           // what the pod has proven with a certificate: a Proof (identity.go)
}

// PodState is what the store knows of a pod.
type PodState struct {
	Namespace, Name string
	Reporting       bool      // its newest row is at most two flush intervals old
	Oldest, Newest  time.Time // its rows reach from here to there; Oldest is one flush before its first
	// Whole: the rows begin with the pod's first, none has been overwritten, and its sidecar had no
	// requests before.
	Whole bool
	// Unread is what the query names of metrics that nobody had asked the pod for before Oldest:
	// those that begin so; "" if that is not why. Known of a query's partial pods only.
	Unread string
	// Unsent is a metric of the sidecar's own that the query names and the sidecar does not send,
	// "" if there is none. Known of a query's partial pods only.
	Unsent string
	// Single: one flush has come so far, and how long it took is not known: nothing is, beyond it.
	Single bool
	// Bare: samples of it were refused, and none of the series that the query selects reaches back
	// over the window, or to its first row. Known of a query's partial pods only.
	Bare bool
	// GapFrom and GapTo are a time within the window from which the pod has told nothing though it
	// reported before and after, zero if there is none.
	GapFrom, GapTo time.Time
	// Refused is when one of its samples was last refused or dropped, zero if not within the
	// window; RefusedSince is since when that has happened again and again.
	Refused, RefusedSince time.Time
	// OtherForm: what was refused are Istio's metrics under names that are not read
	// (Batch.OtherForm).
	OtherForm bool
	// Rivals are two streams that report as the pod, so that what its rows tell of the window may
	// be of either; nil if there are not.
	Rivals *Rivals
}

// state returns what is known of the pod at an instant, for a window.
func (t *table) state(at int64, reach time.Duration) PodState {
	p := t.pod.Load()
	s := PodState{Namespace: p.Namespace, Name: p.Name}
	g := t.gen.Load()
	newest, ok := g.Newest()
	if aside := t.aside.Load(); aside != nil { // a pod that fell silent then
		s.Oldest, s.Newest = time.UnixMilli(*aside), time.UnixMilli(*aside)
		return s
	}
	if !ok {
		return s
	}
	oldest, whole, _ := g.Oldest()
	s.Single = g.Unmeasured()
	s.Rivals = t.rivals(at, reach.Milliseconds())
	s.Reporting = at-newest <= 2*t.flush.Load()
	s.Oldest, s.Newest, s.Whole = time.UnixMilli(oldest), time.UnixMilli(newest), whole && !t.begun.Load()
	if refused := t.refused.Load(); refused > at-reach.Milliseconds() {
		s.Refused, s.RefusedSince = time.UnixMilli(refused), time.UnixMilli(t.refusedSince.Load())
		other := t.otherForm.Load()
		s.OtherForm = other != 0 && other > at-reach.Milliseconds()
	}
	if gap := t.gap.Load(); gap != nil && gap.to > at-reach.Milliseconds() {
		s.GapFrom, s.GapTo = time.UnixMilli(gap.from), time.UnixMilli(gap.to)
	}
	return s
}

// Pod returns what the store knows of a pod for a window before an instant. Newest is zero if it
// has never reported.
func (s *store) Pod(namespace, name string, at time.Time, window time.Duration) PodState {
	t, gone := s.tables.find(namespace, name)
	switch {
	case t != nil:
		return t.state(s.millis(at), window)
	case gone != 0:
		return PodState{Namespace: namespace, Name: name, Newest: time.UnixMilli(gone)}
	}
	return PodState{Namespace: namespace, Name: name}
}
