package aggregator

import (
	"context"
	"iter"
	"maps"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// Queryable shows the store as it is to an engine of the caller's: empty is empty, nothing is held
// and everybody's series are seen. One query copies so many samples at most, which may be more than
// it holds at a time.
func (s *Store) Queryable(samples int) storage.Queryable {
	return limited{queryable{s, nil}, samples}
}

// limited is a queryable with a limit of its own.
type limited struct {
	queryable
	samples int
}

func (l limited) Querier(mint, maxt int64) (storage.Querier, error) {
	room := l.samples
	return querier{l.queryable, mint, maxt, &room}, nil
}

// Families are the metrics that there are series of, in no order: a counter's name with Counter, a
// histogram's without a suffix with Histogram.
func (s *Store) Families() iter.Seq2[string, Kind] {
	return func(yield func(string, Kind) bool) {
		s.classes.byName.Range(func(name, of any) bool {
			for _, c := range of.(*list[*class]).all() {
				if len(c.columns.all()) > 0 {
					return yield(name.(string), c.kind)
				}
			}
			return true
		})
	}
}

// listSeries is the hint of who wants to know which series there are and reads no samples, as
// Prometheus' own API gives it.
const listSeries = "series"

// listed is a view of a column that has samples of the time asked for.
type listed struct {
	*column
	view view
	pod  *Pod
}

// listed visits what the matchers select. A native histogram, which few clients can read, is listed
// by its name alone: {__name__=~"istio_.*"} means the series that Prometheus has.
func (q querier) listed(ctx context.Context, mint, maxt int64, ms []*labels.Matcher) iter.Seq2[listed, error] {
	sel := newSelector(ms)
	sel.reads = q.reads
	return func(yield func(listed, error) bool) {
		for c := range q.store.classesOf(sel) {
			for v, last := c.views(); v <= last; v++ {
				if v == viewNative && sel.name == "" || !sel.matches(c, v) {
					continue
				}
				for _, col := range c.columns.all() {
					if err := ctx.Err(); err != nil {
						yield(listed{}, err)
						return
					}
					pod := col.table.pod.Load()
					if !sel.takes(c, pod) || !col.has(mint, maxt) {
						continue
					}
					if !yield(listed{col, v, pod}, nil) {
						return
					}
				}
			}
		}
	}
}

// has reports whether there is a row of the time.
func (c *column) has(mint, maxt int64) bool {
	b := c.block.Load()
	if b == nil {
		return false
	}
	lo, hi, _ := b.Window(mint-1, maxt) // a window does not include its start
	return lo <= hi
}

// list returns the selected series that have samples of the time, without them.
func (q querier) list(ctx context.Context, sortSeries bool, mint, maxt int64, ms []*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{}
	var builder labels.ScratchBuilder
	add := func(l listed, le string) {
		metric := l.class.labelsOf(&builder, l.pod, suffixes[l.view], le)
		set.series = append(set.series, promql.NewStorageSeries(promql.Series{Metric: metric}))
		*q.room--
	}
	sel := newSelector(ms)
	for l, err := range q.listed(ctx, mint, maxt, ms) {
		if err == nil && *q.room < 0 {
			err = promql.ErrTooManySamples("listing series")
		}
		if err != nil {
			return storage.ErrSeriesSet(err)
		}
		if l.view != viewBucket {
			add(l, "")
			continue
		}
		for _, le := range l.layout.le {
			if sel.matchesBound(le) {
				add(l, le)
			}
		}
	}
	if sortSeries {
		slices.SortFunc(set.series, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	}
	return set
}

// LabelValues returns the values of a label that the selected series have, sorted.
func (q querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	values := map[string]struct{}{}
	sel := newSelector(ms)
	for l, err := range q.listed(ctx, q.mint, q.maxt, ms) {
		if err != nil {
			return nil, nil, err
		}
		switch {
		case name == model.MetricNameLabel:
			values[l.class.name+suffixes[l.view]] = struct{}{}
		case name == labelNamespace:
			values[l.pod.Namespace] = struct{}{}
		case name == labelPod:
			values[l.pod.Name] = struct{}{}
		case name == labels.BucketLabel && l.view == viewBucket:
			for _, le := range l.layout.le {
				if sel.matchesBound(le) {
					values[le] = struct{}{}
				}
			}
		default:
			values[l.class.labels.get(name)] = struct{}{}
		}
	}
	delete(values, "")
	return sorted(values, hints), nil, nil
}

// LabelNames returns the names of the labels that the selected series have, sorted.
func (q querier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	names := map[string]struct{}{}
	for l, err := range q.listed(ctx, q.mint, q.maxt, ms) {
		if err != nil {
			return nil, nil, err
		}
		for _, name := range []string{model.MetricNameLabel, labelNamespace, labelPod} {
			names[name] = struct{}{}
		}
		if l.view == viewBucket {
			names[labels.BucketLabel] = struct{}{}
		}
		for _, label := range l.class.labels {
			names[label.name.Value()] = struct{}{}
		}
	}
	return sorted(names, hints), nil, nil
}

// sorted are the first of them, as many as the hint allows.
func sorted(set map[string]struct{}, hints *storage.LabelHints) []string {
	all := slices.Sorted(maps.Keys(set))
	if hints != nil && hints.Limit > 0 && len(all) > hints.Limit {
		return all[:hints.Limit]
	}
	return all
}
