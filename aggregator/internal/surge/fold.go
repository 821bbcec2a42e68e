package surge

import (
	"math"
	"slices"
)

// What a tested interval is compared with, in milliseconds.
const (
	// MinuteMs is the baseline: the minute before the interval, and nothing older, so that a second
	// wave three minutes after the first is seen as soon as the first.
	MinuteMs = 60_000
	// LongMs is how far the baseline reaches where the minute holds too little to stand on: what
	// rings keep by default.
	LongMs = 300_000
)

// The others. bench/surge measures what they do.
const (
	// tailLimit is the probability below which a count is no chance, for one test a flush of 5 s;
	// more tests a day, a lower limit. At 1e-7, simulated first, days of traffic in groups and of
	// lognormal load raised alarms.
	tailLimit = 3e-9
	// enough effective requests are what a minute stands on alone: their error is below a quarter,
	// half of what the default ratio asks for.
	enough = 20
	// binsPerFlush bounds how wrong a count over an interval is: by a part of one bin at each end.
	binsPerFlush = 8
	// testsPerFlush and spacingMs bound how often is tested: nobody acts sooner than a quarter of a
	// second.
	testsPerFlush, spacingMs = 8, 250
	// minSpread of a flush is what a row covers at least: timers jitter, but by less.
	minSpread = 0.75
	// maxLag is by how many flushes counts may be put off at most, where rows come faster than they
	// cover time: as long as a pod that has fallen silent is waited for.
	maxLag = 4
	// gapFlushes apart, a flush was lost between two rows: they are nearer to two than to one.
	gapFlushes = 1.5
	// maxLengths bounds the tested lengths: the longest window in flushes of a second.
	maxLengths = 30
	// flushChange is the part by which the flush interval has to change to be another one: less is
	// jitter.
	flushChange = 0.2
)

// Row is a flush of a pod: its time, and what was counted since the pod's row before, for each
// series of the fold.
type Row struct {
	Pod    int
	At     int64
	Before int64 // of the pod's first row: when what it counted began; else 0
	Counts []float64
	// Intervals are the counts of series that tell of the last flush interval only, whatever lies
	// between the rows (interval histograms, deltas); nil if none does.
	Intervals []float64
	// Aged: of the pod's first row: it counted before, so its past is unknown.
	Aged bool
	// First: it is the pod's first, or comes before its first flush was measured: of that flush
	// too, or of another stream.
	First bool
	// Began is of the row with which the first flush was measured: when that began, 0 where it is
	// not known any more.
	Began int64
}

// pod is what the fold keeps of a pod.
type pod struct {
	newest  int64 // its newest row; 0 before the first
	end     int64 // until which its counts are spread
	flush   int64 // its flush interval
	lastGap int64
	agreed  bool  // the interval has been seen, not only told
	first   *Row  // its first row and all that came before that was measured, as one
	pends   int64 // until when that is waited for
}

// fold is the state of the fold.
type fold struct {
	ratio  float64
	window int64 // tested
	reach  int64 // the query's own window

	pods []pod
	// counts are those of what is tested (the first) and, where that is not all there is, of the
	// plan's terms.
	counts []bins
	// firsts are what counts hold of first rows that are not measured yet, so many: no test stands
	// on them.
	firsts     bins
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
	dispersion [maxLengths]dispersion

	surge    told
	triggers uint64
}

// told is the surge that is on.
type told struct {
	active         bool
	from, end      int64 // the interval that gave it away
	triggered      int64
	baseline, tail float64
}

// reachOf is how far back counts are needed: a tested interval, the minute before it or the five.
func reachOf(window, flush int64) int64 {
	return LongMs + 2*max(window, flush) + 10*flush
}

func newFold(c Config, reach int64, series int, flush int64) *fold {
	f := &fold{ratio: c.Ratio, window: c.Window.Milliseconds(), reach: reach, flush: flush, forget: forgetting(flush)}
	for range series {
		f.counts = append(f.counts, newBins(binWidth(flush), reachOf(f.window, flush)))
	}
	f.firsts = newBins(binWidth(flush), reachOf(f.window, flush))
	return f
}

func binWidth(flush int64) int64 { return max(flush/binsPerFlush, 20) }

// spacing is the time between two tests at least.
func (f *fold) spacing() int64 { return max(f.flush/testsPerFlush, spacingMs) }

// copyFrom makes f equal to o, which has as many series, in its own memory.
func (f *fold) copyFrom(o *fold) {
	pods, counts, firsts := f.pods, f.counts, f.firsts
	*f = *o
	f.pods = append(pods[:0], o.pods...)
	f.counts, f.firsts = counts, firsts
	for i := range o.counts {
		f.counts[i].copyFrom(&o.counts[i])
	}
	f.firsts.copyFrom(&o.firsts)
}

// row takes the next row.
func (f *fold) row(r *Row) {
	if f.pending != 0 && r.At > f.pending {
		f.test(f.pending)
	}
	f.now = max(f.now, r.At)
	f.count(r)
	if f.now >= f.lastTest+f.spacing() {
		f.test(f.now)
	} else if f.pending == 0 {
		f.pending = f.lastTest + f.spacing()
	}
}

// idle lets time pass without a row.
func (f *fold) idle(now int64) {
	if f.pending != 0 && now >= f.pending {
		f.test(f.pending)
	}
}

// watermark returns the newest time that every reporting pod has covered, 0 if none reports, and
// notes who fell silent and the longest flush interval.
func (f *fold) watermark(at int64) int64 {
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
	if d := math.Abs(float64(flush - f.flush)); flush > 0 && d > flushChange*float64(f.flush) {
		f.setFlush(flush)
	}
	return mark
}

// setFlush takes another flush interval: intervals of another length are another distribution, but
// what was counted stands. Two flushes that come late on a busy node are enough for one, and must
// not blind it for a minute.
func (f *fold) setFlush(flush int64) {
	f.flush, f.forget = flush, forgetting(flush)
	f.since = max(f.since, f.counts[0].oldest())
	f.dispersion = [maxLengths]dispersion{}
	for i := range f.counts {
		f.counts[i] = f.counts[i].resized(binWidth(flush), reachOf(f.window, flush))
	}
	f.firsts = f.firsts.resized(binWidth(flush), reachOf(f.window, flush))
}

// ready reports whether there is enough history for a test.
func (f *fold) ready() bool {
	return f.since != 0 && f.now-f.flush-MinuteMs >= f.since
}

// served returns the interval over which a surge is served at an instant; false if none is on. From
// the trigger to the watermark: the first, partial interval is left out as soon as there is
// another.
func (f *fold) served(now int64) (from, to int64, on bool) {
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

// addPod makes a place for a pod.
func (f *fold) addPod(i int, flush int64) {
	f.pods = slices.Grow(f.pods, max(0, i+1-len(f.pods)))[:max(len(f.pods), i+1)]
	f.pods[i] = pod{flush: flush}
}

// forgetPod frees a pod's place.
func (f *fold) forgetPod(i int) {
	f.dropFirst(&f.pods[i])
	f.pods[i] = pod{}
}
