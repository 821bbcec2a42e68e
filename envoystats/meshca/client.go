package meshca

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is where certificates come from, and who asks. Address must be set; the zero value of
// another field means its default.
type Config struct {
	// Address is the authority's, host:port: istiod.istio-system.svc:15012.
	Address string
	// ServerName is the name in the authority's certificate (default the host of Address).
	ServerName string
	// RootFile holds the roots (PEM) that the authority's certificate comes from: as Istio has it
	// in every namespace, in the ConfigMap istio-ca-root-cert (default
	// /var/run/secrets/istio/root-cert.pem).
	RootFile string
	// TokenFile holds a token of the audience istio-ca (default
	// /var/run/secrets/tokens/istio-token).
	TokenFile string
	// ClusterID is the name of the cluster by which the authority knows whom to ask about the token
	// (default Kubernetes).
	ClusterID string
	// TrustDomain is of the identity that is asked for (default cluster.local). istiod gives its
	// own whatever is asked for; istio-csr wants it to be its own.
	TrustDomain string
	// Life is how long the certificate should last (default 24h). The authority may say less.
	Life time.Duration
	// Logger takes what goes wrong, and when it is right again (default slog.Default).
	Logger *slog.Logger
	// Registerer receives the client's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	host, _, _ := net.SplitHostPort(c.Address)
	c.ServerName = cmp.Or(c.ServerName, host)
	c.RootFile = cmp.Or(c.RootFile, "/var/run/secrets/istio/root-cert.pem")
	c.TokenFile = cmp.Or(c.TokenFile, "/var/run/secrets/tokens/istio-token")
	c.ClusterID = cmp.Or(c.ClusterID, "Kubernetes")
	c.TrustDomain = cmp.Or(c.TrustDomain, "cluster.local")
	c.Life = cmp.Or(c.Life, 24*time.Hour)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	return c
}

// Validate says which setting cannot be used, and names its flag.
func (c Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fmt.Errorf("--ingest-ca-address: %w: give host:port, such as istiod.istio-system.svc:15012", err)
	}
	if c.Life < 0 {
		return errors.New("a certificate's life is negative")
	}
	return nil
}

// Identity is a certificate of the mesh, and the roots that those of others come from: those that
// came with it and those of Config.RootFile.
type Identity struct {
	Certificate tls.Certificate
	Roots       *x509.CertPool
}

// Client keeps a certificate that is new. It is safe for concurrent use.
type Client struct {
	config  Config
	current atomic.Pointer[Identity]
	ok      prometheus.Counter
	failed  prometheus.Counter

	// Of Run.
	ask     func(context.Context) (*issued, error)
	issued  *issued
	roots   []byte // of the file, the last good ones
	bad     string // what was told of the file last
	failing string // what was told last
}

const (
	// patience is how long a request may take; 6 ms were measured.
	patience = 20 * time.Second
	// leastWait and mostWait bound the time between two requests that fail; it doubles.
	leastWait, mostWait = time.Second, time.Minute
	// deafWait bounds it while there is no certificate that lasts: each second of it is one more in
	// which no sidecar reports, and that many of a replica's requests nobody feels.
	deafWait = 5 * time.Second
	// lookAgain is how often the file with the roots is looked at.
	lookAgain = 10 * time.Second
)

// New returns a client that has no certificate before it runs. The error names the setting that is
// wrong.
func New(c Config) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "meshpulse_ingest_ca_requests_total", Help: "Certificates that the mesh's authority was asked for, by result.",
	}, []string{"result"})
	client := &Client{config: c.withDefaults(), ok: requests.WithLabelValues("ok"), failed: requests.WithLabelValues("error")}
	client.ask = client.request
	if c.Registerer != nil {
		if err := c.Registerer.Register(requests); err != nil {
			return nil, err
		}
	}
	return client, nil
}

// Current is the newest certificate, nil before the first. It may have ended: then the authority
// has not answered for long.
func (c *Client) Current() *Identity { return c.current.Load() }

// Run asks for a certificate, and for another one in time, until the context ends.
func (c *Client) Run(ctx context.Context) {
	wait, retry := time.Duration(0), leastWait
	for {
		if !c.sleep(ctx, wait) {
			return
		}
		err := c.renew(ctx)
		if ctx.Err() != nil {
			return
		}
		c.told(err)
		if err != nil {
			wait = jittered(min(retry, c.longestWait()))
			retry = min(2*retry, mostWait)
			continue
		}
		retry = leastWait
		wait = max(leastWait, jittered(time.Until(c.issued.certificate.Leaf.NotAfter)/2))
	}
}

