package manifests

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
)

// verify checks the Secret's certificate as the API server does: against the bundle, by the
// Service's name.
func (c fakeCluster) verify(certificate string, bundle []byte) {
	c.t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		c.t.Fatalf("no authority in the bundle:\n%s", bundle)
	}
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		c.t.Fatalf("no certificate:\n%s", certificate)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "meshpulse.meshpulse-system.svc", Roots: roots}); err != nil {
		c.t.Errorf("the API server would refuse the certificate: %v", err)
	}
}

// A pod that starts before its Secret cannot mount it, which is the first event that a user would
// see.
func TestThePodStartsWithItsSecret(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1")
	var order []string
	for _, call := range c.changes() {
		switch {
		case strings.HasSuffix(call, "/namespace.yaml"):
			order = append(order, "namespace")
		case strings.HasSuffix(call, "/base.yaml"):
			order = append(order, "base")
		case call == "create -f -":
			order = append(order, "created")
		}
	}
	if want := []string{"namespace", "created", "base", "created", "created"}; !slices.Equal(order, want) { // the Secret, and last the two APIServices
		t.Errorf("%v, want %v", order, want)
	}
}

func TestInstallAgainKeepsTheCertificate(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image=r.example/meshpulse:1")
	key, bundle := c.read("tls.key"), c.apiService().Spec.CABundle
	c.mustRun("install.sh", "--image=r.example/meshpulse:2")
	if c.read("tls.key") != key {
		t.Error("the key has changed")
	}
	if got := c.patch().bundle(t); !bytes.Equal(got, bundle) {
		t.Errorf("the APIService trusts\n%s\nthe certificate is by\n%s", got, bundle)
	}
	if n := strings.Count(c.read("log"), "create -f -"); n != 3 {
		t.Errorf("%d objects were created in two runs, want the Secret and the two APIServices", n)
	}
}

// TestRotationHasNoGap: between the patch and the pod reading its Secret the old certificate is
// still served.
func TestRotationHasNoGap(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1")
	certificate := c.read("tls.crt")
	for range 2 {
		previous := certificate
		c.mustRun("install.sh", "--rotate-cert")
		certificate = c.read("tls.crt")
		if certificate == previous {
			t.Fatal("the certificate is the same")
		}
		bundle := c.patch().bundle(t)
		c.verify(previous, bundle)
		c.verify(certificate, bundle)
		if n := bytes.Count(bundle, []byte("BEGIN CERTIFICATE")); n != 2 {
			t.Errorf("%d authorities are trusted, want the new and the last", n)
		}
	}
	log := c.read("log")
	if strings.LastIndex(log, "patch apiservice") > strings.LastIndex(log, "replace -f -") {
		t.Error("the certificate is replaced before its authority is trusted")
	}
}

func TestRotationBesideAnotherAdapter(t *testing.T) {
	c := newFakeCluster(t, "keda/keda-operator-metrics-apiserver")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--no-apiservice")
	c.mustRun("install.sh", "--rotate-cert")
	for _, call := range c.changes() {
		if strings.Contains(call, "patch apiservice v1beta1.external.metrics.k8s.io") {
			t.Errorf("it patched somebody else's APIService: %s", call)
		}
	}
}

// jsonPatch is what the APIService was patched with last.
type jsonPatch []struct{ Op, Path, Value string }

func (c fakeCluster) patch() jsonPatch {
	c.t.Helper()
	var p jsonPatch
	if err := json.Unmarshal([]byte(c.read("patch.json")), &p); err != nil {
		c.t.Fatalf("patch %q: %v", c.read("patch.json"), err)
	}
	return p
}

// bundle returns the authorities that the patch sets, after looking that it tests first whose the
// APIService is.
func (p jsonPatch) bundle(t *testing.T) []byte {
	t.Helper()
	tested := ""
	for _, op := range p {
		switch {
		case op.Op == "test":
			tested += op.Path + "=" + op.Value + " "
		case op.Path == "/spec/caBundle":
			if tested != "/spec/service/namespace=meshpulse-system /spec/service/name=meshpulse " {
				t.Errorf("before it is changed, tested is only %q", tested)
			}
			content, err := base64.StdEncoding.DecodeString(op.Value)
			if err != nil {
				t.Fatal(err)
			}
			return content
		}
	}
	t.Fatalf("the patch sets no caBundle: %+v", p)
	return nil
}

// peerVerify checks a replica's certificate as another replica does that trusts the authorities.
func (c fakeCluster) peerVerify(certificate, authorities string) error {
	c.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authorities))
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		c.t.Fatalf("no certificate:\n%s", certificate)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "meshpulse-peer.meshpulse-system.svc", Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return err
		}
	}
	return nil
}

func TestReplicasKnowEachOtherByACertificateOfTheirOwn(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image=registry.example/meshpulse@sha256:0", "--replicas")
	first, authorities := c.read("peer-tls.crt"), c.read("peer-ca.crt")
	if err := c.peerVerify(first, authorities); err != nil {
		t.Error(err)
	}
	if err := c.peerVerify(c.read("tls.crt"), authorities); err == nil {
		t.Error("the serving certificate is taken for a replica's")
	}
	if err := c.peerVerify(first, c.read("ca.crt")); err == nil {
		t.Error("the API server's authority signs for replicas")
	}
	if got := c.read("composed.yaml"); !strings.HasSuffix(strings.TrimSpace(got), `/replicas"`) {
		t.Errorf("the last component is to be that of the replicas:\n%s", got)
	}
	// Again: it is kept. Rotated: files reach one replica before the other, and each believes each.
	c.mustRun("install.sh", "--image=registry.example/meshpulse@sha256:0", "--replicas")
	if c.read("peer-tls.crt") != first {
		t.Error("a second run has made another certificate")
	}
	for range 3 {
		before, knew := c.read("peer-tls.crt"), c.read("peer-ca.crt")
		c.mustRun("install.sh", "--rotate-cert")
		now, knows := c.read("peer-tls.crt"), c.read("peer-ca.crt")
		if now == before {
			t.Error("nothing was rotated")
		}
		for what, err := range map[string]error{
			"the new one by who has the old files": c.peerVerify(now, knew), "the old one by who has the new ones": c.peerVerify(before, knows), "the new one": c.peerVerify(now, knows),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}
