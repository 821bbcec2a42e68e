package metricsapi

import (
	"errors"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
)

// knowledge is what is known of the pods behind an answer.
type knowledge struct {
	// expected pods should report: they exist, carry a sidecar and could have the series, or had
	// them.
	expected int
	// missing says why the answer is incomplete, "" if it is complete.
	missing string
	// known pods report what makes the value; some of them may have left by now.
	known int
	// mute, bare and unheard pods are those of the shares (tally says which).
	mute, bare, unheard int
	// shares are workloads of some of whose pods nothing is known any more.
	shares []tally
	// unpointed are workloads none of whose pods has ever reported, for longer than the holder
	// waits, or for an hour: their Envoys do not send to us. The first of them by name are enough
	// to tell.
	unpointed []cluster.Workload
	// refusing pods have had samples refused for longer than the holder waits, and still have: what
	// they send counts without them.
	refusing int
	// unknown pods exist and could have the series, but have no sidecar.
	unknown int
	// moved: a pod has come or left within the window, so load has gone from pod to pod.
	moved bool
	// deaf names what the API server tells nothing of any more.
	deaf []string
	// contested pods may be reported by somebody else, so that what is seen may be too much.
	contested []aggregator.PodState
}

// manyUnpointed is how many workloads an event names.
const manyUnpointed = 3

