package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Authority signs the certificates of one run.
type Authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	// PEM is the authority's own certificate.
	PEM []byte
}

// validity is longer than any run and short enough that a leaked key is worth nothing.
const validity = 48 * time.Hour

// NewAuthority makes a self-signed certificate authority.
func NewAuthority(commonName string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := certificateTemplate(commonName)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{key: key, cert: cert, PEM: encodePEM("CERTIFICATE", der)}, nil
}

// Issue signs a certificate for both server and client use. Names that are IP addresses become IP
// SANs.
func (a *Authority) Issue(commonName string, organizations, names []string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template, err := certificateTemplate(commonName)
	if err != nil {
		return nil, nil, err
	}
	template.Subject.Organization = organizations
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return encodePEM("CERTIFICATE", der), keyPEM, err
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

func certificateTemplate(commonName string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(validity),
	}, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return encodePEM("EC PRIVATE KEY", der), nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
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
