package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// portToken is what guarded ports want in tests.
const portToken = "secret"

// guarded runs a server whose port of flags that begin so is served over TLS, to a client with a
// certificate and portToken, until the test ends. It returns the certificate.
func guarded(t *testing.T, flags string, options func(*testing.T, ...string) (serveOptions, error), more ...string) (*server, tls.Certificate) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	writeCertificate(t, file("tls.crt"), file("tls.key"), "meshpulse")
	writeCertificate(t, file("client.crt"), file("client.key"), "a-client")
	if err := os.WriteFile(file("token"), []byte(portToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := options(t, append(more, flags+"-address=127.0.0.1:0", flags+"-token-file="+file("token"),
		flags+"-tls-cert-file="+file("tls.crt"), flags+"-tls-private-key-file="+file("tls.key"), flags+"-client-ca-file="+file("client.crt"))...)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newServer(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	client, err := tls.LoadX509KeyPair(file("client.crt"), file("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	return s, client
}
