package manifests

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// shadowInstalled is what install.sh applies for a Prometheus to compare with.
func shadowInstalled(t *testing.T, args ...string) []runtime.Object {
	t.Helper()
	c := newFakeCluster(t, "")
	args = append([]string{"--image", "r.example/meshpulse:1"}, args...)
	c.mustRun("install.sh", args...)
	if folder := c.read("composed"); folder != "" { // rendered, where the first run had the base's
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(c.read("composed.yaml")), 0o600); err != nil {
			t.Fatal(err)
		}
		c.write("base.yaml", bytes.Join(render(t, folder), []byte("---\n")))
	}
	c.mustRun("install.sh", args...)
	var objects []runtime.Object
	for doc := range strings.SplitSeq(c.read("applied.yaml"), "\n---\n") {
		objects = append(objects, decode(t, "applied.yaml", []byte(doc)))
	}
	return objects
}

// The NetworkPolicy lets meshpulse to the Prometheus that it is compared with, and no further: to a
// Service's pods by their namespace, else to the port; where two labels may be either, to both.
func TestThePrometheusOfTheComparisonIsLetThrough(t *testing.T) {
	none := egress(one[*networkingv1.NetworkPolicy](t, shadowInstalled(t), "meshpulse"))
	for url, want := range map[string][]string{
		"http://prometheus.monitoring.svc:9090":                  {"monitoring TCP any"},
		"http://prometheus.monitoring.svc.cluster.local:9090/p/": {"monitoring TCP any"},
		"http://prometheus:9090":                                 {namespace + " TCP any"},
		"http://prometheus.monitoring:9090":                      {"monitoring TCP any", "TCP 9090"},
		"https://example.com":                                    {"com TCP any", "TCP 443"},
		"http://prometheus.example.com":                          {"TCP 80"},
		"http://a.b.svcx.svc:1":                                  {"TCP 1"},
		"http://10.1.2.3:9091":                                   {"TCP 9091"},
		"https://[fd00::1]/":                                     {"TCP 443"},
		"http://[fd00::1]:9091":                                  {"TCP 9091"},
	} {
		objects := shadowInstalled(t, "--shadow-prometheus", url)
		want := append(slices.Clone(none), want...)
		slices.Sort(want)
		if got := egress(one[*networkingv1.NetworkPolicy](t, objects, "meshpulse")); !slices.Equal(got, want) {
			t.Errorf("%s: %q may be asked, want %q", url, got, want)
		}
		c := one[*appsv1.Deployment](t, objects, "meshpulse").Spec.Template.Spec.Containers[0]
		if c.Args[len(c.Args)-1] != "--shadow-prometheus="+url {
			t.Errorf("%s: args %q", url, c.Args)
		}
	}
}

func TestWhatIsNoPrometheusToCompareWith(t *testing.T) {
	for _, url := range []string{
		"", "prometheus:9090", "ftp://x", "http://", "http:///api", "http://u:secret@x", "http://x?a=b", "http://x#y",
		"http://x|e id", "http://x y", "http://x\nhostNetwork: true", "http://x&", `http://x\1`, "http://x:port", "http://:9090", "http://.x:1",
	} {
		c := newFakeCluster(t, "")
		out, err := c.run("install.sh", "--image", "r.example/meshpulse:1", "--shadow-prometheus", url)
		if err == nil || len(c.changes()) > 0 || !strings.Contains(out, "--shadow-prometheus") {
			t.Errorf("%q: %v, changed %q\n%s", url, err, c.changes(), out)
		}
	}
	for _, mode := range []string{"--rotate-cert", "--release-apiservice"} {
		c := newFakeCluster(t, ours)
		if out, err := c.run("install.sh", mode, "--shadow-prometheus=http://x"); err == nil {
			t.Errorf("%s takes it:\n%s", mode, out)
		}
	}
}
