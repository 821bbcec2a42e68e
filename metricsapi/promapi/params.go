package promapi

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/meshpulse/meshpulse/aggregator"
)

// The forms of times and durations are those of Prometheus' web/api/v1, which exports none of them
// and would bring every cloud's service discovery along.

var (
	// minTime and maxTime are the bounds of series and labels without any, as Prometheus has them.
	minTime = time.Unix(math.MinInt64/1000+62135596801, 0).UTC()
	maxTime = time.Unix(math.MaxInt64/1000-62135596801, 999999999).UTC()
)

func parseTime(s string) (time.Time, error) {
	if t, err := strconv.ParseFloat(s, 64); err == nil && !math.IsNaN(t) && math.Abs(t) < math.MaxInt64/1000 {
		whole, part := math.Modf(t)
		return time.Unix(int64(whole), int64(math.Round(part*1000)*1e6)).UTC(), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	switch s { // Prometheus' own answers to a range without ends, which are no valid RFC 3339
	case minTime.Format(time.RFC3339Nano):
		return minTime, nil
	case maxTime.Format(time.RFC3339Nano):
		return maxTime, nil
	}
	return time.Time{}, fmt.Errorf("cannot parse %q to a valid timestamp", s)
}

func parseDuration(s string) (time.Duration, error) {
	if d, err := strconv.ParseFloat(s, 64); err == nil {
		if ns := d * float64(time.Second); !math.IsNaN(ns) && math.Abs(ns) < math.MaxInt64 {
			return time.Duration(ns), nil
		}
		return 0, fmt.Errorf("cannot parse %q to a valid duration. It overflows int64", s)
	}
	if d, err := model.ParseDuration(s); err == nil {
		return time.Duration(d), nil
	}
	return 0, fmt.Errorf("cannot parse %q to a valid duration", s)
}

// exprParam is the expression that is asked for.
func exprParam(r *http.Request) (text string, expr parser.Expr, err error) {
	text = r.FormValue("query")
	if expr, err = aggregator.ParseExpr(text); err != nil {
		return "", nil, fmt.Errorf("invalid parameter \"query\": %w", err)
	}
	return text, expr, nil
}

// timeParam is the time of a parameter, otherwise where it is not given.
func timeParam(r *http.Request, name string, otherwise time.Time) (time.Time, error) {
	s := r.FormValue(name)
	if s == "" {
		return otherwise, nil
	}
	t, err := parseTime(s)
	if err != nil {
		return t, fmt.Errorf("invalid parameter %q: %w", name, err)
	}
	return t, nil
}

// limitParam is how many of a list are wanted at most, 0 for all.
func limitParam(r *http.Request) (int, error) {
	s := r.FormValue("limit")
	if s == "" {
		return 0, nil
	}
	limit, err := strconv.Atoi(s)
	if err != nil || limit < 0 {
		return 0, fmt.Errorf("invalid parameter \"limit\": %q is no number of 0 or more", s)
	}
	return limit, nil
}

// timeoutOf is how long the request may take.
func (a *promAPI) timeoutOf(r *http.Request) (time.Duration, error) {
	s := r.FormValue("timeout")
	if s == "" {
		return a.Timeout, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("invalid parameter \"timeout\": %w", err)
	}
	return min(d, a.Timeout), nil
}

// selection is what match[], start and end of a request select.
type selection struct {
	matchers   [][]*labels.Matcher // each one's in turn
	start, end time.Time
	limit      int
}

func selectionOf(r *http.Request) (s selection, err error) {
	if s.start, err = timeParam(r, "start", minTime); err != nil {
		return s, err
	}
	if s.end, err = timeParam(r, "end", maxTime); err != nil {
		return s, err
	}
	if s.limit, err = limitParam(r); err != nil {
		return s, err
	}
	s.matchers, err = parser.ParseMetricSelectors(r.Form["match[]"])
	if err != nil {
		return s, fmt.Errorf("invalid parameter \"match[]\": %w", err)
	}
	for i, ms := range s.matchers {
		if selectsAll(ms) {
			return s, fmt.Errorf("invalid parameter \"match[]\": match[] must contain at least one non-empty matcher: %q", r.Form["match[]"][i])
		}
	}
	return s, nil
}

// selectsAll reports whether the matchers say nothing, as a series without labels fits them.
func selectsAll(ms []*labels.Matcher) bool {
	for _, m := range ms {
		if !m.Matches("") {
			return false
		}
	}
	return true
}

// mint and maxt are the bounds in milliseconds.
func (s selection) mint() int64 { return s.start.UnixMilli() }
func (s selection) maxt() int64 { return s.end.UnixMilli() }
