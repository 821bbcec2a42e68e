package envoystats

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Istio's form is taken, and nothing that could be read in another way.
func TestACertificateNamesOneServiceAccount(t *testing.T) {
	for text, want := range map[string]identity{
		"spiffe://cluster.local/ns/test/sa/podinfo":                            {"cluster.local", "test", "podinfo"},
		"spiffe://td.example-1_x/ns/a-b/sa/default.v2":                         {"td.example-1_x", "a-b", "default.v2"},
		"spiffe://cluster.local/ns/test/sa":                                    {},
		"spiffe://cluster.local/ns/test/sa/":                                   {},
		"spiffe://cluster.local/ns//sa/podinfo":                                {},
		"spiffe:///ns/test/sa/podinfo":                                         {},
		"spiffe://cluster.local//ns/test/sa/podinfo":                           {},
		"spiffe://cluster.local/ns/test/sa/podinfo/":                           {},
		"spiffe://cluster.local/ns/test/sa/podinfo/x":                          {},
		"spiffe://cluster.local/sa/podinfo/ns/test":                            {},
		"spiffe://cluster.local/NS/test/sa/podinfo":                            {},
		"spiffe://cluster.local/ns/Test/sa/podinfo":                            {},
		"spiffe://cluster.local/ns/te.st/sa/podinfo":                           {},
		"spiffe://cluster.local/ns/test/sa/pod%69nfo":                          {},
		"spiffe://cluster.local/ns/test%2Fsa%2Fx/sa/y":                         {},
		"spiffe://cluster.local/ns/test/sa/podinfo?x=1":                        {},
		"spiffe://cluster.local/ns/test/sa/podinfo?":                           {},
		"spiffe://cluster.local/ns/test/sa/podinfo#x":                          {},
		"spiffe://user@cluster.local/ns/test/sa/podinfo":                       {},
		"spiffe://cluster.local:80/ns/test/sa/podinfo":                         {},
		"spiffe://CLUSTER.local/ns/test/sa/podinfo":                            {},
		"https://cluster.local/ns/test/sa/podinfo":                             {},
		"spiffe:cluster.local/ns/test/sa/podinfo":                              {},
		"spiffe://cluster.local/ns/../sa/podinfo":                              {},
		"spiffe://cluster.local/ns/" + strings.Repeat("a", 64) + "/sa/podinfo": {},
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := identityOf(&x509.Certificate{URIs: []*url.URL{u}})
		if want == (identity{}) {
			if refusedFor(err) != identityForm {
				t.Errorf("%s: got %v, %v", text, got, err)
			}
			continue
		}
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	u := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/test/sa/podinfo"}
	for _, uris := range [][]*url.URL{nil, {u, u}} {
		if _, err := identityOf(&x509.Certificate{URIs: uris, DNSNames: []string{"podinfo.test"}}); refusedFor(err) != identityForm {
			t.Errorf("%d URIs: %v", len(uris), err)
		}
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/test/sa/podinfo")
	f.Add("spiffe://cluster.local/ns/test%2Fsa%2Fx/sa/y")
	f.Add("spiffe://a/ns/b/sa/c.d?#")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		i, ok := readIdentity(u)
		if ok && i.String() != u.String() {
			t.Errorf("%q was read as %v", text, i)
		}
	})
}

