package manifests

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// fakeCluster is the folder that testdata/kubectl works on: the scripts run as they are, with the
// real openssl. What it cannot show, that an API server takes what they send, is for the lab to
// show.
type fakeCluster struct {
	t      *testing.T
	folder string
}

const ours = "meshpulse-system/meshpulse"

func newFakeCluster(t *testing.T, owner string) fakeCluster {
	t.Helper()
	c := fakeCluster{t, t.TempDir()}
	c.write("base.yaml", bytes.Join(render(t, "base"), []byte("---\n")))
	if owner != "" {
		c.write("owner", []byte(owner))
	}
	return c
}

func (c fakeCluster) write(name string, content []byte) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.folder, name), content, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// read returns a file of the folder, "" if it is not there.
func (c fakeCluster) read(name string) string {
	c.t.Helper()
	content, err := os.ReadFile(filepath.Join(c.folder, name))
	if err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	return string(content)
}

// run executes a script against the cluster; its output is what an operator sees.
func (c fakeCluster) run(script string, args ...string) (output string, err error) {
	c.t.Helper()
	fake, err := filepath.Abs("testdata")
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", append([]string{script}, args...)...)
	cmd.Env = append(os.Environ(), "FAKE="+c.folder, "PATH="+fake+":"+os.Getenv("PATH"), "TMPDIR="+c.t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c fakeCluster) mustRun(script string, args ...string) string {
	c.t.Helper()
	out, err := c.run(script, args...)
	if err != nil {
		c.t.Fatalf("%s %v: %v\n%s", script, args, err, out)
	}
	return out
}

var readsOnly = regexp.MustCompile(`^(kustomize |(-n \S+ )?get |.*--dry-run=client)`)

// changes are the calls that change the cluster, in order.
func (c fakeCluster) changes() []string {
	c.t.Helper()
	var found []string
	for line := range strings.Lines(c.read("log")) {
		if !readsOnly.MatchString(line) && !strings.Contains(line, "rollout status") && !strings.HasPrefix(line, "wait ") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// apiService is the APIService that was created.
func (c fakeCluster) apiService() *apiregistration.APIService {
	c.t.Helper()
	a, ok := decode(c.t, "created APIService", []byte(c.read("apiservice.yaml"))).(*apiregistration.APIService)
	if !ok {
		c.t.Fatal("not an APIService")
	}
	return a
}

// verify checks the Secret's certificate as the API server does: against the bundle, by the
// Service's name.
func (c fakeCluster) verify(certificate string, bundle []byte) {
	c.t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		c.t.Fatalf("no authority in the bundle:\n%s", bundle)
	}
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		c.t.Fatalf("no certificate:\n%s", certificate)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "meshpulse.meshpulse-system.svc", Roots: roots}); err != nil {
		c.t.Errorf("the API server would refuse the certificate: %v", err)
	}
}

func TestScriptsParse(t *testing.T) {
	for _, script := range []string{"install.sh", "uninstall.sh", "testdata/kubectl"} {
		if out, err := exec.Command("sh", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
		if info, err := os.Stat(script); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s cannot be executed (%v)", script, err)
		}
	}
}

func TestInstallNeverTakesTheAPI(t *testing.T) {
	for _, owner := range []string{"keda/keda-operator-metrics-apiserver", "meshpulse-system/other", "other/meshpulse", "/"} {
		t.Run("from "+owner, func(t *testing.T) {
			c := newFakeCluster(t, owner)
			out, err := c.run("install.sh", "--image", "r.example/meshpulse:1")
			if err == nil {
				t.Errorf("it installs:\n%s", out)
			}
			if !strings.Contains(out, "served by "+owner) || !strings.Contains(out, "--no-apiservice") {
				t.Errorf("the message names neither owner nor remedy:\n%s", out)
			}
			if got := c.changes(); len(got) > 0 {
				t.Errorf("it changed the cluster: %q", got)
			}
		})
	}
}

func TestInstallChangesNothingWhereItCannotLook(t *testing.T) {
	c := newFakeCluster(t, "")
	c.write("down", nil)
	out, err := c.run("install.sh", "--image", "r.example/meshpulse:1")
	if err == nil || !strings.Contains(out, "cannot tell whose") {
		t.Errorf("%v\n%s", err, out)
	}
	if got := c.changes(); len(got) > 0 {
		t.Errorf("it changed the cluster: %q", got)
	}
}

