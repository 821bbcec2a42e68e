package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/meshpulse/meshpulse/envoystats"
	"github.com/meshpulse/meshpulse/envoystats/meshca"
)

// certificateAge is how long a certificate read from its files is used before they are read again:
// Istio's certificates rotate within hours, and the one before stays valid for a while.
const certificateAge = 10 * time.Second

// ingestTLS says what the ingest port's TLS is served with, and what sidecars have to prove. The
// certificate is of the mesh's authority or of files; with neither the port is plaintext.
type ingestTLS struct {
	mtls                            string // mtlsOff, …; complete puts what is meant in the place of ""
	strictNamespaces, trustDomains  []string
	ca                              meshca.Config
	certFile, keyFile, clientCAFile string
}

// Values of --ingest-mtls.
const (
	mtlsOff        = "off"
	mtlsPermissive = "permissive"
	mtlsStrict     = "strict"
)

func (t *ingestTLS) flags(f *pflag.FlagSet) {
	f.StringVar(&t.mtls, "ingest-mtls", "", "off: what sidecars prove is not looked at; permissive: the port takes plaintext and mutual TLS, and holds a certificate against the pod that reports; strict: mutual TLS alone (default permissive with --ingest-ca-address, else off)")
	f.StringSliceVar(&t.strictNamespaces, "ingest-strict-namespaces", nil, "namespaces whose sidecars have to come over mutual TLS while others need not")
	f.StringSliceVar(&t.trustDomains, "ingest-trust-domains", nil, "trust domains of the mesh beside that of the own certificate (trustDomainAliases); the first is asked for at the CA (default cluster.local)")
	f.StringVar(&t.ca.Address, "ingest-ca-address", "", "host:port of the mesh's CA, which is asked for the ingest port's certificate: istiod.istio-system.svc:15012")
	f.StringVar(&t.ca.ServerName, "ingest-ca-server-name", "", "name in the CA's own certificate (default the host of --ingest-ca-address)")
	f.StringVar(&t.ca.RootFile, "ingest-ca-root-file", "", "root certificates (PEM) of the CA, which sidecars' come from, too (default /var/run/secrets/istio/root-cert.pem)")
	f.StringVar(&t.ca.TokenFile, "ingest-ca-token-file", "", "service account's token for the CA, of the audience istio-ca (default /var/run/secrets/tokens/istio-token)")
	f.StringVar(&t.ca.ClusterID, "ingest-ca-cluster-id", "", "name of the cluster as the CA knows it (default Kubernetes)")
	f.StringVar(&t.certFile, "ingest-tls-cert-file", "", "certificate (PEM) of the ingest port in the place of the CA's; it is read again when it changes. Without --ingest-mtls the port then takes TLS alone")
	f.StringVar(&t.keyFile, "ingest-tls-private-key-file", "", "key (PEM) of the certificate")
	f.StringVar(&t.clientCAFile, "ingest-client-ca-file", "", "CA certificates (PEM) that a sidecar's certificate must come from; without it none is asked for")
}

// complete puts what is meant in the place of what was not given, and says what is wrong.
func (t *ingestTLS) complete() error {
	if t.mtls == "" {
		t.mtls = mtlsOff
		if t.ca.Address != "" {
			t.mtls = mtlsPermissive
		}
	}
	if len(t.trustDomains) > 0 {
		t.ca.TrustDomain = t.trustDomains[0]
	}
	var wrong complaints
	asked := t.ca.Address != ""
	wrong.when(!slices.Contains([]string{mtlsOff, mtlsPermissive, mtlsStrict}, t.mtls), "--ingest-mtls %q is none of off, permissive and strict", t.mtls)
	wrong.when((t.certFile == "") != (t.keyFile == ""), "--ingest-tls-cert-file and --ingest-tls-private-key-file belong together: give both, or neither for plaintext")
	wrong.when(t.clientCAFile != "" && t.certFile == "", "--ingest-client-ca-file needs --ingest-tls-cert-file: without TLS no client has a certificate")
	wrong.when(asked && t.certFile != "", "--ingest-ca-address and --ingest-tls-cert-file are two certificates for one port: give one of them")
	if asked {
		wrong = append(wrong, t.ca.Validate())
	}
	wrong.when(t.mtls == mtlsOff && len(t.strictNamespaces)+len(t.trustDomains) > 0, "--ingest-strict-namespaces and --ingest-trust-domains have no effect with --ingest-mtls=off: give permissive or strict, or leave them out")
	wrong.when(t.mtls != mtlsOff && !asked && t.clientCAFile == "", "--ingest-mtls=%s needs a certificate and roots: give --ingest-ca-address, or all of --ingest-tls-cert-file, --ingest-tls-private-key-file and --ingest-client-ca-file", t.mtls)
	return errors.Join(wrong...)
}

