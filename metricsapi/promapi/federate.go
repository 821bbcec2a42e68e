package promapi

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// lookback is how old the newest sample of a federated series may be, as in Prometheus.
const lookback = 5 * time.Minute

// federate writes the newest sample of each series that match[] selects as text, with its time.
// Native histograms have no form in it.
func (a *promAPI) federate(r *http.Request) response {
	s, err := selectionOf(r)
	if err == nil && len(s.matchers) == 0 {
		err = errors.New("no match[] parameter provided")
	}
	if err != nil {
		return textError(http.StatusBadRequest, err)
	}
	now := a.Now()
	s.start, s.end = now.Add(-lookback), now
	all, err := a.selected(r.Context(), s, "")
	if err != nil {
		return textError(http.StatusInternalServerError, err)
	}
	families, err := newest(all)
	if tooMany := promql.ErrTooManySamples(""); errors.As(err, &tooMany) {
		return textError(http.StatusUnprocessableEntity, err)
	}
	if err != nil {
		return textError(http.StatusServiceUnavailable, err)
	}
	format := expfmt.NegotiateAccept(r.Header, expfmt.NewFormat(expfmt.TypeTextPlain))
	var text bytes.Buffer
	encode := expfmt.NewEncoder(&text, format)
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if err := encode.Encode(families[name]); err != nil {
			return textError(http.StatusInternalServerError, err)
		}
	}
	return textResponse(string(format), append([]byte{}, text.Bytes()...))
}

func textError(code int, err error) response {
	return response{code: code, contentType: "text/plain; charset=utf-8", text: []byte(err.Error() + "\n")}
}

// newest are the newest samples of the series that have not ended, by metric name.
func newest(all storage.SeriesSet) (map[string]*dto.MetricFamily, error) {
	families := map[string]*dto.MetricFamily{}
	var it chunkenc.Iterator
	for all.Next() {
		series := all.At()
		it = series.Iterator(it)
		last, found := promql.FPoint{}, false
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			if kind == chunkenc.ValFloat {
				last.T, last.F = it.At()
				found = true
			}
		}
		if !found || math.Float64bits(last.F) == value.StaleNaN {
			continue
		}
		name, metric := metricOf(series.Labels(), last)
		if families[name] == nil {
			families[name] = &dto.MetricFamily{Name: &name, Type: dto.MetricType_UNTYPED.Enum()}
		}
		families[name].Metric = append(families[name].Metric, metric)
	}
	return families, all.Err()
}

func metricOf(ls labels.Labels, p promql.FPoint) (name string, m *dto.Metric) {
	m = &dto.Metric{Untyped: &dto.Untyped{Value: &p.F}, TimestampMs: &p.T}
	ls.Range(func(l labels.Label) {
		if l.Name == model.MetricNameLabel {
			name = l.Value
			return
		}
		m.Label = append(m.Label, &dto.LabelPair{Name: &l.Name, Value: &l.Value})
	})
	return name, m
}
