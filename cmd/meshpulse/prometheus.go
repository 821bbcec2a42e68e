package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/netutil"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// prometheusAPI says where the Prometheus HTTP API is served, and who may ask it.
type prometheusAPI struct {
	address, prefix                            string
	certFile, keyFile, clientCAFile, tokenFile string
	insecure                                   bool
}

func (p *prometheusAPI) flags(f *pflag.FlagSet) {
	f.StringVar(&p.address, "prometheus-address", "", "host:port that serves Prometheus' HTTP API, for dashboards and canary checks: whoever may ask it reads all namespaces (default: off)")
	f.StringVar(&p.prefix, "prometheus-prefix", "", "what stands before each of its paths: /PREFIX")
	f.StringVar(&p.certFile, "prometheus-tls-cert-file", "", "certificate (PEM) that it is served with; read again when it changes (default: plain HTTP)")
	f.StringVar(&p.keyFile, "prometheus-tls-private-key-file", "", "key (PEM) of the certificate")
	f.StringVar(&p.clientCAFile, "prometheus-client-ca-file", "", "CA certificates (PEM) that a client's certificate must come from")
	f.StringVar(&p.tokenFile, "prometheus-token-file", "", "file with the bearer token that clients must send; read again when it changes")
	f.BoolVar(&p.insecure, "prometheus-insecure", false, "serve it beyond loopback to whoever reaches the port, without a token or client certificates")
}

// complete says what is wrong.
func (p *prometheusAPI) complete() error {
	var wrong complaints
	if p.address == "" {
		given := p.prefix + p.certFile + p.keyFile + p.clientCAFile + p.tokenFile
		wrong.when(given != "" || p.insecure, "flags of the Prometheus API have no effect without --prometheus-address: give host:port, or leave them out")
		return errors.Join(wrong...)
	}
	host, _, err := net.SplitHostPort(p.address)
	wrong.when(err != nil, "--prometheus-address: %w: give host:port", err)
	wrong.when((p.certFile == "") != (p.keyFile == ""), "--prometheus-tls-cert-file and --prometheus-tls-private-key-file belong together: give both, or neither for plain HTTP")
	wrong.when(p.clientCAFile != "" && p.certFile == "", "--prometheus-client-ca-file needs --prometheus-tls-cert-file: without TLS no client has a certificate")
	wrong.when(p.prefix != "" && (!strings.HasPrefix(p.prefix, "/") || strings.HasSuffix(p.prefix, "/")), "--prometheus-prefix %q: give it with a / before and none behind", p.prefix)
	open := p.tokenFile == "" && p.clientCAFile == "" && !p.insecure
	wrong.when(err == nil && open && !loopback(host), "--prometheus-address %s lets everybody read all namespaces: give --prometheus-token-file or --prometheus-client-ca-file, an address of 127.0.0.1, or --prometheus-insecure", p.address)
	return errors.Join(wrong...)
}

// prometheusServer is the opened port.
type prometheusServer struct {
	listener net.Listener
	server   *http.Server
	follow   func(context.Context) // keeps its files new until the context ends
}

// mostPrometheusConnections bounds connections; more wait to be taken.
const mostPrometheusConnections = 512

