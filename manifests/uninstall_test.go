package manifests

import (
	"encoding/json"
	"strings"
	"testing"
)

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
