package aggregator

import (
	"cmp"
	"math"
	"slices"
)

// A surge is told by a fold over the rows of the selected pods, in the order of their times. What the fold knows:
//
//   - Counts by time (surgeBins). A row's increase is spread evenly over the time since the pod's row before: a gap is divided by its
//     true length. A row that follows its predecessor sooner than a flush (its clock was set back, it came late, its pod said
//     goodbye) still covers most of one, or the same requests would look twice as dense.
//   - Tested are intervals of 1, 2, … flushes that end (a) now, what has not been sent counting as nothing, and (b) at the
//     watermark, the newest time that every reporting pod has covered.
//   - Dispersion, the relative variance beyond Poisson, for each length on its own, learned in steady traffic.
//   - The surge that is on: a change point.
//
// Constants carry the design's reasons; bench/surge measures what they do.
const (
	surgeMinuteMs    = 60_000  // what a tested interval is compared with
	surgeLongMs      = 300_000 // and what with where the minute holds too little
	surgeTail        = 3e-9    // for one test a flush of 5 s; more tests a day, a lower limit
	surgeEnough      = 20      // effective requests on which a minute stands alone
	surgePriorFlush  = 12      // flushes in which the prior dispersion loses three quarters of its say
	surgePrior       = 0.5
	surgeDoubt       = 3         // by how many of its own errors a learned dispersion is taken to be larger
	surgeMemoryMs    = 3_600_000 // over which dispersion is averaged
	surgeBinsPerF    = 8         // bins a flush
	surgeTestsPerF   = 8         // a flush at most
	surgeSpacingMs   = 250       // between tests at least: nobody acts sooner
	surgeMinSpread   = 0.75      // of a flush: what a row covers at least
	surgeMaxLag      = 4         // flushes: by how much counts may be put off at most
	surgeGapFlushes  = 1.5       // beyond it a flush was lost
	surgeMaxLengths  = 30
	surgeFlushChange = 0.2 // by which the flush interval has to change to be another one
)

// surgeRow is a row of a pod: its time, its predecessor's, and what was counted between, for each series of the fold.
type surgeRow struct {
	pod    int
	at     int64
	before int64 // of the pod's first row: when what it counts began; else 0
	counts []float64
	// intervals are the counts of series that tell of the last flush interval only, whatever lies between the rows (interval
	// histograms, deltas); nil if none does.
	intervals []float64
	// aged: of the pod's first row: it counted before, so its past is unknown.
	aged bool
	// first: it is the table's first, or comes before its first flush was measured: of that flush too, or of another stream.
	first bool
	// began is of the row with which the first flush was measured: when that began, 0 where it is not known any more.
	began int64
}

// surgePod is what the fold keeps of a pod.
type surgePod struct {
	newest  int64 // its newest row; 0 before the first
	end     int64 // until which its counts are spread
	flush   int64 // its flush interval
	lastGap int64
	agreed  bool      // the interval has been seen, not only told
	first   *surgeRow // its first row and all that came before that was measured, as one
}

// surgeFold is the state of the fold.
type surgeFold struct {
	ratio  float64
	window int64 // tested
	reach  int64 // the query's own window

	pods   []surgePod
	counts surgeSeries
	// firsts are what counts hold of first rows that are not measured yet, so many: no test stands on them.
	firsts     surgeBins
	unmeasured int
	now        int64 // time of the newest event
	since      int64 // from which the counts are whole; 0 before the first row
	unsure     int64 // until which counts are guessed: nothing that begins before is tested
	lost       int64 // newest row of the pod that fell silent last
	flush      int64 // the longest interval of the reporting pods
	lively     int   // how many report

	lastTest, pending int64 // pending: a test is due then; 0: none
	lastMark          int64 // the watermark that was tested last

	learned    int64   // until which dispersion is learned
	quiet      int64   // when the last surge ended
	forget     float64 // what a flush leaves of what was learned before
	dispersion [surgeMaxLengths]dispersion

	surge    surgeState
	triggers uint64
}

// dispersion is a weighted mean.
type dispersion struct{ sum, weight float64 }

