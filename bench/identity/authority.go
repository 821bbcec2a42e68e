// Package identity plays what gives a mesh's workloads their identities: an authority that signs as
// istiod does, the agent beside a sidecar that hands its certificate out over SDS as pilot-agent
// does, and istiod's own service that certificates are asked of.
//
// It knows certificates and Istio's names for workloads. It must not know meshpulse, or any
// receiver of what sidecars send.
package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// TrustDomain is that of all identities.
const TrustDomain = "cluster.local"

// SPIFFE is the identity of a service account.
func SPIFFE(namespace, account string) string {
	return "spiffe://" + TrustDomain + "/ns/" + namespace + "/sa/" + account
}

// Authority signs certificates. It is never changed.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	// PEM is its own certificate.
	PEM []byte
}

// early is how long before it is made a certificate is valid from: clocks differ.
const early = 2 * time.Minute

// NewAuthority makes a root, valid for two days: longer than any run.
func NewAuthority(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return newAuthority(name, key)
}

// NewRSAAuthority is NewAuthority with a key as istiod makes its own by default.
func NewRSAAuthority(name string) (*Authority, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return newAuthority(name, key)
}

func newAuthority(name string, key crypto.Signer) (_ *Authority, err error) {
	now := time.Now()
	a := &Authority{key: key, cert: &x509.Certificate{
		Subject: pkix.Name{Organization: []string{name}}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	if a.PEM, err = a.Certify(a.cert, key.Public()); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(a.PEM)
	a.cert, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

// Certify signs a certificate, which it gives a number, and returns it in PEM.
func (a *Authority) Certify(t *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	var err error
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key, a.key)
	return encode("CERTIFICATE", der), err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Sign returns a certificate (PEM) as istiod gives it: no subject, one URI, for server and client,
// valid from a while ago. Names are added for servers that are known by those.
func (a *Authority) Sign(key crypto.PublicKey, id string, life time.Duration, names ...string) ([]byte, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("identity %q: %w", id, err)
	}
	now := time.Now()
	return a.Certify(&x509.Certificate{
		NotBefore: now.Add(-early), NotAfter: now.Add(life), BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{uri}, DNSNames: names,
	}, key)
}

// Pair is a certificate with its key, in PEM.
type Pair struct{ Chain, Key []byte }

// Issue makes a key and signs its certificate.
func (a *Authority) Issue(id string, life time.Duration, names ...string) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	return a.issueFor(key, id, life, names...)
}

// IssueRSA is Issue with a key as sidecars have it by Istio's default.
func (a *Authority) IssueRSA(id string, life time.Duration) (Pair, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return Pair{}, err
	}
	return a.issueFor(key, id, life)
}

func (a *Authority) issueFor(key crypto.Signer, id string, life time.Duration, names ...string) (Pair, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	chain, err := a.Sign(key.Public(), id, life, names...)
	return Pair{Chain: chain, Key: encode("PRIVATE KEY", der)}, err
}
