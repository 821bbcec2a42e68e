package meshpod

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// owned is a pod as a controller makes it.
func owned(kind, owner string, labels ...string) *metav1.ObjectMeta {
	m := &metav1.ObjectMeta{
		Name: owner + "-abcde", GenerateName: owner + "-", Labels: map[string]string{},
		OwnerReferences: []metav1.OwnerReference{{Kind: "Node", Name: "other"}, {Kind: kind, Name: owner, Controller: new(true)}},
	}
	for i := 0; i < len(labels); i += 2 {
		m.Labels[labels[i]] = labels[i+1]
	}
	return m
}

func annotated(m *metav1.ObjectMeta, key, value string) *metav1.ObjectMeta {
	m.Annotations = map[string]string{key: value}
	return m
}

// The cases are the branches of GetDeployMetaFromPod and of the charts that set
// ISTIO_META_WORKLOAD_NAME in istio/istio.
func TestWorkloadsAreNamedAsIstioDoes(t *testing.T) {
	notGenerated := owned("StrimziPodSet", "kafka")
	notGenerated.GenerateName = ""
	notControlled := owned("ReplicaSet", "web-abc", "pod-template-hash", "abc")
	notControlled.OwnerReferences[1].Controller = nil
	for name, tc := range map[string]struct {
		pod  *metav1.ObjectMeta
		want string
	}{
		"Deployment":                            {owned("ReplicaSet", "web-6d8f4b5c9", "pod-template-hash", "6d8f4b5c9"), "web"},
		"Deployment with dashes":                {owned("ReplicaSet", "web-shop-6d8f4b5c9", "pod-template-hash", "6d8f4b5c9"), "web-shop"},
		"Rollout":                               {owned("ReplicaSet", "web-6dc78b855c", "rollouts-pod-template-hash", "6dc78b855c"), "web"},
		"Deployment that was a Rollout":         {owned("ReplicaSet", "web-abc", "pod-template-hash", "abc", "rollouts-pod-template-hash", "def"), "web"},
		"Rollout with a label from elsewhere":   {owned("ReplicaSet", "web-def", "pod-template-hash", "abc", "rollouts-pod-template-hash", "def"), "web"},
		"ReplicaSet":                            {owned("ReplicaSet", "web"), "web"},
		"ReplicaSet with a hash of no template": {owned("ReplicaSet", "web", "pod-template-hash", "6d8f4b5c9"), "web"},
		"ReplicaSet whose name ends in it":      {owned("ReplicaSet", "webabc", "pod-template-hash", "abc"), "webabc"},
		"DeploymentConfig":                      {owned("ReplicationController", "web-7", "deploymentconfig", "web"), "web"},
		"ReplicationController":                 {owned("ReplicationController", "web-7"), "web-7"},
		"not by DeploymentConfig's label alone": {owned("ReplicaSet", "web-abc", "pod-template-hash", "abc", "deploymentconfig", "other"), "web"},
		"StatefulSet":                           {owned("StatefulSet", "db"), "db"},
		"DaemonSet":                             {owned("DaemonSet", "agent"), "agent"},
		"Job":                                   {owned("Job", "load-2"), "load-2"},
		"Job that ends in seven digits":         {owned("Job", "load-1234567"), "load-1234567"},
		"CronJob":                               {owned("Job", "report-12345678"), "report"},
		"CronJob of before Kubernetes 1.21":     {owned("Job", "report-1234567890"), "report"},
		"Job that ends in eleven digits":        {owned("Job", "load-12345678901"), "load-12345678901"},
		"Job that has only digits":              {owned("Job", "-12345678"), "-12345678"},
		"digits of another kind":                {owned("StatefulSet", "db-12345678"), "db-12345678"},
		"an operator's":                         {owned("RayCluster", "ray"), "ray"},
		"an operator's with a name of its own":  {notGenerated, "kafka-abcde"},
		"owned but not controlled":              {notControlled, "web-abc-abcde"},
		"alone":                                 {&metav1.ObjectMeta{Name: "alone"}, "alone"},
		"alone and generated":                   {&metav1.ObjectMeta{Name: "alone-x2", GenerateName: "alone-"}, "alone-x2"},
		"workload-name":                         {owned("ReplicaSet", "web-blue-abc", "pod-template-hash", "abc", WorkloadNameLabel, "web"), "web"},
		"workload-name, alone":                  {&metav1.ObjectMeta{Name: "alone", Labels: map[string]string{WorkloadNameLabel: "web"}}, "web"},
		"workload-name that is empty":           {owned("ReplicaSet", "web-abc", "pod-template-hash", "abc", WorkloadNameLabel, ""), "web"},
		"workload-name of a gateway":            {owned("ReplicaSet", "gw-abc", "pod-template-hash", "abc", ManagedLabel, "istio.io-gateway-controller", WorkloadNameLabel, "web"), "gw"},
		"workload-name of an injected gateway":  {annotated(owned("ReplicaSet", "gw-abc", "pod-template-hash", "abc", WorkloadNameLabel, "web"), templatesAnnotation, "gateway"), "gw"},
		"controller without a name":             {owned("ReplicaSet", ""), "-abcde"},
	} {
		if got := Workload(tc.pod); got != tc.want {
			t.Errorf("%s: workload %q, want %q", name, got, tc.want)
		}
	}
}

