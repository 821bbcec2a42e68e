package surge

import (
	"math"

	"gonum.org/v1/gonum/mathext"
)

// What is tested, and against what.

// test looks at what is known at a time.
func (f *fold) test(at int64) {
	f.lastTest, f.pending = at, 0
	mark := f.watermark(at)
	if f.surge.active && at-f.reach >= f.surge.end {
		f.surge.active, f.quiet = false, at
	}
	var found told
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

// lengths is how many flushes the longest tested interval has.
func (f *fold) lengths() int {
	return int(min(max(1, (f.window+f.jitter())/f.flush), maxLengths))
}

// jitter is by how much a sidecar's timer is off: rows a little less than a flush apart are a flush
// apart.
func (f *fold) jitter() int64 { return f.flush / 20 }

// limit is the tail below which a count is no chance: tailLimit is for one test a flush of 5 s.
func (f *fold) limit() float64 {
	tests := f.lengths()
	if f.lively > 1 {
		tests *= 2 * min(f.lively, int(f.flush/f.spacing())+1)
	}
	return tailLimit * float64(f.flush) / 5000 / float64(tests)
}

// ending goes through the intervals of 1, 2, … flushes that end at a time: of each its count and
// that of the minute before. It ends where the rows do not tell, or visit says so.
func (f *fold) ending(end int64, visit func(k int, from int64, count, minute float64) bool) {
	from := end - f.flush
	count := f.tested(from, end)
	minute := f.tested(from-MinuteMs, from)
	for k := 1; k <= f.lengths(); k++ {
		if f.since == 0 || from-MinuteMs < f.since || from < f.unsure || !visit(k, from, count, minute) {
			return
		}
		one := f.tested(from-f.flush, from) // sums of one flush are all that is added up anew
		minute += f.tested(from-f.flush-MinuteMs, from-MinuteMs) - one
		count += one
		from -= f.flush
	}
}

// testEnd tests the intervals that end at end, and puts the least likely one that is a surge into
// found.
func (f *fold) testEnd(end, at int64, found *told) {
	limit := f.limit()
	f.ending(end, func(k int, from int64, count, minute float64) bool {
		if f.surge.active && from < f.surge.end+f.flush { // the surge that is on explains it
			return false
		}
		seconds := float64(end-from) / 1000
		m := f.rate(minute, MinuteMs)
		if count < f.ratio*m.rate*seconds {
			return true
		}
		b := f.baseline(m, from)
		if count < f.ratio*b.rate*seconds {
			return true
		}
		tail := tailOf(count, b.rate*seconds, f.dispersion[k-1].value()+1/b.stands)
		if tail < limit && (!found.active || tail < found.tail) {
			*found = told{active: true, from: from, end: end, triggered: at, baseline: b.rate, tail: max(tail, math.SmallestNonzeroFloat64)}
		}
		return true
	})
}

// baseline is a rate and the effective requests that it stands on.
type baseline struct{ rate, stands float64 }

// baseline returns what an interval that begins then is compared with: the minute before it where
// that tells enough and no pod fell silent in it, the surge that is on where that is more.
func (f *fold) baseline(minute baseline, from int64) baseline {
	b := minute
	if b.stands < enough || f.lost > from-MinuteMs {
		if long := f.mean(max(from-LongMs, f.since), from); long.rate > b.rate || long.rate == b.rate && long.stands > b.stands {
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
func (f *fold) mean(from, to int64) baseline {
	from = max(from, f.counts[0].oldest())
	return f.rate(f.tested(from, to), to-from)
}

// rate is a count over a time as a rate. One request more than was counted is assumed: none in five
// minutes is not never.
func (f *fold) rate(count float64, over int64) baseline {
	n := max(0, count) + 1
	perFlush := n * float64(f.flush) / float64(over)
	return baseline{n * 1000 / float64(over), n / (1 + f.dispersion[0].value()*perFlush)}
}

// tailOf is the probability that chance gives a count of x or more where mean is expected. The
// counts are a negative binomial's: a Poisson's about a rate that is gamma distributed. Requests
// that come in groups do no worse. But where the variance is many times a Poisson's it is the rate
// itself that is drawn, and a lognormal one has a heavier tail.
func tailOf(x, mean, dispersion float64) float64 {
	const drawn = 20 // variance over a Poisson's: groups are seldom larger
	tail := countTail(x, mean, dispersion)
	if dispersion*mean > drawn && x > 0 {
		variance := math.Log1p(dispersion)
		tail = max(tail, math.Erfc((math.Log(x/mean)+variance/2)/math.Sqrt(2*variance))/2)
	}
	return tail
}

// countTail is the probability of a count of x or more where mean is expected: of a negative
// binomial with the variance mean + dispersion mean², which is a Poisson's at a dispersion of 0. x
// need not be whole.
func countTail(x, mean, dispersion float64) float64 {
	const poisson = 1e-6 // below it the two cannot be told apart
	switch {
	case x <= 0:
		return 1
	case mean <= 0:
		return 0
	case dispersion < poisson:
		return mathext.GammaIncReg(x, mean)
	}
	return mathext.RegIncBeta(x, 1/dispersion, dispersion*mean/(1+dispersion*mean))
}
