package aggregator

import (
	"math"
	"slices"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/parser/posrange"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/meshpulse/meshpulse/aggregator/internal/ring"
)

// bucketQuantile is histogram_quantile(q, sum by (le, …) (f(buckets[range]))).
type bucketQuantile struct {
	q    float64
	by   []string // without le
	over rangeVector
}

// bucketSums are a group's sums by bound; +Inf is last.
type bucketSums struct {
	bounds []float64
	sums   []fold
}

func (h *bucketQuantile) eval(s *Store, at int64) ([]Value, bool) {
	var groups grouper[bucketSums]
	var scratch [scanValues]float64
	for vs := h.over.values(s, at); vs.begin(); {
		if vs.view == viewNative {
			return nil, false
		}
		values := vs.read(scratch[:0])
		if vs.torn() {
			continue
		}
		if vs.view == viewBucket { // else a counter that is called like a histogram's view: no le, so no bucket
			p := vs.table.pod.Load()
			for i := range vs.batch[:vs.n] {
				c, each := vs.batch[i].column, vs.each(i)
				groups.of(h.by, c.class, p).add(c.layout.bounds, values[:each])
				values = values[each:]
			}
		}
		vs.done()
	}
	return groups.values(h.by, func(b *bucketSums) float64 { return b.quantile(h.q) }), true
}

// add adds a series' buckets. Series with other bounds add up bound by bound, as sum by (le) does.
func (b *bucketSums) add(bounds, values []float64) {
	if b.sums == nil {
		b.bounds, b.sums = slices.Clone(bounds), make([]fold, len(values))
	}
	if slices.Equal(b.bounds, bounds) {
		for i := range values {
			b.sums[i].sum(values[i : i+1])
		}
		return
	}
	for i, bound := range bounds {
		at, found := slices.BinarySearch(b.bounds, bound)
		if !found {
			b.bounds = slices.Insert(b.bounds, at, bound)
			b.sums = slices.Insert(b.sums, at, fold{})
		}
		b.sums[at].sum(values[i : i+1])
	}
	last := len(values) - 1
	b.sums[len(b.sums)-1].sum(values[last:])
}

func (b *bucketSums) quantile(q float64) float64 {
	buckets := make(promql.Buckets, 0, len(b.sums))
	for i := range b.sums {
		bound := math.Inf(1)
		if i < len(b.bounds) {
			bound = b.bounds[i]
		}
		buckets = append(buckets, promql.Bucket{UpperBound: bound, Count: b.sums[i].result(parser.SUM)})
	}
	v, _, _ := promql.BucketQuantile(q, buckets)
	return v
}

// fineQuantile is histogram_quantile(q, sum by (…) (f(histogram[range]))) over the finer view.
type fineQuantile struct {
	q    float64
	by   []string
	over rangeVector
}

func (h *fineQuantile) eval(s *Store, at int64) ([]Value, bool) {
	groups := fineGroups{by: h.by, join: fine.NewJoiner(s.cells)}
	if left := h.add(s, at, &groups, nil); left {
		h.add(s, at, &groups, s.pool(h.over.sel, at-h.over.reach, at, groups.join))
	}
	return groups.values(h.by, func(f *fine.Counts) float64 {
		v, _ := promql.HistogramQuantile(h.q, f.Native(s.cells), "", posrange.PositionRange{})
		return v
	}), true
}

// fineGroups is the groups of an evaluation, and its scratch.
type fineGroups struct {
	grouper[fine.Counts]
	by   []string
	join *fine.Joiner
}

// add adds the series with ranks to their groups, or where there is a pool those without. It
// reports whether it left some.
func (h *fineQuantile) add(s *Store, at int64, to *fineGroups, pool *fine.Counts) (left bool) {
	for sc := h.over.fines(s, at); sc.begin(); {
		if sc.view != viewNative {
			sc.done()
			continue
		}
		p, read := sc.table.pod.Load(), 0
		for ; read < sc.n; read++ {
			if sc.batch[read].block.Ranked() != (pool == nil) {
				left = true
				continue
			}
			factor, ok := h.over.readFine(&sc, read, p, to.join, pool)
			if sc.torn() {
				break
			}
			if !ok {
				continue
			}
			g := to.of(to.by, sc.batch[read].column.class, p)
			to.join.Spread(g, factor)
		}
		sc.doneBefore(read)
	}
	return left
}

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