func TestInstallOfAnEmptyCluster(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image", "r.example:5000/team/meshpulse:v1@sha256:0a")

	d := one[*appsv1.Deployment](t, decodeFile(t, filepath.Join(c.folder, "applied.yaml")), "meshpulse")
	if got := d.Spec.Template.Spec.Containers[0].Image; got != "r.example:5000/team/meshpulse:v1@sha256:0a" {
		t.Errorf("image %s", got)
	}
	bundle := c.apiService().Spec.CABundle
	c.verify(c.read("tls.crt"), bundle)
	if string(bundle) != c.read("ca.crt") {
		t.Error("the APIService and the Secret hold different authorities")
	}
	if _, err := tls.X509KeyPair([]byte(c.read("tls.crt")), []byte(c.read("tls.key"))); err != nil {
		t.Errorf("certificate and key: %v", err)
	}
	log := c.read("log")
	ready, claim := strings.Index(log, "rollout status"), strings.LastIndex(log, "create -f -")
	if ready < 0 || claim < ready {
		t.Errorf("the API is claimed before meshpulse is ready:\n%s", log)
	}
	reached := strings.Index(log, "wait --for=condition=Available --timeout=60s apiservice/v1alpha1.meshpulse.io")
	if reached < ready || claim < reached || c.read("probe") != ours+"\n" {
		t.Errorf("the API is claimed before the API server has reached meshpulse, or its own API is not there:\n%s", log)
	}
}

// TestTheAPIServerIsAskedToReachWhatIsServed: the group is meshpulse's own, and behind the same
// Service under the same authority.
func TestTheAPIServerIsAskedToReachWhatIsServed(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1")
	probe, ok := decode(t, "probe", []byte(c.read("probe.yaml"))).(*apiregistration.APIService)
	if !ok {
		t.Fatal("not an APIService")
	}
	claim := c.apiService()
	if path := `"/apis/` + probe.Spec.Group + "/" + probe.Spec.Version + `"`; !strings.Contains(code(t, "metricsapi"), path) {
		t.Errorf("meshpulse does not serve %s", path)
	}
	if probe.Name != probe.Spec.Version+"."+probe.Spec.Group || !reflect.DeepEqual(probe.Spec.Service, claim.Spec.Service) || !bytes.Equal(probe.Spec.CABundle, claim.Spec.CABundle) {
		t.Errorf("%s: %+v, the metrics' is %+v", probe.Name, probe.Spec, claim.Spec)
	}
}

// TestNoAPIServiceIsLeftThatDoesNotAnswer: it would stall discovery and the deletion of namespaces.
func TestNoAPIServiceIsLeftThatDoesNotAnswer(t *testing.T) {
	for fault, owner := range map[string]string{"unreachable": "", "cutoff": "", "unreachable since": ours} {
		t.Run(fault, func(t *testing.T) {
			c := newFakeCluster(t, owner)
			c.write(strings.TrimSuffix(fault, " since"), nil)
			out, err := c.run("install.sh", "--image", "r.example/meshpulse:1")
			if err == nil {
				t.Errorf("it succeeds:\n%s", out)
			}
			for _, want := range []string{"failing or missing response", "firewall", "NetworkPolicy", "--component host-network"} {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not told:\n%s", want, out)
				}
			}
			if c.read("owner") != "" || c.read("probe") != "" {
				t.Errorf("left are the metrics' %q and our own %q", c.read("owner"), c.read("probe"))
			}
		})
	}
	t.Run("somebody else's", func(t *testing.T) {
		c := newFakeCluster(t, "")
		c.write("probe", []byte("other/service"))
		out, err := c.run("install.sh", "--image", "r.example/meshpulse:1")
		if err == nil || !strings.Contains(out, "somebody else's") || c.read("probe") != "other/service" || c.read("owner") != "" {
			t.Errorf("%v, probe %q, owner %q:\n%s", err, c.read("probe"), c.read("owner"), out)
		}
	})
}

