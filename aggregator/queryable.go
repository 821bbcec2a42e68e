package aggregator

import (
	"context"
	"math"
	"slices"

	"github.com/meshpulse/meshpulse/aggregator/internal/fine"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// queryable shows the store to Prometheus' engine: counters as they are stored (monotone),
// histograms as their _bucket, _sum and _count series and as a native one, each stale two flush
// intervals after its last row.
type queryable struct {
	store *Store
	reads *readLimit
}

func (q queryable) Querier(mint, maxt int64) (storage.Querier, error) {
	room := q.store.engine.maxSamples
	return querier{q, mint, maxt, &room}, nil
}

type querier struct {
	queryable
	mint, maxt int64
	room       *int // how many samples more the query may copy, for all of its selectors
}

func (q querier) Close() error { return nil }

// Select returns the selected series with their samples of the hinted time, or without any where
// the hint is that series are listed alone.
func (q querier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	mint, maxt := q.mint, q.maxt
	if hints != nil {
		mint, maxt = hints.Start, hints.End
		if hints.Func == listSeries {
			return q.list(ctx, sortSeries, mint, maxt, ms)
		}
	}
	sel := newSelector(ms)
	sel.reads = q.reads
	set := &seriesSet{}
	r := reader{store: q.store, mint: mint - 1, maxt: maxt, room: q.room} // hints include their start, windows do not
	for c := range q.store.classesOf(sel) {
		for v, last := c.views(); v <= last; v++ {
			if sel.matches(c, v) {
				for _, col := range c.columns.all() {
					if err := r.ended(ctx); err != nil {
						return storage.ErrSeriesSet(err)
					}
					set.series = r.series(set.series, sel, col, v)
				}
			}
		}
	}
	if r.coarse != nil {
		pool := q.store.pool(sel, r.mint, r.maxt, r.joiner())
		for _, col := range r.coarse {
			if err := r.ended(ctx); err != nil {
				return storage.ErrSeriesSet(err)
			}
			set.series = r.nativeSeries(set.series, col, pool)
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

// reader copies columns out of their rings for (mint, maxt].
type reader struct {
	store      *Store
	mint, maxt int64
	builder    labels.ScratchBuilder
	times      []int64
	values     []float64    // of each row in turn
	join       *fine.Joiner // of native histograms; nil before the first
	coarse     []*column    // those without ranks: they come last
	room       *int         // samples, as the engine counts them; what is copied here it has not counted yet
}

// ended says why no more series are read, nil if they are.
func (r *reader) ended(ctx context.Context) error {
	if *r.room < 0 {
		return promql.ErrTooManySamples("reading the rings")
	}
	return ctx.Err()
}

// series appends the column's series of the view that the selector selects and that have samples.
func (r *reader) series(to []storage.Series, sel *selector, col *column, v view) []storage.Series {
	pod := col.table.pod.Load()
	if !sel.takes(col.class, pod) {
		return to
	}
	flush := col.table.flush.Load()
	if v == viewNative {
		switch b := col.block.Load(); {
		case b == nil:
		case b.Ranked():
			to = r.nativeSeries(to, col, nil)
		default:
			r.coarse = append(r.coarse, col)
		}
		return to
	}
	each := r.read(col, v)
	if each == 0 {
		return to
	}
	add := func(le string, i int) {
		metric := col.class.labelsOf(&r.builder, pod, suffixes[v], le)
		to = append(to, promql.NewStorageSeries(promql.Series{Metric: metric, Floats: r.points(flush, i, each)}))
	}
	if v != viewBucket {
		add("", 0)
		return to
	}
	for i, le := range col.layout.le {
		if sel.matchesBound(le) {
			add(le, i)
		}
	}
	return to
}

// read copies the view of the column's rows of the time asked for. It returns how many values each
// has, 0 if there are no rows.
func (r *reader) read(col *column, v view) (each int) {
	for {
		b := col.block.Load()
		if b == nil {
			return 0
		}
		lo, hi, oldest := b.Window(r.mint, r.maxt)
		if hi < lo {
			return 0
		}
		r.times, r.values = r.times[:0], r.values[:0]
		for row := lo; row <= hi; row++ {
			r.times = append(r.times, b.Rows().Time(row))
			words := b.At(row)
			switch v {
			case viewCounter, viewGauge:
				r.values = append(r.values, words.Counter())
			case viewSum:
				r.values = append(r.values, b.Sum(words))
			case viewCount:
				r.values = append(r.values, b.Count(words, b.Counts()-1))
			case viewBucket:
				for i := range b.Counts() {
					r.values = append(r.values, b.Count(words, i))
				}
			}
		}
		if !b.Torn(oldest) {
			return len(r.values) / len(r.times)
		}
	}
}

// points returns the samples of the n-th of each values a row, with a staleness marker wherever the
// next row is more than two flush intervals away.
func (r *reader) points(flush int64, n, each int) []promql.FPoint {
	ps := make([]promql.FPoint, 0, len(r.times)+1)
	for i, t := range r.times {
		ps = append(ps, promql.FPoint{T: t, F: r.values[i*each+n]})
		if stale, ok := r.stale(i, flush); ok {
			ps = append(ps, promql.FPoint{T: stale, F: math.Float64frombits(value.StaleNaN)})
		}
	}
	*r.room -= len(ps)
	return ps
}

// stale returns when the series turned stale after its i-th row, if it did before the next and
// within the time asked for.
func (r *reader) stale(i int, flush int64) (int64, bool) {
	at := r.times[i] + 2*flush + 1
	return at, at <= r.maxt && (i+1 == len(r.times) || r.times[i+1] > at)
}

// nativeSeries appends the column as a native histogram, if it has samples. One without ranks is
// spread as the pool is.
func (r *reader) nativeSeries(to []storage.Series, col *column, pool *fine.Counts) []storage.Series {
	pod := col.table.pod.Load()
	samples := r.native(col, pod, pool)
	if len(samples) == 0 {
		return to
	}
	metric := col.class.labelsOf(&r.builder, pod, "", "")
	return append(to, promql.NewStorageSeries(promql.Series{Metric: metric, Histograms: samples}))
}

func (r *reader) joiner() *fine.Joiner {
	if r.join == nil {
		r.join = fine.NewJoiner(r.store.cells)
	}
	return r.join
}

// native returns the rows of a column as native histograms, none if there are none in the time
// asked for. They count from the ring's oldest row, not from the series' beginning: rates and
// increases, which is what a histogram is good for, do not see the difference. What is before the
// first of them is joined apart: a window's increase depends on its own rows only.
func (r *reader) native(col *column, pod *Pod, pool *fine.Counts) []promql.HPoint {
	flush, join := col.table.flush.Load(), r.joiner()
	for {
		b := col.block.Load()
		if b == nil { // it has just gone
			return nil
		}
		oldest, hi, check := b.Window(math.MinInt64, r.maxt)
		lo := b.Rows().After(oldest, hi, r.mint)
		if lo == 0 && b.Rows().Unbounded(r.mint, r.maxt) {
			lo = 1
		}
		if hi < lo {
			if b.Torn(check) {
				continue
			}
			return nil
		}
		r.times = r.times[:0]
		var f fine.Counts
		ps := make([]promql.HPoint, 0, hi-lo+2)
		readFineRows(join, b, col.layout, pod, oldest, lo)
		join.Shape(pool)
		join.Spread(&f, 1)
		readFineRows(join, b, col.layout, pod, lo, hi)
		join.Shape(pool)
		for row := lo; row <= hi; row++ {
			if row > lo {
				readFineRows(join, b, col.layout, pod, row-1, row)
				join.Spread(&f, 1)
			}
			r.times = append(r.times, b.Rows().Time(row))
			h := f.Native(r.store.cells)
			*r.room -= h.Size() / engineSampleBytes
			ps = append(ps, promql.HPoint{T: b.Rows().Time(row), H: h})
		}
		if b.Torn(check) {
			continue
		}
		for i := len(r.times) - 1; i >= 0; i-- {
			if stale, ok := r.stale(i, flush); ok {
				marker := &histogram.FloatHistogram{Sum: math.Float64frombits(value.StaleNaN)}
				ps = slices.Insert(ps, i+1, promql.HPoint{T: stale, H: marker})
			}
		}
		return ps
	}
}