// value is what is taken for the dispersion. The prior goes with the square of the flushes: as one more sample among others it would
// hide a doubling of steady traffic for an hour after each start. What is learned of wide noise is doubted in its place.
func (d dispersion) value() float64 {
	prior := surgePriorFlush / (surgePriorFlush + d.weight)
	prior *= prior
	if d.weight == 0 {
		return surgePrior
	}
	learned := max(0, d.sum/d.weight) * (1 + surgeDoubt/math.Sqrt(surgePriorFlush+d.weight))
	return prior*surgePrior + (1-prior)*learned
}

// learn takes an interval of steady traffic in. Where few are expected each tells little.
func (d *dispersion) learn(count, mean, forget float64) {
	weight := min(1, mean)
	d.sum = d.sum*forget + weight*((count-mean)*(count-mean)-mean)/(mean*mean)
	d.weight = d.weight*forget + weight
}

// surgeState is the surge that is on.
type surgeState struct {
	active         bool
	from, end      int64 // the interval that gave it away
	triggered      int64
	baseline, tail float64
}

// surgeReach is how far back counts are needed: a tested interval, the minute before it or the five.
func surgeReach(window, flush int64) int64 {
	return surgeLongMs + 2*max(window, flush) + 10*flush
}

func newSurgeFold(c SurgeConfig, reach int64, series int, flush int64) *surgeFold {
	f := &surgeFold{ratio: c.Ratio, window: c.Window.Milliseconds(), reach: reach, flush: flush, forget: surgeForget(flush)}
	f.counts = newSurgeSeries(series, surgeBinWidth(flush), surgeReach(f.window, flush))
	f.firsts = newSurgeBins(surgeBinWidth(flush), surgeReach(f.window, flush))
	return f
}

func surgeBinWidth(flush int64) int64 { return max(flush/surgeBinsPerF, 20) }

func surgeForget(flush int64) float64 { return math.Exp(-float64(flush) / surgeMemoryMs) }

// spacing is the time between two tests at least.
func (f *surgeFold) spacing() int64 { return max(f.flush/surgeTestsPerF, surgeSpacingMs) }

// copyFrom makes f equal to o, in its own memory.
func (f *surgeFold) copyFrom(o *surgeFold) {
	pods, counts, firsts := f.pods, f.counts, f.firsts
	*f = *o
	f.pods = append(pods[:0], o.pods...)
	f.counts, f.firsts = counts, firsts
	f.counts.copyFrom(o.counts)
	f.firsts.copyFrom(&o.firsts)
}

// row takes the next row.
func (f *surgeFold) row(r *surgeRow) {
	if f.pending != 0 && r.at > f.pending {
		f.test(f.pending)
	}
	f.now = max(f.now, r.at)
	f.count(r)
	if f.now >= f.lastTest+f.spacing() {
		f.test(f.now)
	} else if f.pending == 0 {
		f.pending = f.lastTest + f.spacing()
	}
}

// idle lets time pass without a row.
func (f *surgeFold) idle(now int64) {
	if f.pending != 0 && now >= f.pending {
		f.test(f.pending)
	}
}

// count spreads what the row counted.
func (f *surgeFold) count(r *surgeRow) {
	p := &f.pods[r.pod]
	from := p.end
	switch {
	case r.first && (p.first != nil || p.newest == 0):
		f.pendFirst(p, r)
		return
	case p.first != nil:
		f.countFirst(p, r)
		p.observe(r.at - p.newest)
	case r.before != 0: // the pod's first, or the first after rows that nobody read
		from = r.before
		if r.aged || f.since == 0 || p.newest != 0 {
			f.since = max(f.since, r.before)
		}
	default:
		p.observe(r.at - p.newest)
	}
	// Rows that come one upon the other (a clock was set back, a stalled stream's messages arrived at once) keep their distance.
	to := r.at
	if p.agreed {
		to = max(to, from+int64(surgeMinSpread*float64(p.flush)))
	}
	if to-r.at > surgeMaxLag*p.flush { // they keep coming too fast: what they say of time cannot be told
		from, to = r.at-p.flush, r.at
		f.since = max(f.since, r.at)
	}
	guess := p.agreed && r.intervals != nil && float64(r.at-from) > surgeGapFlushes*float64(p.flush)
	share := 1.0 // what an interval's count stands for: so many times itself
	if guess {
		// Of the flushes that were lost nothing is known: they count as the one that came, or it would look like a step.
		share = float64(to-from) / float64(p.flush)
		f.unsure = max(f.unsure, to-p.flush)
	}
	for i := range f.counts {
		n := r.counts[i]
		if r.intervals != nil {
			n += share * r.intervals[i]
		}
		f.counts[i].add(from, to, n)
	}
	p.newest, p.end = r.at, to
}

