package envoystats

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Mutual says how sidecars prove who they are ([Config.Mutual]): with the mesh's own certificates,
// over the port that takes plaintext as well. What a certificate proves is held against what the
// node says here, and against the cluster's pod by the store.
type Mutual struct {
	// Serving returns what TLS is served with now (see [Serving]), nil while there is no
	// certificate: then there is no TLS either. It is asked at each handshake and must not wait.
	Serving func() *tls.Config
	// TrustDomains are taken beside that of the own certificate: aliases of the mesh's.
	TrustDomains []string
	// Strict refuses plaintext. Without it that of sidecars of StrictNamespaces is.
	Strict           bool
	StrictNamespaces []string
}

// validate says which setting never matches anything: a namespace that is misspelt would not be
// strict, and nobody would see it.
func (m *Mutual) validate() error {
	if m == nil {
		return nil
	}
	for _, ns := range m.StrictNamespaces {
		if len(ns) > maxNamespace || !isLabel(ns) {
			return fmt.Errorf("%w: %.100q (--ingest-strict-namespaces) is no namespace's name: give names with commas and nothing else between them", ErrConfig, ns)
		}
	}
	for _, domain := range m.TrustDomains {
		if !isTrustDomain(domain) {
			return fmt.Errorf("%w: %.100q (--ingest-trust-domains) is no trust domain, which is of lower-case letters, digits, dots, hyphens and underscores, "+
				"without spiffe://", ErrConfig, domain)
		}
	}
	return nil
}

// Serving returns how TLS is served with a certificate, to clients whose certificates come from one
// of the roots. Envoy's sink speaks 1.2 at most (its default as a client, which no setting of
// Istio's reaches). There are no session tickets: whoever connects shows its certificate anew.
func Serving(certificate tls.Certificate, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}
}

// Why somebody is refused for what he proves: values of the reason label of
// meshpulse_ingest_identity_refusals_total.
const (
	identityForm      = "no_spiffe"    // the certificate names no service account, or several
	identityDomain    = "trust_domain" // one of a trust domain that is not known
	identityNode      = "node"         // another one than the node says
	identityPod       = "pod"          // another one than the cluster runs the pod as, or it knows no such pod
	identityAddress   = "address"      // the connection comes from another pod's address
	identityPlaintext = "plaintext"    // it shows no certificate, and has to
	identityDowngrade = "downgrade"    // it proves less than the pod has proven
)

var identityReasons = []string{identityForm, identityDomain, identityNode, identityPod, identityAddress, identityPlaintext, identityDowngrade}

// impostor is an error that says that a sender is not who he says he is.
type impostor struct {
	reason string // of the above
	error
}

func refusef(reason, format string, args ...any) error {
	return &impostor{reason, fmt.Errorf(format, args...)}
}

// refusedFor is the reason for which a stream is refused for its sender's identity, "" if it is for
// something else.
func refusedFor(err error) string {
	var r *impostor
	switch {
	case errors.As(err, &r):
		return r.reason
	case errors.Is(err, aggregator.ErrAddress):
		return identityAddress
	case errors.Is(err, aggregator.ErrIdentity):
		return identityPod
	case errors.Is(err, aggregator.ErrDowngrade):
		return identityDowngrade
	}
	return ""
}

// identity is whom a certificate of the mesh names: spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
type identity struct{ domain, namespace, account string }

func (i identity) String() string {
	return "spiffe://" + i.domain + "/ns/" + i.namespace + "/sa/" + i.account
}

// identityOf reads whom a certificate names. SPIFFE allows exactly one URI.
func identityOf(certificate *x509.Certificate) (identity, error) {
	if n := len(certificate.URIs); n != 1 {
		return identity{}, refusef(identityForm, "the certificate has %d URIs, and has to have one, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT: "+
			"take the sidecar's own (tlsSettings ISTIO_MUTUAL)", n)
	}
	i, ok := readIdentity(certificate.URIs[0])
	if !ok {
		return identity{}, refusef(identityForm, "the certificate names %.300q, and has to name spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT: "+
			"take the sidecar's own (tlsSettings ISTIO_MUTUAL)", certificate.URIs[0])
	}
	return i, nil
}

// maxTrustDomain is SPIFFE's.
const maxTrustDomain = 255

// readIdentity takes Istio's form apart, without anything that could be read in two ways: no
// escapes, no empty parts, names of Kubernetes.
func readIdentity(u *url.URL) (i identity, ok bool) {
	parts := strings.Split(u.EscapedPath(), "/")
	if u.Scheme != "spiffe" || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || len(parts) != 5 {
		return i, false
	}
	i = identity{u.Host, parts[2], parts[4]}
	return i, parts[0] == "" && parts[1] == "ns" && parts[3] == "sa" && isTrustDomain(i.domain) &&
		len(i.namespace) <= maxNamespace && isLabel(i.namespace) && len(i.account) <= maxNodeName && isName(i.account)
}

// isTrustDomain reports whether a text is a trust domain as SPIFFE has it.
func isTrustDomain(text string) bool {
	for _, c := range []byte(text) {
		if ('a' > c || c > 'z') && ('0' > c || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return text != "" && len(text) <= maxTrustDomain
}

// TrustDomain is the trust domain of the mesh's identity that a certificate names; the error says
// that it names none.
func TrustDomain(certificate *x509.Certificate) (string, error) {
	i, err := identityOf(certificate)
	return i.domain, err
}

// strict reports whether pods of a namespace have to prove themselves.
func (m *Mutual) strict(namespace string) bool {
	return m.Strict || slices.Contains(m.StrictNamespaces, namespace)
}

// knows reports whether identities of a trust domain are the mesh's.
func (m *Mutual) knows(domain string) bool {
	if slices.Contains(m.TrustDomains, domain) {
		return true
	}
	serving := m.Serving()
	if serving == nil || len(serving.Certificates) == 0 {
		return false
	}
	own, err := TrustDomain(serving.Certificates[0].Leaf)
	return err == nil && own == domain
}

// bind holds the certificate of a connection, nil in plaintext, against the pod that the node says
// it is, and notes what that proves. The error says why the sender is refused.
func (m *Mutual) bind(certificate *x509.Certificate, pod *aggregator.Pod) error {
	pod.Strict = m.strict(pod.Namespace)
	if certificate == nil {
		if pod.Strict {
			return refusef(identityPlaintext, "it comes in plaintext, and sidecars of namespace %s have to prove who they are: "+
				"give its envoyMetricsService tlsSettings of mode ISTIO_MUTUAL and restart it, or take the namespace out of --ingest-strict-namespaces (with --ingest-mtls=strict all are in it)", pod.Namespace)
		}
		return nil
	}
	i, err := identityOf(certificate)
	switch {
	case err != nil:
		return err
	case !m.knows(i.domain):
		return refusef(identityDomain, "nothing is known of the trust domain of %s: give it with --ingest-trust-domains if it is an alias of the mesh's", i)
	case i.namespace != pod.Namespace || i.account != pod.ServiceAccount:
		return refusef(identityNode, "its certificate is of %s, and its node says that it is of namespace %s and service account %q", i, pod.Namespace, pod.ServiceAccount)
	}
	pod.Peer, pod.Proof = i.String(), pod.Proof|aggregator.ProofIdentity
	return nil
}