// look compares what the store has of a query's pods with the pods that exist. namespace is that of
// the HPA that asks, "" if there is none.
func (h *holder) look(p *prepared, namespace string, a aggregator.Answer, at time.Time) knowledge {
	q := p.query
	l := looking{holder: h, query: q, answer: a, at: at, from: since(a, at)}
	reporting, young := a.Reporting, 0
	for _, p := range a.Partial {
		if l.partial == nil {
			l.partial = map[types.NamespacedName]*partialPod{}
		}
		l.partial[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = &partialPod{PodState: p}
		switch {
		case !p.Reporting:
		case p.Bare:
			reporting--
		case p.Oldest.After(l.from):
			young++
		}
	}
	if l.k.known = reporting - young; l.k.known == 0 {
		l.k.known = reporting
	}
	l.k.contested = h.contested(q, a)
	stale := l.stale()
	if err := h.pods.Synced(); err != nil {
		l.k.missing, l.k.expected = err.Error(), a.Reporting+a.Silent
		if deaf := (*cluster.DeafError)(nil); errors.As(err, &deaf) {
			l.k.deaf = append(l.k.deaf, deaf.What)
		}
		return l.k
	}
	sets := q.Meant()
	if p.Waypoint() && namespace != "" { // it names who is called. Who stands before that is not said: as a rule a waypoint of the namespace
		l.waypoints = namespace
		sets = append(slices.Clone(sets), aggregator.Meant{Namespace: namespace})
	}
	h.pods.Each(sets, at.Add(-cluster.GoneFor), l.selected)
	l.others()
	l.conclude()
	if !q.NamesPods() {
		l.k.expected = max(l.k.expected, a.Reporting+a.Silent)
	}
	for _, s := range l.k.contested {
		l.f.add(flawRival, describeContest(s))
	}
	l.k.missing = l.f.String()
	if l.k.missing == "" && stale != nil {
		l.k.missing = stale.Error()
	}
	return l.k
}

// stale says why the HPAs are not known, whose targets and replicas tell what keeps them, nil while
// they are.
func (l *looking) stale() error {
	for _, f := range []*cluster.Freshness{l.hpasFresh, l.scalesFresh} {
		if f.Stale() != nil {
			l.k.deaf = append(l.k.deaf, f.What)
		}
	}
	return l.hpasFresh.Stale()
}

// looking is a look at the pods behind an answer.
type looking struct {
	*holder
	query   *aggregator.Query
	answer  aggregator.Answer
	at      time.Time
	from    time.Time // since when what is known has to be known
	partial map[types.NamespacedName]*partialPod
	// waypoints is the namespace whose waypoints are meant, "" if none are.
	waypoints string

	k knowledge
	f flaws
	t tally // of the workload that is looked at
}

// partialPod is a pod of which the window is not known in full.
type partialPod struct {
	aggregator.PodState
	judged bool
}

// selected takes a pod into account, if the query selects it by what its metadata says.
func (l *looking) selected(p *cluster.Pod) {
	if p.Batch { // it comes and goes by the clock and serves nobody: not expected, unless it has such series all the same
		return
	}
	gone := !p.Left.IsZero()
	if gone && !p.Left.After(l.from) {
		l.past(p)
		return
	}
	if !l.means(p) {
		return
	}
	if !p.Wired && !gone {
		l.k.unknown++
		l.account.pod(p, aggregator.PodState{}, explain.StateUnwired)
		return
	}
	if partial := l.partial[p.Key()]; partial != nil {
		partial.judged = true
	}
	l.judge(p, l.state(p))
}

// means says whether the query means the pod by what its metadata says.
func (l *looking) means(p *cluster.Pod) bool {
	return l.query.Names(&p.Identity) || p.Waypoint && l.waypoints != "" && l.waypoints == p.Identity.Namespace
}

// past takes into account that a pod of before the window has reported, where of its workload
// nobody has been heard of so far.
func (l *looking) past(p *cluster.Pod) {
	if t := &l.t; t.mute+t.unheard > 0 && !t.heard && t.Workload == p.Workload() {
		s := l.store.Pod(p.Identity.Namespace, p.Identity.Name, l.at, l.answer.Window)
		t.heard = !s.Newest.Before(p.Created) && l.at.Sub(s.Newest) < cluster.GoneFor
	}
}

// state is what the store knows of a pod.
func (l *looking) state(p *cluster.Pod) aggregator.PodState {
	key := p.Key()
	if partial := l.partial[key]; partial != nil {
		return partial.PodState
	}
	return l.store.Pod(key.Namespace, key.Name, l.at, l.answer.Window)
}

// others takes the pods into account that have such series though nothing in their metadata says
// so, and those of their workloads.
func (l *looking) others() {
	bearing := l.bearing()
	found := slices.Clone(bearing)
	for key, s := range l.partial {
		if p, known := l.pods.Get(key.Namespace, key.Name); known && !s.judged && !s.Newest.IsZero() {
			found = append(found, p.Workload())
		}
	}
	slices.SortFunc(found, cluster.Workload.Compare)
	for _, w := range slices.Compact(found) {
		_, all := slices.BinarySearchFunc(bearing, w, cluster.Workload.Compare)
		all = all && l.query.Reads(w.Namespace)
		l.pods.Each([]aggregator.Meant{{Namespace: w.Namespace, Workload: w.Name}}, l.from, func(p *cluster.Pod) { l.other(p, all) })
	}
	if l.query.Open() && l.at.Sub(l.started) <= l.hold { // whoever was there before our start may have had such series
		l.pods.Each([]aggregator.Meant{{}}, l.at, func(p *cluster.Pod) { l.absent(p, bearing) })
	}
}

// bearing returns the workloads whose pods have series that the query selects without naming them,
// in order.
func (l *looking) bearing() (found []cluster.Workload) {
	for _, p := range l.answer.Bearing {
		w := cluster.Workload{Namespace: p.Namespace, Name: p.Workload}
		if known, ok := l.pods.Get(p.Namespace, p.Name); ok && w.Name == "" {
			w.Name = known.Identity.Workload
		}
		found = append(found, w)
	}
	slices.SortFunc(found, cluster.Workload.Compare)
	return slices.Compact(found)
}

// absent waits for a pod that is not back since our start, where its workload is none of those that
// were looked at.
func (l *looking) absent(p *cluster.Pod, looked []cluster.Workload) {
	if p.Batch || !p.Wired || !p.Left.IsZero() || !p.Created.Before(l.started) || !l.query.Reads(p.Identity.Namespace) || l.means(p) {
		return
	}
	if _, ok := slices.BinarySearchFunc(looked, p.Workload(), cluster.Workload.Compare); ok {
		return
	}
	if s := l.state(p); s.Newest.Before(p.Created) {
		l.judge(p, s)
	}
}

// other takes into account a pod of a workload that has such series though nothing in its metadata
// says so: one that has some or reports, and where all of the workload are meant those too that are
// silent or have not been heard of.
func (l *looking) other(p *cluster.Pod, all bool) {
	partial := l.partial[p.Key()]
	switch {
	case partial != nil && partial.judged, partial == nil && l.means(p):
	case partial != nil && !partial.Newest.IsZero():
		l.judge(p, partial.PodState)
	case p.Batch, !p.Wired, !p.Left.IsZero() && !all:
	case !l.query.Reads(p.Identity.Namespace):
	default:
		if s := l.state(p); s.Reporting || all {
			l.judge(p, s)
		}
	}
}

// of makes the pod's workload the one that is looked at. Its pods follow each other.
func (l *looking) of(p *cluster.Pod) {
	if w := p.Workload(); l.t.Workload != w {
		l.conclude()
		l.t.Workload = w
	}
}

// conclude ends the look at a workload.
func (l *looking) conclude() {
	t := l.t
	l.t = tally{}
	unknown := t.mute + t.unheard
	switch {
	case unknown == 0:
	case !t.heard: // nothing of it can be estimated, and nothing says that it will ever be known
		l.account.unpointed(t.Workload)
		i, _ := slices.BinarySearchFunc(l.k.unpointed, t.Workload, cluster.Workload.Compare)
		if l.k.unpointed = slices.Insert(l.k.unpointed, i, t.Workload); len(l.k.unpointed) > manyUnpointed {
			l.k.unpointed = l.k.unpointed[:manyUnpointed]
		}
		t.expected -= unknown
	default:
		l.k.mute, l.k.bare, l.k.unheard = l.k.mute+t.mute, l.k.bare+len(t.bare), l.k.unheard+t.unheard
		l.k.shares = append(l.k.shares, t)
		if t.departed != "" { // others serve in its place, mute ones among them: nobody's mean tells how much
			l.f.add(flawLeft, t.departed)
		}
	}
	l.k.expected += t.expected
}

// usualFlush is Istio's statsFlushInterval where no pod tells another.
const usualFlush = 5 * time.Second

// judge takes one expected pod into account.
func (l *looking) judge(p *cluster.Pod, s aggregator.PodState) {
	l.of(p)
	name, t, a := p.Identity.Name, &l.t, l.answer
	older := p.Created.Before(l.started)
	if s.Newest.Before(p.Created) { // a name used again: that was another pod
		s = aggregator.PodState{}
	}
	t.heard = t.heard || l.at.Sub(s.Newest) < cluster.GoneFor
	if s.Reporting && !s.Bare {
		if t.reporting++; s.Oldest.After(l.from) {
			t.young = append(t.young, name)
		}
	}
	l.k.moved = l.k.moved || p.Created.After(l.from) || p.Left.After(l.from)
	if !p.Left.IsZero() {
		if !l.told(p, s, a, l.at) {
			l.f.add(flawLeft, name)
			l.account.pod(p, s, explain.StateLeft)
		}
		if s.Newest.After(l.from) {
			t.departed = name
		}
		return
	}
	silence, age, state := l.at.Sub(s.Newest), l.at.Sub(p.Created), explain.StateReporting
	switch {
	case s.Newest.IsZero() && !older && age <= l.hold: // it may serve already, and its first flush is still to come
		l.f.add(flawUnheard, name)
		state = explain.StateUnheard
	case s.Newest.IsZero() && !older:
		t.unheard++
		state = explain.StateMute
	case s.Newest.IsZero() && l.at.Sub(l.started) <= l.hold:
		l.f.add(flawAbsent, name)
		state = explain.StateAbsent
	case s.Newest.IsZero():
		t.mute++
		state = explain.StateMute
	case !s.Reporting && (silence <= l.hold || s.Newest.After(l.from)): // what it sent leaves the window bit by bit
		l.f.add(flawSilent, name)
		state = explain.StateSilent
	case !s.Reporting:
		t.mute++
		state = explain.StateMute
	case s.Oldest.After(l.from) && (older || !s.Whole), !s.GapTo.IsZero() && s.GapFrom.After(p.Created):
		l.f.add(flawPartial, name)
		state = explain.StatePartial
	case s.Unsent != "" && a.Matched > 0: // else nobody sends it, which is an error
		l.f.add(flawUnsent, name)
		state = explain.StatePartial
	case s.Refused.IsZero():
		if s.Oldest.After(l.from) {
			state = explain.StateYoung
		}
	case l.at.Sub(s.RefusedSince) <= l.hold, s.Refused.Before(l.at.Add(-2 * max(a.Flush, usualFlush))): // or it is over
		l.f.add(flawRefused, name)
		state = explain.StateRefused
	case s.Bare:
		t.mute++
		t.bare = append(t.bare, name)
		fallthrough
	default:
		l.k.refusing++
		state = explain.StateRefused
	}
	l.account.pod(p, s, state)
	if s.Reporting && !s.Bare && !s.Oldest.After(l.from) && p.Created.Before(l.from.Add(-a.Window)) { // it was ready all the window
		t.lasting++
	}
	t.expected++
}

// since is the beginning of what an answer stands on: of its window at the newest time that every
// reporting sidecar has covered.
func since(a aggregator.Answer, at time.Time) time.Time {
	if a.Reporting > 0 && a.Watermark.Before(at) {
		at = a.Watermark
	}
	return at.Add(-a.Window)
}

// told says whether a pod that has left has told all that it served within the window. Others serve
// in its place now, and only from now on: what it did not tell is missing until it has left the
// window.
func (h *holder) told(p *cluster.Pod, s aggregator.PodState, a aggregator.Answer, at time.Time) bool {
	from, last := since(a, at), s.Newest
	if last.After(p.Left) && s.GapFrom.Before(p.Left) && !s.GapFrom.IsZero() { // the name has been used again
		last = s.GapFrom
	}
	if last.Before(p.Created) {
		last = p.Created
	}
	switch {
	case !p.Left.After(from), !p.Wired:
		return true
	case s.Newest.IsZero(): // it did not begin, or nobody heard of it
		return p.Left.Sub(p.Created) <= 2*max(a.Flush, usualFlush)
	case last.Before(p.Left.Add(-time.Second)): // API servers cut times to seconds
		return false // its next flush tells, or the last one that an Envoy sends when it ends
	}
	return s.Refused.IsZero() && (s.GapTo.IsZero() || !s.GapFrom.After(p.Created)) &&
		(!s.Oldest.After(from) || !p.Created.Before(h.started) && s.Whole)
}