// A pod that starts before its Secret cannot mount it, which is the first event that a user would
// see.
func TestThePodStartsWithItsSecret(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1")
	var order []string
	for _, call := range c.changes() {
		switch {
		case strings.HasSuffix(call, "/namespace.yaml"):
			order = append(order, "namespace")
		case strings.HasSuffix(call, "/base.yaml"):
			order = append(order, "base")
		case call == "create -f -":
			order = append(order, "created")
		}
	}
	if want := []string{"namespace", "created", "base", "created", "created"}; !slices.Equal(order, want) { // the Secret, and last the two APIServices
		t.Errorf("%v, want %v", order, want)
	}
}

func TestInstallAgainKeepsTheCertificate(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image=r.example/meshpulse:1")
	key, bundle := c.read("tls.key"), c.apiService().Spec.CABundle
	c.mustRun("install.sh", "--image=r.example/meshpulse:2")
	if c.read("tls.key") != key {
		t.Error("the key has changed")
	}
	if got := c.patch().bundle(t); !bytes.Equal(got, bundle) {
		t.Errorf("the APIService trusts\n%s\nthe certificate is by\n%s", got, bundle)
	}
	if n := strings.Count(c.read("log"), "create -f -"); n != 3 {
		t.Errorf("%d objects were created in two runs, want the Secret and the two APIServices", n)
	}
}

// TestInstallComposesComponents renders what the script asked kubectl to render.
func TestInstallComposesComponents(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--component", "mesh-namespaces", "--component=dns")
	folder := c.read("composed")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(c.read("composed.yaml")), 0o600); err != nil {
		t.Fatal(err)
	}
	p := one[*networkingv1.NetworkPolicy](t, renderObjects(t, folder), "meshpulse")
	if mayReach(t, p, "ingest", nil) || !slices.Contains(egress(p), "UDP 53") {
		t.Errorf("the components are not in it: %+v", p.Spec)
	}
}

func TestInstallSaysThatATagCanMove(t *testing.T) {
	for image, want := range map[string]bool{"r.example/meshpulse:1": true, "r.example/meshpulse:1@sha256:0a": false} {
		c := newFakeCluster(t, "")
		if out := c.mustRun("install.sh", "--image", image); strings.Contains(out, "no digest") != want {
			t.Errorf("%s: warned %v, want %v:\n%s", image, !want, want, out)
		}
	}
}

func TestInstallBesideAnotherAdapter(t *testing.T) {
	c := newFakeCluster(t, "keda/keda-operator-metrics-apiserver")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--no-apiservice")
	if c.read("applied.yaml") == "" || c.read("tls.crt") == "" {
		t.Error("meshpulse was not installed")
	}
	if c.read("apiservice.yaml") != "" || c.read("owner") != "keda/keda-operator-metrics-apiserver" {
		t.Error("it claimed the API")
	}
	if c.read("probe.yaml") == "" {
		t.Error("it explains nothing: its own API is not there")
	}
}

