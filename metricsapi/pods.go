package metricsapi

import (
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

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
	// waypoint: it is one, and alone reports with reporter="waypoint".
	waypoint bool
	// batch: a Job owns it.
	batch bool
	// left is when its deletion began or it finished, zero while it is to stay: nobody waits for it, but what it served until
	// then still counts.
	left time.Time
}

// cachedPod is a pod as the informer keeps it: a knownPod in a tenth of what its metadata would take. What pods have in common is
// kept once.
type cachedPod struct {
	name, version                                                   string // version is the API's resourceVersion
	namespace, workload, app, release, canonical, canonicalRevision unique.Handle[string]
	created, left                                                   int64 // seconds since 1970; left is 0 while it is to stay
	wired, waypoint, batch                                          bool
}

// GetObjectMeta is all that an informer asks of an object: its key and whether it has changed.
func (c *cachedPod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: c.namespace.Value(), Name: c.name, ResourceVersion: c.version}
}

// GetObjectKind and DeepCopyObject make it a runtime.Object, which a list has to consist of. A cachedPod is never changed once others
// have it.
func (c *cachedPod) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

func (c *cachedPod) DeepCopyObject() runtime.Object { return c }

// tell writes all that is known of the pod to p.
func (c *cachedPod) tell(p *knownPod) {
	*p = knownPod{
		identity: aggregator.Pod{
			Namespace: c.namespace.Value(), Name: c.name, Workload: c.workload.Value(), App: c.app.Value(), Version: c.release.Value(),
			CanonicalService: c.canonical.Value(), CanonicalRevision: c.canonicalRevision.Value(),
		},
		created:  time.Unix(c.created, 0),
		wired:    c.wired,
		waypoint: c.waypoint,
		batch:    c.batch,
	}
	if c.left != 0 {
		p.left = time.Unix(c.left, 0)
	}
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
		created: m.CreationTimestamp.Unix(), wired: meshpod.HasEnvoy(m), waypoint: meshpod.IsWaypoint(m), batch: owner != nil && owner.Kind == "Job",
	}
	if p.DeletionTimestamp != nil { // when its grace period ends
		c.left = p.DeletionTimestamp.Unix()
		if grace := p.DeletionGracePeriodSeconds; grace != nil {
			c.left -= *grace
		}
	}
	return c, nil
}
