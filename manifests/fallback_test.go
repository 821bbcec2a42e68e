package manifests

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	kedaService = "keda/keda-operator-metrics-apiserver"
	kedaSpec    = `{"caBundle":"S0VEQQ==","group":"external.metrics.k8s.io","groupPriorityMinimum":100,"service":{"name":"keda-operator-metrics-apiserver","namespace":"keda","port":443},"version":"v1beta1","versionPriority":100}`
)

// besideKEDA is a cluster whose external metrics are KEDA's. authority is that of KEDA's
// certificate.
func besideKEDA(t *testing.T) (c fakeCluster, authority string) {
	t.Helper()
	c = newFakeCluster(t, kedaService)
	file := filepath.Join(c.folder, "authority")
	if out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
		"-subj", "/CN=KEDA", "-keyout", os.DevNull, "-out", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	authority = c.read("authority")
	c.write("spec.json", []byte(kedaSpec))
	c.write("bundle", []byte(base64.StdEncoding.EncodeToString([]byte(authority))))
	return c, authority
}

// The API is taken from the adapter that is named, once meshpulse is reached, and what was replaced
// is kept; both ways back put it back as it was.
func TestTheAPIIsTakenOverAndPutBack(t *testing.T) {
	for name, back := range map[string][]string{"released": {"install.sh", "--release-apiservice"}, "uninstalled": {"uninstall.sh"}} {
		t.Run(name, func(t *testing.T) {
			c, authority := besideKEDA(t)
			c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
			if got := c.read("owner"); strings.TrimSpace(got) != ours {
				t.Fatalf("the API is %s's", got)
			}
			if c.read("fallback-ca.crt") != authority {
				t.Error("the other adapter's certificate is checked against another authority than its APIService's")
			}
			if c.read("kept") != kedaSpec {
				t.Errorf("kept is %s", c.read("kept"))
			}
			var operations []struct {
				Op, Path string
				Value    any
			}
			if err := json.Unmarshal([]byte(c.read("patch.json")), &operations); err != nil || len(operations) != 4 || operations[0].Value != "4712" || operations[2].Value != "keda-operator-metrics-apiserver" {
				t.Fatalf("%v: %s", err, c.read("patch.json"))
			}
			spec := operations[3].Value.(map[string]any)
			if spec["caBundle"] != base64.StdEncoding.EncodeToString([]byte(c.read("ca.crt"))) || spec["group"] != "external.metrics.k8s.io" || spec["version"] != "v1beta1" {
				t.Errorf("spec is %v", spec)
			}
			log := c.read("log")
			if reached := strings.Index(log, "wait --for=condition=Available --timeout=60s apiservice/v1alpha1.meshpulse.io"); reached < 0 || reached > strings.Index(log, "annotate apiservice") {
				t.Errorf("it is taken before meshpulse is reached:\n%s", log)
			}

			out := c.mustRun(back[0], append(back[1:], "--dry-run")...)
			if !strings.Contains(out, "would put back") || c.read("kept") == "" {
				t.Errorf("looking says %s", out)
			}
			c.mustRun(back[0], back[1:]...)
			if c.read("owner") != kedaService || c.read("kept") != "" || !strings.Contains(c.read("patch.json"), `"value": `+kedaSpec) {
				t.Errorf("the API is %s's, by %s", c.read("owner"), c.read("patch.json"))
			}
			if strings.Contains(c.read("log"), "apiservices/v1beta1.external.metrics.k8s.io") {
				t.Error("it was deleted in between")
			}
		})
	}
}

// customKept are the ways in which another adapter may have custom.metrics.k8s.io, as files of the
// fake cluster.
func adapterHas(c fakeCluster, files ...string) {
	for _, name := range files {
		c.write(name, []byte(kedaService))
	}
}

