package aggregator

import (
	"math"
	"slices"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
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