// open reads the files, so that what is wrong with them shows at start, and fills in how the sink
// serves. It returns what keeps the certificate new until a context ends.
func (t *ingestTLS) open(sink *envoystats.Config, log *slog.Logger, r prometheus.Registerer) (keep func(context.Context), err error) {
	mutual := &envoystats.Mutual{TrustDomains: t.trustDomains, Strict: t.mtls == mtlsStrict, StrictNamespaces: t.strictNamespaces}
	switch {
	case t.certFile != "":
		c, err := t.openFiles(log, r)
		if err != nil {
			return nil, err
		}
		if mutual.Serving = c.current.Load; t.mtls == mtlsOff {
			sink.TLS = c.config()
			return c.follow, nil
		}
		if _, err := envoystats.TrustDomain(c.current.Load().Certificates[0].Leaf); err != nil && len(t.trustDomains) == 0 {
			return nil, fmt.Errorf("--ingest-tls-cert-file %s: %w; or say with --ingest-trust-domains which sidecars are the mesh's", t.certFile, err)
		}
		sink.Mutual = mutual
		return c.follow, nil
	case t.mtls == mtlsOff:
		return func(context.Context) {}, nil
	}
	ca := t.ca
	ca.Logger, ca.Registerer = log, r
	client, err := meshca.New(ca)
	if err != nil {
		return nil, err
	}
	var last atomic.Pointer[served]
	mutual.Serving = func() *tls.Config {
		i := client.Current()
		if i == nil {
			return nil
		}
		s := last.Load()
		if s == nil || s.identity != i {
			s = &served{i, envoystats.Serving(i.Certificate, i.Roots)}
			last.Store(s)
		}
		return s.config
	}
	sink.Mutual = mutual
	return client.Run, r.Register(expiry(mutual.Serving))
}

// served is how an identity is served.
type served struct {
	identity *meshca.Identity
	config   *tls.Config
}

// expiry tells when the certificate ends that the ingest port serves with, once there is one.
type expiry func() *tls.Config

// Describe is part of [prometheus.Collector].
func (e expiry) Describe(ch chan<- *prometheus.Desc) { ch <- e.desc() }

func (expiry) desc() *prometheus.Desc {
	return prometheus.NewDesc("meshpulse_ingest_certificate_expires_timestamp_seconds",
		"When the certificate that the ingest port serves with ends, in seconds since 1970.", nil, nil)
}

// Collect is part of [prometheus.Collector].
func (e expiry) Collect(ch chan<- prometheus.Metric) {
	if c := e(); c != nil {
		ch <- prometheus.MustNewConstMetric(e.desc(), prometheus.GaugeValue, float64(c.Certificates[0].Leaf.NotAfter.Unix()))
	}
}

// ingestCertificate is what the ingest port serves with: the last of its files that could be read.
// It is safe for concurrent use.
type ingestCertificate struct {
	read     func() (*tls.Config, error)
	log      *slog.Logger
	current  atomic.Pointer[tls.Config]
	failures prometheus.Counter
	failing  string // what was told last; of follow
}

// openFiles reads the files for the first time.
func (t *ingestTLS) openFiles(log *slog.Logger, r prometheus.Registerer) (*ingestCertificate, error) {
	first, err := t.read()
	if err != nil {
		return nil, err
	}
	c := &ingestCertificate{read: t.read, log: log}
	c.current.Store(first)
	c.failures = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "meshpulse_ingest_certificate_failures_total", Help: "Times that the ingest port's certificate could not be read again; the last good one serves.",
	})
	return c, errors.Join(r.Register(c.failures), r.Register(expiry(c.current.Load)))
}

// config never waits for the files: a handshake takes what was read last.
func (c *ingestCertificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load(), nil },
	}
}

func (c *ingestCertificate) expires() time.Time {
	return c.current.Load().Certificates[0].Leaf.NotAfter
}

// follow reads the files again and again until the context ends. A read that hangs, on a mount that
// is gone say, is left to itself.
func (c *ingestCertificate) follow(ctx context.Context) {
	tick := time.NewTicker(certificateAge)
	defer tick.Stop()
	done := make(chan error, 1)
	for reading := false; ; {
		select {
		case <-ctx.Done():
			return
		case err := <-done:
			reading = false
			c.told(err)
		case <-tick.C:
			if reading {
				c.told(fmt.Errorf("reading the files of --ingest-tls-cert-file takes longer than %s", certificateAge))
				continue
			}
			reading = true
			go func() {
				fresh, err := c.read()
				if err == nil {
					c.current.Store(fresh)
				}
				done <- err
			}()
		}
	}
}

// told counts a failure, and logs it where it is another than before.
func (c *ingestCertificate) told(err error) {
	if err == nil {
		if c.failing != "" {
			c.log.Info("the ingest port's certificate can be read again", "expires", c.expires())
		}
		c.failing = ""
		return
	}
	c.failures.Inc()
	if c.failing != err.Error() {
		c.failing = err.Error()
		c.log.Warn("the ingest port's certificate cannot be read again, the last good one serves until it expires", "error", err, "expires", c.expires())
	}
}

func (t *ingestTLS) read() (*tls.Config, error) {
	certPEM, err := readPEM("--ingest-tls-cert-file", t.certFile)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readPEM("--ingest-tls-private-key-file", t.keyFile)
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("--ingest-tls-cert-file %s, --ingest-tls-private-key-file %s: %w: give a certificate and its key in PEM", t.certFile, t.keyFile, err)
	}
	if t.clientCAFile == "" {
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"}}, nil
	}
	caPEM, err := readPEM("--ingest-client-ca-file", t.clientCAFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("--ingest-client-ca-file %s holds no certificate in PEM", t.clientCAFile)
	}
	return envoystats.Serving(certificate, roots), nil
}

func readPEM(flag, path string) ([]byte, error) {
	b, err := meshca.ReadFile(flag, path)
	if err != nil {
		return nil, fmt.Errorf("%w: give a file in PEM that can be read", err)
	}
	return b, nil
}
