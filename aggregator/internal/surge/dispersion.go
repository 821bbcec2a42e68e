package surge

import "math"

// Dispersion is the relative variance beyond Poisson, learned for each tested length on its own.
const (
	// priorDispersion is assumed of traffic that nobody has seen: that of requests which come in
	// small groups.
	priorDispersion = 0.5
	// priorFlushes is after how many the prior has lost three quarters of its say: a minute, at a
	// flush of 5 s.
	priorFlushes = 12
	// doubt is by how many of its own errors a learned dispersion is taken to be larger: chance
	// exceeds three once in 700, and what is taken for too steady raises false alarms.
	doubt = 3
	// memoryMs is the time over which dispersion is averaged: traffic of another hour is other
	// traffic.
	memoryMs = 3_600_000
)

// dispersion is a weighted mean.
type dispersion struct{ sum, weight float64 }

// value is what is taken for the dispersion. The prior goes with the square of the flushes: as one
// more sample among others it would hide a doubling of steady traffic for an hour after each start.
// What is learned of wide noise is doubted in its place.
func (d dispersion) value() float64 {
	prior := priorFlushes / (priorFlushes + d.weight)
	prior *= prior
	if d.weight == 0 {
		return priorDispersion
	}
	learned := max(0, d.sum/d.weight) * (1 + doubt/math.Sqrt(priorFlushes+d.weight))
	return prior*priorDispersion + (1-prior)*learned
}

// learn takes an interval of steady traffic in. Where few are expected each tells little.
func (d *dispersion) learn(count, mean, forget float64) {
	weight := min(1, mean)
	d.sum = d.sum*forget + weight*((count-mean)*(count-mean)-mean)/(mean*mean)
	d.weight = d.weight*forget + weight
}

func forgetting(flush int64) float64 { return math.Exp(-float64(flush) / memoryMs) }

// lag is how far learning stays behind the watermark: what comes just before a surge may be its
// beginning.
func (f *fold) lag() int64 { return max(f.window, f.flush) + 2*f.flush }

// learn takes the flushes up to a time into the dispersion, where traffic is steady.
func (f *fold) learn(until int64) {
	if f.learned == 0 || until-f.learned > MinuteMs {
		f.learned = until
	}
	for ; f.learned+f.flush <= until; f.learned += f.flush {
		f.learnAt(f.learned + f.flush)
	}
}

func (f *fold) learnAt(end int64) {
	if f.surge.active || f.quiet != 0 && end < f.quiet+MinuteMs {
		return
	}
	f.ending(end, func(k int, from int64, count, minute float64) bool {
		m := f.rate(minute, MinuteMs)
		if k == 1 && !f.steady(m, from) {
			return false
		}
		mean := m.rate * float64(end-from) / 1000
		f.dispersion[k-1].learn(count, mean, f.forget)
		return true
	})
}

// steady reports whether the minute before a time is like what was before it, up to five minutes
// back, but for noise. Without a minute before the minute nothing tells load that begins from
// noise.
func (f *fold) steady(minute baseline, at int64) bool {
	if at-2*MinuteMs < f.since {
		return false
	}
	past := f.mean(max(at-LongMs, f.since), at-MinuteMs)
	apart := f.ratio * (1 + 2/math.Sqrt(minute.stands))
	return minute.rate <= apart*past.rate && past.rate <= apart*minute.rate
}
