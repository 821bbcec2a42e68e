package metricsapi

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/meshpod"
)

// podKey names a pod.
type podKey struct{ namespace, name string }

// knownPod is what the rule for incomplete knowledge needs of a pod that has begun and not finished.
type knownPod struct {
	// identity is what the pod's sidecar says, or will say, of itself.
	identity aggregator.Pod
	created  time.Time
	// wired: it runs an Envoy of Istio's.
	wired bool
	// batch: a Job owns it.
	batch bool
	// left is when its deletion began or it finished, zero while it is to stay: nobody waits for it, but what it served until
	// then still counts.
	left time.Time
}

// podIndex knows the pods of the cluster through an informer for their metadata alone, and for a while those that are gone.
type podIndex struct {
	informer cache.SharedIndexInformer
	now      func() time.Time

	mu      sync.Mutex
	leaving map[podKey]leaving             // that exist
	gone    map[string]map[string]knownPod // by namespace and name
	pruned  time.Time
}

// leaving is when a pod's deletion began; seconds since 1970. created tells it from others of its name.
type leaving struct{ created, left int64 }

// goneFor is how long a pod that is gone is remembered: as long as the longest window of a query, the default of
// --max-retention.
const goneFor = time.Hour

func newPodIndex(client metadata.Interface, now func() time.Time) (*podIndex, error) {
	// Of pods that have finished nothing is expected any more, of pending ones nothing yet.
	running := fields.AndSelectors(fields.OneTermNotEqualSelector("status.phase", "Failed"),
		fields.OneTermNotEqualSelector("status.phase", "Succeeded"), fields.OneTermNotEqualSelector("status.phase", "Pending"))
	informer := metadatainformer.NewFilteredMetadataInformer(client, schema.GroupVersionResource{Version: "v1", Resource: "pods"},
		metav1.NamespaceAll, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc},
		func(o *metav1.ListOptions) { o.FieldSelector = running.String() }).Informer()
	x := &podIndex{informer: informer, now: now, leaving: map[podKey]leaving{}, gone: map[string]map[string]knownPod{}}
	if err := informer.SetTransform(x.keep); err != nil {
		return nil, err
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: x.forget})
	return x, err
}

// forget moves a pod to those that are gone.
func (x *podIndex) forget(o any) {
	if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = unknown.Obj
	}
	object, ok := o.(*cachedPod)
	if !ok {
		return
	}
	p, now := object.known(), x.now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if key := (podKey{p.identity.Namespace, p.identity.Name}); x.leaving[key].created == object.created {
		delete(x.leaving, key)
	}
	if !p.wired {
		return
	}
	if p.left.IsZero() { // without a grace period, or it has finished
		p.left = now
	}
	if now.Sub(x.pruned) > goneFor/10 {
		x.prune(now)
	}
	in := x.gone[p.identity.Namespace]
	if in == nil {
		in = map[string]knownPod{}
		x.gone[p.identity.Namespace] = in
	}
	in[p.identity.Name] = p
}

func (x *podIndex) prune(now time.Time) {
	x.pruned = now
	maps.DeleteFunc(x.leaving, func(_ podKey, l leaving) bool { return now.Sub(time.Unix(l.left, 0)) > goneFor }) // not seen to go
	for namespace, in := range x.gone {
		maps.DeleteFunc(in, func(_ string, p knownPod) bool { return now.Sub(p.left) > goneFor })
		if len(in) == 0 {
			delete(x.gone, namespace)
		}
	}
}

// cachedPod is a pod as the informer keeps it: a knownPod in a tenth of what its metadata would take. What pods have in common is
// kept once.
type cachedPod struct {
	name, version                                                   string // version is the API's resourceVersion
	namespace, workload, app, release, canonical, canonicalRevision unique.Handle[string]
	created, left                                                   int64 // seconds since 1970; left is 0 while it is to stay
	wired, batch                                                    bool
}

