package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// writeCertificate writes a self-signed certificate and its key, which serves as server, client and
// CA.
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
		var log bytes.Buffer
		registry := prometheus.NewRegistry()
		certificate, err := f.open(slog.New(slog.NewTextHandler(&log, nil)), registry)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go certificate.follow(ctx)
		c := certificate.config()
		want := func(name string) {
			t.Helper()
			if got, err := handshake(t, c); err != nil || got != name {
				t.Errorf("got %q, %v, want %q", got, err, name)
			}
		}
		want("first")
		writeCertificate(t, f.certFile, f.keyFile, "second")
		time.Sleep(certificateAge + time.Second)
		synctest.Wait()
		want("second")
		if err := os.WriteFile(f.certFile, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*certificateAge + time.Second)
		synctest.Wait()
		want("second")
		if n := strings.Count(log.String(), "cannot be read again"); n != 1 || !strings.Contains(log.String(), "expires=") {
			t.Errorf("told %d times, want once with the end:\n%s", n, &log)
		}
		if n := testutil.ToFloat64(certificate.failures); n != 3 {
			t.Errorf("%v failures counted, want 3", n)
		}
		writeCertificate(t, f.certFile, f.keyFile, "third")
		time.Sleep(certificateAge + time.Second)
		synctest.Wait()
		want("third")
		if !strings.Contains(log.String(), "can be read again") {
			t.Errorf("log:\n%s", &log)
		}
		end := time.Now().Add(time.Hour)
		if err := testutil.GatherAndCompare(registry, strings.NewReader(fmt.Sprintf(`
			# HELP meshpulse_ingest_certificate_expires_timestamp_seconds When the certificate that the ingest port serves with ends, in seconds since 1970.
			# TYPE meshpulse_ingest_certificate_expires_timestamp_seconds gauge
			meshpulse_ingest_certificate_expires_timestamp_seconds %d
		`, end.Add(-certificateAge-time.Second).Unix())), "meshpulse_ingest_certificate_expires_timestamp_seconds"); err != nil {
			t.Error(err)
		}
	})
}

// A pipe that nobody writes to, a device without an end: sidecars come in meanwhile, and the memory
// stays.
func TestFilesThatHangOrHaveNoEndKeepNoSidecarOut(t *testing.T) {
	dir := t.TempDir()
	f := ingestTLS{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key")}
	writeCertificate(t, f.certFile, f.keyFile, "good")
	certificate, err := f.open(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large.pem")
	if err := os.WriteFile(large, make([]byte, maxPEM+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{pipe: "not a regular file", "/dev/zero": "not a regular file", large: "beyond"} {
		if _, err := readPEM("--flag", path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--flag") {
			t.Errorf("%s: error %v", path, err)
		}
	}
	if name, err := handshake(t, certificate.config()); err != nil || name != "good" {
		t.Errorf("got %q, %v", name, err)
	}
}

func TestAReadThatHangsIsToldAndCounted(t *testing.T) {
	dir := t.TempDir()
	f := ingestTLS{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key")}
	writeCertificate(t, f.certFile, f.keyFile, "good")
	synctest.Test(t, func(t *testing.T) {
		certificate, err := f.open(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		hangs, release := make(chan struct{}), make(chan struct{})
		certificate.read = func() (*tls.Config, error) {
			close(hangs)
			<-release
			return nil, errors.New("gone")
		}
		ctx, cancel := context.WithCancel(t.Context())
		go certificate.follow(ctx)
		<-hangs
		time.Sleep(2*certificateAge + time.Second)
		synctest.Wait()
		if n := testutil.ToFloat64(certificate.failures); n != 2 {
			t.Errorf("%v failures counted, want 2", n)
		}
		if name, err := handshake(t, certificate.config()); err != nil || name != "good" {
			t.Errorf("got %q, %v", name, err)
		}
		cancel()
		close(release)
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
	certificate, err := f.open(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	c := certificate.config()
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
