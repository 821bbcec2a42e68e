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
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// authority signs as Istio's does.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newAuthority returns a root, or an intermediate of another.
func newAuthority(t testing.TB, above *authority) *authority {
	a := &authority{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
	}
	if above == nil {
		above = &authority{cert: template, key: a.key}
	}
	a.cert = a.parse(x509.CreateCertificate(rand.Reader, template, above.cert, a.key.Public(), above.key))
	return a
}

func (a *authority) parse(der []byte, err error) *x509.Certificate {
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// sign returns a certificate (DER) for a key.
func (a *authority) sign(key any, uri string, life time.Duration, names ...string) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Minute), NotAfter: time.Now().Add(life), DNSNames: names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if u, err := url.Parse(uri); err == nil && uri != "" {
		template.URIs = []*url.URL{u}
	}
	return a.parse(x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)).Raw
}

func encode(der ...[]byte) (b []byte) {
	for _, d := range der {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d})...)
	}
	return b
}

func answer(chain ...[]byte) (b []byte) {
	for _, c := range chain {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, c)
	}
	return b
}

// istiod gives the token's identity, whatever is asked for.
type istiod struct {
	*authority
	mu       sync.Mutex
	requests []*x509.CertificateRequest
	seconds  []uint64
	clusters []string
	refuses  error
	life     time.Duration
}

const token = "system:serviceaccount:meshpulse-system:meshpulse"

