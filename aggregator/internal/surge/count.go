package surge

import (
	"cmp"
	"slices"
)

// What rows counted is spread over the time that they cover.

// count spreads what the row counted.
func (f *fold) count(r *Row) {
	p := &f.pods[r.Pod]
	from := p.end
	switch {
	case r.First && (p.newest == 0 || p.first != nil && r.At < p.pends):
		f.pendFirst(p, r)
		return
	case p.first != nil:
		f.countFirst(p, r)
		p.observe(r.At - p.newest)
	case r.Before != 0: // the pod's first, or the first after rows that nobody read
		from = r.Before
		if r.Aged || f.since == 0 || p.newest != 0 {
			f.since = max(f.since, r.Before)
		}
	default:
		p.observe(r.At - p.newest)
	}
	// Rows that come one upon the other (a clock was set back, a stalled stream's messages arrived
	// at once) keep their distance.
	to := r.At
	if p.agreed {
		to = max(to, from+int64(minSpread*float64(p.flush)))
	}
	if to-r.At > maxLag*p.flush { // they keep coming too fast: what they say of time cannot be told
		from, to = r.At-p.flush, r.At
		f.since = max(f.since, r.At)
	}
	guess := p.agreed && r.Intervals != nil && float64(r.At-from) > gapFlushes*float64(p.flush)
	share := 1.0 // what an interval's count stands for: so many times itself
	if guess {
		// Of the flushes that were lost nothing is known: they count as the one that came, or it
		// would look like a step.
		share = float64(to-from) / float64(p.flush)
		f.unsure = max(f.unsure, to-p.flush)
	}
	f.addRow(r, from, to, 1, share)
	p.newest, p.end = r.At, to
}

// pendFirst takes a row of a pod whose first flush is not measured yet: what it counted may have
// taken longer than the time since the row before.
func (f *fold) pendFirst(p *pod, r *Row) {
	all := *r
	if was := p.first; was != nil {
		f.dropFirst(p)
		all.Before, all.Aged = was.Before, was.Aged
		all.Counts, all.Intervals = slices.Clone(was.Counts), slices.Clone(was.Intervals)
		if all.Intervals == nil && r.Intervals != nil {
			all.Intervals = make([]float64, len(r.Intervals))
		}
		for i := range all.Counts {
			all.Counts[i] += r.Counts[i]
			if r.Intervals != nil {
				all.Intervals[i] += r.Intervals[i]
			}
		}
	} else {
		p.pends = r.At + MinuteMs
	}
	p.first, p.newest, p.end = &all, r.At, r.At
	f.addFirst(&all, all.Before, 1)
}

// countFirst spreads what a pod's first flush counted, once the row of the second has measured it:
// taken for shorter it would look like a surge. Where each of its streams ends after a flush that
// never comes: a minute later it is in the past of whatever is tested, and has taken as long as it
// may have.
func (f *fold) countFirst(p *pod, second *Row) {
	r := p.first
	f.dropFirst(p)
	before, unknown := cmp.Or(second.Began, r.At-(second.At-r.At)), r.Aged || f.since == 0
	if second.First {
		before, unknown = cmp.Or(r.Before, r.At), unknown || r.Before == 0
	}
	if unknown {
		f.since = max(f.since, before)
	}
	f.addRow(r, before, r.At, 1, 1)
}

// addFirst counts a first row over the longest time that it may have taken, for what is served of a
// surge, or takes it back.
func (f *fold) addFirst(r *Row, before int64, times float64) {
	if before == 0 {
		return
	}
	f.addRow(r, before, r.At, times, 1)
	f.firsts.add(before, r.At, times*r.counted(0, 1))
	f.unmeasured += int(times)
}

// dropFirst takes a pod's first row back.
func (f *fold) dropFirst(p *pod) {
	if p.first != nil {
		f.addFirst(p.first, p.first.Before, -1)
		p.first = nil
	}
}

// addRow spreads so many times a row's counts evenly over (from, to], an interval counting as share
// of itself.
func (f *fold) addRow(r *Row, from, to int64, times, share float64) {
	for i := range f.counts {
		f.counts[i].add(from, to, times*r.counted(i, share))
	}
}

func (r *Row) counted(i int, share float64) float64 {
	if r.Intervals == nil {
		return r.Counts[i]
	}
	return r.Counts[i] + share*r.Intervals[i]
}

// tested is what was counted in (from, to] of what is tested.
func (f *fold) tested(from, to int64) float64 {
	n := f.counts[0].sum(from, to)
	if f.unmeasured > 0 {
		n -= f.firsts.sum(from, to)
	}
	return n
}

// observe takes two intervals in a row that agree within a quarter as the pod's flush interval, as
// the table does.
func (p *pod) observe(gap int64) {
	if d := gap - p.lastGap; p.lastGap > 0 && max(d, -d) <= max(gap, p.lastGap)/4 {
		p.flush, p.agreed = max((gap+p.lastGap+1)/2, 1), true
	}
	p.lastGap = gap
}
