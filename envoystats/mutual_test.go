package envoystats

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meshpulse/meshpulse/aggregator"
)

const (
	sinkID    = "spiffe://cluster.local/ns/meshpulse-system/sa/meshpulse"
	podinfoID = "spiffe://cluster.local/ns/test/sa/podinfo"
)

// helloAs is a first message of a pod that says that it runs as a service account.
func helloAs(t testing.TB, name, account string, families ...*dto.MetricFamily) []byte {
	t.Helper()
	metadata, err := structpb.NewStruct(map[string]any{"NAMESPACE": "test", "NAME": name, "SERVICE_ACCOUNT": account})
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(&metricsv3.StreamMetricsMessage{
		Identifier:   &metricsv3.StreamMetricsMessage_Identifier{Node: &corev3.Node{Id: "sidecar~10.0.0.1~" + name + ".test~test.svc.cluster.local", Metadata: metadata}},
		EnvoyMetrics: families,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mutualSink is a sink that takes plaintext and mutual TLS, and the mesh's authority.
type mutualSink struct {
	*sink
	mesh    *authority
	serving atomic.Pointer[tls.Config]
	now     atomic.Int64 // nanoseconds since 1970; 0: the real time
}

func serveMutual(t *testing.T, m Mutual) *mutualSink {
	s := &mutualSink{mesh: newAuthority(t)}
	s.serve(s.mesh)
	m.Serving = s.serving.Load
	now := func() time.Time {
		if n := s.now.Load(); n != 0 {
			return time.Unix(0, n)
		}
		return time.Now()
	}
	s.sink = serveSink(t, Config{Mutual: &m, Now: now, times: times{quiet: time.Millisecond}})
	return s
}

// serve has the sink show a certificate of the first of the authorities, and trust all.
func (s *mutualSink) serve(authorities ...*authority) {
	roots := x509.NewCertPool()
	for _, a := range authorities {
		roots.AddCert(a.cert)
	}
	s.serving.Store(Serving(authorities[0].issue(sinkID), roots))
}

// as makes the sink's clients show a certificate, none and in plaintext where it is nil.
func (s *mutualSink) as(certificate *tls.Certificate) *mutualSink {
	if s.creds = insecure.NewCredentials(); certificate != nil {
		// As Istio's ISTIO_MUTUAL does: names are in the URI, versions end with 1.2.
		s.withTLS(&tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{*certificate}, NextProtos: []string{"istio", "h2"}, MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		})
	}
	return s
}

// until is a certificate of an identity that ends after a time.
func (a *authority) until(spiffeID string, life time.Duration) *tls.Certificate {
	id, err := url.Parse(spiffeID)
	if err != nil {
		a.t.Fatal(err)
	}
	c := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(3), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life), URIs: []*url.URL{id},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	return &c
}

// One port takes sidecars in plaintext and over mutual TLS, side by side.
func TestOnePortTakesPlaintextAndTLS(t *testing.T) {
	s := serveMutual(t, Mutual{})
	plain := s.as(nil).open(t).send(helloAs(t, "web-0", "podinfo", request(1000, 1)))
	proven := s.as(s.mesh.until(podinfoID, time.Hour)).open(t).send(helloAs(t, "web-1", "podinfo", request(1000, 2)))
	waitFor(t, "both", func() bool { return len(s.recorder.all()) == 2 })
	for security, want := range map[string]float64{"plaintext": 1, "mtls": 1, "tls": 0} {
		if got := s.metric(t, "streams", security); got != want {
			t.Errorf("%v streams are %s, want %v", got, security, want)
		}
	}
	for _, st := range []*sender{plain, proven} {
		if got := st.close(); got.Code() != codes.OK {
			t.Error(got)
		}
	}
	proofs := map[string]aggregator.Proof{}
	for _, p := range s.recorder.pods {
		proofs[p.Name] = p.Proof
	}
	if proofs["web-0"] != aggregator.ProofNone || proofs["web-1"] != aggregator.ProofIdentity {
		t.Errorf("proofs %v", proofs)
	}
}

// TestWhoIsNotThePodIsRefusedAndItsConnectionClosed: with a status that says why, and so that it
// does not come back over the same connection.
func TestWhoIsNotThePodIsRefusedAndItsConnectionClosed(t *testing.T) {
	s := serveMutual(t, Mutual{StrictNamespaces: []string{"test"}})
	var told []string
	s.refused = func(p aggregator.Pod, why string) { told = append(told, p.Namespace+"/"+p.Name+": "+why) }
	for reason, certificate := range map[string]*tls.Certificate{
		identityPlaintext: nil,
		identityNode:      s.mesh.until("spiffe://cluster.local/ns/test/sa/other", time.Hour),
		identityDomain:    s.mesh.until("spiffe://elsewhere/ns/test/sa/podinfo", time.Hour),
		identityForm:      s.mesh.until("spiffe://cluster.local/podinfo", time.Hour),
	} {
		told = nil
		st := s.as(certificate).open(t).send(helloAs(t, "web-"+strings.ReplaceAll(reason, "_", "-"), "podinfo", request(1000, 1))).end()
		if st.Code() != codes.PermissionDenied {
			t.Errorf("%s: %v", reason, st)
		}
		waitFor(t, "the connection's end: "+reason, func() bool { return s.metric(t, "connections", "") == 0 })
		if got := s.metric(t, "identity_refusals_total", reason); got != 1 {
			t.Errorf("%s: %v counted", reason, got)
		}
		if len(told) != 1 || !strings.HasPrefix(told[0], "test/web-") || !strings.Contains(told[0], st.Message()) {
			t.Errorf("%s: told %q", reason, told)
		}
	}
	if n := len(s.recorder.pods); n != 0 {
		t.Errorf("%d pods connected", n)
	}
	if got := s.metric(t, "stream_ends_total", endIdentity); got != 4 {
		t.Errorf("%v streams ended so, want 4", got)
	}
	if n := strings.Count(s.log.String(), "stream refused"); n != 4 {
		t.Errorf("%d lines, want one for each pod:\n%s", n, s.log)
	}
}

// What the store holds against a sender ends its connection, too.
func TestWhatTheStoreRefusesEndsTheConnection(t *testing.T) {
	for reason, err := range map[string]error{identityAddress: aggregator.ErrAddress, identityPod: aggregator.ErrIdentity, identityDowngrade: aggregator.ErrDowngrade} {
		s := serveMutual(t, Mutual{})
		s.recorder.fail = err
		if st := s.as(s.mesh.until(podinfoID, time.Hour)).open(t).send(helloAs(t, "web-0", "podinfo", request(1000, 1))).end(); st.Code() != codes.PermissionDenied {
			t.Errorf("%s: %v", reason, st)
		}
		waitFor(t, "the connection's end", func() bool { return s.metric(t, "connections", "") == 0 })
		if got := s.metric(t, "identity_refusals_total", reason); got != 1 {
			t.Errorf("%s: %v counted", reason, got)
		}
	}
}

// A kubelet's probe only looks whether the port is open, and fails no handshake. Other bytes than
// either protocol's are closed.
func TestAProbeIsNoFailure(t *testing.T) {
	s := serveMutual(t, Mutual{})
	probe, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = probe.Close()
	waitFor(t, "the probe", func() bool { return s.metric(t, "closed_connections_total", closedNothing) == 1 })
	if got := s.metric(t, "closed_connections_total", closedHandshake); got != 0 {
		t.Errorf("%v handshakes failed", got)
	}
	if text := s.log.String(); text != "" {
		t.Errorf("told:\n%s", text)
	}
	for _, bytes := range []string{"\x16garbage of TLS", "GET / HTTP/1.1\r\nHost: x\r\n\r\n......"} {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(bytes)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
		_ = c.Close()
	}
	waitFor(t, "the garbage to be counted, and it alone", func() bool { return s.metric(t, "closed_connections_total", closedHandshake) == 1 })
}

// Before there is a certificate sidecars in plaintext report, and others come as soon as there is
// one.
func TestWithoutACertificateOnlyPlaintextIsTaken(t *testing.T) {
	s := serveMutual(t, Mutual{})
	serving := s.serving.Swap(nil)
	if code := codeOf(s.as(nil).open(t), nil, helloAs(t, "web-0", "podinfo", request(1000, 1))); code != codes.OK {
		t.Errorf("plaintext: %v", code)
	}
	certificate := s.mesh.until(podinfoID, time.Hour)
	st, err := s.as(certificate).dial(t)
	if code := codeOf(st, err, helloAs(t, "web-1", "podinfo", request(1000, 1))); code != codes.Unavailable {
		t.Errorf("TLS: %v", code)
	}
	waitFor(t, "the reason in the log", func() bool { return strings.Contains(s.log.String(), "no certificate yet") })
	s.serving.Store(serving)
	st, err = s.as(certificate).dial(t)
	if code := codeOf(st, err, helloAs(t, "web-1", "podinfo", request(1000, 1))); code != codes.OK {
		t.Errorf("TLS once there is one: %v", code)
	}
}

// Each connection shows its certificate anew, and one of no root of ours is refused.
func TestNoTicketsAndNoStrangers(t *testing.T) {
	s := serveMutual(t, Mutual{})
	config := &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{*s.mesh.until(podinfoID, time.Hour)}, NextProtos: []string{"h2"}, ClientSessionCache: tls.NewLRUClientSessionCache(4),
	}
	config.MaxVersion = tls.VersionTLS12 // the sink's own, where a ticket comes with the handshake
	for range 2 {
		c, err := tls.Dial("tcp", s.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		if c.ConnectionState().DidResume {
			t.Error("resumed")
		}
		_ = c.Close()
	}
	stranger := newAuthority(t).until(podinfoID, time.Hour)
	st, err := s.as(stranger).dial(t)
	if code := codeOf(st, err, helloAs(t, "web-1", "podinfo")); code != codes.Unavailable {
		t.Errorf("a stranger's certificate: %v", code)
	}
	st, err = s.withTLS(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).dial(t)
	if code := codeOf(st, err, helloAs(t, "web-1", "podinfo")); code != codes.Unavailable {
		t.Errorf("no certificate: %v", code)
	}
}

// In the last quarter of what is left of a certificate a connection ends after a flush, and at its
// end with the message that comes then.
func TestAConnectionLastsAsLongAsItsCertificate(t *testing.T) {
	s := serveMutual(t, Mutual{})
	begun := time.Now()
	s.now.Store(begun.UnixNano())
	certificate := s.mesh.until(podinfoID, 24*time.Hour)
	st := s.as(certificate).open(t).send(helloAs(t, "web-0", "podinfo", request(1000, 1)))
	waitFor(t, "the first message", func() bool { return len(s.recorder.all()) == 1 })
	s.now.Store(begun.Add(17 * time.Hour).UnixNano())
	st.send(message(t, request(2000, 2)))
	waitFor(t, "one of before the last quarter", func() bool { return len(s.recorder.all()) == 2 })
	if got := s.metric(t, "closed_connections_total", closedCertificate); got != 0 {
		t.Fatalf("%v connections closed too early", got)
	}
	s.now.Store(certificate.Leaf.NotAfter.Add(-time.Second).UnixNano())
	st.send(message(t, request(3000, 3)))
	if got := st.end(); got.Code() != codes.Unavailable {
		t.Errorf("the stream's end: %v", got)
	}
	if got := len(s.recorder.all()); got != 3 {
		t.Errorf("%d messages were taken, want all 3", got)
	}
	waitFor(t, "both ends to be counted", func() bool {
		return s.metric(t, "closed_connections_total", closedCertificate) == 1 && s.metric(t, "stream_ends_total", endRenewed) == 1
	})
	if text := s.log.String(); text != "" {
		t.Errorf("told, though nobody has to look at it:\n%s", text)
	}
}

func TestNothingIsTakenAfterACertificatesEnd(t *testing.T) {
	s := serveMutual(t, Mutual{})
	begun := time.Now()
	s.now.Store(begun.UnixNano())
	certificate := s.mesh.until(podinfoID, time.Hour)
	st := s.as(certificate).open(t).send(helloAs(t, "web-0", "podinfo", request(1000, 1)))
	waitFor(t, "the first message", func() bool { return len(s.recorder.all()) == 1 })
	s.now.Store(certificate.Leaf.NotAfter.UnixNano())
	if got := st.send(message(t, request(2000, 2))).end(); got.Code() != codes.PermissionDenied || !strings.Contains(got.Message(), "has ended") {
		t.Errorf("after the certificate's end: %v", got)
	}
	waitFor(t, "the connection's end", func() bool { return s.metric(t, "connections", "") == 0 })
	if n := len(s.recorder.all()); n != 1 {
		t.Errorf("%d messages were taken, want that of before", n)
	}
	silent := s.now.Swap(begun.UnixNano())
	st = s.as(s.mesh.until(podinfoID, time.Hour)).open(t).send(helloAs(t, "web-1", "podinfo", request(1000, 1)))
	waitFor(t, "another one", func() bool { return len(s.recorder.all()) == 2 })
	s.now.Store(silent + int64(time.Hour))
	s.conns.sweep()
	if got := st.end(); got.Code() != codes.Unavailable {
		t.Errorf("a silent one: %v", got)
	}
}

// Both roots, then the new one alone: those of the old one are closed, the others live.
func TestAWithdrawnRootEndsItsConnections(t *testing.T) {
	s := serveMutual(t, Mutual{})
	old, successor := s.mesh, newAuthority(t)
	s.conns.sweep()
	s.serve(old, successor)
	s.conns.sweep()
	before := s.as(old.until(podinfoID, time.Hour)).open(t).send(helloAs(t, "web-0", "podinfo", request(1000, 1)))
	after := s.as(successor.until(podinfoID, time.Hour)).open(t).send(helloAs(t, "web-1", "podinfo", request(1000, 1)))
	waitFor(t, "both", func() bool { return len(s.recorder.all()) == 2 })
	s.serve(successor, old)
	s.conns.sweep()
	if got := s.metric(t, "closed_connections_total", closedRoot); got != 0 {
		t.Fatalf("%v closed while both are trusted", got)
	}
	s.serve(successor)
	s.conns.sweep()
	if got := before.end(); got.Code() != codes.Unavailable {
		t.Errorf("of the old root: %v", got)
	}
	if got := after.send(message(t, request(2000, 2))).close(); got.Code() != codes.OK {
		t.Errorf("of the new root: %v", got)
	}
	if got := s.metric(t, "closed_connections_total", closedRoot); got != 1 {
		t.Errorf("%v connections closed, want 1", got)
	}
}

func TestAConnectionIsDueInItsLastQuarter(t *testing.T) {
	now := time.Unix(1e9, 0)
	end := now.Add(24 * time.Hour)
	for where, want := range map[float64]time.Duration{0: 24 * time.Hour, 0.5: 21 * time.Hour, 1: 18 * time.Hour} {
		if got := dueAt(now, end, where).Sub(now); got != want {
			t.Errorf("at %v: after %s, want %s", where, got, want)
		}
	}
}

// In the middle of a message a connection that is due waits for its end.
func TestAConnectionThatIsDueWaitsForTheMessagesEnd(t *testing.T) {
	s := serveMutual(t, Mutual{})
	s.conns.quiet = time.Hour // the test tells when nothing has come for long
	certificate := s.mesh.until(podinfoID, time.Hour)
	s.now.Store(certificate.Leaf.NotAfter.Add(-2 * time.Second).UnixNano())
	c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*certificate}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r, whole := raw{c, t}, message(t, request(2000, 2))
	r.preface().headersOf(1, endHeaders).message(1, helloAs(t, "web-0", "podinfo", request(1000, 1)))
	r.frame(frameData, 0, 1, append([]byte{0, 0, 0, 0, byte(len(whole))}, whole[:3]...)...)
	waitFor(t, "the part", func() bool { return s.conns.pending.Load() > 0 && len(s.recorder.all()) == 1 })
	var due *connection
	waitFor(t, "it to be due", func() bool {
		s.conns.mu.Lock()
		defer s.conns.mu.Unlock()
		for due = range s.conns.open {
			due.mu.Lock()
			defer due.mu.Unlock()
			return due.term.timer != nil
		}
		return false
	})
	s.conns.renewed(due)
	if got := s.metric(t, "closed_connections_total", closedCertificate); got != 0 {
		t.Fatal("closed in the middle of a message")
	}
	r.frame(frameData, 0, 1, whole[3:]...)
	waitFor(t, "the message", func() bool { return len(s.recorder.all()) == 2 && s.conns.pending.Load() == 0 })
	s.conns.renewed(due)
	if got := s.metric(t, "closed_connections_total", closedCertificate); got != 1 {
		t.Error("not closed after the message")
	}
}

