// Package meshpod knows how Istio names a pod and which pods run an Envoy of Istio's, by what their
// metadata says. It knows nothing else of Kubernetes, and must not know meshpulse: the lab makes
// its pods by the same rules. The references are istio/istio's pkg/kube/util.go
// (GetDeployMetaFromPod, GetWorkloadMetaFromPod), pkg/kube/labels, and the charts that make the
// pods (manifests/charts/istio-control/istio-discovery/files, manifests/charts/gateways).
package meshpod

import (
	"regexp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Labels and annotations by which Istio knows its own pods.
const (
	// StatusAnnotation is what the injector leaves on every pod, whether the sidecar is a container
	// or a native one.
	StatusAnnotation = "sidecar.istio.io/status"
	// ManagedLabel names the controller of istiod that made a gateway or a waypoint. Those are not
	// injected.
	ManagedLabel = "gateway.istio.io/managed"
	// WorkloadNameLabel overrides the workload's name of an injected sidecar, since Istio 1.25.
	WorkloadNameLabel = "service.istio.io/workload-name"

	templatesAnnotation = "inject.istio.io/templates"   // what was injected, where it is not a sidecar
	componentLabel      = "operator.istio.io/component" // of the gateways of Istio's older charts
)

// cronJobSuffix is what a CronJob's controller appends to a Job's name: its time in minutes, once
// in seconds.
var cronJobSuffix = regexp.MustCompile(`(.)-\d{8,10}$`)

// Workload is the name of a pod's workload as its Envoy says it: that of its controller, of a
// ReplicaSet the Deployment or Rollout behind it, of a ReplicationController the DeploymentConfig,
// of a Job the CronJob. A pod without a controller, or whose name was not generated, is a workload
// of its own.
func Workload(m *metav1.ObjectMeta) string {
	if name := m.Labels[WorkloadNameLabel]; name != "" && !isGateway(m) {
		return name
	}
	owner := metav1.GetControllerOfNoCopy(m)
	if owner == nil || owner.Name == "" || m.GenerateName == "" {
		return m.Name
	}
	switch owner.Kind {
	case "ReplicaSet":
		for _, label := range []string{"pod-template-hash", "rollouts-pod-template-hash"} {
			if hash := m.Labels[label]; hash != "" && strings.HasSuffix(owner.Name, hash) {
				return strings.TrimSuffix(owner.Name, "-"+hash)
			}
		}
	case "ReplicationController":
		if name := m.Labels["deploymentconfig"]; name != "" {
			return name
		}
	case "Job":
		return cronJobSuffix.ReplaceAllString(owner.Name, "$1")
	}
	return owner.Name
}

// CanonicalService returns the canonical service's name and revision that a pod's Envoy says.
func CanonicalService(m *metav1.ObjectMeta) (name, revision string) {
	return firstLabel(m, Workload(m), "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"),
		firstLabel(m, "latest", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
}

func firstLabel(m *metav1.ObjectMeta, otherwise string, names ...string) string {
	for _, n := range names {
		if v := m.Labels[n]; v != "" {
			return v
		}
	}
	return otherwise
}

// HasEnvoy reports whether the pod runs an Envoy of Istio's: a sidecar, a gateway or a waypoint.
// What is injected for gRPC without a proxy is none.
func HasEnvoy(m *metav1.ObjectMeta) bool {
	_, injected := m.Annotations[StatusAnnotation]
	return isGateway(m) || injected && !strings.HasPrefix(m.Annotations[templatesAnnotation], "grpc-")
}

// isGateway reports whether the pod's Envoy is no sidecar: istiod made it for the Gateway API (a
// gateway or a waypoint), it was injected as a gateway, or one of Istio's older charts made it.
func isGateway(m *metav1.ObjectMeta) bool {
	component := m.Labels[componentLabel]
	return m.Labels[ManagedLabel] != "" || component == "IngressGateways" || component == "EgressGateways" ||
		strings.HasPrefix(m.Annotations[templatesAnnotation], "gateway")
}

// IsWaypoint reports whether the pod is a waypoint, or an east-west gateway of the ambient mesh,
// which runs as one: they alone report with reporter="waypoint".
func IsWaypoint(m *metav1.ObjectMeta) bool {
	controller := m.Labels[ManagedLabel]
	return controller == "istio.io-mesh-controller" || controller == "istio.io-eastwest-controller"
}