// TestCustomMetricsAreClaimedWhereNobodyHasThem: in any version, of which an HPA controller takes
// the one that the cluster prefers.
func TestCustomMetricsAreClaimedWhereNobodyHasThem(t *testing.T) {
	args := []string{"--image", "r.example/meshpulse:1", "--component", "custom-metrics"}
	t.Run("not from another", func(t *testing.T) {
		c := newFakeCluster(t, "")
		c.write("customs", []byte("v1beta1.custom.metrics.k8s.io monitoring/prometheus-adapter\n"))
		out, err := c.run("install.sh", args...)
		if err == nil || !strings.Contains(out, "v1beta1.custom.metrics.k8s.io monitoring/prometheus-adapter") || len(c.changes()) > 0 {
			t.Errorf("%v, changes %q\n%s", err, c.changes(), out)
		}
	})
	t.Run("once meshpulse was reached", func(t *testing.T) {
		c := newFakeCluster(t, "")
		c.mustRun("install.sh", args...)
		claim, ok := decode(t, "custom", []byte(c.read("custom.yaml"))).(*apiregistration.APIService)
		if !ok || claim.Name != "v1beta2.custom.metrics.k8s.io" || !reflect.DeepEqual(claim.Spec.Service, c.apiService().Spec.Service) {
			t.Fatalf("%+v", claim)
		}
		c.verify(c.read("tls.crt"), claim.Spec.CABundle)
		c.mustRun("install.sh", "--rotate-cert")
		c.verify(c.read("tls.crt"), c.patch().bundle(t)) // of the last that was patched
		if n := strings.Count(c.read("log"), "patch apiservice v1beta2.custom.metrics.k8s.io"); n != 1 {
			t.Errorf("patched %d times by a rotation", n)
		}
		c.mustRun("install.sh", args...)
		if c.read("custom") == "" || strings.Count(c.read("log"), "patch apiservice v1beta2.custom.metrics.k8s.io") != 2 {
			t.Error("installed again it is not kept")
		}
		c.mustRun("install.sh", args[:2]...)
		if c.read("custom") != "" {
			t.Error("without the component nobody would answer, and it is left")
		}
	})
	t.Run("never left where it does not answer", func(t *testing.T) {
		c := newFakeCluster(t, "")
		c.write("cutoff-custom", nil)
		out, err := c.run("install.sh", args...)
		if err == nil || c.read("custom") != "" || c.read("owner") == "" {
			t.Errorf("%v, left %q:\n%s", err, c.read("custom"), out)
		}
		if !strings.Contains(out, "does not reach meshpulse by v1beta2.custom.metrics.k8s.io, which is as it was before: HPAs with External metrics ask meshpulse") || strings.Contains(out, "no APIService of ours") {
			t.Errorf("what is left is not told:\n%s", out)
		}
	})
	t.Run("taken back at the end", func(t *testing.T) {
		c := newFakeCluster(t, ours)
		c.write("custom", []byte(ours))
		c.mustRun("uninstall.sh")
		if c.read("owner") != "" || c.read("custom") != "" {
			t.Errorf("left are %q and %q", c.read("owner"), c.read("custom"))
		}
	})
	t.Run("looked at alone", func(t *testing.T) {
		c := newFakeCluster(t, "")
		if out := c.mustRun("install.sh", append(args, "--dry-run")...); !strings.Contains(out, "would claim v1beta2.custom.metrics.k8s.io") || len(c.changes()) > 0 {
			t.Errorf("changes %q\n%s", c.changes(), out)
		}
	})
}

