package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/scale"
)

// Scales reads and writes the scale subresource of any kind that has one. Answers share their
// reads; a raise reads what is newest, over a client of its own, so that no number of held answers
// keeps it waiting.
type Scales struct {
	kinds  *kinds
	reads  *scaleReads
	raises scale.ScalesGetter
}

// Requests a second of one client, and at once: after a restart every answer is held and so reads a
// scale, where client-go's default lets 5 a second through.
const (
	clientQPS   = 200
	clientBurst = 400
)

// paced is the config for a client with a limit of its own.
func paced(config *rest.Config, qps float32, burst int) *rest.Config {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst, config.RateLimiter = qps, burst, nil
	return config
}

func newScales(config *rest.Config) (*Scales, error) {
	kinds, err := newKinds(config)
	if err != nil {
		return nil, err
	}
	var clients [2]scale.ScalesGetter
	for i := range clients {
		if clients[i], err = scale.NewForConfig(paced(config, clientQPS, clientBurst), kinds, dynamic.LegacyAPIPathResolverFunc, kinds); err != nil {
			return nil, err
		}
	}
	return &Scales{kinds, newScaleReads(kinds, clients[0], scaleLife), clients[1]}, nil
}

// Recent returns a target's scale as it was within the last second. Others have it too: it must not
// be changed.
func (s *Scales) Recent(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	return s.reads.recent(ctx, namespace, target)
}

// Now returns a target's scale as it is at this moment.
func (s *Scales) Now(ctx context.Context, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	return readScale(ctx, s.kinds, s.raises, namespace, target)
}

// ScalesOver are scales over a client that is given, of kinds that are known, whose reads are
// shared by nobody.
func ScalesOver(client scale.ScalesGetter, mapper meta.RESTMapper) *Scales {
	known := &kinds{}
	known.current.Store(&knownKinds{at: time.Now(), mapper: mapper})
	return &Scales{known, newScaleReads(known, client, 0), client}
}

func readScale(ctx context.Context, kinds *kinds, client scale.ScalesGetter, namespace string, target autoscalingv2.CrossVersionObjectReference) (*autoscalingv1.Scale, error) {
	resource, err := kinds.resource(ctx, target)
	if err != nil {
		return nil, err
	}
	sc, err := client.Scales(namespace).Get(ctx, resource, target.Name, metav1.GetOptions{})
	if err != nil {
		return nil, scaleError(target, resource, err)
	}
	return sc, nil
}

// DeniedError is a scale that meshpulse has no right to read or to write, or that a policy of the
// cluster keeps from being written.
type DeniedError struct {
	resource schema.GroupResource
	err      error
}

func (e *DeniedError) Error() string { return e.err.Error() }
func (e *DeniedError) Unwrap() error { return e.err }

// noRight says whether it is the API server's authorisation that says no, which names who may not
// do what; admission does not.
func (e *DeniedError) noRight() bool {
	_, said, user := strings.Cut(e.Error(), ` is forbidden: User "`)
	return user && strings.Contains(said, `" cannot `)
}

// Remedy says what helps. The component's role names what nearly all HPAs scale; another kind takes
// one of its own.
func (e *DeniedError) Remedy() string {
	if !e.noRight() {
		return fmt.Sprintf("not for want of a right, but by a policy of the cluster (%v): let whoever runs it except meshpulse's service account, or set surge-action to observe or off", e.err)
	}
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
		return &DeniedError{resource, named}
	}
	return named
}

// Update writes what now has returned, with other replicas. It fails with a conflict where the
// target has been written since.
func (s *Scales) Update(ctx context.Context, target autoscalingv2.CrossVersionObjectReference, sc *autoscalingv1.Scale) error {
	resource, err := s.kinds.resource(ctx, target)
	if err != nil {
		return err
	}
	written, err := s.raises.Scales(sc.Namespace).Update(ctx, resource, sc, metav1.UpdateOptions{})
	if err != nil {
		return scaleError(target, resource, err)
	}
	s.reads.wrote(sc.Namespace, target, written)
	return nil
}
