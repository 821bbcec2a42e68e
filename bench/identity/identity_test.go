package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// Whoever asks is given a certificate of the service account that its token names, and the roots
// behind it; a token for another audience gives none, and nobody who is away answers.
func TestTheServiceSignsForTheTokensAccount(t *testing.T) {
	mesh, err := NewAuthority("mesh")
	if err != nil {
		t.Fatal(err)
	}
	s := &Service{Life: time.Minute}
	s.Use(mesh, mesh)
	address, err := s.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(mesh.PEM)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: ServerName, MinVersion: tls.VersionTLS12})),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	request := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), encode("CERTIFICATE REQUEST", csr))
	ask := func(claims string) ([]byte, error) {
		token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
		ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token)
		var response []byte
		return response, conn.Invoke(ctx, "/istio.v1.auth.IstioCertificateService/CreateCertificate", request, &response)
	}
	var response []byte
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization",
		"Bearer e30."+base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"system:serviceaccount:meshpulse-system:meshpulse","aud":["istio-ca"]}`))+".sig")
	if err := conn.Invoke(ctx, "/istio.v1.auth.IstioCertificateService/CreateCertificate", request, &response); err != nil {
		t.Fatal(err)
	}
	var chain [][]byte
	for rest := response; len(rest) > 0; {
		_, _, n := protowire.ConsumeTag(rest)
		text, m := protowire.ConsumeBytes(rest[n:])
		chain, rest = append(chain, text), rest[n+m:]
	}
	block, _ := pem.Decode(chain[0])
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil || leaf.URIs[0].String() != SPIFFE("meshpulse-system", "meshpulse") {
		t.Errorf("a certificate of %v, %v", leaf.URIs, err)
	}
	if string(chain[len(chain)-1]) != string(mesh.PEM) || s.Asked() != 1 {
		t.Errorf("%d certificates, the last of them is not the root; asked %d times", len(chain), s.Asked())
	}
	for _, claims := range []string{`{"sub":"system:serviceaccount:a:b","aud":["other"]}`, `{"sub":"user","aud":["istio-ca"]}`, `x`} {
		if _, err := ask(claims); status.Code(err) != codes.Unauthenticated {
			t.Errorf("claims %s: %v", claims, err)
		}
	}
	s.Stop()
	if _, err := ask(`{"sub":"system:serviceaccount:a:b","aud":["istio-ca"]}`); status.Code(err) != codes.Unavailable {
		t.Errorf("while it is away: %v", err)
	}
}