// longestWait is how long the next request may be waited for after one that has failed.
func (c *Client) longestWait() time.Duration {
	if c.issued == nil || time.Until(c.issued.certificate.Leaf.NotAfter) < mostWait {
		return deafWait
	}
	return mostWait
}

// jittered is a time that several who ask at once do not have in common: up to a tenth less.
func jittered(d time.Duration) time.Duration { return d - time.Duration(rand.Float64()*float64(d)/10) }

// sleep waits, and less where the file with the roots changes: what comes with a certificate is of
// before. It returns false once the context ends.
func (c *Client) sleep(ctx context.Context, d time.Duration) bool {
	// By the clock that certificates end by: the other one stands still while a machine sleeps.
	end := time.Now().Round(0).Add(d)
	for {
		left := time.Until(end)
		if left <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, lookAgain))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
		if c.rootsChanged() {
			return true
		}
	}
}

// rootsChanged looks at the file with the roots. Others are trusted at once, and the certificate is
// then asked for anew.
func (c *Client) rootsChanged() bool {
	changed, err := c.readRoots()
	if err != nil {
		return false // there was none before either: the next request tells it
	}
	if changed {
		c.publish()
	}
	return changed
}

// readRoots reads the file with the roots, and reports whether it has others. Where it is away or
// holds none the last good ones stay; the error is that there never were any.
func (c *Client) readRoots() (changed bool, err error) {
	roots, err := ReadFile("--ingest-ca-root-file", c.config.RootFile)
	if err != nil {
		err = fmt.Errorf("%w: the ConfigMap istio-ca-root-cert is not there, so Istio is not in the cluster or its discoverySelectors leave this namespace out", err)
	} else if !x509.NewCertPool().AppendCertsFromPEM(roots) {
		err = fmt.Errorf("--ingest-ca-root-file %s holds no certificate in PEM", c.config.RootFile)
	}
	if err != nil && c.roots == nil {
		return false, err
	}
	if err != nil {
		if c.bad != err.Error() {
			c.config.Logger.Warn("the mesh's roots cannot be read again, those of before stay trusted", "error", err)
		}
		c.bad = err.Error()
		return false, nil
	}
	c.bad = ""
	changed = string(roots) != string(c.roots)
	c.roots = roots
	return changed, nil
}

// renew asks for a certificate, and makes it the current one.
func (c *Client) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	i, err := c.ask(ctx)
	if err != nil {
		return err
	}
	c.issued = i
	c.publish()
	return nil
}

// request asks the authority, with the roots and the token that the files hold now.
func (c *Client) request(ctx context.Context) (*issued, error) {
	if _, err := c.readRoots(); err != nil {
		return nil, err
	}
	token, err := ReadFile("--ingest-ca-token-file", c.config.TokenFile)
	if err != nil {
		return nil, err
	}
	return c.config.ask(ctx, c.roots, token)
}

// publish puts the current certificate and roots together.
func (c *Client) publish() {
	if c.issued == nil {
		return
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.issued.roots)
	pool.AppendCertsFromPEM(c.roots)
	c.current.Store(&Identity{c.issued.certificate, pool})
}

// told counts a request, and logs how it went where that is another than before.
func (c *Client) told(err error) {
	log, had := c.config.Logger, c.issued
	if err == nil {
		c.ok.Inc()
		c.failing = ""
		log.Info("the mesh's authority has given a certificate", "identity", had.certificate.Leaf.URIs, "expires", had.certificate.Leaf.NotAfter)
		return
	}
	c.failed.Inc()
	if c.failing == err.Error() {
		return
	}
	c.failing = err.Error()
	if had == nil {
		log.Warn("no certificate of the mesh: no sidecar can report over TLS until there is one; it is asked for again and again", "address", c.config.Address, "error", err)
		return
	}
	log.Warn("no new certificate of the mesh: the last one serves until it ends; it is asked for again and again",
		"address", c.config.Address, "expires", had.certificate.Leaf.NotAfter, "error", err)
}