// GetObjectMeta is all that an informer asks of an object: its key and whether it has changed.
func (c *cachedPod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: c.namespace.Value(), Name: c.name, ResourceVersion: c.version}
}

func (c *cachedPod) known() knownPod {
	p := knownPod{
		identity: aggregator.Pod{
			Namespace: c.namespace.Value(), Name: c.name, Workload: c.workload.Value(), App: c.app.Value(), Version: c.release.Value(),
			CanonicalService: c.canonical.Value(), CanonicalRevision: c.canonicalRevision.Value(),
		},
		created: time.Unix(c.created, 0),
		wired:   c.wired,
		batch:   c.batch,
	}
	if c.left != 0 {
		p.left = time.Unix(c.left, 0)
	}
	return p
}

// keep is what the informer keeps of a pod. Its deletion began when it was first said to: when the kubelet has its containers ended, the
// API server sets the time anew, to that moment (k8s.io/apiserver pkg/registry/rest/delete.go), long after the sidecar's last flush.
func (x *podIndex) keep(object any) (any, error) {
	kept, err := keepIdentity(object)
	c, ok := kept.(*cachedPod)
	if !ok || c.left == 0 {
		return kept, err
	}
	key := podKey{c.namespace.Value(), c.name}
	x.mu.Lock()
	defer x.mu.Unlock()
	if was, ok := x.leaving[key]; ok && was.created == c.created {
		c.left = min(c.left, was.left)
	}
	x.leaving[key] = leaving{c.created, c.left}
	return c, err
}

// keepIdentity drops all of a pod's metadata that is never read: a large cluster's pods carry kilobytes of it.
func keepIdentity(object any) (any, error) {
	p, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return object, nil
	}
	m := &p.ObjectMeta
	canonical, revision := meshpod.CanonicalService(m)
	owner := metav1.GetControllerOfNoCopy(m)
	c := &cachedPod{
		name: m.Name, version: m.ResourceVersion, namespace: unique.Make(m.Namespace), workload: unique.Make(meshpod.Workload(m)),
		app: unique.Make(m.Labels["app"]), release: unique.Make(m.Labels["version"]),
		canonical: unique.Make(canonical), canonicalRevision: unique.Make(revision),
		created: m.CreationTimestamp.Unix(), wired: meshpod.HasEnvoy(m), batch: owner != nil && owner.Kind == "Job",
	}
	if p.DeletionTimestamp != nil { // when its grace period ends
		c.left = p.DeletionTimestamp.Unix()
		if grace := p.DeletionGracePeriodSeconds; grace != nil {
			c.left -= *grace
		}
	}
	return c, nil
}

// in returns the pods of a namespace, of all where it is "", and those that left it. A name that was used again is in it twice.
func (x *podIndex) in(namespace string) []knownPod {
	var objects []any
	if namespace == "" {
		objects = x.informer.GetStore().List()
	} else {
		objects, _ = x.informer.GetIndexer().ByIndex(cache.NamespaceIndex, namespace) // the index exists: it is made with the informer
	}
	pods := make([]knownPod, 0, len(objects))
	for _, o := range objects {
		if p, ok := o.(*cachedPod); ok {
			pods = append(pods, p.known())
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for ns, in := range x.gone {
		if namespace == "" || ns == namespace {
			pods = slices.AppendSeq(pods, maps.Values(in))
		}
	}
	return pods
}

// get returns a pod that exists, else one that is gone, else false.
func (x *podIndex) get(k podKey) (knownPod, bool) {
	o, ok, _ := x.informer.GetStore().GetByKey(k.namespace + "/" + k.name) // the error is of a key that cannot be read
	if p, isPod := o.(*cachedPod); ok && isPod {
		return p.known(), true
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	p, ok := x.gone[k.namespace][k.name]
	return p, ok
}

func (x *podIndex) synced() error {
	if !x.informer.HasSynced() {
		return errors.New("the pods have not been read from the API server yet")
	}
	return nil
}
