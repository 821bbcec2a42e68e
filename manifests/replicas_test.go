package manifests

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// replicated is the base with components, as several replicas.
func replicated(t *testing.T, components ...string) (set *appsv1.StatefulSet, rest []string, folder string) {
	t.Helper()
	folder = overlay(t, append(components, filepath.Join("..", "replicas"))...)
	for _, o := range renderObjects(t, folder) {
		rest = append(rest, fmt.Sprintf("%T %s", o, accessor(t, o).GetName()))
	}
	return one[*appsv1.StatefulSet](t, renderObjects(t, folder), "meshpulse"), rest, folder
}

func TestTwoReplicasAreASetOfTheBase(t *testing.T) {
	set, rest, folder := replicated(t, "own-namespaces", "host-network", "guaranteed")
	objects := renderObjects(t, folder)
	if slices.Contains(rest, "*v1.Deployment meshpulse") {
		t.Error("one replica runs beside them, and relays nothing")
	}
	pod := set.Spec.Template
	own := labels.Set(pod.Labels)
	if *set.Spec.Replicas != 2 || set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement || set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		t.Errorf("spec %+v", set.Spec)
	}
	for _, name := range []string{"meshpulse", "meshpulse-ingest", set.Spec.ServiceName} {
		s := one[*corev1.Service](t, objects, name)
		if !labels.SelectorFromSet(s.Spec.Selector).Matches(own) || s.Spec.Selector["app.kubernetes.io/component"] == "" {
			t.Errorf("Service %s selects %v, pods have %v: want these and not those of one replica", name, s.Spec.Selector, own)
		}
	}
	if s := one[*corev1.Service](t, objects, set.Spec.ServiceName); s.Spec.ClusterIP != corev1.ClusterIPNone || !s.Spec.PublishNotReadyAddresses || s.Spec.Ports[0].Name != "peers" {
		t.Errorf("Service %s is %+v: want a headless one that lists who warms up", s.Name, s.Spec)
	}
	c := pod.Spec.Containers[0]
	for _, flag := range []string{"--peers-service=meshpulse-system/" + set.Spec.ServiceName, "--peers-cert-dir=/etc/meshpulse/peers", "--query-namespaces=own", "--secure-port=4443"} {
		if !slices.Contains(c.Args, flag) {
			t.Errorf("flags %q lack %s", c.Args, flag)
		}
	}
	if port := containerPort(t, c, "peers"); port != 15091 {
		t.Errorf("port peers is %d", port)
	}
	// The pod's name, which on the node's network is not the host's.
	if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == "POD_NAME" && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.name"
	}) {
		t.Errorf("environment %+v lacks POD_NAME", c.Env)
	}
	if grace := *pod.Spec.TerminationGracePeriodSeconds; grace != 330 || c.Lifecycle == nil || !slices.Equal(c.Lifecycle.PreStop.Exec.Command, []string{"/meshpulse", "leave", "--statefulset=meshpulse-system/" + set.Name}) {
		t.Errorf("%d s, preStop %+v", grace, c.Lifecycle)
	}
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && v.Secret.SecretName == "meshpulse-peer-cert" })
	if i < 0 || slices.ContainsFunc(pod.Spec.Volumes[i].Secret.Items, func(k corev1.KeyToPath) bool { return k.Key == "next.key" }) || len(pod.Spec.Volumes[i].Secret.Items) != 3 {
		t.Errorf("volumes %+v: want the replicas' certificate, and not the next one's key", pod.Spec.Volumes)
	}
}

func TestOneReplicaAtATimeIsDrained(t *testing.T) {
	set, _, folder := replicated(t)
	b := one[*policyv1.PodDisruptionBudget](t, renderObjects(t, folder), "meshpulse")
	if *b.Spec.MaxUnavailable != intstr.FromInt32(1) || !labels.SelectorFromSet(b.Spec.Selector.MatchLabels).Matches(labels.Set(set.Spec.Template.Labels)) {
		t.Errorf("budget %+v", b.Spec)
	}
	for _, s := range set.Spec.Template.Spec.TopologySpreadConstraints {
		if s.WhenUnsatisfiable != corev1.ScheduleAnyway {
			t.Errorf("spread %+v: a cluster with one node has to run them all", s)
		}
	}
	if a := set.Spec.Template.Spec.Affinity.PodAntiAffinity; len(a.RequiredDuringSchedulingIgnoredDuringExecution) > 0 || len(a.PreferredDuringSchedulingIgnoredDuringExecution) != 1 {
		t.Errorf("affinity %+v: want another node preferred, and not required", a)
	}
}

// Replicas alone reach each other's port, and read what they need in their own namespace.
func TestReplicasReachEachOtherAlone(t *testing.T) {
	set, _, folder := replicated(t)
	objects := renderObjects(t, folder)
	p := one[*networkingv1.NetworkPolicy](t, objects, "meshpulse")
	from := slices.IndexFunc(p.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return r.Ports[0].Port.StrVal == "peers" })
	to := slices.IndexFunc(p.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return r.Ports[0].Port.StrVal == "peers" })
	if from < 0 || to < 0 {
		t.Fatalf("policy %+v has no rule for the replicas", p.Spec)
	}
	for _, peers := range [][]networkingv1.NetworkPolicyPeer{p.Spec.Ingress[from].From, p.Spec.Egress[to].To} {
		if len(peers) != 1 || peers[0].NamespaceSelector != nil || !labels.SelectorFromSet(peers[0].PodSelector.MatchLabels).Matches(labels.Set(set.Spec.Template.Labels)) {
			t.Errorf("peers %+v: want the replicas alone", peers)
		}
	}
	role := one[*rbacv1.Role](t, objects, "meshpulse:replicas")
	for _, r := range role.Rules {
		if slices.Contains(r.Verbs, "*") || slices.Contains(r.Verbs, "update") || slices.Contains(r.Verbs, "create") {
			t.Errorf("rule %+v changes something", r)
		}
	}
}