// open reads the files and opens the port. The handler is set before it is run. token is what
// clients must send, nil where they need none.
func (p *prometheusAPI) open(log *slog.Logger) (*prometheusServer, func() string, error) {
	token, followToken, err := p.token(log)
	if err != nil {
		return nil, nil, err
	}
	config, followCertificate, err := p.tls()
	if err != nil {
		return nil, nil, err
	}
	l, err := listen("--prometheus-address", p.address)
	if err != nil {
		return nil, nil, err
	}
	l = netutil.LimitListener(l, mostPrometheusConnections)
	if config != nil {
		l = tls.NewListener(l, config)
	}
	return &prometheusServer{
		listener: l,
		server: &http.Server{
			ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
			MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		follow: func(ctx context.Context) {
			go followCertificate(ctx)
			followToken(ctx)
		},
	}, token, nil
}

// run serves until the context ends.
func (s *prometheusServer) run(ctx context.Context) error {
	go s.follow(ctx) // not waited for: its files may hang
	stop := context.AfterFunc(ctx, func() {
		ending, cancel := context.WithTimeout(context.Background(), shutdownLimit)
		defer cancel()
		_ = s.server.Shutdown(ending)
	})
	defer stop()
	if err := s.server.Serve(s.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the Prometheus API on %s: %w", s.listener.Addr(), err)
	}
	return nil
}

// tls is how the port is served, nil where it is plain, and what keeps the certificates new.
func (p *prometheusAPI) tls() (config *tls.Config, follow func(context.Context), err error) {
	if p.certFile == "" {
		return nil, func(context.Context) {}, nil
	}
	for _, f := range [][2]string{{"--prometheus-tls-cert-file", p.certFile}, {"--prometheus-tls-private-key-file", p.keyFile}, {"--prometheus-client-ca-file", p.clientCAFile}} {
		if f[1] == "" {
			continue
		}
		if _, err := readPEM(f[0], f[1]); err != nil {
			return nil, nil, err
		}
	}
	serving, err := dynamiccertificates.NewDynamicServingContentFromFiles("prometheus-api", p.certFile, p.keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("--prometheus-tls-cert-file %s, --prometheus-tls-private-key-file %s: %w: give a certificate and its key in PEM", p.certFile, p.keyFile, err)
	}
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	var clients dynamiccertificates.CAContentProvider
	run := []func(context.Context, int){serving.Run}
	if p.clientCAFile != "" {
		ca, err := dynamiccertificates.NewDynamicCAContentFromFile("prometheus-api", p.clientCAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("--prometheus-client-ca-file %s: %w: give certificates in PEM", p.clientCAFile, err)
		}
		base.ClientAuth = tls.RequireAndVerifyClientCert
		base.ClientCAs = x509.NewCertPool()
		clients, run = ca, append(run, ca.Run)
	}
	controller := dynamiccertificates.NewDynamicServingCertificateController(base, clients, serving, nil, nil)
	serving.AddListener(controller)
	if clients != nil {
		clients.AddListener(controller)
	}
	if err := controller.RunOnce(); err != nil {
		return nil, nil, fmt.Errorf("--prometheus-tls-cert-file %s: %w", p.certFile, err)
	}
	config = base.Clone()
	config.GetConfigForClient = controller.GetConfigForClient
	return config, func(ctx context.Context) {
		for _, r := range run {
			go r(ctx, 1)
		}
		controller.Run(1, ctx.Done())
	}, nil
}

// token is what clients must send, nil where they need none, and what keeps it new.
func (p *prometheusAPI) token(log *slog.Logger) (current func() string, follow func(context.Context), err error) {
	if p.tokenFile == "" {
		return nil, func(context.Context) {}, nil
	}
	read := func() (string, error) {
		b, err := os.ReadFile(p.tokenFile)
		if err != nil {
			return "", fmt.Errorf("--prometheus-token-file: %w: give a file that can be read", err)
		}
		token := strings.TrimSpace(string(b))
		if token == "" {
			return "", fmt.Errorf("--prometheus-token-file %s is empty: write a token into it", p.tokenFile)
		}
		return token, nil
	}
	first, err := read()
	if err != nil {
		return nil, nil, err
	}
	var kept atomic.Pointer[string]
	kept.Store(&first)
	follow = func(ctx context.Context) {
		tick := time.NewTicker(certificateAge)
		defer tick.Stop()
		for failing := false; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			token, err := read()
			if err == nil {
				kept.Store(&token)
			} else if !failing {
				log.Warn("the token of the Prometheus API cannot be read again: the last one is still the one", "error", err)
			}
			failing = err != nil
		}
	}
	return func() string { return *kept.Load() }, follow, nil
}
