package surge

import (
	"cmp"
	"slices"
)

// Detector looks for surges in the rows of pods. It is not safe for concurrent use.
type Detector struct {
	// settled is the fold over the rows before which no other can come any more, latest that over
	// all rows, and waiting are those between them, in order.
	settled, latest *fold
	waiting         []Row
}

// New returns a detector that has seen nothing. reach is the range in milliseconds of the query
// whose counts the rows hold: a surge is over once that lies inside. series is how many counts a
// row has, of which the first is tested, and flush the interval in milliseconds that pods are taken
// to flush in until their rows tell.
func New(c Config, reach int64, series int, flush int64) *Detector {
	c = c.WithDefaults()
	return &Detector{settled: newFold(c, reach, series, flush), latest: newFold(c, reach, series, flush)}
}

// AddPod makes a place for a pod, of which no row has been taken. flush is its interval as it is
// told.
func (d *Detector) AddPod(place int, flush int64) {
	d.settled.addPod(place, flush)
	d.latest.addPod(place, flush)
}

// ForgetPod frees a pod's place.
func (d *Detector) ForgetPod(place int) {
	d.settled.forgetPod(place)
	d.latest.forgetPod(place)
}

// Take takes rows that have come since the last time, in any order but for those of one pod. Rows
// of one time are taken in the order of their pods. No row can come any more whose time is until or
// before.
func (d *Detector) Take(rows []Row, until int64, pods func(a, b int) int) {
	d.waiting = append(d.waiting, rows...)
	slices.SortStableFunc(d.waiting, func(a, b Row) int { return cmp.Or(cmp.Compare(a.At, b.At), pods(a.Pod, b.Pod)) })
	n := 0
	for n < len(d.waiting) && d.waiting[n].At <= until {
		d.settled.row(&d.waiting[n])
		n++
	}
	d.waiting = slices.Delete(d.waiting, 0, n)
	d.latest.copyFrom(d.settled)
	for i := range d.waiting {
		d.latest.row(&d.waiting[i])
	}
}

// Idle lets time pass in which no row has come.
func (d *Detector) Idle(now int64) { d.latest.idle(now) }

// Reach is how far back counts are needed, in milliseconds.
func (d *Detector) Reach() int64 { return reachOf(d.settled.window, d.settled.flush) }

// Triggers is how many surges there have been so far, without those of which later rows may change
// the story.
func (d *Detector) Triggers() uint64 { return d.settled.triggers }

// Count returns what a series of the rows has counted in (from, to].
func (d *Detector) Count(series int, from, to int64) float64 {
	return d.latest.counts[series].sum(from, to)
}

// State is what is known at an instant. Times are unix milliseconds.
type State struct {
	// Newest is the time of the newest row, 0 without one, and Flush the longest interval of the
	// pods.
	Newest, Flush int64
	// Ready: the rows reach back over what the baseline needs, a complete minute. Until then
	// nothing can trigger.
	Ready bool
	// Active: a surge is on, and the query's own range does not lie inside it yet. The others are
	// zero if not.
	Active bool
	// From and To are the interval over which it is served: To is the newest time that every
	// reporting pod has covered.
	From, To int64
	// Since is the change point, the start of the interval that gave the surge away, and Triggered
	// the time of the row that did.
	Since, Triggered int64
	// Baseline is how many were counted a second before, and Tail the probability of at least as
	// many counts by chance.
	Baseline, Tail float64
}

// At returns what is known at an instant.
func (d *Detector) At(now int64) State {
	f := d.latest
	s := State{Newest: f.now, Flush: f.flush, Ready: f.ready()}
	if s.From, s.To, s.Active = f.served(now); s.Active {
		s.Since, s.Triggered, s.Baseline, s.Tail = f.surge.from, f.surge.triggered, f.surge.baseline, f.surge.tail
	}
	return s
}