// Of a component that is left out later nothing stays but what patches undo.
func TestAComponentThatIsLeftOutLeavesNothing(t *testing.T) {
	for given, want := range map[string][]string{
		"":               {"custom-metrics/rbac", "fallback/rbac", "fallback/custom-metrics/rbac", "prometheus-api/service"},
		"prometheus-api": {"custom-metrics/rbac", "fallback/rbac", "fallback/custom-metrics/rbac"},
		"custom-metrics": {"fallback/rbac", "fallback/custom-metrics/rbac", "prometheus-api/service"},
	} {
		c := newFakeCluster(t, "")
		args := []string{"--image", "r.example/meshpulse:1"}
		if given != "" {
			args = append(args, "--component", given)
		}
		c.mustRun("install.sh", args...)
		var dropped []string
		for _, call := range c.changes() {
			if !strings.HasPrefix(call, "delete --ignore-not-found") {
				continue
			}
			for _, file := range strings.Fields(call)[2:] {
				if file != "-f" {
					dropped = append(dropped, strings.TrimSuffix(file[strings.LastIndex(file, "/components/")+len("/components/"):], ".yaml"))
				}
			}
		}
		if !slices.Equal(dropped, want) {
			t.Errorf("with %q are deleted %v, want %v", given, dropped, want)
		}
	}
	// Whatever a component adds is among those that are deleted, but for what install.sh does not
	// install.
	files, err := filepath.Glob("components/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	script := read(t, "manifests/install.sh")
	for _, file := range files {
		component := filepath.Base(filepath.Dir(file))
		others := []string{"alerts", "apiservice", "cert-manager", "own-api", "surge-action"}
		if filepath.Base(file) != "kustomization.yaml" && !slices.Contains(others, component) && !strings.Contains(script, strings.TrimSuffix(strings.TrimPrefix(file, "components/"), ".yaml")) {
			t.Errorf("%s stays where its component is left out", file)
		}
	}
}

func TestInstallDoesNotClaimBeforeThePodIsReady(t *testing.T) {
	c := newFakeCluster(t, "")
	c.write("unready", nil)
	out, err := c.run("install.sh", "--image", "r.example/meshpulse:1")
	if err == nil || !strings.Contains(out, "kubectl -n meshpulse-system logs") {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(out, "waiting for the pod:") || strings.Count(out, "ErrImagePull") != 2 {
		t.Errorf("what the cluster says of the pod is not told once while it waits and once at the end:\n%s", out)
	}
	if c.read("apiservice.yaml") != "" {
		t.Error("it claimed the API")
	}
}

func TestDryRunsChangeNothing(t *testing.T) {
	for name, args := range map[string][]string{
		"install":   {"install.sh", "--image", "r.example/meshpulse:1", "--dry-run"},
		"rotate":    {"install.sh", "--rotate-cert", "--dry-run"},
		"uninstall": {"uninstall.sh", "--dry-run"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newFakeCluster(t, "")
			c.mustRun("install.sh", "--image", "r.example/meshpulse:1")
			before := c.changes()
			if out := c.mustRun(args[0], args[1:]...); !strings.Contains(out, "would") {
				t.Errorf("it does not say what it would do:\n%s", out)
			}
			if after := c.changes(); len(after) != len(before) {
				t.Errorf("it changed the cluster: %q", after[len(before):])
			}
		})
	}
}

// TestRotationHasNoGap: between the patch and the pod reading its Secret the old certificate is
// still served.
func TestRotationHasNoGap(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1")
	certificate := c.read("tls.crt")
	for range 2 {
		previous := certificate
		c.mustRun("install.sh", "--rotate-cert")
		certificate = c.read("tls.crt")
		if certificate == previous {
			t.Fatal("the certificate is the same")
		}
		bundle := c.patch().bundle(t)
		c.verify(previous, bundle)
		c.verify(certificate, bundle)
		if n := bytes.Count(bundle, []byte("BEGIN CERTIFICATE")); n != 2 {
			t.Errorf("%d authorities are trusted, want the new and the last", n)
		}
	}
	log := c.read("log")
	if strings.LastIndex(log, "patch apiservice") > strings.LastIndex(log, "replace -f -") {
		t.Error("the certificate is replaced before its authority is trusted")
	}
}

func TestRotationBesideAnotherAdapter(t *testing.T) {
	c := newFakeCluster(t, "keda/keda-operator-metrics-apiserver")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--no-apiservice")
	c.mustRun("install.sh", "--rotate-cert")
	for _, call := range c.changes() {
		if strings.Contains(call, "patch apiservice v1beta1.external.metrics.k8s.io") {
			t.Errorf("it patched somebody else's APIService: %s", call)
		}
	}
}

func TestArgumentsThatAreRefused(t *testing.T) {
	for name, args := range map[string][]string{
		"no image":                  {"install.sh"},
		"an image that is YAML":     {"install.sh", "--image", "x\n      hostNetwork: true"},
		"an image that ends sed":    {"install.sh", "--image", "x|e id"},
		"a word":                    {"install.sh", "please"},
		"rotation with an image":    {"install.sh", "--rotate-cert", "--image", "x"},
		"no component":              {"install.sh", "--image", "x", "--component"},
		"a foreign component":       {"install.sh", "--image", "x", "--component", "../../x"},
		"rotation with a component": {"install.sh", "--rotate-cert", "--component", "dns"},
		"uninstall with a word":     {"uninstall.sh", "please"},
		"uninstall with two words":  {"uninstall.sh", "--dry-run", "please"},
		"uninstall with nothing":    {"uninstall.sh", "", "--dry-run"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newFakeCluster(t, "")
			if out, err := c.run(args[0], args[1:]...); err == nil {
				t.Errorf("it is taken:\n%s", out)
			}
			if log := c.read("log"); log != "" {
				t.Errorf("kubectl was called: %s", log)
			}
		})
	}
}

