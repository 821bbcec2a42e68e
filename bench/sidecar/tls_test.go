package sidecar

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/meshpulse/meshpulse/bench/identity"
)

// A sidecar shows what its agent hands it, takes the sink for nobody but its peer, comes from its
// own address, and goes on with its connection while its certificate is renewed.
func TestASidecarProvesItself(t *testing.T) {
	mesh, err := identity.NewAuthority("mesh")
	if err != nil {
		t.Fatal(err)
	}
	server := identity.SPIFFE("meshpulse-system", "meshpulse")
	pair, err := mesh.Issue(server, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(pair.Chain, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(mesh.PEM)
	shown := make(chan *x509.Certificate, 100)
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, NextProtos: []string{"h2"},
		VerifyConnection: func(s tls.ConnectionState) error { shown <- s.PeerCertificates[0]; return nil },
	}
	address, messages := startSink(t, grpc.Creds(credentials.NewTLS(config)))
	dir := t.TempDir()
	agent, err := identity.NewAgent(filepath.Join(dir, "sds"), identity.SPIFFE("test", "web"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	agent.Trust(mesh)
	if err := agent.Renew(mesh, time.Hour); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), Options{
		Dir: dir, Pod: "web-0", Namespace: "test", Workload: "web", ServiceAccount: "web", Address: "127.97.9.1", Answers: true, Sink: address, FlushInterval: time.Second,
		TLS: &TLS{Socket: filepath.Join(dir, "sds"), Peers: []string{server}}, FromAddress: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	request(t, s.Address(), "client", 3)
	awaitTotal(t, messages, 3)
	if got := (<-shown).URIs[0].String(); got != "spiffe://cluster.local/ns/test/sa/web" {
		t.Errorf("it shows that it is %s", got)
	}
	if err := agent.Renew(mesh, time.Hour); err != nil {
		t.Fatal(err)
	}
	request(t, s.Address(), "client", 2)
	awaitTotal(t, messages, 5)
	if len(shown) > 0 || agent.Refused() != "" {
		t.Errorf("%d more connections after its certificate was renewed; it refuses %q", len(shown), agent.Refused())
	}
}
