package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	"k8s.io/metrics/pkg/apis/external_metrics/v1beta1"

	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

// Look reads a cluster once, with the rights of who runs it.
type Look struct{ client rest.Interface }

// NewLook takes a kubeconfig, and kubectl's own where it is "". Nothing is asked yet.
func NewLook(kubeconfig string) (*Look, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	switch {
	case kubeconfig != "" && errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("--kubeconfig: %w: give a file that can be read", err)
	case err != nil:
		return nil, fmt.Errorf("no way to a cluster: %w: give --kubeconfig FILE, or a current context to kubectl", err)
	}
	client, err := kubernetes.NewForConfig(paced(config, clientQPS, clientBurst))
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	return &Look{client.CoreV1().RESTClient()}, nil
}

// HPAs calls do with each page of the list of all HPAs, as the API server gives it.
func (l *Look) HPAs(ctx context.Context, do func([]byte)) error {
	return l.list(ctx, "/apis/autoscaling/v2/horizontalpodautoscalers", nil, do)
}

// ScaledObjects does the same with KEDA's, of which there are none where it is not installed.
func (l *Look) ScaledObjects(ctx context.Context, do func([]byte)) error {
	err := l.list(ctx, "/apis/keda.sh/v1alpha1/scaledobjects", nil, do)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (l *Look) list(ctx context.Context, path string, params map[string]string, do func([]byte)) error {
	for next := ""; ; {
		r := l.client.Get().AbsPath(path).Param("limit", "500")
		for key, value := range params {
			r.Param(key, value)
		}
		if next != "" {
			r.Param("continue", next)
		}
		page, err := answerOf(ctx, r)
		if err != nil {
			return fmt.Errorf("%s cannot be listed: %w", path, err)
		}
		do(page)
		var list metav1.PartialObjectMetadataList
		if err := json.Unmarshal(page, &list); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if next = list.Continue; next == "" {
			return nil
		}
	}
}

// answerOf is what a request is answered with. The error is what the server says: that of Raw alone
// would lack it.
func answerOf(ctx context.Context, r *rest.Request) ([]byte, error) {
	result := r.Do(ctx)
	if err := result.Error(); err != nil {
		return nil, err
	}
	return result.Raw()
}

// Wiring is what a workload's pods say of their sidecars.
type Wiring struct {
	Pods     int `json:"pods"`
	Sidecars int `json:"sidecars"` // those that run an Envoy of Istio's
	Wired    int `json:"wired"`    // those whose Envoy is told where to send its statistics
	// Services are where to, host:port, sorted.
	Services []string `json:"services,omitempty"`
}

// Wirings are those of a namespace's workloads, by name.
func (l *Look) Wirings(ctx context.Context, namespace string) (map[string]*Wiring, error) {
	found := map[string]*Wiring{}
	err := l.list(ctx, "/api/v1/namespaces/"+namespace+"/pods", map[string]string{"fieldSelector": livingPods.String()}, func(page []byte) {
		var pods corev1.PodList
		if json.Unmarshal(page, &pods) != nil {
			return // list says it
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			w := found[meshpod.Workload(&p.ObjectMeta)]
			if w == nil {
				w = &Wiring{}
				found[meshpod.Workload(&p.ObjectMeta)] = w
			}
			w.add(p)
		}
	})
	return found, err
}

func (w *Wiring) add(p *corev1.Pod) {
	w.Pods++
	if !meshpod.HasEnvoy(&p.ObjectMeta) {
		return
	}
	w.Sidecars++
	address := metricsService(p)
	if address == "" {
		return
	}
	w.Wired++
	if !slices.Contains(w.Services, address) {
		w.Services = append(w.Services, address)
		slices.Sort(w.Services)
	}
}

// metricsService is where a pod's Envoy sends its statistics, "" for nowhere. The injector leaves
// what the whole mesh and the pod's annotation say in the environment of the proxy
// (istio/istio, manifests/charts/istio-control/istio-discovery/files: PROXY_CONFIG).
func metricsService(p *corev1.Pod) string {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, e := range c.Env {
			if c.Name != "istio-proxy" || e.Name != "PROXY_CONFIG" {
				continue
			}
			var config struct {
				EnvoyMetricsService struct {
					Address string `json:"address"`
				} `json:"envoyMetricsService"`
			}
			if json.Unmarshal([]byte(e.Value), &config) == nil {
				return config.EnvoyMetricsService.Address
			}
		}
	}
	return ""
}

// ServerOf is NAMESPACE/NAME of the Service behind an APIService, "" where there is none.
func (l *Look) ServerOf(ctx context.Context, apiService string) (string, error) {
	body, err := answerOf(ctx, l.client.Get().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices/"+apiService))
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	var api struct {
		Spec struct {
			Service struct{ Namespace, Name string }
		}
	}
	if err == nil {
		err = json.Unmarshal(body, &api)
	}
	if err != nil {
		return "", fmt.Errorf("cannot tell whose %s is: %w", apiService, err)
	}
	return strings.Trim(api.Spec.Service.Namespace+"/"+api.Spec.Service.Name, "/"), nil
}

// Object asks for a metric of an object, RESOURCE/NAME/METRIC, as an HPA controller does.
func (l *Look) Object(ctx context.Context, namespace, metric, selector string) (*v1beta2.MetricValueList, error) {
	list := &v1beta2.MetricValueList{}
	return list, l.metric(ctx, "/apis/custom.metrics.k8s.io/v1beta2/namespaces/"+namespace+"/"+metric, "metricLabelSelector", selector, list)
}

// External asks for an external metric as an HPA controller does.
func (l *Look) External(ctx context.Context, namespace, metric, selector string) (*v1beta1.ExternalMetricValueList, error) {
	list := &v1beta1.ExternalMetricValueList{}
	return list, l.metric(ctx, "/apis/external.metrics.k8s.io/v1beta1/namespaces/"+namespace+"/"+metric, "labelSelector", selector, list)
}

// metric reads what a path has for a selector, which is a parameter of it.
func (l *Look) metric(ctx context.Context, path, parameter, selector string, into any) error {
	r := l.client.Get().AbsPath(path)
	if selector != "" {
		r.Param(parameter, selector)
	}
	body, err := answerOf(ctx, r)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}
