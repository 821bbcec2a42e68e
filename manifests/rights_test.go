package manifests

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestRightsAreLeast holds meshpulse's own role to this table: a new right has to be argued here.
func TestRightsAreLeast(t *testing.T) {
	objects, _, _ := base(t)
	want := map[string]string{ // resource: verbs
		"autoscaling/horizontalpodautoscalers": "get list watch",
		"/pods":                                "list watch",
		"*/*/scale":                            "get",
		"/events":                              "create patch",
	}
	got := map[string]string{}
	for _, rule := range one[*rbacv1.ClusterRole](t, objects, "meshpulse").Rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				got[group+"/"+resource] = strings.Join(rule.Verbs, " ")
			}
		}
		if len(rule.NonResourceURLs) > 0 || len(rule.ResourceNames) > 0 {
			t.Errorf("unexpected rule %+v", rule)
		}
	}
	for key, verbs := range want {
		if got[key] != verbs {
			t.Errorf("%s: %q, want %q", key, got[key], verbs)
		}
	}
	if len(got) != len(want) {
		t.Errorf("rights %v, want %v", got, want)
	}
}

// TestNobodyIsGivenMore looks at what is bound to whom, and at every role for verbs that change
// things.
func TestNobodyIsGivenMore(t *testing.T) {
	objects, _, _ := base(t)
	for _, role := range all[*rbacv1.ClusterRole](objects) {
		for _, rule := range role.Rules {
			for _, verb := range rule.Verbs {
				readsOnly := verb == "get" || verb == "list" || verb == "watch"
				event := slices.Equal(rule.Resources, []string{"events"}) && (verb == "create" || verb == "patch")
				query := slices.Equal(rule.Resources, []string{"queries"}) && slices.Equal(rule.APIGroups, []string{"meshpulse.io"}) && verb == "create" // it is answered, and kept nowhere
				if !readsOnly && !event && !query {
					t.Errorf("ClusterRole %s may %s %v", role.Name, verb, rule.Resources)
				}
			}
		}
	}
	const self = "meshpulse-system/meshpulse"
	want := map[string]string{ // role: to whom
		"ClusterRole meshpulse":                          self,
		"ClusterRole system:auth-delegator":              self,
		"ClusterRole meshpulse:external-metrics-reader":  "kube-system/horizontal-pod-autoscaler",
		"Role extension-apiserver-authentication-reader": self,
	}
	got := map[string]string{}
	bind := func(ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		for _, s := range subjects {
			if s.Kind != rbacv1.ServiceAccountKind {
				t.Errorf("%s %s is bound to a %s", ref.Kind, ref.Name, s.Kind)
			}
			got[ref.Kind+" "+ref.Name] += s.Namespace + "/" + s.Name
		}
	}
	for _, b := range all[*rbacv1.ClusterRoleBinding](objects) {
		bind(b.RoleRef, b.Subjects)
	}
	for _, b := range all[*rbacv1.RoleBinding](objects) {
		bind(b.RoleRef, b.Subjects)
	}
	if len(got) != len(want) {
		t.Errorf("bound are %v, want %v", got, want)
	}
	for role, subject := range want {
		if got[role] != subject {
			t.Errorf("%s is bound to %q, want %q", role, got[role], subject)
		}
	}
}

// TestQueriesReadTheirOwnNamespaceWhereAsked: the component adds the flag, and the right that it
// needs, and the base has none of it (TestRightsAreLeast).
func TestQueriesReadTheirOwnNamespaceWhereAsked(t *testing.T) {
	objects, base := renderObjects(t, overlay(t, "own-namespaces")), renderObjects(t, "base")
	args := func(of []runtime.Object) []string {
		return one[*appsv1.Deployment](t, of, "meshpulse").Spec.Template.Spec.Containers[0].Args
	}
	if got, want := args(objects), append(args(base), "--query-namespaces=own"); !slices.Equal(got, want) {
		t.Errorf("arguments %v, want %v", got, want)
	}
	rules := func(of []runtime.Object) []rbacv1.PolicyRule {
		return one[*rbacv1.ClusterRole](t, of, "meshpulse").Rules
	}
	want := append(rules(base), rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"list", "watch"}})
	if got := rules(objects); !reflect.DeepEqual(got, want) {
		t.Errorf("rules %+v, want %+v", got, want)
	}
}

// TestSurgeActionIsBound: the component adds one right, for the account that meshpulse runs as, and
// the base has none of it (TestNobodyIsGivenMore).
func TestSurgeActionIsBound(t *testing.T) {
	const role = "meshpulse:surge-action"
	want := []rbacv1.PolicyRule{{APIGroups: []string{"apps"}, Resources: []string{"deployments/scale", "statefulsets/scale"}, Verbs: []string{"get", "update"}}}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "meshpulse", Namespace: namespace}}
	for component, where := range map[string]string{"surge-action": "", "surge-action/namespaced": "test"} {
		objects := renderObjects(t, overlay(t, component))
		if got := one[*rbacv1.ClusterRole](t, objects, role).Rules; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: rules %+v, want %+v", component, got, want)
		}
		var ref rbacv1.RoleRef
		var to []rbacv1.Subject
		if where == "" {
			b := one[*rbacv1.ClusterRoleBinding](t, objects, role)
			ref, to = b.RoleRef, b.Subjects
		} else {
			b := one[*rbacv1.RoleBinding](t, objects, role)
			ref, to = b.RoleRef, b.Subjects
			if b.Namespace != where {
				t.Errorf("%s: bound in namespace %q, want %q", component, b.Namespace, where)
			}
			if n := len(all[*rbacv1.ClusterRoleBinding](objects)) - len(all[*rbacv1.ClusterRoleBinding](renderObjects(t, "base"))); n != 0 {
				t.Errorf("%s: %d bindings for all namespaces", component, n)
			}
		}
		if ref.Kind != "ClusterRole" || ref.Name != role || !reflect.DeepEqual(to, subjects) {
			t.Errorf("%s: %+v is bound to %+v, want %+v", component, ref, to, subjects)
		}
	}
}