// An option that took the next one as its value would not only miss it: --dry-run would be done for
// real.
func TestAnOptionDoesNotTakeTheNextOneAsItsValue(t *testing.T) {
	for _, option := range []string{"--image", "--component"} {
		for name, args := range map[string][]string{
			"the next option":       {option, "--dry-run"},
			"the next option, with": {option + "=--dry-run"},
			"nothing":               {option, ""},
			"nothing, with":         {option + "="},
			"the end":               {option},
		} {
			t.Run(option+" and "+name, func(t *testing.T) {
				c := newFakeCluster(t, "")
				out, err := c.run("install.sh", append([]string{"--image", "r.example/meshpulse:1"}, args...)...)
				if err == nil || !strings.Contains(out, option+" needs a value") {
					t.Errorf("%v\n%s", err, out)
				}
				if log := c.read("log"); log != "" {
					t.Errorf("kubectl was called: %s", log)
				}
			})
		}
	}
}

// What could only fail at its end is told before anything is built.
func TestMakeTellsBeforeItBuilds(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"push without an image":     {[]string{"push"}, "names no registry: give IMAGE="},
		"push without a registry":   {[]string{"push", "IMAGE=team/meshpulse:1.2"}, "IMAGE=team/meshpulse:1.2 names no registry"},
		"release without a version": {[]string{"release", "VERSION=abc"}, "VERSION=abc is no version: give one such as"},
		"run without the Envoy":     {[]string{"run", "ENVOY_BIN=/nope"}, "ENVOY_BIN=/nope is not a program"},
		"run with a folder for one": {[]string{"run", "ENVOY_BIN=/tmp"}, "ENVOY_BIN=/tmp is not a program"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("make", append([]string{"-C", "..", "GO=false"}, tc.args...)...)
			cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
				return strings.HasPrefix(v, "IMAGE=") || strings.HasPrefix(v, "MAKEFLAGS=") || strings.HasPrefix(v, "ENVOY_BIN=")
			})
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), tc.want) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestUninstall(t *testing.T) {
	t.Run("its own API goes first, at the version that was looked at", func(t *testing.T) {
		c := newFakeCluster(t, ours)
		c.mustRun("uninstall.sh")
		got := c.changes()
		if len(got) != 3 || !strings.HasPrefix(got[0], "delete --raw /apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io") || !strings.Contains(got[1], "surge-action") {
			t.Errorf("calls %q", got)
		}
		var options struct {
			Preconditions struct{ ResourceVersion string }
		}
		if err := json.Unmarshal([]byte(c.read("delete.json")), &options); err != nil || options.Preconditions.ResourceVersion != "4711" {
			t.Errorf("preconditions %+v (%v)", options, err)
		}
		if c.read("deleted.yaml") != c.read("base.yaml") {
			t.Error("the base was not deleted as it is rendered")
		}
	})
	t.Run("somebody else's stays", func(t *testing.T) {
		c := newFakeCluster(t, "keda/keda-operator-metrics-apiserver")
		if out := c.mustRun("uninstall.sh"); !strings.Contains(out, "left alone") {
			t.Errorf("it does not say so:\n%s", out)
		}
		for _, call := range c.changes() {
			if strings.Contains(call, "apiservice") {
				t.Errorf("it touched the API: %s", call)
			}
		}
	})
	t.Run("the API of its own goes too", func(t *testing.T) {
		c := newFakeCluster(t, ours)
		c.write("probe", []byte(ours))
		c.mustRun("uninstall.sh")
		if c.read("owner") != "" || c.read("probe") != "" {
			t.Errorf("left are %q and %q", c.read("owner"), c.read("probe"))
		}
	})
	t.Run("nothing goes where it cannot look", func(t *testing.T) {
		c := newFakeCluster(t, ours)
		c.write("down", nil)
		if out, err := c.run("uninstall.sh"); err == nil || len(c.changes()) > 0 {
			t.Errorf("%v, %q\n%s", err, c.changes(), out)
		}
	})
}

// jsonPatch is what the APIService was patched with last.
type jsonPatch []struct{ Op, Path, Value string }

func (c fakeCluster) patch() jsonPatch {
	c.t.Helper()
	var p jsonPatch
	if err := json.Unmarshal([]byte(c.read("patch.json")), &p); err != nil {
		c.t.Fatalf("patch %q: %v", c.read("patch.json"), err)
	}
	return p
}