// Nothing is counted yet while a certificate is shown: a chain beyond any is not kept.
func TestAHandshakeIsBounded(t *testing.T) {
	s := serveMutual(t, Mutual{})
	certificate := s.mesh.until(podinfoID, time.Hour)
	leaf := certificate.Certificate[0]
	for bytes, want := range map[int]codes.Code{16 << 10: codes.OK, 2 * maxHandshake: codes.Unavailable} {
		certificate.Certificate = [][]byte{leaf}
		for range bytes / len(s.mesh.cert.Raw) {
			certificate.Certificate = append(certificate.Certificate, s.mesh.cert.Raw)
		}
		st, err := s.as(certificate).dial(t)
		if code := codeOf(st, err, helloAs(t, "web-1", "podinfo", request(1000, 1))); code != want {
			t.Errorf("a chain of %d bytes: %v, want %v", bytes, code, want)
		}
	}
	waitFor(t, "the reason in the log", func() bool { return strings.Contains(s.log.String(), errLongHandshake.Error()) })
}

// A handshake that has begun before a root was withdrawn, and is done after the connections were
// looked at, proves nothing.
func TestARootThatIsWithdrawnDuringAHandshakeEndsTheConnection(t *testing.T) {
	s := serveMutual(t, Mutual{})
	certificate := s.mesh.until(podinfoID, time.Hour)
	s.conns.sweep()
	c, err := tls.Dial("tcp", s.addr, &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			s.serve(newAuthority(t))
			s.conns.sweep()
			return certificate, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Read(make([]byte, 9)); err != nil { // the sink's settings, so it has taken the connection
		t.Fatal(err)
	}
	s.conns.sweep()
	if got := s.metric(t, "closed_connections_total", closedRoot); got != 1 {
		t.Errorf("%v connections closed, want 1", got)
	}
}
