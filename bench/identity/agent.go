package identity

import (
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

// Names of the secrets that a sidecar asks for (istio: pkg/security, WorkloadKeyCertResourceName
// and RootCertReqResourceName).
const (
	secretCertificate = "default"
	secretRoots       = "ROOTCA"
)

// Agent hands out one workload's certificate and the roots over SDS. As pilot-agent does it answers
// each name that is asked for, and again at each change. It is safe for concurrent use.
type Agent struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	id     string
	key    *rsa.PrivateKey // as pilot-agent's are, by default
	server *grpc.Server

	mu       sync.Mutex
	secrets  map[string]*tlsv3.Secret
	version  int
	refused  string
	watchers map[chan struct{}]bool // told of each change
}

// NewAgent listens on a Unix socket, for the workload of an identity. Nothing is handed out before
// it is set.
func NewAgent(socket, id string) (*Agent, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(socket); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("SDS: %w", err)
	}
	a := &Agent{id: id, key: key, server: grpc.NewServer(), secrets: map[string]*tlsv3.Secret{}, watchers: map[chan struct{}]bool{}}
	secretv3.RegisterSecretDiscoveryServiceServer(a.server, a)
	go func() { _ = a.server.Serve(l) }() // it ends with Close
	return a, nil
}

// Close ends it.
func (a *Agent) Close() { a.server.Stop() }

// Renew hands out a new certificate of the authority.
func (a *Agent) Renew(by *Authority, life time.Duration) error {
	pair, err := by.issueFor(a.key, a.id, life)
	if err != nil {
		return err
	}
	a.set(secretCertificate, &tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(pair.Chain), PrivateKey: inline(pair.Key),
	}}})
	return nil
}

// Trust hands out these roots.
func (a *Agent) Trust(roots ...*Authority) {
	var all []byte
	for _, r := range roots {
		all = append(all, r.PEM...)
	}
	a.set(secretRoots, &tlsv3.Secret{Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(all)}}})
}

// Refused is what the sidecar said of the last secret that it did not take, "" if it has taken all.
func (a *Agent) Refused() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refused
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func (a *Agent) set(name string, s *tlsv3.Secret) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Name = name
	a.secrets[name] = s
	for w := range a.watchers {
		select {
		case w <- struct{}{}:
		default: // it has not got round to the change before
		}
	}
}

// StreamSecrets is a sidecar's subscription.
func (a *Agent) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	changed := make(chan struct{}, 1)
	a.mu.Lock()
	a.watchers[changed] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.watchers, changed)
	}()
	asked := make(chan *discoveryv3.DiscoveryRequest)
	go func() {
		defer close(asked)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case asked <- r:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	sent := map[string]*tlsv3.Secret{} // by the names that are wanted
	for {
		select {
		case r, ok := <-asked:
			if !ok {
				return nil
			}
			a.note(r, sent)
		case <-changed:
		}
		if err := a.send(stream, sent); err != nil {
			return err
		}
	}
}

// note takes a request into account: an answer's acknowledgement too is one.
func (a *Agent) note(r *discoveryv3.DiscoveryRequest, sent map[string]*tlsv3.Secret) {
	if e := r.GetErrorDetail(); e != nil {
		a.mu.Lock()
		a.refused = e.GetMessage()
		a.mu.Unlock()
		return
	}
	for _, name := range r.GetResourceNames() {
		if _, known := sent[name]; !known {
			sent[name] = nil
		}
	}
}

// send sends what is wanted and has changed.
func (a *Agent) send(stream secretv3.SecretDiscoveryService_StreamSecretsServer, sent map[string]*tlsv3.Secret) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, was := range sent {
		now := a.secrets[name]
		if now == nil || now == was {
			continue
		}
		resource, err := anypb.New(now)
		if err != nil {
			return err
		}
		a.version++
		version := strconv.Itoa(a.version)
		if err := stream.Send(&discoveryv3.DiscoveryResponse{TypeUrl: resource.GetTypeUrl(), VersionInfo: version, Nonce: version, Resources: []*anypb.Any{resource}}); err != nil {
			return err
		}
		sent[name] = now
	}
	return nil
}
