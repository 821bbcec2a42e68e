package aggregator

import (
	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser/posrange"
)

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

// add adds the series with ranks to their groups, or where there is a pool those without. It reports whether it left some.
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
