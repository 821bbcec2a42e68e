package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// certificateAge is how long a certificate read from its files is used before they are read again:
// Istio's certificates rotate within hours, and the one before stays valid for a while.
const certificateAge = 10 * time.Second

// ingestTLS are the files of the ingest port's TLS; none is plaintext.
type ingestTLS struct{ certFile, keyFile, clientCAFile string }

func (t ingestTLS) validate() error {
	if (t.certFile == "") != (t.keyFile == "") {
		return errors.New("--ingest-tls-cert-file and --ingest-tls-private-key-file belong together: give both, or neither for plaintext")
	}
	if t.clientCAFile != "" && t.certFile == "" {
		return errors.New("--ingest-client-ca-file needs --ingest-tls-cert-file: without TLS no client has a certificate")
	}
	return nil
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

// open reads the files, so that what is wrong with them shows at start. It returns nil for
// plaintext.
func (t ingestTLS) open(log *slog.Logger, r prometheus.Registerer) (*ingestCertificate, error) {
	if t.certFile == "" {
		return nil, nil
	}
	first, err := t.read()
	if err != nil {
		return nil, err
	}
	c := &ingestCertificate{read: t.read, log: log}
	c.current.Store(first)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "meshpulse", Subsystem: "ingest", Name: name, Help: help}
	}
	c.failures = prometheus.NewCounter(prometheus.CounterOpts(opts("certificate_failures_total",
		"Times that the ingest port's certificate could not be read again; the last good one serves.")))
	expires := prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("certificate_expires_timestamp_seconds",
		"When the certificate that the ingest port serves with ends, in seconds since 1970.")),
		func() float64 { return float64(c.expires().Unix()) })
	return c, errors.Join(r.Register(c.failures), r.Register(expires))
}

// config never waits for the files: a handshake takes what was read last. It returns nil for
// plaintext.
func (c *ingestCertificate) config() *tls.Config {
	if c == nil {
		return nil
	}
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
	if c == nil {
		return
	}
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

func (t ingestTLS) read() (*tls.Config, error) {
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
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate},
		NextProtos:   []string{"h2"},
	}
	if t.clientCAFile == "" {
		return c, nil
	}
	caPEM, err := readPEM("--ingest-client-ca-file", t.clientCAFile)
	if err != nil {
		return nil, err
	}
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("--ingest-client-ca-file %s holds no certificate in PEM", t.clientCAFile)
	}
	return c, nil
}

// maxPEM is far above a chain's or a bundle's size.
const maxPEM = 4 << 20

// readPEM reads a flag's file. What is no file, such as a pipe that nobody writes to, is refused
// rather than waited for.
func readPEM(flag, path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: give a file in PEM that can be read", flag, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s is not a regular file: give one in PEM", flag, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: give a file in PEM that can be read", flag, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1)) // a size that is told may be wrong
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w: give a file in PEM that can be read", flag, err)
	case len(b) > maxPEM:
		return nil, fmt.Errorf("%s %s is beyond %d MiB: give one in PEM", flag, path, maxPEM>>20)
	}
	return b, nil
}
