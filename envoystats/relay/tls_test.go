package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

const peerName = "meshpulse-peer.meshpulse-system.svc"

// authority signs certificates of a test's.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	a.cert = sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, a.key, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign returns a certificate; parent nil: it signs itself.
func sign(t *testing.T, template, parent *x509.Certificate, of, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template.SerialNumber, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(time.Hour)
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &of.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// write puts a certificate of the authority into a folder, and the authorities that are trusted.
func (a *authority) write(t *testing.T, dir string, template x509.Certificate, trusted ...*authority) {
	t.Helper()
	key := newKey(t)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var roots []byte
	for _, r := range trusted {
		roots = append(roots, block("CERTIFICATE", r.cert.Raw)...)
	}
	files := map[string][]byte{"tls.crt": block("CERTIFICATE", sign(t, &template, a.cert, key, a.key).Raw), "tls.key": block("EC PRIVATE KEY", der), "ca.crt": roots}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func ofReplica() x509.Certificate { return x509.Certificate{DNSNames: []string{peerName}} }

func newTestTLS(t *testing.T, dir string) *TLS {
	t.Helper()
	c, err := NewTLS(dir, peerName, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// believes says why two that connect do not believe each other, nil if they do.
func believes(t *testing.T, from, to *TLS) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err == nil {
			_, _, err = to.server().ServerHandshake(raw)
			_ = raw.Close()
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = from.client().ClientHandshake(context.Background(), "", raw)
	if err != nil {
		_ = raw.Close()
	}
	err = errors.Join(err, <-done)
	_ = raw.Close()
	return err
}

func TestReplicasBelieveTheirOwnAuthoritysNameAlone(t *testing.T) {
	own, other := newAuthority(t), newAuthority(t)
	spiffe, err := url.Parse("spiffe://cluster.local/ns/meshpulse-system/sa/meshpulse")
	if err != nil {
		t.Fatal(err)
	}
	good := t.TempDir()
	own.write(t, good, ofReplica(), own)
	for name, test := range map[string]struct {
		by       *authority
		template x509.Certificate
		believed bool
	}{
		"a replica's":                            {own, ofReplica(), true},
		"another authority's":                    {other, ofReplica(), false},
		"the serving one's, of the authority":    {own, x509.Certificate{DNSNames: []string{"meshpulse.meshpulse-system.svc"}}, false},
		"a mesh workload's, of the authority":    {own, x509.Certificate{URIs: []*url.URL{spiffe}}, false},
		"the serving one's, of its authority":    {other, x509.Certificate{DNSNames: []string{"meshpulse.meshpulse-system.svc"}}, false},
		"that of replicas in another namespace":  {own, x509.Certificate{DNSNames: []string{"meshpulse-peer.default.svc"}}, false},
		"one whose name is in the subject alone": {own, x509.Certificate{Subject: pkix.Name{CommonName: peerName}}, false},
	} {
		dir := t.TempDir()
		test.by.write(t, dir, test.template, own)
		shown, err := readIdentity(dir)
		if err != nil {
			t.Fatal(err)
		}
		stranger := &TLS{dir: "gone", name: peerName, last: shown, log: slog.New(slog.DiscardHandler)}
		if err := believes(t, stranger, newTestTLS(t, good)); (err == nil) != test.believed {
			t.Errorf("%s, shown to a replica: %v", name, err)
		}
		if err := believes(t, newTestTLS(t, good), stranger); (err == nil) != test.believed {
			t.Errorf("%s, shown by who is taken for a replica: %v", name, err)
		}
	}
}

// Files reach replicas one after the other. An authority that all know before it signs leaves no
// time in which two do not believe each other.
func TestARotationLeavesNobodyOut(t *testing.T) {
	old, next, after := newAuthority(t), newAuthority(t), newAuthority(t)
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		old.write(t, dir, ofReplica(), old, next)
	}
	a, b := newTestTLS(t, first), newTestTLS(t, second)
	next.write(t, first, ofReplica(), next, after, old)
	for range 2 {
		if err := errors.Join(believes(t, a, b), believes(t, b, a)); err != nil {
			t.Error(err)
		}
		next.write(t, second, ofReplica(), next, after, old)
	}
	if !a.expires().After(time.Now()) {
		t.Error("what was put in place has ended")
	}
}

// counting is a sink that counts messages.
type counting struct{ messages atomic.Int64 }

func (c *counting) Relayed(aggregator.Pod) (Stream, error) { return c, nil }

func (*counting) Streams() int { return 0 }

func (c *counting) Message(time.Time, []byte) bool {
	c.messages.Add(1)
	return true
}

func (*counting) End() {}

// While files reach replicas one after the other every frame arrives, both ways: what is open
// outlives a rotation.
func TestNoFrameIsLostOverARotation(t *testing.T) {
	old, next, after := newAuthority(t), newAuthority(t), newAuthority(t)
	var listeners [2]net.Listener
	var addresses, dirs []string
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners[i], addresses, dirs = l, append(addresses, l.Addr().String()), append(dirs, t.TempDir())
		old.write(t, dirs[i], ofReplica(), old, next)
	}
	var sinks [2]counting
	var senders [2]*Sender
	for i, l := range listeners {
		r, err := New(Config{
			Self: fleet.Member{Name: addresses[i], Address: addresses[i]}, Static: addresses, TLS: newTestTLS(t, dirs[i]), Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		r.Relay(&sinks[i])
		go func() { _ = r.Serve(l) }()
		gone, cut := context.WithCancel(context.Background())
		cut()
		t.Cleanup(func() { r.Shutdown(gone) })
		senders[i] = r.Sender(&aggregator.Pod{Namespace: "shop", Name: "cart"})
	}
	sent := int64(0)
	load := func(when string) {
		for range 500 {
			sent++
			for _, s := range senders {
				s.Send(time.Now(), []byte("flush"))
			}
		}
		for i := range sinks {
			for end := time.Now().Add(30 * time.Second); sinks[i].messages.Load() != sent; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s: %d of %d frames came to replica %d", when, sinks[i].messages.Load(), sent, i)
				}
			}
		}
	}
	load("before it")
	next.write(t, dirs[0], ofReplica(), next, after, old)
	load("one has the new files")
	next.write(t, dirs[1], ofReplica(), next, after, old)
	load("both have")
}

func TestWhatCannotBeReadLeavesTheLastGoodCertificate(t *testing.T) {
	own, dir := newAuthority(t), t.TempDir()
	own.write(t, dir, ofReplica(), own)
	c := newTestTLS(t, dir)
	for _, name := range []string{"tls.crt", "ca.crt"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := believes(t, c, c); err != nil {
			t.Errorf("%s is half written: %v", name, err)
		}
	}
}

func TestACertificateThatNobodyWouldBelieveIsTold(t *testing.T) {
	own, dir := newAuthority(t), t.TempDir()
	log := slog.New(slog.DiscardHandler)
	if _, err := NewTLS(dir, peerName, log); err == nil || !strings.Contains(err.Error(), "tls.crt") {
		t.Errorf("no files: %v", err)
	}
	own.write(t, dir, x509.Certificate{DNSNames: []string{"meshpulse.meshpulse-system.svc"}}, own)
	if _, err := NewTLS(dir, peerName, log); err == nil || !strings.Contains(err.Error(), peerName) {
		t.Errorf("another name: %v", err)
	}
	own.write(t, dir, ofReplica())
	if _, err := NewTLS(dir, peerName, log); err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("no authority: %v", err)
	}
}

func TestPlaintextIsForLoopbackAlone(t *testing.T) {
	for address, ok := range map[string]bool{"127.0.0.1:15091": true, "localhost:15091": true, "[::1]:15091": true, "0.0.0.0:15091": false, "10.0.0.1:15091": false, "meshpulse-0:15091": false} {
		c := Config{Static: []string{address}}
		c.Self.Name, c.Self.Address = "127.0.0.1:1", "127.0.0.1:1"
		if err := c.Validate(); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
}