// bundle returns the authorities that the patch sets, after looking that it tests first whose the
// APIService is.
func (p jsonPatch) bundle(t *testing.T) []byte {
	t.Helper()
	tested := ""
	for _, op := range p {
		switch {
		case op.Op == "test":
			tested += op.Path + "=" + op.Value + " "
		case op.Path == "/spec/caBundle":
			if tested != "/spec/service/namespace=meshpulse-system /spec/service/name=meshpulse " {
				t.Errorf("before it is changed, tested is only %q", tested)
			}
			content, err := base64.StdEncoding.DecodeString(op.Value)
			if err != nil {
				t.Fatal(err)
			}
			return content
		}
	}
	t.Fatalf("the patch sets no caBundle: %+v", p)
	return nil
}

// peerVerify checks a replica's certificate as another replica does that trusts the authorities.
func (c fakeCluster) peerVerify(certificate, authorities string) error {
	c.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authorities))
	block, _ := pem.Decode([]byte(certificate))
	if block == nil {
		c.t.Fatalf("no certificate:\n%s", certificate)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "meshpulse-peer.meshpulse-system.svc", Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return err
		}
	}
	return nil
}

func TestReplicasKnowEachOtherByACertificateOfTheirOwn(t *testing.T) {
	c := newFakeCluster(t, "")
	c.mustRun("install.sh", "--image=registry.example/meshpulse@sha256:0", "--replicas")
	first, authorities := c.read("peer-tls.crt"), c.read("peer-ca.crt")
	if err := c.peerVerify(first, authorities); err != nil {
		t.Error(err)
	}
	if err := c.peerVerify(c.read("tls.crt"), authorities); err == nil {
		t.Error("the serving certificate is taken for a replica's")
	}
	if err := c.peerVerify(first, c.read("ca.crt")); err == nil {
		t.Error("the API server's authority signs for replicas")
	}
	if got := c.read("composed.yaml"); !strings.HasSuffix(strings.TrimSpace(got), `/replicas"`) {
		t.Errorf("the last component is to be that of the replicas:\n%s", got)
	}
	// Again: it is kept. Rotated: files reach one replica before the other, and each believes each.
	c.mustRun("install.sh", "--image=registry.example/meshpulse@sha256:0", "--replicas")
	if c.read("peer-tls.crt") != first {
		t.Error("a second run has made another certificate")
	}
	for range 3 {
		before, knew := c.read("peer-tls.crt"), c.read("peer-ca.crt")
		c.mustRun("install.sh", "--rotate-cert")
		now, knows := c.read("peer-tls.crt"), c.read("peer-ca.crt")
		if now == before {
			t.Error("nothing was rotated")
		}
		for what, err := range map[string]error{
			"the new one by who has the old files": c.peerVerify(now, knew), "the old one by who has the new ones": c.peerVerify(before, knows), "the new one": c.peerVerify(now, knows),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// One replica gives way to two, and two to one, once the next are ready.
func TestOneReplicaAndTwoReplaceEachOther(t *testing.T) {
	for _, test := range []struct {
		there, deleted string
		args           []string
	}{
		{"deployment", "delete deployment meshpulse", []string{"--replicas"}},
		{"statefulset", "delete statefulset meshpulse", nil},
	} {
		c := newFakeCluster(t, "")
		c.write(test.there, nil)
		c.mustRun("install.sh", append([]string{"--image=registry.example/meshpulse@sha256:0"}, test.args...)...)
		changes := strings.Join(c.changes(), "\n")
		applied, deleted := strings.Index(changes, "base.yaml"), strings.Index(changes, test.deleted)
		if applied < 0 || deleted < applied {
			t.Errorf("%s: want %q after what is applied:\n%s", test.there, test.deleted, changes)
		}
		c = newFakeCluster(t, "")
		c.mustRun("install.sh", append([]string{"--image=registry.example/meshpulse@sha256:0"}, test.args...)...)
		if changes := strings.Join(c.changes(), "\n"); strings.Contains(changes, "delete "+test.there) {
			t.Errorf("nothing is there to delete:\n%s", changes)
		}
	}
}
