package shadow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
)

// Deadline is how long an answer may take, all of it.
const Deadline = 5 * time.Second

// mostBody bounds what is read of an answer.
const mostBody = 1 << 20

// ErrNoValue: the expression gives no series there, or no number.
var ErrNoValue = errors.New("no value")

// Prometheus is asked by its HTTP API. It is safe for concurrent use.
type Prometheus struct {
	query  string
	client *http.Client
}

// NewPrometheus takes the URL that the API's path /api/v1/query is below, http or https, and asks
// nothing yet. The error says what is wrong with it, without what may be secret in it.
func NewPrometheus(address string) (*Prometheus, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("it is no URL such as http://prometheus.monitoring:9090")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the URL has a user, a query or a fragment: give scheme, host, port and path alone")
	}
	p := &Prometheus{query: u.JoinPath("api/v1/query").String()}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	p.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("it answers with a redirection: give the address that it leads to")
	}}
	return p, nil
}

// Value is the sum of an expression's series at an instant, as an HPA adds them up. The error is
// [ErrNoValue], or that there is no answer.
func (p *Prometheus) Value(ctx context.Context, expr string, at time.Time) (float64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Deadline, fmt.Errorf("no answer within %s", Deadline))
	defer cancel()
	form := url.Values{"query": {expr}, "time": {strconv.FormatFloat(float64(at.UnixMilli())/1000, 'f', 3, 64)}, "timeout": {Deadline.String()}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.query, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := p.client.Do(r)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return 0, err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, mostBody+1))
	switch {
	case err != nil:
		return 0, err
	case len(body) > mostBody:
		return 0, fmt.Errorf("its answer has more than %d bytes", mostBody)
	}
	return valueOf(answer.StatusCode, body)
}

// Age is how old the newest sample is of what a selector selects, whatever it is offset by.
func (p *Prometheus) Age(ctx context.Context, of *parser.VectorSelector, at time.Time) (time.Duration, error) {
	only := &parser.VectorSelector{Name: of.Name, LabelMatchers: of.LabelMatchers}
	seconds, err := p.Value(ctx, "max(timestamp("+only.String()+"))", at)
	if err != nil {
		return 0, err
	}
	return at.Sub(time.UnixMilli(int64(seconds * 1000))), nil
}

// valueOf reads an answer of the HTTP API.
func valueOf(status int, body []byte) (float64, error) {
	var told struct {
		Status, Error string
		Data          struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &told); err != nil || told.Status != "success" {
		return 0, fmt.Errorf("status %d: %.200q", status, told.Error)
	}
	var points [][]any // of a time and a text
	switch told.Data.ResultType {
	case "vector":
		var series []struct{ Value []any }
		if err := json.Unmarshal(told.Data.Result, &series); err != nil {
			return 0, fmt.Errorf("not a vector: %w", err)
		}
		for _, s := range series {
			points = append(points, s.Value)
		}
	case "scalar":
		points = make([][]any, 1)
		if err := json.Unmarshal(told.Data.Result, &points[0]); err != nil {
			return 0, fmt.Errorf("not a scalar: %w", err)
		}
	default:
		return 0, fmt.Errorf("a result of type %.40q is no number", told.Data.ResultType)
	}
	sum := 0.0
	for _, p := range points {
		if len(p) != 2 {
			return 0, errors.New("a point is not a time and a value")
		}
		text, _ := p[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, fmt.Errorf("%.40q is not a number", text)
		}
		sum += v
	}
	if len(points) == 0 || math.IsNaN(sum) || math.IsInf(sum, 0) {
		return 0, ErrNoValue
	}
	return sum, nil
}
