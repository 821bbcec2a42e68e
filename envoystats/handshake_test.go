package envoystats

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// named is a root with a name, or what another one says of a key of that name.
func (a *authority) named(name string, by *authority) *x509.Certificate {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Organization: []string{name}}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	parent, key := template, a.key
	if by != nil {
		parent, key = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, a.key.Public(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// Of what a client sends behind its certificate nothing is trusted for being there, and all of it
// that leads to a root is.
func TestAChainIsVerifiedWhateverIsSentAlong(t *testing.T) {
	root, successor, stranger, between := newAuthority(t), newAuthority(t), newAuthority(t), newAuthority(t)
	root.cert, stranger.cert = root.named("mesh", nil), stranger.named("mesh", nil)
	bySuccessor := successor.named("mesh", root) // the root has signed the next key of its own name
	successor.cert = successor.named("mesh", nil)
	between.cert = between.named("between", root)
	leaf := func(a *authority, life time.Duration) *x509.Certificate { return a.until(podinfoID, life).Leaf }
	for name, tc := range map[string]struct {
		chain []*x509.Certificate
		good  bool
	}{
		"alone":                           {[]*x509.Certificate{leaf(root, time.Hour)}, true},
		"with its root":                   {[]*x509.Certificate{leaf(root, time.Hour), root.cert}, true},
		"below an intermediate":           {[]*x509.Certificate{leaf(between, time.Hour), between.cert, root.cert}, true},
		"the intermediate is missing":     {[]*x509.Certificate{leaf(between, time.Hour), root.cert}, false},
		"of a key that the root signed":   {[]*x509.Certificate{leaf(successor, time.Hour), bySuccessor}, true},
		"of that key, and nothing says":   {[]*x509.Certificate{leaf(successor, time.Hour), successor.cert}, false},
		"a stranger's, with its own root": {[]*x509.Certificate{leaf(stranger, time.Hour), stranger.cert}, false},
		"a stranger's, with ours":         {[]*x509.Certificate{leaf(stranger, time.Hour), root.cert}, false},
		"over":                            {[]*x509.Certificate{leaf(root, -time.Second), root.cert}, false},
	} {
		if err := verify(tc.chain, root.pool(), time.Now()); (err == nil) != tc.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	server := root.sign(&x509.Certificate{SerialNumber: big.NewInt(9), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err := verify([]*x509.Certificate{server.Leaf}, root.pool(), time.Now()); err == nil {
		t.Error("a certificate that is for servers alone is taken")
	}
}

// Whoever has both curves and chooses none by himself is given the one that costs less; nobody is
// turned away for having one alone.
func TestTheCurveThatCostsLessIsTaken(t *testing.T) {
	s := serveMutual(t, Mutual{})
	for name, tc := range map[string]struct {
		version uint16
		curves  []tls.CurveID
		want    tls.CurveID
	}{
		"Envoy's":           {tls.VersionTLS12, []tls.CurveID{tls.X25519, tls.CurveP256}, tls.CurveP256},
		"X25519 alone":      {tls.VersionTLS12, []tls.CurveID{tls.X25519}, tls.X25519},
		"P-384 alone":       {tls.VersionTLS12, []tls.CurveID{tls.CurveP384}, tls.CurveP384},
		"TLS 1.3":           {tls.VersionTLS13, []tls.CurveID{tls.X25519, tls.CurveP256}, tls.X25519},
		"TLS 1.3 and P-256": {tls.VersionTLS13, []tls.CurveID{tls.CurveP256}, tls.CurveP256},
	} {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{*s.mesh.until(podinfoID, time.Hour)}, NextProtos: []string{"h2"},
			MaxVersion: tc.version, CurvePreferences: tc.curves,
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := c.ConnectionState().CurveID; got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		_ = c.Close()
	}
}
