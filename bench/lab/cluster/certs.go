package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/meshpulse/meshpulse/bench/identity"
)

// Authority signs the certificates of one run.
type Authority struct{ *identity.Authority }

// validity is longer than any run and short enough that a leaked key is worth nothing.
const validity = 48 * time.Hour

// NewAuthority makes a self-signed certificate authority.
func NewAuthority(name string) (*Authority, error) {
	a, err := identity.NewAuthority(name)
	return &Authority{a}, err
}

// Issue signs a certificate for both server and client use. Names that are IP addresses become IP
// SANs.
func (a *Authority) Issue(commonName string, organizations, names []string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName, Organization: organizations},
		NotBefore:   time.Now().Add(-time.Hour),
		NotAfter:    time.Now().Add(validity),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if certPEM, err = a.Certify(template, key.Public()); err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return certPEM, keyPEM, err
}

// WriteFiles issues a certificate and writes it as DIR/NAME.crt and DIR/NAME.key.
func (a *Authority) WriteFiles(dir, name, commonName string, organizations, names []string) error {
	cert, key, err := a.Issue(commonName, organizations, names)
	if err != nil {
		return fmt.Errorf("certificate of %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), cert, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name+".key"), key, 0o600)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

// writePKI lays out every key and certificate of a control plane under dir; the API server serves
// under the names.
func writePKI(dir string, serving []string) (*Authority, error) {
	ca, err := NewAuthority("meshpulse-lab")
	if err != nil {
		return nil, err
	}
	frontProxy, err := NewAuthority("meshpulse-lab-front-proxy")
	if err != nil {
		return nil, err
	}
	serviceAccounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	saPEM, err := encodeKey(serviceAccounts)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"ca.crt": ca.PEM, "front-proxy-ca.crt": frontProxy.PEM, "sa.key": saPEM}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	for _, err := range []error{
		ca.WriteFiles(dir, "apiserver", "kube-apiserver", nil, serving),
		ca.WriteFiles(dir, "admin", "lab-admin", []string{"system:masters"}, nil),
		ca.WriteFiles(dir, "controller-manager", "system:kube-controller-manager", nil, nil),
		frontProxy.WriteFiles(dir, "front-proxy-client", "front-proxy-client", nil, nil),
	} {
		if err != nil {
			return nil, err
		}
	}
	return ca, nil
}
