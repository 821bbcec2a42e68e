package promapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/meshpulse/meshpulse/aggregator"
)

const truncated = "results truncated due to limit"

// series lists the series that match[] selects. A native histogram is listed by its name alone.
func (a *promAPI) series(r *http.Request) response {
	s, err := selectionOf(r)
	if err == nil && len(s.matchers) == 0 {
		err = errors.New("no match[] parameter provided")
	}
	if err != nil {
		return errorResponse(errorBadData, err)
	}
	all, err := a.selected(r.Context(), s, "series") // without their samples
	if err != nil {
		return failed(err)
	}
	found := []labels.Labels{}
	for all.Next() {
		if s.limit > 0 && len(found) == s.limit {
			return dataResponse(found, truncated)
		}
		found = append(found, all.At().Labels())
	}
	if err := all.Err(); err != nil {
		return failed(err)
	}
	return dataResponse(found)
}

// selected are the series of all of match[], each once, sorted.
func (a *promAPI) selected(ctx context.Context, s selection, of string) (storage.SeriesSet, error) {
	q, err := a.queryable.Querier(s.mint(), s.maxt())
	if err != nil {
		return nil, err
	}
	defer func() { _ = q.Close() }() // what is selected has been copied
	hints := &storage.SelectHints{Start: s.mint(), End: s.maxt(), Func: of}
	sets := make([]storage.SeriesSet, len(s.matchers))
	for i, ms := range s.matchers {
		sets[i] = q.Select(ctx, true, hints, ms...)
	}
	return storage.NewMergeSeriesSet(sets, 0, storage.ChainedSeriesMerge), nil
}

// labelNames lists the names of labels, of all series where match[] is not given.
func (a *promAPI) labelNames(r *http.Request) response {
	return a.list(r, func(ctx context.Context, q storage.Querier, ms []*labels.Matcher) ([]string, error) {
		names, _, err := q.LabelNames(ctx, nil, ms...)
		return names, err
	})
}

// labelValues lists the values of a label.
func (a *promAPI) labelValues(r *http.Request) response {
	name := r.PathValue("name")
	if unescaped := model.UnescapeName(name, model.ValueEncodingEscaping); unescaped != "" {
		name = unescaped
	}
	if !model.UTF8Validation.IsValidLabelName(name) {
		return errorResponse(errorBadData, fmt.Errorf("invalid label name: %q", name))
	}
	return a.list(r, func(ctx context.Context, q storage.Querier, ms []*labels.Matcher) ([]string, error) {
		values, _, err := q.LabelValues(ctx, name, nil, ms...)
		return values, err
	})
}

// list answers with what one of the lists has for each of match[].
func (a *promAPI) list(r *http.Request, of func(context.Context, storage.Querier, []*labels.Matcher) ([]string, error)) response {
	s, err := selectionOf(r)
	if err != nil {
		return errorResponse(errorBadData, err)
	}
	q, err := a.queryable.Querier(s.mint(), s.maxt())
	if err != nil {
		return failed(err)
	}
	defer func() { _ = q.Close() }()
	if len(s.matchers) == 0 {
		s.matchers = [][]*labels.Matcher{nil}
	}
	found := map[string]struct{}{}
	for _, ms := range s.matchers {
		some, err := of(r.Context(), q, ms)
		if err != nil {
			return failed(err)
		}
		for _, name := range some {
			found[name] = struct{}{}
		}
	}
	all := slices.Sorted(maps.Keys(found))
	if s.limit > 0 && len(all) > s.limit {
		return dataResponse(all[:s.limit], truncated)
	}
	return dataResponse(append([]string{}, all...)) // an empty list, not null
}

// family is what is told of a metric; sidecars send neither help nor unit.
type family struct {
	Type model.MetricType `json:"type"`
	Help string           `json:"help"`
	Unit string           `json:"unit"`
}

// metadata tells the type of each metric that there are series of.
func (a *promAPI) metadata(r *http.Request) response {
	limit, err := limitParam(r)
	if err != nil {
		return errorResponse(errorBadData, err)
	}
	only := r.FormValue("metric")
	families := map[string][]family{}
	for name, kind := range a.Store.Families() {
		if only != "" && only != name {
			continue
		}
		if limit > 0 && len(families) == limit {
			break
		}
		f := family{Type: model.MetricTypeCounter}
		switch kind {
		case aggregator.Histogram:
			f.Type = model.MetricTypeHistogram
		case aggregator.Gauge:
			f.Type = model.MetricTypeGauge
		}
		families[name] = []family{f}
	}
	return dataResponse(families)
}
