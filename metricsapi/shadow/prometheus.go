package shadow

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
)

// Deadline is how long an answer may take, all of it.
const Deadline = 5 * time.Second

// mostBody bounds what is read of an answer.
const mostBody = 1 << 20

// ErrNoValue: the expression gives no series there, or no number.
var ErrNoValue = errors.New("no value")

// PrometheusConfig is how a Prometheus is asked.
type PrometheusConfig struct {
	// URL is what the API's path /api/v1/query is below, http or https.
	URL string
	// CAFile has the authorities, in PEM, that its certificate is checked against; "": the
	// system's.
	CAFile string
	// TokenFile has the bearer token that it is shown; "": none.
	TokenFile string
}

// Validate says what is wrong, without what may be secret in it. It opens no file.
func (c PrometheusConfig) Validate() error {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("it is no URL such as http://prometheus.monitoring:9090")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("the URL has a user, a query or a fragment: give scheme, host, port and path alone")
	}
	ip := net.ParseIP(u.Hostname())
	switch loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback(); {
	case u.Scheme == "https":
	case c.CAFile != "":
		return errors.New("there is an authority for a certificate, and over http there is none: give an https URL, or leave the authority out")
	case c.TokenFile != "" && !loopback:
		return errors.New("over http whoever is on the way would read the token: give an https URL, or leave the token out")
	}
	return nil
}

// Prometheus is asked by its HTTP API. It is safe for concurrent use.
type Prometheus struct {
	query  string
	config PrometheusConfig

	mu        sync.Mutex
	bundle    []byte // with which transport was made
	transport *http.Transport
}

// NewPrometheus reads the files, and asks nothing yet. The error names the file.
func NewPrometheus(c PrometheusConfig) (*Prometheus, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	p := &Prometheus{query: u.JoinPath("api/v1/query").String(), config: c}
	if _, err := p.client(); err != nil {
		return nil, err
	}
	_, err = p.token()
	return p, err
}

// client asks over TLS that the authorities vouch for as they are in the file now.
func (p *Prometheus) client() (*http.Client, error) {
	var bundle []byte
	if file := p.config.CAFile; file != "" {
		var err error
		if bundle, err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.transport == nil || !bytes.Equal(bundle, p.bundle) {
		made := http.DefaultTransport.(*http.Transport).Clone()
		made.Proxy = nil
		if bundle != nil {
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(bundle) {
				return nil, fmt.Errorf("%s has no authority in PEM", p.config.CAFile)
			}
			made.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		}
		if p.transport != nil {
			p.transport.CloseIdleConnections()
		}
		p.transport, p.bundle = made, bundle
	}
	return &http.Client{Transport: p.transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("it answers with a redirection: give the address that it leads to")
	}}, nil
}

// token is what the file has now, "" without one.
func (p *Prometheus) token() (string, error) {
	if p.config.TokenFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(p.config.TokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", fmt.Errorf("%s has no token: write one line", p.config.TokenFile)
	}
	return token, nil
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
	token, err := p.token()
	if err != nil {
		return 0, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client, err := p.client()
	if err != nil {
		return 0, err
	}
	answer, err := client.Do(r)
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
