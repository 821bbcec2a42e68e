package fallback

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/transport"
)

const (
	// Deadline is how long an answer of the other adapter may take, all of it.
	Deadline = 3 * time.Second
	// calls is how many questions it is asked at once, callsOfOne how many of one user's, so that
	// who asks without end leaves room for the HPA controller, which asks 5 at once.
	calls, callsOfOne = 16, 8
	// mostBody bounds what is read of an answer here. What is passed on is not kept.
	mostBody = 8 << 20
)

// via is what a request carries that has been passed on. One that comes back with it goes round in
// a circle.
const via = "1.1 meshpulse"

// passedHeaders are those of a request that the other adapter is told. The rest stays here: who
// asks, by whatever header this cluster says so, tokens, and what is of the connection alone.
func passedHeaders() []string { return []string{"Accept", "Accept-Encoding", "User-Agent"} }

// Config is how the other adapter is asked. All fields but Dial and Log are required, Fail where
// requests are passed on.
type Config struct {
	Address Address
	// CAFile has the authorities, in PEM, that its certificate is checked against. It is read again
	// when it changes.
	CAFile string
	// Tokens are of the account that asks.
	Tokens oauth2.TokenSource
	// Fail answers a request that the other adapter gives no answer to.
	Fail func(w http.ResponseWriter, r *http.Request, err error)
	// Dial opens a connection to the Service's name and port (default: by DNS).
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger
}

// Adapter is the other adapter. It is safe for concurrent use.
type Adapter struct {
	config Config
	ca     *dynamiccertificates.DynamicFileCAContent
	tokens transport.ResettableTokenSource
	proxy  *httputil.ReverseProxy
	turns  *turns
	// deadline is Deadline.
	deadline time.Duration

	mu        sync.Mutex
	bundle    []byte // with which transport was made
	transport *http.Transport
	asking    http.RoundTripper // transport, with tokens
}

// New reads the authorities. The error names the file.
func New(c Config) (*Adapter, error) {
	ca, err := dynamiccertificates.NewDynamicCAContentFromFile("fallback", c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("%s: no authority in PEM: %w", c.CAFile, err)
	}
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: Deadline}).DialContext
	}
	a := &Adapter{config: c, ca: ca, tokens: transport.NewCachedTokenSource(c.Tokens), turns: newTurns(calls, callsOfOne), deadline: Deadline}
	a.proxy = &httputil.ReverseProxy{
		Rewrite: a.rewrite, Transport: a, ModifyResponse: a.check, ErrorHandler: a.fail,
		ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return a, nil
}

// Address is the Service.
func (a *Adapter) Address() Address { return a.config.Address }

// Run reads the authorities again when they change, until the context ends.
func (a *Adapter) Run(ctx context.Context) {
	a.ca.Run(ctx, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.transport != nil {
		a.transport.CloseIdleConnections()
	}
}

// Circles says whether a request has been passed on from here already.
func Circles(r *http.Request) bool {
	return strings.Contains(strings.Join(r.Header.Values("Via"), ","), via)
}

// Pass asks the other adapter what a user asks, by the same path and query, and answers with its
// status and body. Where there is no answer Config.Fail gives one, and the error says why.
func (a *Adapter) Pass(w http.ResponseWriter, r *http.Request, user string) (status int, err error) {
	ctx, cancel := context.WithTimeoutCause(r.Context(), a.deadline, errLate)
	defer cancel()
	leave, err := a.turns.enter(ctx, user)
	if err != nil {
		err = cmp.Or(context.Cause(ctx), err)
		a.config.Fail(w, r, err)
		return 0, err
	}
	defer leave()
	seen := &outcome{}
	a.proxy.ServeHTTP(w, r.WithContext(context.WithValue(ctx, outcomeKey{}, seen)))
	return seen.status, seen.err
}

var errLate = fmt.Errorf("no answer within %s", Deadline)

// outcome is what became of a request that is passed on.
type outcome struct {
	status int
	err    error
}

type outcomeKey struct{}

func outcomeOf(ctx context.Context) *outcome {
	if seen, ok := ctx.Value(outcomeKey{}).(*outcome); ok {
		return seen
	}
	return &outcome{}
}

func (a *Adapter) rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "https", a.config.Address.hostPort(), a.config.Address.Name()
	p.Out.Header = http.Header{"Via": {via}}
	for _, name := range passedHeaders() {
		if values := p.In.Header.Values(name); len(values) > 0 {
			p.Out.Header[name] = values
		}
	}
	p.Out.Body, p.Out.ContentLength, p.Out.TransferEncoding, p.Out.Trailer = nil, 0, nil, nil
}

// check refuses what would lead the API server, which asks with its own certificate, elsewhere.
func (a *Adapter) check(r *http.Response) error {
	if to := r.Header.Get("Location"); to != "" && r.StatusCode/100 == 3 {
		return fmt.Errorf("it answers with a redirection to %.200q", to)
	}
	outcomeOf(r.Request.Context()).status = r.StatusCode
	return nil
}

func (a *Adapter) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		err = cmp.Or(context.Cause(r.Context()), err)
	}
	outcomeOf(r.Context()).err = err
	a.config.Fail(w, r, err)
}

// Get asks the other adapter of its own accord.
func (a *Adapter) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+a.config.Address.hostPort()+path, nil)
	if err != nil {
		return 0, nil, err
	}
	r.Host = a.config.Address.Name()
	r.Header = http.Header{"Via": {via}, "Accept": {"application/json"}, "User-Agent": {"meshpulse"}}
	answer, err := a.RoundTrip(r)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(answer.Body, mostBody))
	return answer.StatusCode, body, err
}

// RoundTrip sends a request with a token of the account, over TLS that the authorities vouch for.
func (a *Adapter) RoundTrip(r *http.Request) (*http.Response, error) {
	asking, err := a.current()
	if err != nil {
		return nil, err
	}
	return asking.RoundTrip(r)
}

// current is the transport for the authorities as they are now.
func (a *Adapter) current() (http.RoundTripper, error) {
	bundle := a.ca.CurrentCABundleContent()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.transport != nil && bytes.Equal(bundle, a.bundle) {
		return a.asking, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s has no authority in PEM", a.config.CAFile)
	}
	if a.transport != nil {
		a.transport.CloseIdleConnections()
	}
	a.bundle = bundle
	a.transport = &http.Transport{
		TLSClientConfig:        &tls.Config{RootCAs: roots, ServerName: a.config.Address.Name(), MinVersion: tls.VersionTLS12},
		DialContext:            a.config.Dial,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: Deadline, PingTimeout: Deadline}, // a connection that is dead without a word
		DisableCompression:     true,                                                                // the body passes as it comes
		TLSHandshakeTimeout:    Deadline,
		MaxIdleConnsPerHost:    calls,
		MaxResponseHeaderBytes: 64 << 10,
		IdleConnTimeout:        90 * time.Second,
	}
	a.asking = transport.ResettableTokenSourceWrapTransport(a.tokens)(a.transport)
	return a.asking, nil
}