// pendFirst takes a row of a pod whose first flush is not measured yet: what it counted may have taken longer than the time since the row
// before.
func (f *surgeFold) pendFirst(p *surgePod, r *surgeRow) {
	all := *r
	if was := p.first; was != nil {
		f.dropFirst(p)
		all.before, all.aged = was.before, was.aged
		all.counts, all.intervals = slices.Clone(was.counts), slices.Clone(was.intervals)
		if all.intervals == nil && r.intervals != nil {
			all.intervals = make([]float64, len(r.intervals))
		}
		for i := range all.counts {
			all.counts[i] += r.counts[i]
			if r.intervals != nil {
				all.intervals[i] += r.intervals[i]
			}
		}
	}
	p.first, p.newest, p.end = &all, r.at, r.at
	f.addFirst(&all, all.before, 1)
}

// countFirst spreads what a pod's first flush counted, once the row of the second has measured it: taken for shorter it would look like a
// surge.
func (f *surgeFold) countFirst(p *surgePod, second *surgeRow) {
	r := p.first
	f.dropFirst(p)
	before := cmp.Or(second.began, r.at-(second.at-r.at))
	if r.aged || f.since == 0 {
		f.since = max(f.since, before)
	}
	f.addRow(r, before, 1)
}

// addFirst counts a first row over the longest time that it may have taken, for what is served of a surge, or takes it back.
func (f *surgeFold) addFirst(r *surgeRow, before int64, times float64) {
	if before == 0 {
		return
	}
	f.addRow(r, before, times)
	n := r.counts[0]
	if r.intervals != nil {
		n += r.intervals[0]
	}
	f.firsts.add(before, r.at, times*n)
	f.unmeasured += int(times)
}

// dropFirst takes a pod's first row back.
func (f *surgeFold) dropFirst(p *surgePod) {
	if p.first != nil {
		f.addFirst(p.first, p.first.before, -1)
		p.first = nil
	}
}

func (f *surgeFold) addRow(r *surgeRow, before int64, times float64) {
	for i := range f.counts {
		n := r.counts[i]
		if r.intervals != nil {
			n += r.intervals[i]
		}
		f.counts[i].add(before, r.at, times*n)
	}
}

// tested is what was counted in (from, to] of what is tested.
func (f *surgeFold) tested(from, to int64) float64 {
	n := f.counts[0].sum(from, to)
	if f.unmeasured > 0 {
		n -= f.firsts.sum(from, to)
	}
	return n
}

// observe takes two intervals in a row that agree within a quarter as the pod's flush interval, as the table does.
func (p *surgePod) observe(gap int64) {
	if d := gap - p.lastGap; p.lastGap > 0 && max(d, -d) <= max(gap, p.lastGap)/4 {
		p.flush, p.agreed = max((gap+p.lastGap+1)/2, 1), true
	}
	p.lastGap = gap
}

// test looks at what is known at a time.
func (f *surgeFold) test(at int64) {
	f.lastTest, f.pending = at, 0
	mark := f.watermark(at)
	if f.surge.active && at-f.reach >= f.surge.end {
		f.surge.active, f.quiet = false, at
	}
	var found surgeState
	f.testEnd(at, at, &found)
	if mark > 0 && mark < at && mark > f.lastMark {
		f.testEnd(mark, at, &found)
	}
	f.lastMark = max(f.lastMark, mark)
	if found.active {
		f.surge = found
		f.triggers++
	}
	if mark > 0 {
		f.learn(mark - f.lag())
	}
}

