package manifests

import (
	"bytes"
	"crypto/tls"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	apiregistration "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

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