// jwt is a token whose payload tells a subject, and which only that tells from others.
func jwt(subject string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"aud":["istio-ca"],"sub":"`+subject+`"}`)) + ".sig"
}

func (s *istiod) create(ctx context.Context, request []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+jwt(token) {
		return nil, status.Error(codes.Unauthenticated, "request authenticate failure")
	}
	if s.refuses != nil {
		return nil, s.refuses
	}
	var csr []byte
	for len(request) > 0 {
		field, kind, n := protowire.ConsumeTag(request)
		request = request[n:]
		switch {
		case field == 1 && kind == protowire.BytesType:
			csr, n = protowire.ConsumeBytes(request)
		case field == 3 && kind == protowire.VarintType:
			var seconds uint64
			seconds, n = protowire.ConsumeVarint(request)
			s.seconds = append(s.seconds, seconds)
		default:
			n = protowire.ConsumeFieldValue(field, kind, request)
		}
		request = request[n:]
	}
	block, _ := pem.Decode(csr)
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || r.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "no CSR")
	}
	s.requests, s.clusters = append(s.requests, r), append(s.clusters, md.Get("clusterid")...)
	return answer(encode(s.sign(r.PublicKey, "spiffe://cluster.local/ns/meshpulse-system/sa/meshpulse", s.life)), encode(s.cert.Raw)), nil
}

// serve serves it on loopback, and returns its address.
func (s *istiod) serve() string {
	key := newKey(s.t)
	pair := tls.Certificate{Certificate: [][]byte{s.sign(key.Public(), "", time.Hour, "istiod.istio-system.svc")}, PrivateKey: key}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.Creds(credentials.NewServerTLSFromCert(&pair)))
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "istio.v1.auth.IstioCertificateService", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "CreateCertificate",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var request []byte
			if err := decode(&request); err != nil {
				return nil, err
			}
			return s.create(ctx, request)
		},
	}}}, nil)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { _ = server.Serve(lis) }()
	s.t.Cleanup(server.Stop)
	return lis.Addr().String()
}

// world is an authority, and a client of it with its files.
type world struct {
	*istiod
	client *Client
	log    *bytes.Buffer
}

func newWorld(t *testing.T) *world {
	w := &world{istiod: &istiod{authority: newAuthority(t, nil), life: 24 * time.Hour}, log: new(bytes.Buffer)}
	dir := t.TempDir()
	var err error
	w.client, err = New(Config{
		Address: w.serve(), ServerName: "istiod.istio-system.svc", RootFile: filepath.Join(dir, "root-cert.pem"), TokenFile: filepath.Join(dir, "istio-token"),
		Logger: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.roots(w.authority)
	w.write(w.client.config.TokenFile, []byte(jwt(token)+"\n"))
	return w
}

func (w *world) write(path string, b []byte) {
	w.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// roots are those of the ConfigMap.
func (w *world) roots(as ...*authority) {
	var b []byte
	for _, a := range as {
		b = append(b, encode(a.cert.Raw)...)
	}
	w.write(w.client.config.RootFile, b)
}

// renew asks once, as Run does.
func (w *world) renew() error {
	err := w.client.renew(w.t.(*testing.T).Context())
	w.client.told(err)
	return err
}

func TestACertificateIsAskedFor(t *testing.T) {
	w := newWorld(t)
	if w.client.Current() != nil {
		t.Error("there is one already")
	}
	if err := w.renew(); err != nil {
		t.Fatal(err)
	}
	i := w.client.Current()
	if got := i.Certificate.Leaf.URIs[0].String(); got != "spiffe://cluster.local/ns/meshpulse-system/sa/meshpulse" {
		t.Errorf("identity %s", got)
	}
	if _, ok := i.Certificate.PrivateKey.(*ecdsa.PrivateKey); !ok {
		t.Errorf("a key of %T, want ECDSA, with which a handshake costs a third", i.Certificate.PrivateKey)
	}
	if _, err := i.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: i.Roots}); err != nil {
		t.Error(err)
	}
	r := w.requests[0]
	if len(r.URIs) != 1 || r.URIs[0].String() != "spiffe://cluster.local/ns/meshpulse-system/sa/meshpulse" || len(r.DNSNames)+len(r.IPAddresses) != 0 || r.Subject.String() != "" {
		t.Errorf("asked for %v, %v, %q: istio-csr wants the token's URI and nothing else", r.URIs, r.DNSNames, r.Subject)
	}
	if w.seconds[0] != 86400 || w.clusters[0] != "Kubernetes" {
		t.Errorf("%v seconds, cluster %v", w.seconds, w.clusters)
	}
	if got := testutil.ToFloat64(w.client.ok); got != 1 {
		t.Errorf("%v counted", got)
	}
	first := i.Certificate.PrivateKey
	if err := w.renew(); err != nil || w.client.Current().Certificate.PrivateKey.(*ecdsa.PrivateKey).Equal(first) {
		t.Errorf("the next one: %v, or with the same key", err)
	}
}

// What goes wrong is told with the flag or the remedy, once, and the last good certificate stays.
func TestWhatGoesWrongIsTold(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(w *world)
		says   string
	}{
		"no token":                   {func(w *world) { _ = os.Remove(w.client.config.TokenFile) }, "--ingest-ca-token-file"},
		"another root":               {func(w *world) { w.roots(newAuthority(w.t, nil)) }, "certificate signed by unknown authority"},
		"another token":              {func(w *world) { w.write(w.client.config.TokenFile, []byte(jwt("system:serviceaccount:a:b"))) }, "Unauthenticated"},
		"the authority is not there": {func(w *world) { w.client.config.Address = "127.0.0.1:1" }, "--ingest-ca-address 127.0.0.1:1"},
		"another name":               {func(w *world) { w.client.config.ServerName = "elsewhere" }, "elsewhere"},
		"it refuses": {func(w *world) {
			w.refuses = status.Error(codes.InvalidArgument, "requested cert TTL is greater than max")
		}, "greater than max"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if err := w.renew(); err != nil {
				t.Fatal(err)
			}
			before := w.client.Current()
			tc.change(w)
			for range 2 {
				if err := w.renew(); err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("error %v, want it to say %q", err, tc.says)
				}
			}
			if w.client.Current() != before {
				t.Error("the last good certificate is gone")
			}
			if n := strings.Count(w.log.String(), "no new certificate of the mesh"); n != 1 {
				t.Errorf("told %d times:\n%s", n, w.log)
			}
			if got := testutil.ToFloat64(w.client.failed); got != 2 {
				t.Errorf("%v counted, want 2", got)
			}
		})
	}
}

// The roots are those of the answer and of the file, and a change of the file is there before the
// next certificate.
func TestRootsAreThoseOfTheAnswerAndOfTheFile(t *testing.T) {
	w := newWorld(t)
	successor := newAuthority(t, nil)
	w.roots(w.authority, successor)
	if err := w.renew(); err != nil {
		t.Fatal(err)
	}
	trusts := func(want bool, a *authority) {
		t.Helper()
		c := w.parse(a.sign(newKey(t).Public(), "spiffe://cluster.local/ns/a/sa/b", time.Hour), nil)
		if _, err := c.Verify(x509.VerifyOptions{Roots: w.client.Current().Roots}); (err == nil) != want {
			t.Errorf("trusted: %v", err)
		}
	}
	trusts(true, w.authority)
	trusts(true, successor)
	third := newAuthority(t, nil)
	trusts(false, third)
	if w.client.rootsChanged() {
		t.Error("nothing has changed")
	}
	w.roots(w.authority, third)
	if !w.client.rootsChanged() {
		t.Error("a change is not seen")
	}
	trusts(true, third)
	trusts(false, successor)
}

// A file that is away, or holds no certificate, takes no trust away and keeps no certificate from
// being renewed: the roots of before stay, and that is told once. Where there never were any, there
// is nobody to ask.
func TestTheLastGoodRootsStay(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(w *world)
		says   string
	}{
		"no ConfigMap": {func(w *world) { _ = os.Remove(w.client.config.RootFile) }, "istio-ca-root-cert is not there, so Istio is not in the cluster or its discoverySelectors"},
		"an empty one": {func(w *world) { w.write(w.client.config.RootFile, nil) }, "is empty"},
		"no PEM":       {func(w *world) { w.write(w.client.config.RootFile, []byte("x")) }, "holds no certificate in PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			beside := newAuthority(t, nil)
			w.roots(w.authority, beside)
			if err := w.renew(); err != nil {
				t.Fatal(err)
			}
			tc.change(w)
			for range 2 {
				if w.client.rootsChanged() {
					t.Error("taken for a change")
				}
			}
			if err := w.renew(); err != nil {
				t.Errorf("not renewed: %v", err)
			}
			c := w.parse(beside.sign(newKey(t).Public(), "spiffe://cluster.local/ns/a/sa/b", time.Hour), nil)
			if _, err := c.Verify(x509.VerifyOptions{Roots: w.client.Current().Roots}); err != nil {
				t.Errorf("a root of the file is not trusted any more: %v", err)
			}
			if n := strings.Count(w.log.String(), tc.says); n != 1 {
				t.Errorf("%q is told %d times:\n%s", tc.says, n, w.log)
			}
			never := newWorld(t)
			tc.change(never)
			for range 2 {
				if err := never.renew(); err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("without any before: %v, want it to say %q", err, tc.says)
				}
			}
			if n := strings.Count(never.log.String(), tc.says); n != 1 {
				t.Errorf("told %d times:\n%s", n, never.log)
			}
		})
	}
}

// An answer has to be a chain for the key that was made, which sidecars take.
func TestAnswers(t *testing.T) {
	root, key, other := newAuthority(t, nil), newKey(t), newKey(t)
	intermediate := newAuthority(t, root)
	const id = "spiffe://cluster.local/ns/meshpulse-system/sa/meshpulse"
	leaf := encode(root.sign(key.Public(), id, time.Hour))
	below := encode(intermediate.sign(key.Public(), id, time.Hour))
	bundle := encode(root.cert.Raw, newAuthority(t, nil).cert.Raw)
	for name, tc := range map[string]struct {
		b    []byte
		says string // "" if it is good
	}{
		"a self-signed root's":           {answer(leaf, bundle), ""},
		"an intermediate's":              {answer(below, encode(intermediate.cert.Raw), encode(root.cert.Raw), bundle), ""},
		"other fields":                   {protowire.AppendVarint(protowire.AppendTag(answer(leaf, bundle), 9, protowire.VarintType), 7), ""},
		"nothing":                        {nil, "0 certificates"},
		"no root":                        {answer(leaf), "1 certificates"},
		"text":                           {answer([]byte("x"), []byte("y")), "PEM"},
		"a root that is none":            {answer(leaf, []byte("y")), "no root"},
		"a certificate of another key":   {answer(encode(root.sign(other.Public(), id, time.Hour)), bundle), "private key does not match"},
		"the intermediate is not there":  {answer(below, bundle), "sidecars would not take it"},
		"it has ended":                   {answer(encode(root.sign(key.Public(), id, -time.Minute)), bundle), "expired"},
		"cut off":                        {answer(leaf, bundle)[:100], "EOF"},
		"a field that cannot be skipped": {[]byte{0x0f}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := readAnswer(tc.b, key, time.Now())
			if name == "a field that cannot be skipped" {
				if err == nil {
					t.Error("taken")
				}
				return
			}
			if tc.says == "" && (err != nil || i.certificate.Leaf.URIs[0].String() != id) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("error %v, want %q", err, tc.says)
			}
		})
	}
}

func FuzzAnswer(f *testing.F) {
	root, key := newAuthority(f, nil), newKey(f)
	f.Add(answer(encode(root.sign(key.Public(), "spiffe://a/ns/b/sa/c", time.Hour)), encode(root.cert.Raw)))
	f.Add(answer([]byte("x"), nil))
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := readAnswer(b, key, time.Now())
		if err == nil && (i.certificate.Leaf == nil || !key.PublicKey.Equal(i.certificate.Leaf.PublicKey)) {
			t.Error("a certificate of another key was taken")
		}
	})
}

func TestATokensSubjectIsAskedFor(t *testing.T) {
	for text, want := range map[string]string{
		jwt("system:serviceaccount:ns:name"): "ns name true",
		jwt("system:serviceaccount:ns"):      "  false",
		jwt("system:serviceaccount:ns:"):     "  false",
		jwt("kubernetes-admin"):              "  false",
		"":                                   "  false",
		"a.b":                                "  false",
		"a.!.c":                              "  false",
		"a.e.c":                              "  false",
	} {
		namespace, account, ok := subject([]byte(text))
		if !ok {
			namespace, account = "", ""
		}
		if got := fmt.Sprint(namespace, " ", account, " ", ok); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add(jwt("system:serviceaccount:ns:name"))
	f.Fuzz(func(t *testing.T, text string) {
		if namespace, account, ok := subject([]byte(text)); ok && (namespace == "" || account == "") {
			t.Errorf("%q: an empty name", text)
		}
	})
}

// Half of a life before the end another one is asked for; where that fails, after a second, and
// ever longer up to a minute.
func TestRenewalsComeInTime(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		root := newAuthority(t, nil)
		var mu sync.Mutex
		var asked []time.Time
		fails := false
		c, err := New(Config{Address: "istiod.istio-system.svc:15012", RootFile: filepath.Join(dir, "none"), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c.ask = func(context.Context) (*issued, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, time.Now())
			if fails {
				return nil, fmt.Errorf("failure %d", len(asked))
			}
			key := newKey(t)
			return readAnswer(answer(encode(root.sign(key.Public(), "spiffe://a/ns/b/sa/c", 24*time.Hour)), encode(root.cert.Raw)), key, time.Now())
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx); close(done) }()
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		mu.Lock()
		if len(asked) != 3 {
			t.Fatalf("asked %d times in 25 hours, want at the start and twice", len(asked))
		}
		for i := 1; i < len(asked); i++ {
			if gap := asked[i].Sub(asked[i-1]); gap > 12*time.Hour || gap < 10*time.Hour {
				t.Errorf("after %s, want half of 24 hours or up to a tenth less", gap)
			}
		}
		fails, asked = true, nil
		mu.Unlock()
		time.Sleep(13 * time.Hour)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		for i := 1; i < len(asked); i++ {
			most := min(time.Second<<min(i-1, 6), time.Minute)
			if gap := asked[i].Sub(asked[i-1]); gap > most || gap < most*9/10-time.Millisecond {
				t.Errorf("failure %d: after %s, want %s or up to a tenth less", i, gap, most)
			}
		}
		if len(asked) < 60 {
			t.Errorf("asked %d times", len(asked))
		}
		cancel()
		<-done
	})
}

// While there is no certificate that lasts no sidecar reports: then nobody waits a minute for the
// authority to be back.
func TestWithoutACertificateTheAuthorityIsAskedOften(t *testing.T) {
	for name, life := range map[string]time.Duration{"before the first": 0, "after the last has ended": time.Hour} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			root, key := newAuthority(t, nil), newKey(t)
			asked, worst, last := 0, time.Duration(0), time.Time{}
			c, err := New(Config{Address: "istiod.istio-system.svc:15012", RootFile: filepath.Join(dir, "none"), Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			c.ask = func(context.Context) (*issued, error) {
				if asked++; asked == 1 && life != 0 {
					return readAnswer(answer(encode(root.sign(key.Public(), "spiffe://a/ns/b/sa/c", life)), encode(root.cert.Raw)), key, time.Now())
				}
				if time.Since(begun) > life+2*time.Minute {
					worst = max(worst, time.Since(last))
				}
				last = time.Now()
				return nil, errors.New("away")
			}
			ctx, cancel := context.WithTimeout(t.Context(), life+time.Hour)
			defer cancel()
			c.Run(ctx)
			if worst > deafWait || asked < 600 {
				t.Errorf("%s: asked %d times, after up to %s, want %s at most", name, asked, worst, deafWait)
			}
		})
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for _, c := range []Config{{}, {Address: "istiod"}, {Address: "a:1", Life: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
