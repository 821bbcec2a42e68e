package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// TLS is how replicas prove to each other that they are: each shows a certificate of the authority
// that holds the name. The files are read at each handshake, so what is put in their place counts
// from the next connection on; connections that are open stay. It is safe for concurrent use.
type TLS struct {
	dir, name string
	log       *slog.Logger

	mu     sync.Mutex
	last   *identity // that could be read
	failed string    // what was told of the newest read, "" if it was good
}

// identity is what a replica shows, and by what it knows the others.
type identity struct {
	certificate tls.Certificate
	roots       *x509.CertPool
}

// Files of the folder, as a Secret has them.
const (
	certificateFile = "tls.crt"
	keyFile         = "tls.key"
	authoritiesFile = "ca.crt"
)

// NewTLS reads tls.crt, tls.key and ca.crt of a folder. name is the DNS name that each replica's
// certificate has to hold. The error says what is wrong with them.
func NewTLS(dir, name string, log *slog.Logger) (*TLS, error) {
	t := &TLS{dir: dir, name: name, log: log}
	i, err := t.read()
	if err != nil {
		return nil, err
	}
	t.last = i
	return t, nil
}

func (t *TLS) read() (*identity, error) {
	i, err := readIdentity(t.dir)
	if err != nil {
		return nil, err
	}
	if err := i.certificate.Leaf.VerifyHostname(t.name); err != nil {
		return nil, fmt.Errorf("%s: no other replica would believe it: %w", filepath.Join(t.dir, certificateFile), err)
	}
	return i, nil
}

func readIdentity(dir string) (*identity, error) {
	path := func(name string) string { return filepath.Join(dir, name) }
	certificate, err := tls.LoadX509KeyPair(path(certificateFile), path(keyFile))
	if err != nil {
		return nil, fmt.Errorf("certificate of the replicas in %s: %w: give %s and %s in PEM", dir, err, certificateFile, keyFile)
	}
	pem, err := os.ReadFile(path(authoritiesFile))
	if err != nil {
		return nil, fmt.Errorf("authority of the replicas: %w: give one in PEM", err)
	}
	i := &identity{certificate, x509.NewCertPool()}
	if !i.roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", path(authoritiesFile))
	}
	return i, nil
}

// current is what the files hold now, or held when they could be read last.
func (t *TLS) current() *identity {
	i, err := t.read()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.last, t.failed = i, ""
	case err.Error() != t.failed:
		t.failed = err.Error()
		t.log.Warn("the replicas' certificate cannot be read again, the last good one is used", "err", err)
	}
	return t.last
}

// expires is when the certificate ends.
func (t *TLS) expires() time.Time { return t.current().certificate.Leaf.NotAfter }

// server is for connections of other replicas. Whoever shows another name, though his certificate
// is of the authority, is none.
func (t *TLS) server() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			i := t.current()
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
				Certificates: []tls.Certificate{i.certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: i.roots,
				VerifyConnection: func(s tls.ConnectionState) error {
					if len(s.PeerCertificates) == 0 {
						return errors.New("no certificate")
					}
					return s.PeerCertificates[0].VerifyHostname(t.name)
				},
			}, nil
		},
	})
}

// client is for connections to other replicas.
func (t *TLS) client() credentials.TransportCredentials {
	return &dialing{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13}), t}
}

// dialing takes what the files hold for each connection.
type dialing struct {
	credentials.TransportCredentials
	tls *TLS
}

// ClientHandshake is part of credentials.TransportCredentials. The name that is asked for is the
// replicas', whatever the address.
func (d *dialing) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	i := d.tls.current()
	return credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.certificate}, RootCAs: i.roots,
	}).ClientHandshake(ctx, d.tls.name, conn)
}

// Clone is part of credentials.TransportCredentials.
func (d *dialing) Clone() credentials.TransportCredentials {
	return &dialing{d.TransportCredentials.Clone(), d.tls}
}
