package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/meshpulse/meshpulse/metricsapi/keda/externalscaler"
)

// kedaOptions are those of a server in a cluster whose API server tells nothing, on free ports.
func kedaOptions(t *testing.T, more ...string) (o serveOptions, err error) {
	t.Helper()
	api := httptest.NewServer(&apiServer{})
	t.Cleanup(func() {
		api.CloseClientConnections()
		api.Close()
	})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\nclusters: [{name: a, cluster: {server: %q}}]\n", api.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f := o.flags(console{out: io.Discard, err: io.Discard})
	args := []string{"--kubeconfig=" + kubeconfig, "--bind-address=127.0.0.1", "--ingest-address=127.0.0.1:0", "--secure-port=0"}
	if err := f.Parse(append(args, more...)); err != nil {
		t.Fatal(err)
	}
	return o, o.complete()
}

func TestKEDAFlagsThatDoNotFitAreRefused(t *testing.T) {
	for name, args := range map[string][]string{
		"have no effect without --keda-address":                 {"--keda-scaler-addresses=a:1"},
		"lets everybody ask what ScaledObjects":                 {"--keda-address=0.0.0.0:9091"},
		"belong together":                                       {"--keda-address=127.0.0.1:9091", "--keda-tls-cert-file=x"},
		"no client has a certificate":                           {"--keda-address=127.0.0.1:9091", "--keda-client-ca-file=x"},
		"give host:port":                                        {"--keda-address=9091"},
		"what meshpulse itself listens on":                      {"--keda-address=127.0.0.1:9091", "--prometheus-address=127.0.0.1:9091"},
		"leave --keda-address out with --standalone":            {"--keda-address=127.0.0.1:9091", "--standalone", "--kubeconfig=", "--hpa-dir=" + t.TempDir()},
		"--keda-scaler-addresses \"meshpulse\" is no host:port": {"--keda-address=127.0.0.1:9091", "--keda-scaler-addresses=meshpulse"},
	} {
		if _, err := kedaOptions(t, args...); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: %v, want one that says %q", args, err, name)
		}
	}
	o, err := kedaOptions(t, "--keda-address=127.0.0.1:9091")
	if want := "meshpulse-keda.meshpulse-system.svc:9091"; err != nil || !slices.Contains(o.api.ScalerAddresses, want) {
		t.Errorf("it is known by %v, %v, want %s", o.api.ScalerAddresses, err, want)
	}
	if o, err = kedaOptions(t, "--keda-address=:9091", "--keda-insecure", "--keda-scaler-addresses=mesh.example:443"); err != nil || !slices.Equal(o.api.ScalerAddresses, []string{"mesh.example:443"}) {
		t.Errorf("it is known by %v, %v", o.api.ScalerAddresses, err)
	}
}

// TestTheScalerAnswersWhoHasWhatIsAsked: over TLS, to a client with a certificate and the token.
// Until the API server has told what ScaledObjects there are, that is what it says.
func TestTheScalerAnswersWhoHasWhatIsAsked(t *testing.T) {
	s, client := guarded(t, "--keda", kedaOptions)
	ask := func(token string, certificates ...tls.Certificate) error {
		config := &tls.Config{InsecureSkipVerify: true, Certificates: certificates} //nolint:gosec // who serves is not what is tested
		conn, err := grpc.NewClient(s.keda.listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, err = externalscaler.NewExternalScalerClient(conn).IsActive(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), &externalscaler.ScaledObjectRef{Namespace: "test", Name: "a"})
		return err
	}
	if err := ask(portToken, client); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "have not been read") {
		t.Errorf("with both: %v", err)
	}
	if err := ask("wrong", client); status.Code(err) != codes.Unauthenticated {
		t.Errorf("another token: %v", err)
	}
	if err := ask(portToken); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "have not been read") {
		t.Errorf("without a certificate: %v", err)
	}
}
