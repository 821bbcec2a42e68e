package meshca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

const createCertificate = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

// maxAnswer bounds an answer: a chain and its roots are some KB.
const maxAnswer = 1 << 20

// issued is what the authority has given.
type issued struct {
	certificate tls.Certificate
	roots       []byte // PEM
}

// ask asks for a certificate, with a key of its own and over a connection of its own. roots are
// PEM.
func (c Config) ask(ctx context.Context, roots, token []byte) (*issued, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("--ingest-ca-root-file %s holds no certificate in PEM", c.RootFile)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // signs a handshake in a fifth of RSA's time
	if err != nil {
		return nil, err
	}
	request, err := c.request(key, token)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+c.Address, grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: c.ServerName})),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("--ingest-ca-address %s: %w", c.Address, err)
	}
	defer func() { _ = conn.Close() }()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+string(bytes.TrimSpace(token)), "clusterid", c.ClusterID)
	var answer []byte
	if err := conn.Invoke(ctx, createCertificate, request, &answer); err != nil {
		return nil, fmt.Errorf("--ingest-ca-address %s: %w", c.Address, err)
	}
	i, err := readAnswer(answer, key, time.Now())
	if err != nil {
		return nil, fmt.Errorf("--ingest-ca-address %s: its answer: %w", c.Address, err)
	}
	return i, nil
}

// request is an IstioCertificateRequest: csr = 1, validity_duration = 3 in seconds.
func (c Config) request(key *ecdsa.PrivateKey, token []byte) ([]byte, error) {
	template := &x509.CertificateRequest{}
	if namespace, account, ok := subject(token); ok { // istio-csr wants it, and nothing else; istiod does not look
		template.URIs = []*url.URL{{Scheme: "spiffe", Host: c.TrustDomain, Path: "/ns/" + namespace + "/sa/" + account}}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendBytes(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	b = protowire.AppendTag(b, 3, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(c.Life/time.Second)), nil
}

// subject reads whom a service account's token is of.
func subject(token []byte) (namespace, account string, ok bool) {
	parts := strings.Split(strings.TrimSpace(string(token)), ".")
	if len(parts) != 3 {
		return "", "", false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", "", false
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(payload, &claims) != nil {
		return "", "", false
	}
	whose, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	if !ok {
		return "", "", false
	}
	namespace, account, ok = strings.Cut(whose, ":")
	return namespace, account, ok && namespace != "" && account != ""
}

// readAnswer reads an IstioCertificateResponse, cert_chain = 1: the certificate, intermediates, and
// at last the roots. The certificate has to be of the key, and to come from the roots.
func readAnswer(b []byte, key *ecdsa.PrivateKey, now time.Time) (*issued, error) {
	chain, err := readChain(b)
	if err != nil {
		return nil, err
	}
	if len(chain) < 2 {
		return nil, fmt.Errorf("%d certificates, and at least one and its root are wanted", len(chain))
	}
	last := len(chain) - 1
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(bytes.Join(chain[:last], []byte("\n")), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return nil, err
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(chain[last]) {
		return nil, errors.New("its last element is no root in PEM")
	}
	for _, der := range certificate.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		intermediates.AddCert(c)
	}
	_, err = certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return nil, fmt.Errorf("sidecars would not take it: %w", err)
	}
	return &issued{certificate, chain[last]}, nil
}

// readChain returns the strings of field 1.
func readChain(b []byte) (chain [][]byte, err error) {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		if field == 1 && kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			chain, b = append(chain, value), b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return chain, nil
}

// maxFile is far above what roots and a token take.
const maxFile = 4 << 20

// ReadFile reads a flag's file. What is no file, such as a pipe that nobody writes to, is refused
// rather than waited for, and so is what is empty or beyond 4 MiB. The error names flag and file.
func ReadFile(flag, path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s is not a regular file", flag, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", flag, err)
	case len(b) > maxFile:
		return nil, fmt.Errorf("%s %s is beyond %d MiB", flag, path, maxFile>>20)
	case len(bytes.TrimSpace(b)) == 0:
		return nil, fmt.Errorf("%s %s is empty", flag, path)
	}
	return b, nil
}

// rawCodec hands on messages that are bytes already.
type rawCodec struct{}

// Marshal implements [google.golang.org/grpc/encoding.CodecV2].
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

// Unmarshal implements [google.golang.org/grpc/encoding.CodecV2].
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// Name implements [google.golang.org/grpc/encoding.CodecV2].
func (rawCodec) Name() string { return "proto" }