func TestCanonicalServicesAreNamedAsIstioDoes(t *testing.T) {
	of := func(labels ...string) *metav1.ObjectMeta {
		return owned("ReplicaSet", "web-abc", append([]string{"pod-template-hash", "abc"}, labels...)...)
	}
	for name, tc := range map[string]struct {
		pod            *metav1.ObjectMeta
		want, revision string
	}{
		"the workload":                   {of(), "web", "latest"},
		"app":                            {of("app", "a", "version", "v"), "a", "v"},
		"Kubernetes' before app":         {of("app", "a", "app.kubernetes.io/name", "k", "version", "v", "app.kubernetes.io/version", "kv"), "k", "kv"},
		"canonical before all":           {of("app", "a", "app.kubernetes.io/name", "k", "service.istio.io/canonical-name", "c", "version", "v", "app.kubernetes.io/version", "kv", "service.istio.io/canonical-revision", "cv"), "c", "cv"},
		"what is empty is not there":     {of("service.istio.io/canonical-name", "", "app", "a", "app.kubernetes.io/version", "", "version", "v"), "a", "v"},
		"the workload as it is reported": {of(WorkloadNameLabel, "shop"), "shop", "latest"},
	} {
		if got, revision := CanonicalService(tc.pod); got != tc.want || revision != tc.revision {
			t.Errorf("%s: %q, %q, want %q, %q", name, got, revision, tc.want, tc.revision)
		}
	}
}

func TestWhichPodsRunAnEnvoy(t *testing.T) {
	pod := func(labels ...string) *metav1.ObjectMeta { return owned("ReplicaSet", "web-abc", labels...) }
	injected := func(status string) *metav1.ObjectMeta { return annotated(pod(), StatusAnnotation, status) }
	with := func(m *metav1.ObjectMeta, key, value string) *metav1.ObjectMeta {
		m.Annotations[key] = value
		return m
	}
	for name, tc := range map[string]struct {
		pod             *metav1.ObjectMeta
		envoy, waypoint bool
	}{
		"none":                       {pod(), false, false},
		"not injected":               {pod("sidecar.istio.io/inject", "false"), false, false},
		"to be injected, and is not": {pod("sidecar.istio.io/inject", "true"), false, false},
		"of an ambient mesh":         {annotated(pod("istio.io/dataplane-mode", "ambient"), "ambient.istio.io/redirection", "enabled"), false, false},
		"injected":                   {injected(`{"initContainers":["istio-init"],"containers":["istio-proxy"],"revision":"default"}`), true, false},
		"native":                     {injected(`{"initContainers":["istio-init","istio-proxy"],"containers":null,"revision":"default"}`), true, false},
		"injected gateway":           {with(injected(`{"containers":["istio-proxy"]}`), templatesAnnotation, "gateway"), true, false},
		"injected with another template too": {
			with(injected(`{"containers":["istio-proxy"]}`), templatesAnnotation, "sidecar,custom"), true, false,
		},
		"gRPC without a proxy":              {with(injected(`{"containers":["istio-proxy"]}`), templatesAnnotation, "grpc-agent"), false, false},
		"gRPC without an agent":             {with(injected(`{"volumes":["istio-data"]}`), templatesAnnotation, "grpc-simple"), false, false},
		"Gateway API gateway":               {pod(ManagedLabel, "istio.io-gateway-controller", "sidecar.istio.io/inject", "false"), true, false},
		"waypoint":                          {pod(ManagedLabel, "istio.io-mesh-controller", "sidecar.istio.io/inject", "false"), true, true},
		"east-west gateway":                 {pod(ManagedLabel, "istio.io-eastwest-controller"), true, true},
		"ingress gateway of the old charts": {pod(componentLabel, "IngressGateways", "sidecar.istio.io/inject", "false"), true, false},
		"egress gateway of the old charts":  {pod(componentLabel, "EgressGateways"), true, false},
		"istiod":                            {pod(componentLabel, "Pilot", "sidecar.istio.io/inject", "false"), false, false},
	} {
		if envoy, waypoint := HasEnvoy(tc.pod), IsWaypoint(tc.pod); envoy != tc.envoy || waypoint != tc.waypoint {
			t.Errorf("%s: an Envoy %v, a waypoint %v, want %v and %v", name, envoy, waypoint, tc.envoy, tc.waypoint)
		}
	}
}