// watermark returns the newest time that every reporting pod has covered, 0 if none reports, and notes who fell silent and
// the longest flush interval.
func (f *surgeFold) watermark(at int64) int64 {
	mark, flush := int64(0), int64(0)
	f.lively = 0
	for i := range f.pods {
		p := &f.pods[i]
		switch {
		case p.newest == 0:
		case at-p.newest > 2*p.flush:
			f.lost = max(f.lost, p.newest)
		default:
			f.lively++
			if p.agreed {
				flush = max(flush, p.flush)
			}
			if mark == 0 || p.newest < mark {
				mark = p.newest
			}
		}
	}
	if d := math.Abs(float64(flush - f.flush)); flush > 0 && d > surgeFlushChange*float64(f.flush) {
		f.setFlush(flush)
	}
	return mark
}

// setFlush takes another flush interval: intervals of another length are another distribution, but what was counted stands. Two flushes
// that come late on a busy node are enough for one, and must not blind it for a minute.
func (f *surgeFold) setFlush(flush int64) {
	f.flush, f.forget = flush, surgeForget(flush)
	f.since = max(f.since, f.counts[0].oldest())
	f.dispersion = [surgeMaxLengths]dispersion{}
	for i := range f.counts {
		f.counts[i] = f.counts[i].resized(surgeBinWidth(flush), surgeReach(f.window, flush))
	}
	f.firsts = f.firsts.resized(surgeBinWidth(flush), surgeReach(f.window, flush))
}

// lengths is how many flushes the longest tested interval has.
func (f *surgeFold) lengths() int {
	return int(min(max(1, (f.window+f.jitter())/f.flush), surgeMaxLengths))
}

// jitter is by how much a sidecar's timer is off: rows a little less than a flush apart are a flush apart.
func (f *surgeFold) jitter() int64 { return f.flush / 20 }

// limit is the tail below which a count is no chance: surgeTail is for one test a flush of 5 s.
func (f *surgeFold) limit() float64 {
	tests := f.lengths()
	if f.lively > 1 {
		tests *= 2 * min(f.lively, int(f.flush/f.spacing())+1)
	}
	return surgeTail * float64(f.flush) / 5000 / float64(tests)
}

// ending goes through the intervals of 1, 2, … flushes that end at a time: of each its count and that of the minute before. It ends
// where the rows do not tell, or visit says so.
func (f *surgeFold) ending(end int64, visit func(k int, from int64, count, minute float64) bool) {
	from := end - f.flush
	count := f.tested(from, end)
	minute := f.tested(from-surgeMinuteMs, from)
	for k := 1; k <= f.lengths(); k++ {
		if f.since == 0 || from-surgeMinuteMs < f.since || from < f.unsure || !visit(k, from, count, minute) {
			return
		}
		one := f.tested(from-f.flush, from) // sums of one flush are all that is added up anew
		minute += f.tested(from-f.flush-surgeMinuteMs, from-surgeMinuteMs) - one
		count += one
		from -= f.flush
	}
}

// testEnd tests the intervals that end at end, and puts the least likely one that is a surge into found.
func (f *surgeFold) testEnd(end, at int64, found *surgeState) {
	limit := f.limit()
	f.ending(end, func(k int, from int64, count, minute float64) bool {
		if f.surge.active && from < f.surge.end+f.flush { // the surge that is on explains it
			return false
		}
		seconds := float64(end-from) / 1000
		m := f.rate(minute, surgeMinuteMs)
		if count < f.ratio*m.rate*seconds {
			return true
		}
		b := f.baseline(m, from)
		if count < f.ratio*b.rate*seconds {
			return true
		}
		tail := surgeTailOf(count, b.rate*seconds, f.dispersion[k-1].value()+1/b.stands)
		if tail < limit && (!found.active || tail < found.tail) {
			*found = surgeState{active: true, from: from, end: end, triggered: at, baseline: b.rate, tail: max(tail, math.SmallestNonzeroFloat64)}
		}
		return true
	})
}

// baseline is a rate and the effective requests that it stands on.
type baseline struct{ rate, stands float64 }