// TestACertificateIsHeldAgainstTheNode: every way in which it does not fit has its reason, and says
// what to do.
func TestACertificateIsHeldAgainstTheNode(t *testing.T) {
	mesh := newAuthority(t)
	own := mesh.issue("spiffe://cluster.local/ns/meshpulse-system/sa/meshpulse")
	shows := func(id string) *x509.Certificate { return mesh.issue(id).Leaf }
	const podinfo = "spiffe://cluster.local/ns/test/sa/podinfo"
	for name, tc := range map[string]struct {
		certificate *x509.Certificate
		node        aggregator.Pod
		mutual      Mutual
		reason      string
		says        string
	}{
		"its own":                         {certificate: shows(podinfo)},
		"an alias of the mesh's":          {certificate: shows("spiffe://old.example/ns/test/sa/podinfo"), mutual: Mutual{TrustDomains: []string{"older.example", "old.example"}}},
		"a trust domain that is unknown":  {certificate: shows("spiffe://old.example/ns/test/sa/podinfo"), reason: identityDomain, says: "--ingest-trust-domains"},
		"no identity":                     {certificate: shows(""), reason: identityForm, says: "ISTIO_MUTUAL"},
		"another namespace":               {certificate: shows("spiffe://cluster.local/ns/other/sa/podinfo"), reason: identityNode, says: "namespace test"},
		"another service account":         {certificate: shows("spiffe://cluster.local/ns/test/sa/other"), reason: identityNode, says: `service account "podinfo"`},
		"a node that tells no account":    {certificate: shows(podinfo), node: aggregator.Pod{Namespace: "test", Name: "podinfo-0"}, reason: identityNode},
		"plaintext":                       {},
		"plaintext where it is strict":    {mutual: Mutual{Strict: true}, reason: identityPlaintext, says: "ISTIO_MUTUAL"},
		"plaintext of a strict namespace": {mutual: Mutual{StrictNamespaces: []string{"a", "test"}}, reason: identityPlaintext, says: "--ingest-strict-namespaces"},
		"plaintext of another namespace":  {mutual: Mutual{StrictNamespaces: []string{"a", "tes"}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := tc.mutual
			m.Serving = func() *tls.Config { return Serving(own, mesh.pool()) }
			pod := tc.node
			if pod.Name == "" {
				pod = aggregator.Pod{Namespace: "test", Name: "podinfo-0", ServiceAccount: "podinfo"}
			}
			err := m.bind(tc.certificate, &pod)
			if got := refusedFor(err); got != tc.reason || tc.reason != "" && !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("got %q, %v, want %q with %q", got, err, tc.reason, tc.says)
			}
			if err != nil {
				return
			}
			proof, peer := aggregator.ProofNone, ""
			if tc.certificate != nil {
				proof, peer = aggregator.ProofIdentity, tc.certificate.URIs[0].String()
			}
			if pod.Proof != proof || pod.Peer != peer {
				t.Errorf("proof %d of %q, want %d of %q", pod.Proof, pod.Peer, proof, peer)
			}
		})
	}
}

// While there is no certificate of our own nobody's trust domain is known, but those that were
// given.
func TestWithoutACertificateOnlyTheGivenTrustDomainsAreKnown(t *testing.T) {
	m := Mutual{Serving: func() *tls.Config { return nil }, TrustDomains: []string{"a.example"}}
	if m.knows("cluster.local") || !m.knows("a.example") {
		t.Error("known without reason, or not known though given")
	}
}

func TestRefusalsHaveTheirReasons(t *testing.T) {
	for err, want := range map[error]string{
		aggregator.ErrAddress: identityAddress, aggregator.ErrIdentity: identityPod, aggregator.ErrDowngrade: identityDowngrade, aggregator.ErrSuperseded: "", errNoNode: "",
	} {
		if got := refusedFor(errors.Join(err)); got != want {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}

// What never matches would leave a namespace without what its owner thinks it has.
func TestNamesThatNeverMatchAreRefused(t *testing.T) {
	for _, m := range []Mutual{{StrictNamespaces: []string{"a", " b"}}, {StrictNamespaces: []string{"Prod"}}, {StrictNamespaces: []string{""}}, {StrictNamespaces: []string{"a.b"}}} {
		if err := (Config{Mutual: &m}).Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--ingest-strict-namespaces") {
			t.Errorf("%q: %v", m.StrictNamespaces, err)
		}
	}
	for _, domain := range []string{"", " a", "spiffe://a", "Cluster.local", "a:80"} {
		if err := (Config{Mutual: &Mutual{TrustDomains: []string{domain}}}).Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--ingest-trust-domains") {
			t.Errorf("%q: %v", domain, err)
		}
	}
	if err := (Config{Mutual: &Mutual{StrictNamespaces: []string{"a", "b-1"}, TrustDomains: []string{"cluster.local"}}}).Validate(); err != nil {
		t.Error(err)
	}
}
