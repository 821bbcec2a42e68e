package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/bench/identity"
	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/bench/web"
)

// proving is a mesh whose sidecars prove who they are, and meshpulse with a certificate of its
// authority.
type proving struct {
	*testing.T
	*standalone.Server
	authority *identity.Authority
	ca        *identity.Service
	roots     string // meshpulse's file
	hpas      string
	agents    int
}

func newProving(t *testing.T, args ...string) *proving {
	t.Helper()
	return newProvingIn(t, "meshpulse-system", args...)
}

// newProvingIn is one whose meshpulse is installed in another namespace.
func newProvingIn(t *testing.T, namespace string, args ...string) *proving {
	t.Helper()
	p := &proving{T: t, ca: &identity.Service{Life: time.Hour}, hpas: t.TempDir(), authority: newAuthority(t, "mesh")}
	p.ca.Use(p.authority, p.authority)
	address, err := p.ca.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.ca.Stop)
	dir := t.TempDir()
	p.roots = filepath.Join(dir, "root-cert.pem")
	p.trust(p.authority)
	token := filepath.Join(dir, "token")
	writeFile(t, token, "e30."+base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"system:serviceaccount:`+namespace+`:meshpulse","aud":["istio-ca"]}`))+".x")
	for _, pod := range []string{"podinfo-0", "podinfo-1"} {
		query(t, p.hpas, pod, fmt.Sprintf(`sum(max_over_time(istio_requests_total{pod=%q}[5m]))`, pod))
	}
	p.Server = serve(t, standalone.Options{HPADir: p.hpas, Args: append([]string{
		"--ingest-ca-address=" + address, "--ingest-ca-server-name=" + identity.ServerName, "--ingest-ca-root-file=" + p.roots, "--ingest-ca-token-file=" + token,
	}, args...)})
	p.until("a certificate", "meshpulse_ingest_certificate_expires_timestamp_seconds", 1)
	return p
}

func newAuthority(t *testing.T, name string) *identity.Authority {
	t.Helper()
	a, err := identity.NewAuthority(name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// trust writes the roots that meshpulse reads, as a kubelet does.
func (p *proving) trust(roots ...*identity.Authority) {
	p.Helper()
	var b []byte
	for _, a := range roots {
		b = append(b, a.PEM...)
	}
	writeFile(p.T, p.roots+".new", string(b))
	if err := os.Rename(p.roots+".new", p.roots); err != nil {
		p.Fatal(err)
	}
}

// agent hands out a certificate of a service account.
func (p *proving) agent(namespace, account string, life time.Duration) (*identity.Agent, string) {
	p.Helper()
	p.agents++
	dir, err := os.MkdirTemp("", "sds") // a Unix socket's path is short
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, strconv.Itoa(p.agents))
	a, err := identity.NewAgent(socket, identity.SPIFFE(namespace, account))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(a.Close)
	a.Trust(p.authority)
	if err := a.Renew(p.authority, life); err != nil {
		p.Fatal(err)
	}
	return a, socket
}

// sidecar is one that says that it is a pod of the service account podinfo.
func (p *proving) sidecar(pod, socket string, change func(*sidecar.Options)) *sidecar.Sidecar {
	p.Helper()
	return envoy(p.T, p.Server, pod, func(o *sidecar.Options) {
		o.ServiceAccount = "podinfo"
		if socket != "" {
			o.TLS = &sidecar.TLS{Socket: socket, Peers: []string{identity.SPIFFE("meshpulse-system", "meshpulse")}}
		}
		if change != nil {
			change(o)
		}
	})
}

// metric is one of meshpulse's own, with its labels as they are written.
func (p *proving) metric(ctx context.Context, name string) (float64, error) {
	text, err := web.Get(ctx, web.Insecure(), p.URL+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// until waits for a metric to be so much at least.
func (p *proving) until(what, name string, least float64) {
	p.Helper()
	await(p.T, what, func() error {
		got, err := p.metric(p.Context(), name)
		if err == nil && got < least {
			err = fmt.Errorf("%s is %v, want %v", name, got, least)
		}
		return err
	})
}

// is fails where a metric is not what it was.
func (p *proving) is(name string, want float64) {
	p.Helper()
	if got, err := p.metric(p.Context(), name); err != nil || got != want {
		p.Errorf("%s is %v, %v, want %v", name, got, err, want)
	}
}

const (
	certificateCloses = `meshpulse_ingest_closed_connections_total{reason="certificate"}`
	handshakeCloses   = `meshpulse_ingest_closed_connections_total{reason="handshake"}`
)

func refusals(reason string) string {
	return `meshpulse_ingest_identity_refusals_total{reason="` + reason + `"}`
}

// A sidecar as Istio wires it with ISTIO_MUTUAL reports beside one in plaintext, on the same port.
// Whoever says that it is the first and shows less, or something else, is refused, and its numbers
// are what it sent.
func TestSidecarsProveWhoTheyAre(t *testing.T) {
	t.Parallel()
	p := newProving(t)
	_, socket := p.agent("test", "podinfo", time.Hour)
	proven, plain := p.sidecar("podinfo-0", socket, nil), p.sidecar("podinfo-1", "", nil)
	send(t, proven, "caller", 1, 30)
	send(t, plain, "caller", 1, 20)
	awaitValue(t, p.Server, "podinfo-0", 30)
	awaitValue(t, p.Server, "podinfo-1", 20)
	p.is(`meshpulse_ingest_streams{security="mtls"}`, 1)
	p.is(`meshpulse_ingest_streams{security="plaintext"}`, 1)
	status, err := p.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range status.Metrics {
		want, names := "1/1", "[]"
		if m.HPA == "podinfo-1" {
			want, names = "0/1", "[test/podinfo-1]"
		}
		if m.Proven != want || fmt.Sprint(m.Unproven) != names {
			t.Errorf("%s: proven %s, not %v", m.HPA, m.Proven, m.Unproven)
		}
	}
	for name, hostile := range map[string]struct{ namespace, account, reason string }{
		"of another namespace":       {"other", "podinfo", "node"},
		"of another service account": {"test", "other", "node"},
		"in plaintext":               {"", "", "downgrade"},
	} {
		socket := ""
		if hostile.account != "" {
			_, socket = p.agent(hostile.namespace, hostile.account, time.Hour)
		}
		before, err := p.metric(t.Context(), refusals(hostile.reason))
		if err != nil {
			t.Fatal(err)
		}
		e := p.sidecar("podinfo-0", socket, nil)
		send(t, e, "forger", 1, 500)
		p.until("a forger "+name+" to be refused twice", refusals(hostile.reason), before+2)
		e.Kill()
		send(t, proven, "caller", 1, 1)
	}
	awaitValue(t, p.Server, "podinfo-0", 33)
	await(t, "the HPA's event", func() error {
		status, err := p.Status(t.Context())
		if err != nil {
			return err
		}
		for _, m := range status.Metrics {
			for _, e := range m.Events {
				if m.HPA == "podinfo-0" && e.Reason == "RefusedSender" {
					return nil
				}
			}
		}
		return errors.New("none of RefusedSender")
	})
	_, socket = p.agent("test", "podinfo", time.Hour)
	p.sidecar("podinfo-2", socket, func(o *sidecar.Options) {
		o.TLS.Peers = []string{identity.SPIFFE("meshpulse-system", "somebody")}
	})
	p.until("a sidecar that would report to somebody else", handshakeCloses, 1)
}

// The chart's notes tell whom sidecars are to expect: a real Envoy that goes by them reports, one
// that goes by those of another namespace does not. bench/tools/release holds testdata/notes.txt to
// the chart, and the address in it to the Service.
func TestSidecarsThatGoByTheChartsNotesReport(t *testing.T) {
	t.Parallel()
	notes, err := os.ReadFile("testdata/notes.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, config, found := strings.Cut(string(notes), "\nmeshConfig:\n")
	config, _, _ = strings.Cut(config, "\n\n")
	var told struct {
		DefaultConfig struct {
			EnvoyMetricsService struct {
				TLSSettings struct {
					Mode            string
					SubjectAltNames []string
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(config), &told); !found || err != nil {
		t.Fatalf("%v:\n%s", err, notes)
	}
	settings := told.DefaultConfig.EnvoyMetricsService.TLSSettings
	if settings.Mode != "ISTIO_MUTUAL" || len(settings.SubjectAltNames) == 0 {
		t.Fatalf("%+v", settings)
	}
	p := newProvingIn(t, "kube-system")
	_, socket := p.agent("test", "podinfo", time.Hour)
	e := p.sidecar("podinfo-0", socket, func(o *sidecar.Options) { o.TLS.Peers = settings.SubjectAltNames })
	send(t, e, "caller", 1, 10)
	awaitValue(t, p.Server, "podinfo-0", 10)
	p.is(`meshpulse_ingest_streams{security="mtls"}`, 1)
	_, socket = p.agent("test", "podinfo", time.Hour)
	p.sidecar("podinfo-1", socket, nil)
	p.until("a sidecar that expects another namespace's", handshakeCloses, 1)
}

// Certificates of eight seconds, renewed each three: connections are closed after a flush and come
// back with new ones, and all that was sent is known. At last one is not renewed: nothing more of
// it is taken, and all is once it is.
func TestConnectionsEndWithTheirCertificates(t *testing.T) {
	t.Parallel()
	const life = 8 * time.Second
	p := newProving(t)
	agent, socket := p.agent("test", "podinfo", life)
	e := p.sidecar("podinfo-0", socket, nil)
	renewals := time.NewTicker(3 * time.Second)
	defer renewals.Stop()
	sent := 0
	for closed := 0.0; closed < 3; {
		<-renewals.C
		if err := agent.Renew(p.authority, life); err != nil {
			t.Fatal(err)
		}
		send(t, e, "caller", 1, 10)
		sent += 10
		var err error
		if closed, err = p.metric(t.Context(), certificateCloses); err != nil {
			t.Fatal(err)
		}
	}
	if err := agent.Renew(p.authority, time.Hour); err != nil {
		t.Fatal(err)
	}
	awaitValue(t, p.Server, "podinfo-0", float64(sent))
	p.is(handshakeCloses, 0)
	p.is(`meshpulse_ingest_stream_ends_total{reason="expired"}`, 0)
	p.is(`meshpulse_ingest_stream_ends_total{reason="lost"}`, 0)
	if why := agent.Refused(); why != "" {
		t.Errorf("the sidecar refused a secret: %s", why)
	}
}

func TestACertificateThatIsNotRenewedIsNotTaken(t *testing.T) {
	t.Parallel()
	p := newProving(t)
	agent, socket := p.agent("test", "podinfo", 5*time.Second)
	e := p.sidecar("podinfo-0", socket, nil)
	send(t, e, "caller", 1, 10)
	awaitValue(t, p.Server, "podinfo-0", 10)
	p.until("a handshake with what has ended", handshakeCloses, 1)
	send(t, e, "caller", 1, 10)
	if err := agent.Renew(p.authority, time.Hour); err != nil {
		t.Fatal(err)
	}
	awaitValue(t, p.Server, "podinfo-0", 20)
}

// Old and new root, then the new one alone: a sidecar that has a certificate of the new one goes
// on, one of the old one is cut off.
func TestTheMeshMayChangeItsRoot(t *testing.T) {
	t.Parallel()
	p := newProving(t)
	successor := newAuthority(t, "mesh-2")
	moves, movesSocket := p.agent("test", "podinfo", time.Hour)
	stays, staysSocket := p.agent("test", "podinfo", time.Hour)
	e, old := p.sidecar("podinfo-0", movesSocket, nil), p.sidecar("podinfo-1", staysSocket, nil)
	send(t, e, "caller", 1, 10)
	send(t, old, "caller", 1, 10)
	awaitValue(t, p.Server, "podinfo-0", 10)
	awaitValue(t, p.Server, "podinfo-1", 10)
	asked := p.ca.Asked()
	p.ca.Use(p.authority, p.authority, successor)
	p.trust(p.authority, successor)
	moves.Trust(p.authority, successor)
	stays.Trust(p.authority, successor)
	await(t, "meshpulse to ask anew since its roots have changed", func() error {
		if n := p.ca.Asked(); n == asked {
			return fmt.Errorf("asked %d times", n)
		}
		return nil
	})
	if err := moves.Renew(successor, time.Hour); err != nil {
		t.Fatal(err)
	}
	p.ca.Use(successor, successor)
	p.trust(successor)
	p.until("both connections of the old root to be closed", `meshpulse_ingest_closed_connections_total{reason="root"}`, 2)
	p.until("the one that has no other to be refused", handshakeCloses, 1)
	send(t, e, "caller", 1, 10)
	awaitValue(t, p.Server, "podinfo-0", 20)
	if err := stays.Renew(successor, time.Hour); err != nil {
		t.Fatal(err)
	}
	send(t, old, "caller", 1, 10)
	awaitValue(t, p.Server, "podinfo-1", 20)
}
