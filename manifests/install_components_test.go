package manifests

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

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
		"":               {"custom-metrics/rbac", "fallback/rbac", "fallback/custom-metrics/rbac", "pod-monitor/rbac", "prometheus-api/service", "keda/service", "shadow/rbac"},
		"prometheus-api": {"custom-metrics/rbac", "fallback/rbac", "fallback/custom-metrics/rbac", "pod-monitor/rbac", "keda/service", "shadow/rbac"},
		"keda":           {"custom-metrics/rbac", "fallback/rbac", "fallback/custom-metrics/rbac", "pod-monitor/rbac", "prometheus-api/service", "shadow/rbac"},
		"custom-metrics": {"fallback/rbac", "fallback/custom-metrics/rbac", "pod-monitor/rbac", "prometheus-api/service", "keda/service", "shadow/rbac"},
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
	// install, and a monitor: without the Prometheus operator kubectl does not know its kind.
	files, err := filepath.Glob("components/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	script := read(t, "manifests/install.sh")
	for _, file := range files {
		component := filepath.Base(filepath.Dir(file))
		others := []string{"alerts", "apiservice", "cert-manager", "own-api", "surge-action"}
		if name := filepath.Base(file); name != "kustomization.yaml" && name != "podmonitor.yaml" && !slices.Contains(others, component) && !strings.Contains(script, strings.TrimSuffix(strings.TrimPrefix(file, "components/"), ".yaml")) {
			t.Errorf("%s stays where its component is left out", file)
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