// Of custom.metrics.k8s.io each version that the other adapter has is taken over and put back; the
// one that HPA controllers prefer is made beside an older one, and goes with it.
func TestCustomMetricsAreTakenOverAndPutBack(t *testing.T) {
	args := []string{"--image", "r.example/meshpulse:1", "--component", "custom-metrics", "--fallback", kedaService}
	for name, has := range map[string][]string{"both versions": {"custom", "older"}, "the older one": {"older"}, "the newer one": {"custom"}, "none": nil} {
		for way, back := range map[string][]string{"released": {"install.sh", "--release-apiservice"}, "uninstalled": {"uninstall.sh"}, "without the component": {"install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService}} {
			t.Run(name+", "+way, func(t *testing.T) {
				c, _ := besideKEDA(t)
				adapterHas(c, has...)
				c.mustRun("install.sh", args...)
				if strings.TrimSpace(c.read("custom")) != ours {
					t.Errorf("the API is %s's", c.read("custom"))
				}
				for _, file := range has {
					if strings.TrimSpace(c.read(file)) != ours || c.read("kept-"+file) == "" {
						t.Errorf("%s is %s's, kept is %s", file, c.read(file), c.read("kept-"+file))
					}
				}
				if !strings.Contains(c.read("composed.yaml"), "components/fallback/custom-metrics") {
					t.Errorf("who asks it may not read it: %s", c.read("composed.yaml"))
				}
				c.mustRun(back[0], back[1:]...)
				for _, file := range []string{"custom", "older"} {
					want := ""
					if slices.Contains(has, file) {
						want = kedaService
					} else if file == "custom" && way == "released" && !slices.Contains(has, "older") {
						want = ours // taken from nobody
					}
					if got := strings.TrimSpace(c.read(file)); got != want || c.read("kept-"+file) != "" {
						t.Errorf("%s is %q's, want %q; kept is %s", file, got, want, c.read("kept-"+file))
					}
				}
			})
		}
	}
}

// An adapter of custom metrics alone is beside meshpulse as one of external metrics is.
func TestAnAdapterOfCustomMetricsAlone(t *testing.T) {
	c, authority := besideKEDA(t)
	if err := os.Remove(filepath.Join(c.folder, "owner")); err != nil {
		t.Fatal(err)
	}
	adapterHas(c, "older")
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--component", "custom-metrics", "--fallback", kedaService)
	if c.read("fallback-ca.crt") != authority || strings.TrimSpace(c.read("owner")) != ours || strings.TrimSpace(c.read("older")) != ours {
		t.Errorf("the APIs are %s's and %s's", c.read("owner"), c.read("older"))
	}
	if out, err := c.run("install.sh", "--image", "r.example/meshpulse:1", "--component", "custom-metrics"); err == nil || !strings.Contains(out, "answers for another adapter") {
		t.Errorf("without the fallback: %v\n%s", err, out)
	}
	c.mustRun("install.sh", "--release-apiservice")
	if c.read("older") != kedaService || c.read("custom") != "" || strings.TrimSpace(c.read("owner")) != ours {
		t.Errorf("released they are %q's, %q's and %q's", c.read("older"), c.read("custom"), c.read("owner"))
	}
}

// Where the API server does not reach meshpulse by the API after all, the other adapter has it
// again.
func TestTheAPIIsPutBackWhereItDoesNotAnswer(t *testing.T) {
	c, _ := besideKEDA(t)
	c.write("cutoff", nil)
	out, err := c.run("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
	if err == nil || c.read("owner") != kedaService || c.read("kept") != "" {
		t.Errorf("%v, the API is %s's:\n%s", err, c.read("owner"), out)
	}
}

// The script says that no API is left then, so custom metrics that were ours before are not either.
func TestNoAPIIsLeftWhereTheOneTakenOverDoesNotAnswer(t *testing.T) {
	c, _ := besideKEDA(t)
	c.write("custom", []byte(ours))
	c.write("cutoff", nil)
	out, err := c.run("install.sh", "--image", "r.example/meshpulse:1", "--component", "custom-metrics", "--fallback", kedaService)
	if err == nil || !strings.Contains(out, "no APIService of ours is left") || c.read("owner") != kedaService || c.read("custom") != "" || c.read("probe") != "" {
		t.Errorf("%v, the APIs are %q's, %q's and %q's:\n%s", err, c.read("owner"), c.read("custom"), c.read("probe"), out)
	}
}

// What cannot be put back is not deleted: its annotation alone has the other adapter's spec.
func TestAnAPIThatCannotBePutBackIsNotDeleted(t *testing.T) {
	for _, fails := range []string{"keeps", "unlooked"} {
		c, _ := besideKEDA(t)
		c.write("cutoff", nil)
		c.write(fails, nil)
		out, err := c.run("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
		if err == nil || strings.Contains(c.read("log"), "delete --raw /apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external") || c.read("kept") != kedaSpec && fails == "keeps" {
			t.Errorf("%s: %v, kept is %s:\n%s", fails, err, c.read("kept"), c.read("log"))
		}
		if fails == "keeps" && !strings.Contains(out, "install.sh --release-apiservice") {
			t.Errorf("no remedy: %s", out)
		}
	}
}

// Whether it was taken from another adapter is not known: it is not installed without asking that.
func TestALookThatFailsIsNotTakenFromNobody(t *testing.T) {
	c, _ := besideKEDA(t)
	c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
	c.write("log", nil)
	c.write("unlooked", nil)
	if out, err := c.run("install.sh", "--image", "r.example/meshpulse:2"); err == nil || !strings.Contains(out, "cannot tell whether") || len(c.changes()) > 0 {
		t.Errorf("%v, changed %v:\n%s", err, c.changes(), out)
	}
}

func TestWhatIsNoFallback(t *testing.T) {
	rotates := `keda/keda-operator ["--leader-elect","--enable-cert-rotation=true","--metrics-bind-address=:8080"]`
	cases := map[string]struct {
		args     []string
		prepare  func(c fakeCluster)
		want     string
		installs bool
	}{
		"another one than has the API": {args: []string{"--fallback", "kube-system/kube-metrics-adapter"}, want: "served by " + kedaService + ", not by kube-system/kube-metrics-adapter"},
		"meshpulse itself":             {args: []string{"--fallback", ours}, want: "meshpulse's own Service"},
		"no Service":                   {args: []string{"--fallback", "keda"}, want: "NAMESPACE/SERVICE"},
		"what sed would read":          {args: []string{"--fallback", "keda/x|e id"}, want: "NAMESPACE/SERVICE"},
		"without an authority":         {args: []string{"--fallback", kedaService}, prepare: func(c fakeCluster) { c.write("bundle", nil) }, want: "give --fallback-ca FILE"},
		"an authority of one's own":    {args: []string{"--fallback", kedaService, "--fallback-ca", "AUTHORITY"}, prepare: func(c fakeCluster) { c.write("bundle", nil) }, installs: true},
		"KEDA takes it back":           {args: []string{"--fallback", kedaService}, prepare: func(c fakeCluster) { c.write("deployments", []byte("a/b [\"--x\"]\n"+rotates+"\n")) }, want: "Give it --enable-apiservice-patching=false"},
		"KEDA leaves it alone": {args: []string{"--fallback", kedaService}, prepare: func(c fakeCluster) {
			c.write("deployments", []byte(strings.Replace(rotates, "]", `,"--enable-apiservice-patching=false"]`, 1)+"\n"))
		}, installs: true},
		"KEDA with certificates of one's own": {args: []string{"--fallback", kedaService + ":443"}, prepare: func(c fakeCluster) {
			c.write("deployments", []byte(strings.Replace(rotates, "rotation=true", "rotation=false", 1)+"\n"))
		}, installs: true},
		"the fallback is left out later": {prepare: func(c fakeCluster) {
			c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
			c.write("log", nil)
		}, want: "answers for another adapter"},
		"the fallback is left out, and the API left alone": {args: []string{"--no-apiservice"}, prepare: func(c fakeCluster) {
			c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
			c.write("log", nil)
		}, want: "answers for another adapter"},
		"the same again": {args: []string{"--fallback", kedaService}, prepare: func(c fakeCluster) {
			c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
		}, installs: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c, _ := besideKEDA(t)
			if tc.prepare != nil {
				tc.prepare(c)
			}
			args := append([]string{"--image", "r.example/meshpulse:2"}, tc.args...)
			if i := slices.Index(args, "AUTHORITY"); i >= 0 {
				args[i] = filepath.Join(c.folder, "authority")
			}
			out, err := c.run("install.sh", args...)
			switch {
			case tc.installs && (err != nil || strings.TrimSpace(c.read("owner")) != ours || c.read("kept") != kedaSpec):
				t.Errorf("%v, the API is %s's, kept is %s:\n%s", err, c.read("owner"), c.read("kept"), out)
			case !tc.installs && (err == nil || !strings.Contains(out, tc.want) || len(c.changes()) > 0):
				t.Errorf("%v, changed %v:\n%s", err, c.changes(), out)
			}
		})
	}
}

// bindings are the cluster roles of who asks the other adapter.
func bindings(objects []runtime.Object) []string { return rolesOf(objects, "meshpulse-fallback") }

// rolesOf are the cluster roles of an account.
func rolesOf(objects []runtime.Object, account string) (roles []string) {
	for _, b := range all[*rbacv1.ClusterRoleBinding](objects) {
		if slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool { return s.Name == account }) {
			roles = append(roles, b.RoleRef.Name)
		}
	}
	slices.Sort(roles)
	return roles
}

// Custom metrics may be read of the other adapter only where they are served.
func TestCustomMetricsAreReadOfTheOtherAdapterOnlyWhereServed(t *testing.T) {
	objects := renderObjects(t, overlay(t, "custom-metrics", "fallback", "fallback/custom-metrics"))
	if got := bindings(objects); !slices.Equal(got, []string{"meshpulse:custom-metrics-reader", "meshpulse:external-metrics-reader"}) {
		t.Errorf("the account has %v", got)
	}
	var watched []string
	for _, r := range one[*rbacv1.ClusterRole](t, objects, "meshpulse").Rules {
		if slices.Contains(r.Resources, "apiservices") {
			watched = append(watched, r.ResourceNames...)
		}
	}
	if want := []string{"v1beta1.external.metrics.k8s.io", "v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"}; !slices.Equal(watched, want) {
		t.Errorf("looked at are %v, want %v", watched, want)
	}
}

// What the fallback takes, and no more: tokens of one account, which may read external metrics; the
// other adapter's namespace; namespaces and the one APIService.
func TestWhatAFallbackMay(t *testing.T) {
	objects := renderObjects(t, overlay(t, "fallback"))
	role := one[*rbacv1.Role](t, objects, "meshpulse:fallback-token")
	want := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{"meshpulse-fallback"}, Verbs: []string{"create"}}
	if len(role.Rules) != 1 || role.Rules[0].String() != want.String() || role.Namespace != namespace {
		t.Errorf("role %+v", role)
	}
	if got := bindings(objects); !slices.Equal(got, []string{"meshpulse:external-metrics-reader"}) {
		t.Errorf("the account has %v", got)
	}
	c := one[*appsv1.Deployment](t, objects, "meshpulse").Spec.Template.Spec.Containers[0]
	if !slices.Contains(c.Args, "--fallback=OTHER-NAMESPACE/OTHER-SERVICE") || !slices.Contains(c.Args, "--fallback-ca-file=/etc/meshpulse/fallback/ca.crt") {
		t.Errorf("args %v", c.Args)
	}
	p := one[*networkingv1.NetworkPolicy](t, objects, "meshpulse")
	last := p.Spec.Egress[len(p.Spec.Egress)-1]
	if len(last.To) != 1 || last.To[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != "OTHER-NAMESPACE" {
		t.Errorf("egress %+v", last)
	}
	for _, r := range one[*rbacv1.ClusterRole](t, objects, "meshpulse").Rules {
		if slices.Contains(r.Resources, "apiservices") && (!slices.Equal(r.Verbs, []string{"get"}) || !slices.Equal(r.ResourceNames, []string{"v1beta1.external.metrics.k8s.io"})) {
			t.Errorf("rule %+v", r)
		}
	}
}
