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
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spf13/pflag"

	"github.com/meshpulse/meshpulse/envoystats"
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
		certificate, err := f.openFiles(slog.New(slog.NewTextHandler(&log, nil)), registry)
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
	certificate, err := f.openFiles(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large.pem")
	if err := os.WriteFile(large, make([]byte, 4<<20+1), 0o600); err != nil {
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
		certificate, err := f.openFiles(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
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
	certificate, err := f.openFiles(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
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

// What is proven is looked at where there is something to prove it with; files alone are as they
// were.
func TestWhatIngestAsksSidecarsToProve(t *testing.T) {
	files := []string{"--ingest-tls-cert-file=c", "--ingest-tls-private-key-file=k"}
	all := append(slices.Clone(files), "--ingest-client-ca-file=a")
	for name, tc := range map[string]struct {
		args       []string
		mode, says string
	}{
		"nothing":                        {mode: mtlsOff},
		"an authority":                   {args: []string{"--ingest-ca-address=istiod.istio-system.svc:15012"}, mode: mtlsPermissive},
		"an authority that is not asked": {args: []string{"--ingest-ca-address=istiod.istio-system.svc:15012", "--ingest-mtls=off"}, mode: mtlsOff},
		"strict":                         {args: []string{"--ingest-ca-address=istiod.istio-system.svc:15012", "--ingest-mtls=strict"}, mode: mtlsStrict},
		"files":                          {args: all, mode: mtlsOff},
		"files, permissive":              {args: append(slices.Clone(all), "--ingest-mtls=permissive"), mode: mtlsPermissive},
		"no roots":                       {args: append(slices.Clone(files), "--ingest-mtls=strict"), says: "--ingest-client-ca-file"},
		"no certificate":                 {args: []string{"--ingest-mtls=permissive"}, says: "--ingest-ca-address"},
		"another mode":                   {args: []string{"--ingest-mtls=on"}, says: "none of off, permissive and strict"},
		"both":                           {args: append(slices.Clone(all), "--ingest-ca-address=a:1"), says: "two certificates for one port"},
		"an address without port":        {args: []string{"--ingest-ca-address=istiod"}, says: "--ingest-ca-address"},
		"strict namespaces alone":        {args: []string{"--ingest-strict-namespaces=a"}, says: "--ingest-mtls=off"},
		"a key alone":                    {args: files[1:], says: "belong together"},
		"roots alone":                    {args: all[2:], says: "needs --ingest-tls-cert-file"},
	} {
		t.Run(name, func(t *testing.T) {
			var o ingestTLS
			f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			o.flags(f)
			if err := f.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			err := o.complete()
			if tc.says == "" && (err != nil || o.mtls != tc.mode) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("mode %q, error %v, want %q, %q", o.mtls, err, tc.mode, tc.says)
			}
		})
	}
}

// A certificate that names no trust domain says of no sidecar that it is the mesh's.
func TestFilesWithoutATrustDomainNeedOne(t *testing.T) {
	dir := t.TempDir()
	f := ingestTLS{mtls: mtlsPermissive, certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key")}
	f.clientCAFile = f.certFile
	writeCertificate(t, f.certFile, f.keyFile, "sink")
	var sink envoystats.Config
	if _, err := f.open(&sink, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), "--ingest-trust-domains") {
		t.Errorf("error %v", err)
	}
	f.trustDomains = []string{"cluster.local"}
	if _, err := f.open(&sink, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil || sink.Mutual == nil || sink.TLS != nil || sink.Mutual.Serving() == nil {
		t.Errorf("with one: %+v, %v", sink.Mutual, err)
	}
}

// Without Istio in the cluster it starts, serves plaintext and says so.
func TestWithoutAnAuthorityIngestServesPlaintextAndSaysSo(t *testing.T) {
	var log bytes.Buffer
	f := ingestTLS{mtls: mtlsPermissive}
	f.ca.Address, f.ca.RootFile = "istiod.istio-system.svc:15012", filepath.Join(t.TempDir(), "root-cert.pem")
	synctest.Test(t, func(t *testing.T) {
		var sink envoystats.Config
		registry := prometheus.NewRegistry()
		keep, err := f.open(&sink, slog.New(slog.NewTextHandler(&log, nil)), registry)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go keep(ctx)
		time.Sleep(time.Hour)
		synctest.Wait()
		cancel()
		if sink.Mutual.Serving() != nil {
			t.Error("there is a certificate")
		}
		if n, err := testutil.GatherAndCount(registry, "meshpulse_ingest_certificate_expires_timestamp_seconds"); n != 0 || err != nil {
			t.Errorf("%d ends of no certificate are told, %v", n, err)
		}
	})
	if n := strings.Count(log.String(), "no certificate of the mesh"); n != 1 || !strings.Contains(log.String(), "Istio is not in the cluster") {
		t.Errorf("told %d times:\n%s", n, &log)
	}
}
