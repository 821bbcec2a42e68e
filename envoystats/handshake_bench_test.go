package envoystats

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
)

// sidecarCertificate is as Istio's agent has it: of an RSA key, and shown together with the root.
func sidecarCertificate(a *authority) tls.Certificate {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		a.t.Fatal(err)
	}
	id, err := url.Parse(podinfoID)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(4), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{id},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}
}

// threadCPU is the CPU time of the thread that the goroutine is locked to.
func threadCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(1 /* RUSAGE_THREAD */, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A sidecar's handshake, TLS 1.2, over loopback. server-us/op is the CPU of the sink's side alone.
func BenchmarkHandshake(b *testing.B) {
	mesh := newAuthority(b)
	serving := Serving(mesh.issue(sinkID), mesh.pool())
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		b.Fatal(err)
	}
	c := Config{Logger: slog.New(slog.DiscardHandler), Mutual: &Mutual{Serving: func() *tls.Config { return serving }}}
	s, err := NewServer(c, store)
	if err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	client := &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{sidecarCertificate(mesh)}, NextProtos: []string{"istio", "h2"},
		MaxVersion: tls.VersionTLS12,
	}
	creds, accept := newDoors(c, s.conns), s.conns.listen(lis)
	dial := make(chan bool)
	defer close(dial)
	go func() {
		for range dial {
			if c, err := tls.Dial("tcp", lis.Addr().String(), client); err == nil {
				_ = c.Close()
			}
		}
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	var took time.Duration
	for b.Loop() {
		dial <- true
		conn, err := accept.Accept()
		if err != nil {
			b.Fatal(err)
		}
		before := threadCPU(b)
		secure, _, err := creds.ServerHandshake(conn)
		if err != nil {
			b.Fatal(err)
		}
		took += threadCPU(b) - before
		_ = secure.Close()
	}
	b.ReportMetric(float64(took.Microseconds())/float64(b.N), "server-us/op")
}
