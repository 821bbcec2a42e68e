package aggregator

import (
	"context"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// queryable shows the store to Prometheus' engine: counters as they are stored (monotone), histograms as their _bucket,
// _sum and _count series, each stale two flush intervals after its last row.
type queryable struct{ store *Store }

func (q queryable) Querier(mint, maxt int64) (storage.Querier, error) {
	return querier{q.store, mint, maxt}, nil
}

type querier struct {
	store      *Store
	mint, maxt int64
}

func (q querier) Close() error { return nil }

// LabelValues and LabelNames are not asked by the engine.
func (q querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (q querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// Select returns the selected series with their samples of the hinted time.
func (q querier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	mint, maxt := q.mint, q.maxt
	if hints != nil {
		mint, maxt = hints.Start, hints.End
	}
	sel := newSelector(ms)
	set := &seriesSet{}
	r := reader{mint: mint - 1, maxt: maxt} // hints include their start, windows do not
	for _, c := range q.store.classesOf(sel) {
		if err := ctx.Err(); err != nil {
			return storage.ErrSeriesSet(err)
		}
		for _, v := range c.views() {
			if sel.matches(c, v) {
				for _, col := range c.columns.all() {
					set.series = r.series(set.series, sel, col, v)
				}
			}
		}
	}
	if sortSeries {
		slices.SortFunc(set.series, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	}
	return set
}

// seriesSet is a storage.SeriesSet over a slice.
type seriesSet struct {
	series []storage.Series
	next   int
}

func (s *seriesSet) Next() bool                        { s.next++; return s.next <= len(s.series) }
func (s *seriesSet) At() storage.Series                { return s.series[s.next-1] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// point is a sample of the engine's.
type point struct {
	t int64
	v float64
}

func (p point) T() int64                      { return p.t }
func (p point) F() float64                    { return p.v }
func (p point) H() *histogram.Histogram       { return nil }
func (p point) FH() *histogram.FloatHistogram { return nil }
func (p point) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (p point) Copy() chunks.Sample           { return p }

// reader copies columns out of their rings for (mint, maxt].
type reader struct {
	mint, maxt int64
	builder    labels.ScratchBuilder
	times      []int64
	rows       []histogramRow
	values     []float64
}

// series appends the column's series of the view that the selector selects and that have samples.
func (r *reader) series(to []storage.Series, sel *selector, col *column, v view) []storage.Series {
	pod := col.table.pod.Load()
	if !sel.matchesPod(pod) || !r.read(col) {
		return to
	}
	flush := col.table.flush.Load()
	add := func(le string, at func(i int) float64) {
		to = append(to, storage.NewListSeries(col.class.labelsOf(&r.builder, pod, suffixes[v], le), r.points(flush, at)))
	}
	switch v {
	case viewCounter:
		add("", func(i int) float64 { return r.values[i] })
	case viewSum:
		add("", func(i int) float64 { return r.rows[i].sum })
	case viewCount:
		add("", func(i int) float64 { return float64(r.rows[i].counts[len(col.layout.bounds)]) })
	case viewBucket:
		for b, le := range col.layout.le {
			if sel.matchesBound(le) {
				add(le, func(i int) float64 { return float64(r.rows[i].counts[b]) })
			}
		}
	}
	return to
}

// read copies the column's rows of the time asked for, and reports whether there are any.
func (r *reader) read(col *column) bool {
	for {
		b := col.block.Load()
		if b == nil {
			return false
		}
		lo, hi, oldest := b.window(r.mint, r.maxt)
		r.times, r.values, r.rows = r.times[:0], r.values[:0], r.rows[:0]
		for row := lo; row <= hi; row++ {
			r.times = append(r.times, b.gen.time(row))
			if b.totals == nil {
				r.values = append(r.values, b.readCounter(row))
			} else {
				r.rows = append(r.rows, histogramRow{})
				b.readHistogram(row, &r.rows[len(r.rows)-1])
			}
		}
		if !b.torn(oldest) {
			return len(r.times) > 0
		}
	}
}

// points returns the samples, with a staleness marker wherever the next row is more than two flush intervals away.
func (r *reader) points(flush int64, at func(i int) float64) []chunks.Sample {
	ps := make([]chunks.Sample, 0, len(r.times)+1)
	for i, t := range r.times {
		ps = append(ps, point{t, at(i)})
		stale := t + 2*flush + 1
		if i+1 < len(r.times) && r.times[i+1] <= stale || stale > r.maxt {
			continue
		}
		ps = append(ps, point{stale, math.Float64frombits(value.StaleNaN)})
	}
	return ps
}
