package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// writeCertificate writes a self-signed certificate and its key, which serves as server, client and CA.
func writeCertificate(t *testing.T, certFile, keyFile, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile:  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// handshake returns the name in the server's certificate. The client's certificate is optional.
func handshake(t *testing.T, server *tls.Config, client ...tls.Certificate) (name string, err error) {
	t.Helper()
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		_ = s.Close()
		served <- err
	}()
	c := tls.Client(b, &tls.Config{InsecureSkipVerify: true, Certificates: client, NextProtos: []string{"istio", "h2"}})
	err = c.Handshake()
	if err == nil {
		state := c.ConnectionState()
		name = state.PeerCertificates[0].DNSNames[0]
		if state.NegotiatedProtocol != "h2" {
			t.Errorf("protocol: got %q, want h2", state.NegotiatedProtocol)
		}
	}
	_ = b.Close()
	if serverErr := <-served; serverErr != nil {
		return "", serverErr
	}
	return name, err
}

func TestIngestCertificateFollowsItsFilesAndKeepsTheLastGoodOne(t *testing.T) {
	dir := t.TempDir()
	f := ingestTLS{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key")}
	synctest.Test(t, func(t *testing.T) {
		writeCertificate(t, f.certFile, f.keyFile, "first")
		c, err := f.config()
		if err != nil {
			t.Fatal(err)
		}
		want := func(name string) {
			t.Helper()
			if got, err := handshake(t, c); err != nil || got != name {
				t.Errorf("got %q, %v, want %q", got, err, name)
			}
		}
		want("first")
		writeCertificate(t, f.certFile, f.keyFile, "second")
		time.Sleep(certificateAge + time.Second)
		want("second")
		if err := os.WriteFile(f.certFile, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(certificateAge + time.Second)
		want("second")
	})
}

func TestIngestClientCAAsksForACertificateFromIt(t *testing.T) {
	dir := t.TempDir()
	f := ingestTLS{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key"), clientCAFile: filepath.Join(dir, "ca.crt")}
	writeCertificate(t, f.certFile, f.keyFile, "server")
	clientKey := filepath.Join(dir, "client.key")
	writeCertificate(t, f.clientCAFile, clientKey, "client")
	own, err := tls.LoadX509KeyPair(f.clientCAFile, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	foreignFile, foreignKey := filepath.Join(dir, "foreign.crt"), filepath.Join(dir, "foreign.key")
	writeCertificate(t, foreignFile, foreignKey, "foreign")
	foreign, err := tls.LoadX509KeyPair(foreignFile, foreignKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.config()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, c, own); err != nil {
		t.Errorf("its own: %v", err)
	}
	if _, err := handshake(t, c, foreign); err == nil {
		t.Error("a certificate of another CA was accepted")
	}
	if _, err := handshake(t, c); err == nil {
		t.Error("a client without a certificate was accepted")
	}
}
