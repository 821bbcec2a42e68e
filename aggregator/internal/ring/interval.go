package ring

import (
	"math"
	"sync/atomic"
)

// Bucket is one bucket of an interval histogram. The +Inf bucket is not among them.
type Bucket struct {
	UpperBound float64
	Count      uint64 // observations up to UpperBound, never less than in the bucket before
}

// MaxIntervalCount is the largest count of an interval: rows keep the lower halves of counts, which
// one step may not overtake (slab.totals). It is 85 million requests a second at a flush of 25 s.
const MaxIntervalCount = 1<<31 - 1

// PutInterval publishes a histogram's counts as the newest row's: those of an earlier row (-1:
// none) and an interval's. No buckets at all are buckets without observations. sum is the
// histogram's own, codes are the interval's quantiles, nil if they do not tell of it.
func (r *Ring) PutInterval(b *Block, last Row, buckets []Bucket, count uint64, sum float64, codes *[Quantiles]uint16) {
	b.hold(r.row)
	words := b.words(r.row)
	before := words
	if last >= 0 {
		before = b.words(last)
	} else {
		for i := range words {
			words[i].Store(0)
		}
	}
	if b.addCounts(words, before, buckets, count) {
		b.raise(words, buckets, count)
	}
	at := countWords(b.counts)
	words[at].Store(math.Float64bits(sum))
	if b.Ranked() {
		fillQuantiles(words[at+1:], codes)
	}
	b.admit(r.row)
}

// addCounts writes the counts of a row: those of another and an interval's, halves of words apart.
// It reports whether one of them may be too far from its total.
func (b *Block) addCounts(words, before []atomic.Uint64, buckets []Bucket, count uint64) bool {
	var changed uint64
	add := func(i int, low, high uint64) {
		old := before[i/2].Load()
		sum := uint64(uint32(old)+uint32(low)) | (old>>32+high)<<32
		changed |= old ^ sum
		words[i/2].Store(sum)
	}
	n := int(b.counts)
	if len(buckets) < n-1 {
		for i := 0; i < n; i += 2 {
			words[i/2].Store(before[i/2].Load())
		}
		return false
	}
	i := 0
	for ; i+1 < len(buckets); i += 2 {
		add(i, buckets[i].Count, buckets[i+1].Count)
	}
	if i < len(buckets) {
		add(i, buckets[i].Count, count)
	} else {
		add(i, count, 0)
	}
	return changed&(1<<31|1<<63) != 0 || count>>31 != 0
}

// raise puts the totals of a row's counts in place, before it is admitted. The counts hold the
// interval already.
func (b *Block) raise(words []atomic.Uint64, buckets []Bucket, count uint64) {
	for i := range int(b.counts) {
		interval := count
		if i < len(buckets) {
			interval = buckets[i].Count
		}
		low := uint32(words[i/2].Load() >> (32 * (i & 1)))
		b.setTotal(i, b.whole(i, low-uint32(interval))+interval)
	}
	b.rows.hook.After(StepTotals)
}

// fillQuantiles packs four codes a word.
func fillQuantiles(words []atomic.Uint64, codes *[Quantiles]uint16) {
	for i := range quantileWords {
		var w uint64
		if codes != nil {
			for j := 4 * i; j < min(4*i+4, len(codes)); j++ {
				w |= uint64(codes[j]) << (16 * (j & 3))
			}
		}
		words[i].Store(w)
	}
}

// whole returns the i-th count of a row from its lower half: the one that is nearest to the total.
func (b *Block) whole(i int, low uint32) uint64 {
	totals := b.totals.Load()
	if totals == nil {
		return uint64(low)
	}
	near := (*totals)[2*int(b.at)+i].Load()
	return near + uint64(int32(low-uint32(near)))
}

// setTotal puts the i-th count's total in place. Each count has its own: readers need no two of
// them together.
func (b *Block) setTotal(i int, total uint64) {
	all := b.totals.Load()
	if all == nil {
		made := make([]atomic.Uint64, 2*b.rowWords)
		all = &made
		b.totals.Store(all)
	}
	(*all)[2*int(b.at)+i].Store(total)
}
