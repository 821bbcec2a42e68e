package cluster

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
)

func TestIssuedCertificatesServeTheirNamesUnderTheirAuthorityOnly(t *testing.T) {
	ca, err := NewAuthority("one")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("other")
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := ca.Issue("server", nil, []string{"meshpulse.meshpulse-system.svc", "127.96.0.20"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		authority *Authority
		host      string
		ok        bool
	}{
		"its name":          {ca, "meshpulse.meshpulse-system.svc", true},
		"its address":       {ca, "127.96.0.20", true},
		"another name":      {ca, "keda.keda.svc", false},
		"another authority": {other, "127.96.0.20", false},
	} {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(test.authority.PEM)
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: test.host})
		if (err == nil) != test.ok {
			t.Errorf("%s: got %v, want ok=%v", name, err, test.ok)
		}
	}
}

func TestFreePortsAreDistinct(t *testing.T) {
	ports, err := FreePorts(5)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if p == 0 || seen[p] {
			t.Errorf("got %v", ports)
		}
		seen[p] = true
	}
}
