package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

const (
	// discoveryTimeout bounds a request of discovery. A discovery is two requests, /api and /apis,
	// which together take less than raiseTimeout.
	discoveryTimeout = 2 * time.Second
	// discoveryLife is how long a kind that the API server does not have is believed not to be
	// there: one that is installed is found so much later, and a misspelt one costs two requests in
	// that time, whoever asks for it.
	discoveryLife = 30 * time.Second
)

// kinds knows what the API server calls the kinds of targets. A new discovery takes the place of
// the old when it has succeeded, so nobody's mapping is lost to another's spelling. It is safe for
// concurrent use.
type kinds struct {
	discover func() (*knownKinds, error)
	current  atomic.Pointer[knownKinds]
	asking   singleflight.Group
}

// knownKinds is what one discovery has found.
type knownKinds struct {
	at     time.Time // when it began
	mapper meta.RESTMapper
	scales map[schema.GroupVersionResource]schema.GroupVersionKind // the kinds of their scales
}

func newKinds(config *rest.Config) (*kinds, error) {
	bounded := paced(config, clientQPS, clientBurst)
	bounded.Timeout = discoveryTimeout
	client, err := discovery.NewDiscoveryClientForConfig(bounded)
	if err != nil {
		return nil, err
	}
	return &kinds{discover: func() (*knownKinds, error) {
		at := time.Now()
		groups, err := restmapper.GetAPIGroupResourcesWithContext(context.Background(), client)
		if err != nil {
			return nil, err
		}
		return &knownKinds{at, restmapper.NewDiscoveryRESTMapper(groups), scalesOf(groups)}, nil
	}}, nil
}

// scalesOf finds the scale subresources, as the discovery of package scale does.
func scalesOf(groups []*restmapper.APIGroupResources) map[schema.GroupVersionResource]schema.GroupVersionKind {
	scales := map[schema.GroupVersionResource]schema.GroupVersionKind{}
	for _, g := range groups {
		for version, resources := range g.VersionedResources {
			of := schema.GroupVersion{Group: g.Group.Name, Version: version}
			for _, r := range resources {
				name, scaled := strings.CutSuffix(r.Name, "/scale")
				if !scaled {
					continue
				}
				kind := of.WithKind(r.Kind)
				if r.Group != "" && r.Version != "" {
					kind = schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
				}
				scales[of.WithResource(name)] = kind
			}
		}
	}
	return scales
}

// resource finds out what the API server calls the target's kind.
func (k *kinds) resource(ctx context.Context, target autoscalingv2.CrossVersionObjectReference) (schema.GroupResource, error) {
	version, err := schema.ParseGroupVersion(target.APIVersion)
	if err != nil {
		return schema.GroupResource{}, fmt.Errorf("scaleTargetRef: %w", err)
	}
	kind := version.WithKind(target.Kind)
	found := k.current.Load()
	for {
		if found != nil {
			mapping, err := found.mapper.RESTMapping(kind.GroupKind(), kind.Version)
			if err == nil {
				return mapping.Resource.GroupResource(), nil
			}
			if !meta.IsNoMatchError(err) || time.Since(found.at) < discoveryLife {
				return schema.GroupResource{}, fmt.Errorf("scaleTargetRef %s %s: %w", target.Kind, target.Name, err)
			}
		}
		if found, err = k.again(ctx, found); err != nil {
			return schema.GroupResource{}, fmt.Errorf("scaleTargetRef %s %s: %w", target.Kind, target.Name, err)
		}
	}
}

// again is a discovery that is newer than the one given, one at a time. It goes on when who waits
// for it has left.
func (k *kinds) again(ctx context.Context, than *knownKinds) (*knownKinds, error) {
	if now := k.current.Load(); now != than {
		return now, nil
	}
	answer := k.asking.DoChan("", func() (any, error) {
		found, err := k.discover()
		if err == nil {
			k.current.Store(found)
		}
		return found, err
	})
	select {
	case a := <-answer:
		return a.Val.(*knownKinds), a.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ResourceFor and ScaleForResource answer the scale clients, which ask only for what resource has
// found.
func (k *kinds) ResourceFor(resource schema.GroupVersionResource) (schema.GroupVersionResource, error) {
	return k.current.Load().mapper.ResourceFor(resource)
}

func (k *kinds) ScaleForResource(resource schema.GroupVersionResource) (schema.GroupVersionKind, error) {
	kind, ok := k.current.Load().scales[resource]
	if !ok {
		return kind, fmt.Errorf("%s has no scale", resource.GroupResource())
	}
	return kind, nil
}
