package manifests

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

// What a comparison with another adapter takes, and no more: tokens of one account, which may read
// external metrics; the other adapter's namespace; a look at the one APIService.
func TestWhatAShadowMay(t *testing.T) {
	objects := renderObjects(t, overlay(t, "shadow", "shadow/authority"))
	role := one[*rbacv1.Role](t, objects, "meshpulse:shadow-token")
	want := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{"meshpulse-shadow"}, Verbs: []string{"create"}}
	if len(role.Rules) != 1 || role.Rules[0].String() != want.String() || role.Namespace != namespace {
		t.Errorf("role %+v", role)
	}
	if got := rolesOf(objects, "meshpulse-shadow"); !slices.Equal(got, []string{"meshpulse:external-metrics-reader"}) {
		t.Errorf("the account has %v", got)
	}
	args := one[*appsv1.Deployment](t, objects, "meshpulse").Spec.Template.Spec.Containers[0].Args
	if !slices.Equal(args[len(args)-2:], []string{"--shadow=OTHER-NAMESPACE/OTHER-SERVICE", "--shadow-ca-file=/etc/meshpulse/shadow/ca.crt"}) {
		t.Errorf("args %v", args)
	}
	p := one[*networkingv1.NetworkPolicy](t, objects, "meshpulse")
	last := p.Spec.Egress[len(p.Spec.Egress)-1]
	if len(last.To) != 1 || last.To[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != "OTHER-NAMESPACE" {
		t.Errorf("egress %+v", last)
	}
	rules := one[*rbacv1.ClusterRole](t, objects, "meshpulse").Rules
	looks := rules[len(rules)-2]
	if !readsScaledObjects(rules) || len(rules) != len(one[*rbacv1.ClusterRole](t, renderObjects(t, "base"), "meshpulse").Rules)+2 || !slices.Equal(looks.Verbs, []string{"get"}) || !slices.Equal(looks.ResourceNames, []string{"v1beta1.external.metrics.k8s.io"}) {
		t.Errorf("rules %+v", rules)
	}
}

// readsScaledObjects says whether the last right is to list and watch KEDA's.
func readsScaledObjects(rules []rbacv1.PolicyRule) bool {
	want := rbacv1.PolicyRule{APIGroups: []string{"keda.sh"}, Resources: []string{"scaledobjects"}, Verbs: []string{"list", "watch"}}
	return rules[len(rules)-1].String() == want.String()
}

// A Prometheus takes one right more than nothing: to read whose triggers are compared with it.
func TestWhatAComparisonWithAPrometheusMay(t *testing.T) {
	rules := one[*rbacv1.ClusterRole](t, renderObjects(t, overlay(t, "shadow-prometheus")), "meshpulse").Rules
	if !readsScaledObjects(rules) || len(rules) != len(one[*rbacv1.ClusterRole](t, renderObjects(t, "base"), "meshpulse").Rules)+1 {
		t.Errorf("rules %+v", rules)
	}
}

// The adapter that has the API keeps it, whoever it is.
func TestInShadowTheAPIIsLeftAlone(t *testing.T) {
	for name, test := range map[string]struct {
		args    []string
		owner   string
		want    string // of a refusal; "" installs
		direct  bool
		prepare func(c fakeCluster)
	}{
		"through the API server":    {args: []string{"--shadow", kedaService}, owner: kedaService},
		"at its Service":            {args: []string{"--shadow", kedaService + ":6443", "--shadow-ca", "AUTHORITY"}, owner: "a/b", direct: true},
		"nobody has the API":        {args: []string{"--shadow=" + kedaService, "--shadow-ca=AUTHORITY"}, direct: true},
		"at its Service, and no CA": {args: []string{"--shadow", kedaService}, owner: "a/b", want: "give --shadow-ca FILE"},
		"a CA that is none":         {args: []string{"--shadow", kedaService, "--shadow-ca", "/dev/null"}, owner: "a/b", want: "no authority in PEM"},
		"meshpulse has the API":     {args: []string{"--shadow", kedaService}, owner: ours, want: "is served by meshpulse"},
		"meshpulse itself":          {args: []string{"--shadow", ours}, owner: kedaService, want: "own Service"},
		"no Service":                {args: []string{"--shadow", "keda"}, owner: kedaService, want: "NAMESPACE/SERVICE"},
		"what sed would read":       {args: []string{"--shadow", "keda/x|e id"}, owner: kedaService, want: "NAMESPACE/SERVICE"},
		"both":                      {args: []string{"--shadow", kedaService, "--fallback", kedaService}, owner: kedaService, want: "give one of them"},
		"a Prometheus too":          {args: []string{"--shadow", kedaService, "--shadow-prometheus", "http://p"}, owner: kedaService, want: "give one of them"},
		"an authority of nobody":    {args: []string{"--shadow-ca", "AUTHORITY"}, owner: kedaService, want: "goes with --shadow"},
		"meshpulse answers for another": {args: []string{"--shadow", kedaService}, owner: kedaService, want: "--release-apiservice", prepare: func(c fakeCluster) {
			c.mustRun("install.sh", "--image", "r.example/meshpulse:1", "--fallback", kedaService)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := besideKEDA(t)
			c.write("owner", []byte(test.owner))
			if test.prepare != nil {
				test.prepare(c)
			}
			c.write("log", nil)
			for i, a := range test.args {
				test.args[i] = strings.Replace(a, "AUTHORITY", filepath.Join(c.folder, "authority"), 1)
			}
			before := c.read("owner")
			out, err := c.run("install.sh", append([]string{"--image", "r.example/meshpulse:2"}, test.args...)...)
			if c.read("owner") != before {
				t.Errorf("the API is %s's now", c.read("owner"))
			}
			if test.want != "" {
				if err == nil || !strings.Contains(strings.ToLower(out), strings.ToLower(test.want)) || len(c.changes()) > 0 {
					t.Errorf("%v, changed %v:\n%s", err, c.changes(), out)
				}
				return
			}
			composed := c.read("composed.yaml")
			if err != nil || !strings.Contains(composed, "components/shadow\"") || strings.Contains(composed, "components/shadow/authority") != test.direct || strings.Contains(c.read("log"), "meshpulse-shadow-ca") != test.direct {
				t.Errorf("%v, composed of\n%s\n%s", err, composed, out)
			}
			if strings.TrimSpace(c.read("probe")) != ours {
				t.Error("nobody can ask for the report")
			}
			c.mustRun("uninstall.sh")
			if !strings.Contains(c.read("log"), "components/shadow/rbac.yaml") {
				t.Error("its rights stay")
			}
		})
	}
}

func TestAShadowIsLookedAtAlone(t *testing.T) {
	c, _ := besideKEDA(t)
	out := c.mustRun("install.sh", "--image", "r.example/meshpulse:2", "--shadow", kedaService, "--dry-run")
	if !strings.Contains(out, "would leave v1beta1.external.metrics.k8s.io to "+kedaService+", and compare with "+kedaService) || len(c.changes()) > 0 {
		t.Errorf("changed %v:\n%s", c.changes(), out)
	}
}
