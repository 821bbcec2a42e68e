package chaos

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/bench/identity"
)

// CertificateLife is how long the certificates of a run are valid, meshpulse's and those that links
// show in the place of their sidecars. They are renewed at half of it.
const CertificateLife = time.Minute

// CA is the mesh's authority of a run, and what everybody has of it.
type CA struct {
	// Address is where meshpulse asks for its certificate, RootsFile what it trusts.
	Address, RootsFile string

	service *identity.Service
	sink    string // meshpulse's own identity

	mu     sync.Mutex
	number int // of the root
	signer *identity.Authority
	roots  []*identity.Authority
	away   bool
}

// StartCA starts an authority that keeps its roots in a folder. sink is the service account that
// meshpulse runs as, in its namespace. The caller must Stop it.
func StartCA(dir, namespace, account string) (*CA, error) {
	ca := &CA{
		service: &identity.Service{Life: CertificateLife}, RootsFile: filepath.Join(dir, "mesh-roots.pem"), sink: identity.SPIFFE(namespace, account),
	}
	first, err := ca.newRoot()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := ca.use(first, first); err != nil {
		return nil, err
	}
	ca.Address, err = ca.service.Start()
	return ca, err
}

// Stop ends it.
func (ca *CA) Stop() { ca.service.Stop() }

// newRoot makes the next root.
func (ca *CA) newRoot() (*identity.Authority, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.number++
	return identity.NewAuthority(fmt.Sprint("mesh-", ca.number))
}

// use has an authority sign from now on, and everybody trust these roots.
func (ca *CA) use(signer *identity.Authority, roots ...*identity.Authority) error {
	ca.mu.Lock()
	ca.signer, ca.roots = signer, roots
	ca.service.Use(signer, roots...)
	ca.mu.Unlock()
	return ca.tellRoots()
}

// tellRoots writes the file that meshpulse reads.
func (ca *CA) tellRoots() error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	var all []byte
	for _, r := range ca.roots {
		all = append(all, r.PEM...)
	}
	return errors.Join(os.WriteFile(ca.RootsFile+".new", all, 0o600), os.Rename(ca.RootsFile+".new", ca.RootsFile))
}

// garbleRoots leaves nothing in that file that is a certificate.
func (ca *CA) garbleRoots() error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return os.WriteFile(ca.RootsFile, []byte("no certificate\n"), 0o600)
}

// leave lets nobody have a certificate until back.
func (ca *CA) leave() {
	ca.mu.Lock()
	ca.away = true
	ca.mu.Unlock()
	ca.service.Stop()
}

func (ca *CA) back() error {
	ca.mu.Lock()
	ca.away = false
	ca.mu.Unlock()
	_, err := ca.service.Start()
	return err
}

// changeRoot has everybody trust a new root beside the old one, then sign with it, and then trust
// it alone.
func (ca *CA) changeRoot(sleep func()) error {
	after, err := ca.newRoot()
	if err != nil {
		return err
	}
	ca.mu.Lock()
	before := ca.signer
	ca.mu.Unlock()
	if err := ca.use(before, before, after); err != nil {
		return err
	}
	sleep()
	if err := ca.use(after, before, after); err != nil {
		return err
	}
	sleep()
	return ca.use(after, after)
}

// workload is a service account whose certificate somebody shows. It is safe for concurrent use.
type workload struct {
	ca *CA
	id string

	mu      sync.Mutex
	shown   tls.Certificate
	by      *identity.Authority
	renewed time.Time
	held    bool // it is not renewed
}

// certificate is the workload's newest one: as an agent would it asks for another one at half of
// its life, and when another root signs.
func (w *workload) certificate() (*tls.Certificate, error) {
	w.ca.mu.Lock()
	signer, away := w.ca.signer, w.ca.away
	w.ca.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	due := w.by != signer || time.Since(w.renewed) > CertificateLife/2
	if !due || len(w.shown.Certificate) > 0 && (away || w.held) {
		return &w.shown, nil
	}
	return &w.shown, w.issue(signer, CertificateLife)
}

// issue makes a certificate. The mutex is held.
func (w *workload) issue(by *identity.Authority, life time.Duration) error {
	pair, err := by.Issue(w.id, life)
	if err != nil {
		return err
	}
	shown, err := tls.X509KeyPair(pair.Chain, pair.Key)
	if err == nil {
		w.shown, w.by, w.renewed = shown, by, time.Now()
	}
	return err
}

// endsAfter gives the workload a certificate that ends after a time, and is not renewed before
// release.
func (w *workload) endsAfter(life time.Duration) error {
	w.ca.mu.Lock()
	signer := w.ca.signer
	w.ca.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = true
	return w.issue(signer, life)
}

// release has it renewed at once.
func (w *workload) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held, w.renewed = false, time.Time{}
}

// tls is how the workload's sidecar speaks to meshpulse: as Istio has it with ISTIO_MUTUAL, by 1.2,
// as Envoy does.
func (w *workload) tls() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, NextProtos: []string{"istio", "h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return w.certificate() },
		InsecureSkipVerify:   true, // by name: verify has the identity
		VerifyConnection:     w.ca.verify,
	}
}

// verify says why who answers is not meshpulse.
func (ca *CA) verify(state tls.ConnectionState) error {
	roots := x509.NewCertPool()
	ca.mu.Lock()
	for _, r := range ca.roots {
		roots.AppendCertsFromPEM(r.PEM)
	}
	ca.mu.Unlock()
	leaf := state.PeerCertificates[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != ca.sink {
		return fmt.Errorf("%v answers, and not %s", leaf.URIs, ca.sink)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}
