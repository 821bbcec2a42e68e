package promapi

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/meshpulse/meshpulse/aggregator"
)

// maxPoints of a range query are as many a series as Prometheus allows.
const maxPoints = 11_000

// queryData is the result of a query in Prometheus' form.
type queryData struct {
	ResultType parser.ValueType `json:"resultType"`
	Result     parser.Value     `json:"result"`
}

// query answers an instant query.
func (a *promAPI) query(r *http.Request) response {
	at, err := timeParam(r, "time", a.Now())
	if err != nil {
		return errorResponse(errorBadData, err)
	}
	return a.evaluate(r, at, func(opts promql.QueryOpts, expr string) (promql.Query, error) {
		return a.engine.NewInstantQuery(r.Context(), a.queryable, opts, expr, at)
	})
}

// queryRange answers a query at each step of a time.
func (a *promAPI) queryRange(r *http.Request) response {
	var start, end time.Time
	var step time.Duration
	var err error
	if start, err = parseTime(r.FormValue("start")); err != nil {
		return errorResponse(errorBadData, fmt.Errorf("invalid parameter \"start\": %w", err))
	}
	if end, err = parseTime(r.FormValue("end")); err != nil {
		return errorResponse(errorBadData, fmt.Errorf("invalid parameter \"end\": %w", err))
	}
	if step, err = parseDuration(r.FormValue("step")); err != nil {
		return errorResponse(errorBadData, fmt.Errorf("invalid parameter \"step\": %w", err))
	}
	switch {
	case end.Before(start):
		return errorResponse(errorBadData, errors.New("invalid parameter \"end\": end timestamp must not be before start time"))
	case step <= 0:
		return errorResponse(errorBadData, errors.New("invalid parameter \"step\": zero or negative query resolution step widths are not accepted. Try a positive integer"))
	case end.Sub(start)/step > maxPoints:
		return errorResponse(errorBadData, errors.New("exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)"))
	}
	return a.evaluate(r, end, func(opts promql.QueryOpts, expr string) (promql.Query, error) {
		return a.engine.NewRangeQuery(r.Context(), a.queryable, opts, expr, start, end, step)
	})
}

func optionsOf(r *http.Request) (limit int, opts promql.QueryOpts, err error) {
	if limit, err = limitParam(r); err != nil {
		return 0, nil, err
	}
	var lookback time.Duration
	if s := r.FormValue("lookback_delta"); s != "" {
		if lookback, err = parseDuration(s); err != nil {
			return 0, nil, fmt.Errorf("error parsing lookback delta duration: %w", err)
		}
	}
	return limit, promql.NewPrometheusQueryOpts(false, lookback), nil
}

// evaluate answers a query, whose newest time is at, and says what is incomplete there.
func (a *promAPI) evaluate(r *http.Request, at time.Time, prepare func(promql.QueryOpts, string) (promql.Query, error)) response {
	expr, parsed, err := exprParam(r)
	if err != nil {
		return errorResponse(errorBadData, err)
	}
	// What is known of a range of samples is what is known of the newest of them.
	instant := expr
	if parsed.Type() == parser.ValueTypeMatrix {
		instant = "last_over_time(" + parsed.String() + ")"
	}
	unknown := a.unknown(r, instant, at)
	if held := a.held(r, instant, at); held != nil {
		held.incomplete = unknown
		return *held
	}
	limit, opts, err := optionsOf(r)
	if err != nil {
		return errorResponse(errorBadData, err)
	}
	q, err := prepare(opts, expr)
	if err != nil {
		return errorResponse(errorBadData, fmt.Errorf("invalid parameter \"query\": %w", err))
	}
	defer q.Close()
	result := q.Exec(r.Context())
	if result.Err != nil {
		return failed(result.Err)
	}
	warnings, infos := told(result.Warnings, expr)
	value, cut := cutTo(result.Value, limit)
	if cut {
		warnings = append(warnings, "results truncated due to limit")
	}
	if incomplete := a.incomplete(instant, at); incomplete != "" {
		warnings = append(warnings, incomplete)
	}
	answer := dataResponse(queryData{value.Type(), value}, warnings...)
	answer.Infos = infos
	answer = answer.encoded() // while the query's own memory still stands
	answer.incomplete = unknown
	return answer
}

func told(a annotations.Annotations, expr string) (warnings, infos []string) {
	const most = 10 // as Prometheus
	return a.AsStrings(expr, most, most)
}

// cutTo is the value with so many series at most, 0 for all.
func cutTo(v parser.Value, limit int) (parser.Value, bool) {
	switch v := v.(type) {
	case promql.Vector:
		if limit > 0 && len(v) > limit {
			return v[:limit], true
		}
	case promql.Matrix:
		if v == nil {
			return promql.Matrix{}, false // an empty list, not null
		}
		if limit > 0 && len(v) > limit {
			return v[:limit], true
		}
	}
	return v, false
}

// held is the response to who asks not to be told what an autoscaler would not be told; nil where
// there is nothing to hold, or it is not asked for.
func (a *promAPI) held(r *http.Request, expr string, at time.Time) *response {
	var refused response
	switch asked := r.FormValue("on_incomplete"); {
	case asked == "":
		return nil
	case asked != "error":
		refused = errorResponse(errorBadData, fmt.Errorf("invalid parameter \"on_incomplete\": %q is not error, which is all there is", asked))
	case a.Held == nil:
		refused = errorResponse(errorBadData, errors.New("invalid parameter \"on_incomplete\": it is not known here what is incomplete"))
	case a.Partial != nil && a.Partial() != "":
		refused = errorResponse(errorUnavailable, errors.New(a.Partial()))
	default:
		why := a.Held(r.Context(), expr, at)
		if why == "" {
			return nil
		}
		refused = errorResponse(errorUnavailable, errors.New(why))
	}
	return &refused
}

// incomplete says what is not known of an expression at a time, "" if all is or nobody can tell.
func (a *promAPI) incomplete(expr string, at time.Time) string {
	if a.Partial != nil && a.Partial() != "" {
		return "incomplete: " + a.Partial()
	}
	q, err := a.Store.Query(expr)
	if refused := (*aggregator.QueryError)(nil); errors.As(err, &refused) && refused.Unkept {
		return "incomplete: " + refused.Reason
	}
	if err != nil {
		return ""
	}
	c := q.Coverage(at)
	switch {
	case c.Silent > 0:
		return fmt.Sprintf("incomplete: %d of %d sidecars that could have the series report no more", c.Silent, c.Silent+c.Reporting)
	case c.Covered < q.Range() && c.Reporting > 0:
		return fmt.Sprintf("incomplete: %s of the %s asked for are known", c.Covered.Round(time.Second), q.Range())
	}
	return ""
}

// formatQuery writes an expression as Prometheus would.
func (a *promAPI) formatQuery(r *http.Request) response {
	_, expr, err := exprParam(r)
	if err != nil {
		return errorResponse(errorBadData, err)
	}
	return dataResponse(expr.Pretty(0))
}
