package aggregator

import "github.com/meshpulse/meshpulse/aggregator/internal/fine"

// readFineRows has the joiner take a pod's rows (lo, hi]. It reads what the ring holds; the caller checks torn.
func readFineRows(j *fine.Joiner, b *block, l *layout, p *Pod, lo, hi int64) {
	j.Reset(p.InclusiveBounds)
	ends := l.ends(p)
	n := int(b.counts)
	words, ranked := countWords(n-1), b.ranked()
	var scratch [32]uint32
	cumulative := scratch[:]
	if 2*words > len(scratch) {
		cumulative = make([]uint32, 2*words)
	}
	var codes [len(fine.Quantiles)]uint16
	before := b.row(lo)
	for row := lo + 1; row <= hi; row++ {
		now := b.row(row)
		was := before
		before = now
		if now[words-1].Load() == was[words-1].Load() { // nothing in this interval
			continue
		}
		for i := range words {
			n, w := now[i].Load(), was[i].Load()
			cumulative[2*i], cumulative[2*i+1] = uint32(n)-uint32(w), uint32(n>>32)-uint32(w>>32)
		}
		if ranked {
			var four uint64
			for i := range codes {
				if i&3 == 0 {
					four = now[words+1+i/4].Load()
				}
				codes[i] = uint16(four)
				four >>= 16
			}
		}
		if cumulative[n-1] > 0 {
			j.Take(ends, cumulative[:n], &codes)
		}
	}
	j.SetSum(b.sumIn(b.row(hi)) - b.sumIn(b.row(lo)))
}

// ranked reports whether the block's rows tell ranks.
func (b *block) ranked() bool { return int(b.width) > countWords(int(b.counts)-1)+1 }
