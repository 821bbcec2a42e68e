package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// ServerName is by which istiod is known.
const ServerName = "istiod.istio-system.svc"

// Service is istiod's IstioCertificateService (istio/api security/v1alpha1/ca.proto): whoever shows
// a token is given a certificate of its service account. It looks at what a token says, not at who
// has signed it. It is safe for concurrent use.
type Service struct {
	// Life is how long its certificates are valid.
	Life time.Duration

	mu     sync.Mutex
	signer *Authority
	roots  []*Authority
	asked  int
	server *grpc.Server
	addr   string
}

// Use has it sign by an authority and tell the roots from now on.
func (s *Service) Use(signer *Authority, roots ...*Authority) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signer, s.roots = signer, roots
}

// Asked is how many certificates it has given.
func (s *Service) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// Start serves on a free port of this machine, or on the one that it had, and returns host:port.
func (s *Service) Start() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addr == "" {
		s.addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		return "", err
	}
	s.addr = l.Addr().String()
	s.server = grpc.NewServer(grpc.ForceServerCodecV2(bytesCodec{}), grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.own() },
	})))
	s.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "istio.v1.auth.IstioCertificateService",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "CreateCertificate", Handler: s.handle}},
	}, s)
	go func(server *grpc.Server) { _ = server.Serve(l) }(s.server) // it ends with Stop
	return s.addr, nil
}

// Stop is an authority that is away. Start has it back.
func (s *Service) Stop() {
	s.mu.Lock()
	server := s.server
	s.mu.Unlock()
	server.Stop()
}

// own is its serving certificate.
func (s *Service) own() (*tls.Certificate, error) {
	s.mu.Lock()
	signer := s.signer
	s.mu.Unlock()
	pair, err := signer.Issue(SPIFFE("istio-system", "istiod"), time.Hour, ServerName)
	if err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(pair.Chain, pair.Key)
	return &c, err
}

func (s *Service) handle(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var request []byte
	if err := decode(&request); err != nil {
		return nil, err
	}
	return s.create(ctx, request)
}

// create gives the caller a certificate: that of its token, whatever the request says.
func (s *Service) create(ctx context.Context, request []byte) ([]byte, error) {
	var token string
	if md, ok := metadata.FromIncomingContext(ctx); ok && len(md.Get("authorization")) > 0 {
		token, _ = strings.CutPrefix(md.Get("authorization")[0], "Bearer ")
	}
	id, err := identityOf(token)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	csr, err := requestOf(request)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	chain, err := s.signer.Sign(csr.PublicKey, id, s.Life)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	s.asked++
	var roots []byte
	for _, r := range s.roots {
		roots = append(roots, r.PEM...)
	}
	response := protowire.AppendTag(nil, 1, protowire.BytesType)
	response = protowire.AppendBytes(response, chain)
	response = protowire.AppendTag(response, 1, protowire.BytesType)
	return protowire.AppendBytes(response, roots), nil
}

// requestOf reads field 1, csr, of an IstioCertificateRequest.
func requestOf(message []byte) (*x509.CertificateRequest, error) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		message = message[n:]
		if number == 1 && kind == protowire.BytesType {
			text, n := protowire.ConsumeBytes(message)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			block, _ := pem.Decode(text)
			if block == nil {
				return nil, errors.New("the request is not PEM")
			}
			csr, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil {
				return nil, err
			}
			return csr, csr.CheckSignature()
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return nil, protowire.ParseError(n)
		}
		message = message[n:]
	}
	return nil, errors.New("no certificate is asked for")
}

// identityOf reads the service account and the audience that a token names.
func identityOf(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", errors.New("no token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", err
	}
	var claims struct {
		Subject  string   `json:"sub"`
		Audience []string `json:"aud"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", err
	}
	account, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	namespace, name, two := strings.Cut(account, ":")
	if !ok || !two || len(claims.Audience) != 1 || claims.Audience[0] != "istio-ca" {
		return "", fmt.Errorf("the token is of %q for %v, not of a service account for istio-ca", claims.Subject, claims.Audience)
	}
	return SPIFFE(namespace, name), nil
}
