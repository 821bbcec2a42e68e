package metricsapi

import (
	"context"
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/scale"

	"github.com/meshpulse/meshpulse/metricsapi/horizontal"
)

// scales reads what a target is meant to have.
type scales interface {
	// replicas returns spec.replicas and status.replicas of the scale.
	replicas(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (horizontal.Target, error)
}

// clusterScales reads and writes the scale subresource of any kind that has one.
type clusterScales struct {
	mapper meta.ResettableRESTMapper
	client scale.ScalesGetter
}

// discoveryTimeout bounds a request of discovery: the mapper takes no context, so a raise or an answer that needs it first waits for
// it. A discovery is two requests, /api and /apis, which together take less than raiseTimeout.
const discoveryTimeout = 2 * time.Second

func newClusterScales(config *rest.Config) (*clusterScales, error) {
	// Every held answer reads a scale: after a restart that is every answer, where client-go's default lets 5 a second through.
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 200, 400
	bounded := rest.CopyConfig(config)
	bounded.Timeout = discoveryTimeout
	found, err := discovery.NewDiscoveryClientForConfig(bounded)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(found)
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(cached)
	client, err := scale.NewForConfig(config, mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(cached))
	if err != nil {
		return nil, err
	}
	return &clusterScales{mapper, client}, nil
}

func (s *clusterScales) replicas(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (horizontal.Target, error) {
	sc, err := s.scale(ctx, namespace, target)
	if err != nil {
		return horizontal.Target{}, err
	}
	return targetOf(sc), nil
}

func targetOf(sc *autoscalingv1.Scale) horizontal.Target {
	return horizontal.Target{Spec: sc.Spec.Replicas, Status: sc.Status.Replicas}
}

func (s *clusterScales) scale(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	resource, err := s.resource(target)
	if err != nil {
		return nil, err
	}
	sc, err := s.client.Scales(namespace).Get(ctx, resource, target.Name, metav1.GetOptions{})
	if err != nil {
		return nil, scaleError(target, resource, err)
	}
	return sc, nil
}

// deniedError is a scale that meshpulse has no right to read or to write.
type deniedError struct {
	resource schema.GroupResource
	err      error
}

func (e *deniedError) Error() string { return e.err.Error() }
func (e *deniedError) Unwrap() error { return e.err }

// remedy says what gives the right. The component's role names what nearly all HPAs scale; another kind takes one of its own.
func (e *deniedError) remedy() string {
	if e.resource.Group == "apps" && (e.resource.Resource == "deployments" || e.resource.Resource == "statefulsets") {
		return "apply manifests/components/surge-action, for all namespaces or for this one"
	}
	const name = "meshpulse:surge-action:"
	return fmt.Sprintf("kubectl create clusterrole %[1]s%[2]s --verb=get,update --resource=%[3]s/scale && kubectl create clusterrolebinding %[1]s%[2]s --clusterrole=%[1]s%[2]s "+
		"--serviceaccount=meshpulse-system:meshpulse (for this namespace alone: a rolebinding in it)", name, e.resource.Resource, e.resource)
}

// scaleError says whose scale it is that could not be read or written.
func scaleError(target autoscalingv2.CrossVersionObjectReference, resource schema.GroupResource, err error) error {
	named := fmt.Errorf("scale of %s %s: %w", target.Kind, target.Name, err)
	if apierrors.IsForbidden(err) {
		return &deniedError{resource, named}
	}
	return named
}

// raise writes the scale that was read, with the resource version that it was read at.
func (s *clusterScales) raise(ctx context.Context, target autoscalingv2.CrossVersionObjectReference, sc *autoscalingv1.Scale) error {
	resource, err := s.resource(target)
	if err != nil {
		return err
	}
	if _, err := s.client.Scales(sc.Namespace).Update(ctx, resource, sc, metav1.UpdateOptions{}); err != nil {
		return scaleError(target, resource, err)
	}
	return nil
}

// resource finds out what the API server calls the target's kind.
func (s *clusterScales) resource(target autoscalingv2.CrossVersionObjectReference) (schema.GroupResource, error) {
	version, err := schema.ParseGroupVersion(target.APIVersion)
	if err != nil {
		return schema.GroupResource{}, fmt.Errorf("scaleTargetRef: %w", err)
	}
	kind := version.WithKind(target.Kind)
	mapping, err := s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) { // installed since the last discovery
		s.mapper.Reset()
		mapping, err = s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	if err != nil {
		return schema.GroupResource{}, fmt.Errorf("scaleTargetRef %s %s: %w", target.Kind, target.Name, err)
	}
	return mapping.Resource.GroupResource(), nil
}
