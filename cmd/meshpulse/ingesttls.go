package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// certificateAge is how long a certificate read from its files is used before they are looked at again: Istio's
// certificates rotate within hours, and the one before stays valid for a while.
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

// config returns nil for plaintext. The files are read now, so that what is wrong with them shows at start, and again as
// connections come in; while new ones cannot be read, the last good ones serve.
func (t ingestTLS) config() (*tls.Config, error) {
	if t.certFile == "" {
		return nil, nil
	}
	current, err := t.read()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	read := time.Now()
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			mu.Lock()
			defer mu.Unlock()
			if time.Since(read) > certificateAge {
				read = time.Now()
				if fresh, err := t.read(); err == nil {
					current = fresh
				}
			}
			return current, nil
		},
	}, nil
}

func (t ingestTLS) read() (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(t.certFile, t.keyFile)
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
	pem, err := os.ReadFile(t.clientCAFile)
	if err != nil {
		return nil, fmt.Errorf("--ingest-client-ca-file: %w", err)
	}
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--ingest-client-ca-file %s holds no certificate in PEM", t.clientCAFile)
	}
	return c, nil
}
