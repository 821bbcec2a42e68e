package aggregator

import (
	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// readFineRows has the joiner take a pod's rows (lo, hi]. It reads what the ring holds; the caller
// checks torn.
func readFineRows(j *fine.Joiner, b *ring.Block, l *layout, p *Pod, lo, hi ring.Row) {
	j.Reset(p.InclusiveBounds)
	ends := l.ends(p)
	var scratch [32]uint32
	room := scratch[:]
	if n := b.Counts() + 1; n > len(room) {
		room = make([]uint32, n)
	}
	var codes [ring.Quantiles]uint16
	before := b.At(lo)
	for row := lo + 1; row <= hi; row++ {
		now := b.At(row)
		cumulative := b.Interval(before, now, room)
		before = now
		if cumulative == nil {
			continue
		}
		if b.Ranked() {
			b.Codes(now, &codes)
		}
		j.Take(ends, cumulative, &codes)
	}
	j.SetSum(b.Sum(b.At(hi)) - b.Sum(b.At(lo)))
}
