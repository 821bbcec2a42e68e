package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// guardedPort is a port beside the API server's: where it is, how it is served and who may ask it.
type guardedPort struct {
	// flag begins the names of its flags, what names it in messages, and everybody says what who
	// reaches it does where nobody is asked who he is.
	flag, what, everybody string

	address                                    string
	certFile, keyFile, clientCAFile, tokenFile string
	insecure                                   bool
}

// complete says what is wrong. more are its flags beyond those that every such port has, joined.
func (p *guardedPort) complete(more string) error {
	var wrong complaints
	if p.address == "" {
		given := more + p.certFile + p.keyFile + p.clientCAFile + p.tokenFile
		wrong.when(given != "" || p.insecure, "flags of the %s have no effect without --%s-address: give host:port, or leave them out", p.what, p.flag)
		return errors.Join(wrong...)
	}
	host, _, err := net.SplitHostPort(p.address)
	wrong.when(err != nil, "--%s-address: %w: give host:port", p.flag, err)
	wrong.when((p.certFile == "") != (p.keyFile == ""), "--%[1]s-tls-cert-file and --%[1]s-tls-private-key-file belong together: give both, or neither for plaintext", p.flag)
	wrong.when(p.clientCAFile != "" && p.certFile == "", "--%[1]s-client-ca-file needs --%[1]s-tls-cert-file: without TLS no client has a certificate", p.flag)
	open := p.tokenFile == "" && p.clientCAFile == "" && !p.insecure
	wrong.when(err == nil && open && !loopback(host), "--%[1]s-address %[2]s lets everybody %[3]s: give --%[1]s-token-file or --%[1]s-client-ca-file, an address of 127.0.0.1, or --%[1]s-insecure", p.flag, p.address, p.everybody)
	return errors.Join(wrong...)
}

// openedPort is the port, opened.
type openedPort struct {
	listener net.Listener          // in plaintext
	tls      *tls.Config           // how it is served; nil: plain
	token    func() string         // what clients must send; nil: none
	follow   func(context.Context) // keeps its files new until the context ends
}

// open reads the files and opens the port for so many connections at a time; more wait to be taken.
func (p *guardedPort) open(log *slog.Logger, connections int) (*openedPort, error) {
	token, followToken, err := p.token(log)
	if err != nil {
		return nil, err
	}
	config, followCertificate, err := p.tls()
	if err != nil {
		return nil, err
	}
	l, err := listen("--"+p.flag+"-address", p.address)
	if err != nil {
		return nil, err
	}
	return &openedPort{netutil.LimitListener(l, connections), config, token, func(ctx context.Context) {
		go followCertificate(ctx)
		followToken(ctx)
	}}, nil
}

// tls is how the port is served, nil where it is plain, and what keeps the certificates new.
func (p *guardedPort) tls() (config *tls.Config, follow func(context.Context), err error) {
	if p.certFile == "" {
		return nil, func(context.Context) {}, nil
	}
	for _, f := range [][2]string{{"tls-cert-file", p.certFile}, {"tls-private-key-file", p.keyFile}, {"client-ca-file", p.clientCAFile}} {
		if f[1] == "" {
			continue
		}
		if _, err := readPEM("--"+p.flag+"-"+f[0], f[1]); err != nil {
			return nil, nil, err
		}
	}
	serving, err := dynamiccertificates.NewDynamicServingContentFromFiles(p.flag, p.certFile, p.keyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("--%[1]s-tls-cert-file %[2]s, --%[1]s-tls-private-key-file %[3]s: %[4]w: give a certificate and its key in PEM", p.flag, p.certFile, p.keyFile, err)
	}
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	var clients dynamiccertificates.CAContentProvider
	run := []func(context.Context, int){serving.Run}
	if p.clientCAFile != "" {
		ca, err := dynamiccertificates.NewDynamicCAContentFromFile(p.flag, p.clientCAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("--%s-client-ca-file %s: %w: give certificates in PEM", p.flag, p.clientCAFile, err)
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
		return nil, nil, fmt.Errorf("--%s-tls-cert-file %s: %w", p.flag, p.certFile, err)
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
func (p *guardedPort) token(log *slog.Logger) (current func() string, follow func(context.Context), err error) {
	if p.tokenFile == "" {
		return nil, func(context.Context) {}, nil
	}
	read := func() (string, error) {
		b, err := os.ReadFile(p.tokenFile)
		if err != nil {
			return "", fmt.Errorf("--%s-token-file: %w: give a file that can be read", p.flag, err)
		}
		token := strings.TrimSpace(string(b))
		if token == "" {
			return "", fmt.Errorf("--%s-token-file %s is empty: write a token into it", p.flag, p.tokenFile)
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
				log.Warn("a token cannot be read again: the last one is still the one", "of", p.what, "error", err)
			}
			failing = err != nil
		}
	}
	return func() string { return *kept.Load() }, follow, nil
}
