package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// prometheusAPI says where the Prometheus HTTP API is served, and who may ask it.
type prometheusAPI struct {
	guardedPort
	prefix string
}

func (p *prometheusAPI) flags(f *pflag.FlagSet) {
	p.guardedPort = guardedPort{flag: "prometheus", what: "Prometheus API", everybody: "read all namespaces"}
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
	wrong.when(p.address != "" && p.prefix != "" && (!strings.HasPrefix(p.prefix, "/") || strings.HasSuffix(p.prefix, "/")), "--prometheus-prefix %q: give it with a / before and none behind", p.prefix)
	return errors.Join(append(wrong, p.guardedPort.complete(p.prefix))...)
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
	opened, err := p.guardedPort.open(log, mostPrometheusConnections)
	if err != nil {
		return nil, nil, err
	}
	l := opened.listener
	if opened.tls != nil {
		l = tls.NewListener(l, opened.tls)
	}
	return &prometheusServer{
		listener: l,
		server: &http.Server{
			ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
			MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		follow: opened.follow,
	}, opened.token, nil
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