// baseline returns what an interval that begins then is compared with: the minute before it where that tells enough and no pod
// fell silent in it, the surge that is on where that is more.
func (f *surgeFold) baseline(minute baseline, from int64) baseline {
	b := minute
	if b.stands < surgeEnough || f.lost > from-surgeMinuteMs {
		if long := f.mean(max(from-surgeLongMs, f.since), from); long.rate > b.rate || long.rate == b.rate && long.stands > b.stands {
			b = long
		}
	}
	if f.surge.active {
		if on := f.mean(f.surge.end, from); on.rate > b.rate {
			b = on
		}
	}
	return b
}

// mean is the rate over (from, to].
func (f *surgeFold) mean(from, to int64) baseline {
	from = max(from, f.counts[0].oldest())
	return f.rate(f.tested(from, to), to-from)
}

// rate is a count over a time as a rate. One request more than was counted is assumed: none in five minutes is not never.
func (f *surgeFold) rate(count float64, over int64) baseline {
	n := max(0, count) + 1
	perFlush := n * float64(f.flush) / float64(over)
	return baseline{n * 1000 / float64(over), n / (1 + f.dispersion[0].value()*perFlush)}
}

// lag is how far learning stays behind the watermark: what comes just before a surge may be its beginning.
func (f *surgeFold) lag() int64 { return max(f.window, f.flush) + 2*f.flush }

// learn takes the flushes up to a time into the dispersion, where traffic is steady.
func (f *surgeFold) learn(until int64) {
	if f.learned == 0 || until-f.learned > surgeMinuteMs {
		f.learned = until
	}
	for ; f.learned+f.flush <= until; f.learned += f.flush {
		f.learnAt(f.learned + f.flush)
	}
}

func (f *surgeFold) learnAt(end int64) {
	if f.surge.active || f.quiet != 0 && end < f.quiet+surgeMinuteMs {
		return
	}
	f.ending(end, func(k int, from int64, count, minute float64) bool {
		m := f.rate(minute, surgeMinuteMs)
		if k == 1 && !f.steady(m, from) {
			return false
		}
		mean := m.rate * float64(end-from) / 1000
		f.dispersion[k-1].learn(count, mean, f.forget)
		return true
	})
}

// steady reports whether the minute before a time is like what was before it, up to five minutes back, but for noise. Without a minute
// before the minute nothing tells load that begins from noise.
func (f *surgeFold) steady(minute baseline, at int64) bool {
	if at-2*surgeMinuteMs < f.since {
		return false
	}
	past := f.mean(max(at-surgeLongMs, f.since), at-surgeMinuteMs)
	apart := f.ratio * (1 + 2/math.Sqrt(minute.stands))
	return minute.rate <= apart*past.rate && past.rate <= apart*minute.rate
}

// ready reports whether there is enough history for a test.
func (f *surgeFold) ready() bool {
	return f.since != 0 && f.now-f.flush-surgeMinuteMs >= f.since
}

// served returns the interval over which a surge is served at an instant; false if none is on. From the trigger to the
// watermark: the first, partial interval is left out as soon as there is another.
func (f *surgeFold) served(now int64) (from, to int64, on bool) {
	s := &f.surge
	if !s.active || now-f.reach >= s.end {
		return 0, 0, false
	}
	mark := int64(0)
	for i := range f.pods {
		if p := &f.pods[i]; p.newest != 0 && now-p.newest <= 2*p.flush && (mark == 0 || p.newest < mark) {
			mark = p.newest
		}
	}
	oldest := f.counts[0].oldest() // a query's window may be longer than what the fold keeps
	if mark >= s.end+f.flush-f.jitter() {
		return max(s.end, oldest), mark, true
	}
	return max(s.from, oldest), max(s.end, mark), true
}

// forgetPod frees a pod's place.
func (f *surgeFold) forgetPod(i int) {
	f.dropFirst(&f.pods[i])
	f.pods[i] = surgePod{}
}

// addPod makes a place for a pod.
func (f *surgeFold) addPod(i int, flush int64) {
	f.pods = slices.Grow(f.pods, max(0, i+1-len(f.pods)))[:max(len(f.pods), i+1)]
	f.pods[i] = surgePod{flush: flush}
}
