package envoystats

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// authority issues certificates as Istio's does.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	c := a.sign(template)
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

func (a *authority) sign(template *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) issue(spiffeID string, names ...string) tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: names, Subject: pkix.Name{CommonName: "x"},
	}
	if spiffeID != "" {
		id, err := url.Parse(spiffeID)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = []*url.URL{id}
	}
	return a.sign(template)
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func TestOnlyAVerifiedCertificateProvesThePeer(t *testing.T) {
	const id = "spiffe://cluster.local/ns/test/sa/default"
	ours, theirs := newAuthority(t), newAuthority(t)
	server := func(auth tls.ClientAuthType) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ours.issue("", "sink")}, ClientCAs: ours.pool(), ClientAuth: auth}
	}
	client := func(certs ...tls.Certificate) *tls.Config {
		// As Istio's ISTIO_MUTUAL offers.
		return &tls.Config{RootCAs: ours.pool(), ServerName: "sink", Certificates: certs, NextProtos: []string{"istio", "h2"}}
	}
	for _, test := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
		want   string
		code   codes.Code
	}{
		{"a certificate of the mesh", server(tls.RequireAndVerifyClientCert), client(ours.issue(id)), id, codes.OK},
		{"a certificate that nobody verified", server(tls.RequireAnyClientCert), client(theirs.issue(id)), "", codes.OK},
		{"no certificate where none is asked for", server(tls.NoClientCert), client(), "", codes.OK},
		{"a certificate without an identity", server(tls.RequireAndVerifyClientCert), client(ours.issue("")), "", codes.OK},
		{"a certificate of someone else", server(tls.RequireAndVerifyClientCert), client(theirs.issue(id)), "", codes.Unavailable},
		{"plaintext", server(tls.NoClientCert), nil, "", codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := serveSink(t, Config{TLS: test.server})
			k.creds = insecure.NewCredentials()
			if test.client != nil {
				k.withTLS(test.client)
			}
			s, err := k.dial(t)
			if code := codeOf(s, err, hello(t, "web-0", request(1000, 5))); code != test.code {
				t.Fatalf("code %v, want %v", code, test.code)
			}
			if test.code == codes.OK && (len(k.recorder.pods) != 1 || k.recorder.pods[0].Peer != test.want) {
				t.Errorf("pods %+v, want peer %q", k.recorder.pods, test.want)
			}
			if sender := cmp.Or(test.want, "127.0.0.1"); test.code == codes.OK && k.recorder.pods[0].Sender != sender {
				t.Errorf("sender %q, want %q", k.recorder.pods[0].Sender, sender)
			}
			if test.code != codes.OK && len(k.recorder.pods) != 0 {
				t.Errorf("pods %+v, want none", k.recorder.pods)
			}
		})
	}
}
