// Package promapi serves Prometheus' HTTP API over a store's rings, for those who have a Prometheus
// address to fill in: Grafana, Kiali, Flagger, Argo Rollouts, KEDA's Prometheus scaler, a
// federating Prometheus.
//
// It answers as Prometheus does and not as an autoscaler is answered: an empty result is empty, NaN
// is NaN, nothing is held, a silent sidecar's series end. What is incomplete stands in warnings,
// and is an error for who asks with on_incomplete=error. Parsing, evaluation and the forms of
// values are Prometheus' own packages. Its limits are its own, too: past them it answers 503, and
// an autoscaler's answer does not wait for a dashboard.
package promapi

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Options of New.
type Options struct {
	// Store is what is asked.
	Store *aggregator.Store
	// Held says why an autoscaler would get no answer to the expression at this time, or one that
	// keeps its replicas; "" where it would get the value. Nil: on_incomplete=error is not known.
	Held func(ctx context.Context, expr string, at time.Time) string
	// Incomplete says why what is here of an expression at a time is not all that could be known;
	// Elsewhere then returns what counts, given what is answered here: that, or what another
	// replica answers. Both are nil where there is none.
	Incomplete func(ctx context.Context, expr string, at time.Time) string
	Elsewhere  func(ctx context.Context, path string, form url.Values, own Answer) Answer
	// Partial says why the store does not have what all pods send, "" where it has; nil: it has.
	Partial func() string
	// Prefix stands before each path: "" or /prefix.
	Prefix string
	// Token is what a client has to bear; nil or an empty answer: none. It is asked at each
	// request.
	Token func() string
	// Retention is how far back series are kept that no autoscaler asks for (5 m), as it is told.
	Retention time.Duration
	// FlushInterval is told as the scrape interval (5 s).
	FlushInterval time.Duration
	// MaxConcurrent queries run at a time (a quarter of GOMAXPROCS, 1 at least), MaxWaiting more
	// wait for them (64), MaxSamples are what one may hold (1,000,000) and Timeout how long it may
	// wait and run (10 s).
	MaxConcurrent, MaxWaiting, MaxSamples int
	Timeout                               time.Duration
	// Version is the program's.
	Version    string
	Registerer prometheus.Registerer // nil: nowhere
	Log        *slog.Logger          // nil: slog.Default()
	Now        func() time.Time      // nil: time.Now
}

// Answer is a response of the API.
type Answer struct {
	// Code is that of HTTP, Text the body.
	Code int
	Text []byte
	// Incomplete says why it is not all that could be known, "" if it is.
	Incomplete string
}

// API is the HTTP API.
type API struct {
	http.Handler
	// Here answers a query from what is here, as another replica has been asked for it.
	Here func(ctx context.Context, path string, form url.Values) Answer
}

// promAPI is what answers.
type promAPI struct {
	Options
	engine    *promql.Engine
	queryable storage.Queryable
	started   time.Time
	running   chan struct{} // a place for each query that may run
	waiting   chan struct{} // and for each that may run or wait
	requests  *prometheus.CounterVec
}

// New returns the API.
func New(o Options) *API {
	o.Retention = cmp.Or(o.Retention, 5*time.Minute)
	o.FlushInterval = cmp.Or(o.FlushInterval, 5*time.Second)
	o.MaxConcurrent = cmp.Or(o.MaxConcurrent, max(1, runtime.GOMAXPROCS(0)/4))
	o.MaxWaiting = cmp.Or(o.MaxWaiting, 64)
	o.MaxSamples = cmp.Or(o.MaxSamples, 1_000_000)
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	o.Log = cmp.Or(o.Log, slog.Default())
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &promAPI{
		Options:   o,
		queryable: o.Store.Queryable(o.MaxSamples),
		started:   o.Now(),
		running:   make(chan struct{}, o.MaxConcurrent),
		waiting:   make(chan struct{}, o.MaxConcurrent+o.MaxWaiting),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshpulse_prometheus_api_requests_total",
			Help: "Requests of the Prometheus HTTP API by path and status code; 503 are those past its limits.",
		}, []string{"path", "code"}),
	}
	a.engine = promql.NewEngine(promql.EngineOpts{
		Logger:                   slog.New(slog.DiscardHandler), // errors are answered
		MaxSamples:               o.MaxSamples,
		Timeout:                  o.Timeout,
		EnableAtModifier:         true,
		EnableNegativeOffset:     true,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
	})
	if o.Registerer != nil {
		o.Registerer.MustRegister(a.requests)
	}
	return &API{a.mux(), a.here}
}

// mux has all paths. What Prometheus has and is not here is 404, as of an older Prometheus, which
// clients know how to live with.
func (a *promAPI) mux() http.Handler {
	m := http.NewServeMux()
	both := func(path string, do func(*http.Request) response) {
		m.Handle("GET "+a.Prefix+path, a.handler(path, do))
		m.Handle("POST "+a.Prefix+path, a.handler(path, do))
	}
	get := func(path string, do func(*http.Request) response) {
		m.Handle("GET "+a.Prefix+path, a.handler(path, do))
	}
	both(pathQuery, a.elsewhere(pathQuery, a.admitted(a.query)))
	both(pathRange, a.elsewhere(pathRange, a.admitted(a.queryRange)))
	both("/api/v1/series", a.admitted(a.series))
	both("/api/v1/labels", a.admitted(a.labelNames))
	both("/api/v1/format_query", a.admitted(a.formatQuery))
	get("/api/v1/label/{name}/values", a.admitted(a.labelValues))
	get("/api/v1/metadata", a.metadata)
	get("/api/v1/status/buildinfo", a.buildInfo)
	get("/api/v1/status/runtimeinfo", a.runtimeInfo)
	get("/api/v1/status/config", a.config)
	get("/federate", a.admitted(a.federate))
	get("/-/healthy", a.healthy)
	get("/-/ready", a.healthy)
	return m
}

// handler answers a path, and counts how.
func (a *promAPI) handler(path string, do func(*http.Request) response) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.authorized(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			a.write(w, path, errorResponse(errorUnauthorized, errors.New("the request bears no token that is known: give the one of --prometheus-token-file as Authorization: Bearer TOKEN")))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		a.write(w, path, do(r))
	})
}

// maxForm is how long the form of a request may be.
const maxForm = 1 << 20

func (a *promAPI) authorized(r *http.Request) bool {
	if a.Token == nil {
		return true
	}
	want := a.Token()
	given, bears := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return bears && want != "" && subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}

// admitted waits for a place among the queries that run, and bounds how long it takes in all.
func (a *promAPI) admitted(do func(*http.Request) response) func(*http.Request) response {
	return func(r *http.Request) response {
		if err := r.ParseForm(); err != nil {
			return errorResponse(errorBadData, err)
		}
		timeout, err := a.timeoutOf(r)
		if err != nil {
			return errorResponse(errorBadData, err)
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		select {
		case a.waiting <- struct{}{}:
			defer func() { <-a.waiting }()
		default:
			return busy("so many queries run and wait already")
		}
		select {
		case a.running <- struct{}{}:
			defer func() { <-a.running }()
		case <-ctx.Done():
			return busy("it waited for other queries until its time was over")
		}
		return do(r.WithContext(ctx))
	}
}

func busy(why string) response {
	return errorResponse(errorUnavailable, errors.New(why+": ask less often, for less, or of a Prometheus that scrapes this one's /federate"))
}
