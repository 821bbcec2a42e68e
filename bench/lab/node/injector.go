package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

const (
	sidecarImage = "lab.local/sidecar:lab"
	// proxyConfig is the annotation by which a pod's sidecar is told its sink.
	proxyConfig = "proxy.istio.io/config"
	// inboundPort is where a sidecar takes what comes for the app (package pod).
	inboundPort = 15006
)

// webhook asks for each pod of an injected namespace, as Istio's does.
const webhook = `apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: lab-sidecar-injector}
webhooks:
- name: inject.lab.meshpulse.io
  admissionReviewVersions: [v1]
  sideEffects: None
  clientConfig: {url: "https://%s/inject", caBundle: %s}
  namespaceSelector: {matchLabels: {istio-injection: enabled}}
  objectSelector: {matchExpressions: [{key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}]}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
`

// serveInjection answers the API server's reviews of pods.
func serveInjection(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil {
		http.Error(w, fmt.Sprint("no admission review: ", err), http.StatusBadRequest)
		return
	}
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	patch, err := injected(review.Request.Object.Raw, review.Request.Namespace)
	if err != nil {
		review.Response.Allowed, review.Response.Result = false, &metav1.Status{Message: err.Error()}
	} else {
		kind := admissionv1.PatchTypeJSONPatch
		review.Response.Patch, review.Response.PatchType = patch, &kind
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(toJSON(review)) // an API server that has gone away asks again
}

// injected is the JSON patch that gives a pod its sidecar.
func injected(raw []byte, namespace string) ([]byte, error) {
	var pod corev1.Pod
	if err := json.Unmarshal(raw, &pod); err != nil {
		return nil, err
	}
	if err := inject(&pod, namespace); err != nil {
		return nil, err
	}
	return toJSON([]map[string]any{
		{"op": "add", "path": "/metadata/annotations", "value": pod.Annotations},
		{"op": "replace", "path": "/spec", "value": pod.Spec},
	}), nil
}

// inject adds the sidecar, as the second container. It takes the app's port by name, where Istio's
// takes all by a rule of iptables; the probes go to the app, as they do when Istio has rewritten
// them.
func inject(pod *corev1.Pod, namespace string) error {
	sink, err := sinkOf(pod)
	if err != nil {
		return err
	}
	if len(pod.Spec.Containers) == 0 || len(pod.Spec.Containers[0].Ports) == 0 {
		return fmt.Errorf("pod %s%s has no container with a port: the lab's sidecar is for one app with one port", pod.Name, pod.GenerateName)
	}
	app := &pod.Spec.Containers[0]
	port := app.Ports[0]
	for _, probe := range []*corev1.Probe{app.ReadinessProbe, app.LivenessProbe, app.StartupProbe} {
		if probe != nil && probe.HTTPGet != nil {
			probe.HTTPGet.Port = intstr.FromInt32(port.ContainerPort)
		}
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[meshpod.StatusAnnotation] = `{"containers":["istio-proxy"]}`
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	proxy := corev1.Container{Name: "istio-proxy", Image: sidecarImage, Env: []corev1.EnvVar{
		field("POD_NAME", "metadata.name"), field("POD_IP", "status.podIP"),
		{Name: "POD_NAMESPACE", Value: namespace},
		{Name: "WORKLOAD", Value: meshpod.Workload(&pod.ObjectMeta)},
		{Name: "SINK", Value: sink},
		{Name: "APP_PORT", Value: strconv.Itoa(int(port.ContainerPort))},
		{Name: "POD_LABELS", Value: string(toJSON(pod.Labels))},
		{Name: "POD_ANNOTATIONS", Value: string(toJSON(pod.Annotations))},
	}}
	if sink != "" {
		app.Ports[0].Name = ""
		proxy.Ports = []corev1.ContainerPort{{Name: port.Name, ContainerPort: inboundPort}}
		proxy.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
			TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(inboundPort)},
		}}
	}
	pod.Spec.Containers = append(pod.Spec.Containers, proxy)
	return nil
}

// sinkOf is the address of envoyMetricsService, nothing where the pod does not set one.
func sinkOf(pod *corev1.Pod) (string, error) {
	var config struct {
		EnvoyMetricsService struct {
			Address string `json:"address"`
		} `json:"envoyMetricsService"`
	}
	if err := yaml.Unmarshal([]byte(pod.Annotations[proxyConfig]), &config); err != nil {
		return "", fmt.Errorf("annotation %s: %w", proxyConfig, err)
	}
	return config.EnvoyMetricsService.Address, nil
}
