package fleet

import (
	"math"
	"math/rand/v2"
)

// traffic is how many requests each label set has in each flush of a cycle, which a sidecar goes
// through again and again.
type traffic struct {
	counts [][]uint64 // by label set and flush
	zipf   bool
	before [][]uint64 // how many the flushes of the cycle before each had; the last is the cycle's
}

const (
	// busyFlushes are different, so that not every flush is the same to the receiver.
	busyFlushes = 4
	// zipfFlushes are five minutes, so that what has a request now and then has none for long;
	// fewer where they would not fit into memory.
	zipfFlushes  = 64
	zipfMessages = 64 * 20 // label sets of all flushes together
	// zipfExponent: both callers and codes are a Zipf law's, so the requests of a pair fall with
	// its rank more steeply than those of either. At 300 requests of the busiest a flush 8 of 20
	// label sets move in a flush, at 50,000 it is 50 of 2,000.
	zipfExponent = 3
)

// newTraffic returns that of label sets which all move in every flush, or, where the busiest has so
// many requests in a flush, by Zipf's law.
func newTraffic(labelSets, busiest int) *traffic {
	flushes := busyFlushes
	if busiest > 0 {
		flushes = max(busyFlushes, min(zipfFlushes, zipfMessages/labelSets))
	}
	t := &traffic{zipf: busiest > 0}
	r := rand.New(rand.NewPCG(3, uint64(busiest)))
	for set := range labelSets {
		counts, before := make([]uint64, flushes), make([]uint64, flushes+1)
		for i := range counts {
			counts[i] = uint64(20 + (7*set+11*i)%40)
			if busiest > 0 {
				counts[i] = poisson(r, float64(busiest)/math.Pow(float64(set+1), zipfExponent))
			}
			before[i+1] = before[i] + counts[i]
		}
		t.counts, t.before = append(t.counts, counts), append(t.before, before)
	}
	return t
}

// poisson is how often something happens that happens so often on average.
func poisson(r *rand.Rand, mean float64) uint64 {
	if mean > 100 {
		return uint64(max(0, math.Round(mean+math.Sqrt(mean)*r.NormFloat64())))
	}
	n := uint64(0)
	for at := r.ExpFloat64(); at < mean; at += r.ExpFloat64() {
		n++
	}
	return n
}

// flushes are those of a cycle.
func (t *traffic) flushes() int64 { return int64(len(t.counts[0])) }

// total is how many requests a label set had in so many flushes.
func (t *traffic) total(set int, flushes int64) uint64 {
	cycle := t.flushes()
	return uint64(flushes/cycle)*t.before[set][cycle] + t.before[set][flushes%cycle]
}

// ahead is how many flushes of the cycle a pod is ahead of the first, so that not all have the same
// requests at once.
func (t *traffic) ahead(pod int) int64 {
	if !t.zipf {
		return 0
	}
	return int64(pod) * 7 % t.flushes()
}
