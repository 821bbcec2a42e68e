package cluster

import (
	"hash/fnv"
	"math"
	"strconv"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

// Pod is what the rule for incomplete knowledge needs of a pod that has begun and not finished.
type Pod struct {
	// Identity is what the pod's sidecar says, or will say, of itself.
	Identity aggregator.Pod
	Created  time.Time
	// Wired: it runs an Envoy of Istio's.
	Wired bool
	// Waypoint: it is one, and alone reports with reporter="waypoint".
	Waypoint bool
	// Batch: a Job owns it.
	Batch bool
	// Left is when its deletion began or it finished, zero while it is to stay: nobody waits for
	// it, but what it served until then still counts.
	Left time.Time
}

// Key names the pod.
func (p *Pod) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Identity.Namespace, Name: p.Identity.Name}
}

// Workload is the workload that the pod is of.
func (p *Pod) Workload() Workload { return Workload{p.Identity.Namespace, p.Identity.Workload} }

// cachedPod is a pod as the informer keeps it: a Pod in a thirtieth of what the pod would
// take. What the pods of a workload have in common is kept once.
type cachedPod struct {
	name                   string
	version                uint64 // of the API's resourceVersion
	of                     unique.Handle[kindred]
	created, left          uint32        // seconds since 1970; left is 0 while it is to stay
	addresses              [2]addressKey // of either family; zero: none
	wired, waypoint, batch bool
	node                   bool // the addresses are its node's
	pending                bool // nothing is expected of it yet
}

// kindred is what the pods of a workload say alike. account is their service account.
type kindred struct{ namespace, workload, app, release, canonical, canonicalRevision, account string }

func (c *cachedPod) namespace() string { return c.of.Value().namespace }

func (c *cachedPod) workload() Workload {
	of := c.of.Value()
	return Workload{of.namespace, of.workload}
}

// GetObjectMeta is all that an informer asks of an object: its key and whether it has changed.
func (c *cachedPod) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: c.namespace(), Name: c.name, ResourceVersion: strconv.FormatUint(c.version, 10)}
}

// GetObjectKind and DeepCopyObject make it a runtime.Object, which a list has to consist of. A
// cachedPod is never changed once others have it.
func (c *cachedPod) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

func (c *cachedPod) DeepCopyObject() runtime.Object { return c }

// tell writes all that is known of the pod to p.
func (c *cachedPod) tell(p *Pod) {
	of := c.of.Value()
	*p = Pod{
		Identity: aggregator.Pod{
			Namespace: of.namespace, Name: c.name, Workload: of.workload, App: of.app, Version: of.release,
			CanonicalService: of.canonical, CanonicalRevision: of.canonicalRevision, Waypoint: c.waypoint,
		},
		Created:  time.Unix(int64(c.created), 0),
		Wired:    c.wired,
		Waypoint: c.waypoint,
		Batch:    c.batch,
	}
	if c.left != 0 {
		p.Left = time.Unix(int64(c.left), 0)
	}
}

// keepIdentity drops all of a pod that is never read: a large cluster's pods carry ten kilobytes of
// it.
func keepIdentity(object any) (any, error) {
	p, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	m := &p.ObjectMeta
	canonical, revision := meshpod.CanonicalService(m)
	owner := metav1.GetControllerOfNoCopy(m)
	c := &cachedPod{
		name: m.Name, version: versionOf(m),
		of:      unique.Make(kindred{m.Namespace, meshpod.Workload(m), m.Labels["app"], m.Labels["version"], canonical, revision, p.Spec.ServiceAccountName}),
		created: secondsOf(m.CreationTimestamp.Unix()), wired: meshpod.HasEnvoy(m), waypoint: meshpod.IsWaypoint(m), batch: owner != nil && owner.Kind == "Job",
		addresses: addressesOf(p), node: p.Spec.HostNetwork, pending: p.Status.Phase == corev1.PodPending,
	}
	if p.DeletionTimestamp != nil { // when its grace period ends
		left := p.DeletionTimestamp.Unix()
		if grace := p.DeletionGracePeriodSeconds; grace != nil {
			left -= *grace
		}
		c.left = max(1, secondsOf(left))
	}
	return c, nil
}

// versionOf is the pod's resourceVersion as the number that all API servers give. Of anything else
// it is a hash: an informer asks whether it has changed, and nothing more.
func versionOf(m *metav1.ObjectMeta) uint64 {
	n, err := strconv.ParseUint(m.ResourceVersion, 10, 64)
	if err != nil {
		h := fnv.New64a()
		_, _ = h.Write([]byte(m.ResourceVersion)) // never an error
		return h.Sum64()
	}
	return n
}

// secondsOf is a time of this century and the next.
func secondsOf(unix int64) uint32 { return uint32(min(max(unix, 0), math.MaxUint32)) }
