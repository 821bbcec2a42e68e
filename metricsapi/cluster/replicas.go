package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// PeersPort is the name of the port of the Service at which replicas talk to each other.
const PeersPort = "peers"

// Replica is a replica of meshpulse, as its Service's endpoints tell.
type Replica struct {
	// Name is its pod's, Address where the others reach it, host:port.
	Name, Address string
	// Zone is its node's, "" where that is not known.
	Zone string
	// Ready: it passes its readiness probe. Leaving: its pod is being deleted.
	Ready, Leaving bool
}

// Replicas follows the endpoints of the Service of all replicas, through an informer.
type Replicas struct {
	informer cache.SharedIndexInformer
	found    func([]Replica)
	contain  Contain
}

// NewReplicas follows a Service, NAMESPACE/NAME, once Run is called: found is told at each change
// which replicas there are. What is ready and what is not is known of those alone that publish
// addresses that are not ready.
func NewReplicas(client kubernetes.Interface, service string, found func([]Replica), contain Contain) (*Replicas, error) {
	namespace, name, ok := strings.Cut(service, "/")
	if !ok || namespace == "" || name == "" {
		return nil, fmt.Errorf("%q is no Service: give NAMESPACE/NAME", service)
	}
	r := &Replicas{found: found, contain: contain}
	slices := client.DiscoveryV1().EndpointSlices(namespace)
	selected := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector = discoveryv1.LabelServiceName + "=" + name
		return o
	}
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return slices.List(ctx, selected(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return slices.Watch(ctx, selected(o))
		},
	}
	r.informer = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, client), &discoveryv1.EndpointSlice{}, 0, cache.Indexers{})
	_, err := r.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { r.tell() },
		UpdateFunc: func(any, any) { r.tell() },
		DeleteFunc: func(any) { r.tell() },
	})
	return r, err
}

// tell tells which replicas there are, once all are known.
func (r *Replicas) tell() {
	if !r.informer.HasSynced() {
		return
	}
	r.contain.run("replicas", "a change", func() { r.found(replicasOf(r.informer.GetStore().List())) })
}

// Run follows the Service until the context ends. While the API server is away the last list
// stands.
func (r *Replicas) Run(ctx context.Context) {
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), r.informer.HasSynced) {
			r.tell()
		}
	}()
	r.informer.RunWithContext(ctx)
}

// replicasOf reads EndpointSlices, in the order of the replicas' names. A pod may be in two for a
// moment: then what is newer by its state counts, the one that leaves last.
func replicasOf(slicesOf []any) []Replica {
	var found []Replica
	for _, o := range slicesOf {
		s, ok := o.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		port := portOf(s)
		if port == 0 {
			continue
		}
		for _, e := range s.Endpoints {
			if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || len(e.Addresses) == 0 {
				continue
			}
			is := func(b *bool) bool { return b != nil && *b }
			r := Replica{
				Name: e.TargetRef.Name, Address: net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(port))),
				Ready: is(e.Conditions.Serving), Leaving: is(e.Conditions.Terminating),
			}
			if e.Zone != nil {
				r.Zone = *e.Zone
			}
			found = append(found, r)
		}
	}
	slices.SortFunc(found, func(a, b Replica) int {
		leaves := map[bool]int{true: 1}
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(leaves[a.Leaving], leaves[b.Leaving]), cmp.Compare(a.Address, b.Address))
	})
	return slices.CompactFunc(found, func(a, b Replica) bool { return a.Name == b.Name })
}

// portOf is the number of the port at which replicas talk, 0 if there is none.
func portOf(s *discoveryv1.EndpointSlice) int32 {
	for _, p := range s.Ports {
		if p.Name != nil && *p.Name == PeersPort && p.Port != nil {
			return *p.Port
		}
	}
	return 0
}

// StatefulSetReplicas is how many pods a StatefulSet, NAMESPACE/NAME, is to have. The way to the
// API server is as in Options.
func StatefulSetReplicas(ctx context.Context, kubeconfig, statefulSet string) (int32, error) {
	config, err := clientConfig(kubeconfig)
	if err != nil {
		return 0, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return 0, err
	}
	return statefulSetReplicas(ctx, client, statefulSet)
}

func statefulSetReplicas(ctx context.Context, client kubernetes.Interface, statefulSet string) (int32, error) {
	namespace, name, _ := strings.Cut(statefulSet, "/")
	set, err := client.AppsV1().StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return 0, fmt.Errorf("how many pods StatefulSet %s is to have: %w", statefulSet, err)
	}
	if set.Spec.Replicas == nil {
		return 1, nil
	}
	return *set.Spec.Replicas, nil
}
