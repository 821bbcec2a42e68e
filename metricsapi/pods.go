package metricsapi

import (
	"errors"
	"regexp"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/aggregator"
)

// podKey names a pod.
type podKey struct{ namespace, name string }

// knownPod is what the rule for incomplete knowledge needs of a pod that has begun and not finished.
type knownPod struct {
	// identity is what the pod's sidecar says, or will say, of itself.
	identity aggregator.Pod
	created  time.Time
	// wired: the injector has given it a sidecar.
	wired bool
	// leaving: its deletion has begun, so nobody waits for it.
	leaving bool
}

// podIndex knows the pods of the cluster through an informer for their metadata alone.
type podIndex struct {
	informer cache.SharedIndexInformer
}

const sidecarStatus = "sidecar.istio.io/status" // what Istio's injector leaves on a pod

func newPodIndex(client metadata.Interface) (*podIndex, error) {
	// Of pods that have finished nothing is expected any more, of pending ones nothing yet.
	running := fields.AndSelectors(fields.OneTermNotEqualSelector("status.phase", "Failed"),
		fields.OneTermNotEqualSelector("status.phase", "Succeeded"), fields.OneTermNotEqualSelector("status.phase", "Pending"))
	informer := metadatainformer.NewFilteredMetadataInformer(client, schema.GroupVersionResource{Version: "v1", Resource: "pods"},
		metav1.NamespaceAll, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc},
		func(o *metav1.ListOptions) { o.FieldSelector = running.String() }).Informer()
	return &podIndex{informer: informer}, informer.SetTransform(keepIdentity)
}

// identityLabels are the pod labels that tell what Istio's metrics call it.
var identityLabels = []string{
	"app", "version", "app.kubernetes.io/name", "app.kubernetes.io/version",
	"service.istio.io/canonical-name", "service.istio.io/canonical-revision", "pod-template-hash",
}

// keepIdentity drops all of a pod's metadata that is never read: a large cluster's pods carry kilobytes of it.
func keepIdentity(object any) (any, error) {
	p, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return object, nil
	}
	kept := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, ResourceVersion: p.ResourceVersion,
		CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp,
	}}
	for _, l := range identityLabels {
		if v, ok := p.Labels[l]; ok {
			if kept.Labels == nil {
				kept.Labels = map[string]string{}
			}
			kept.Labels[l] = v
		}
	}
	if _, wired := p.Annotations[sidecarStatus]; wired {
		kept.Annotations = map[string]string{sidecarStatus: ""}
	}
	if owner := metav1.GetControllerOf(p); owner != nil {
		kept.OwnerReferences = []metav1.OwnerReference{{Kind: owner.Kind, Name: owner.Name, Controller: owner.Controller}}
	}
	return kept, nil
}

// in returns the pods of a namespace, of all where it is "".
func (x *podIndex) in(namespace string) []knownPod {
	var objects []any
	if namespace == "" {
		objects = x.informer.GetStore().List()
	} else {
		objects, _ = x.informer.GetIndexer().ByIndex(cache.NamespaceIndex, namespace) // the index exists: it is made with the informer
	}
	pods := make([]knownPod, 0, len(objects))
	for _, o := range objects {
		if p, ok := o.(*metav1.PartialObjectMetadata); ok {
			pods = append(pods, toKnownPod(p))
		}
	}
	return pods
}

// get returns a pod, false if it does not exist.
func (x *podIndex) get(k podKey) (knownPod, bool) {
	o, ok, _ := x.informer.GetStore().GetByKey(k.namespace + "/" + k.name) // the error is of a key that cannot be read
	p, isPod := o.(*metav1.PartialObjectMetadata)
	if !ok || !isPod {
		return knownPod{}, false
	}
	return toKnownPod(p), true
}

func (x *podIndex) synced() error {
	if !x.informer.HasSynced() {
		return errors.New("the pods have not been read from the API server yet")
	}
	return nil
}

// toKnownPod names the pod as Istio does (pkg/config/labels and pilot's workload names in istio.io/istio): the workload is its
// owner, of a ReplicaSet the Deployment behind it, of a Job the CronJob.
func toKnownPod(p *metav1.PartialObjectMetadata) knownPod {
	_, wired := p.Annotations[sidecarStatus]
	first := func(or string, names ...string) string {
		for _, n := range names {
			if v := p.Labels[n]; v != "" {
				return v
			}
		}
		return or
	}
	workload := workloadOf(p)
	return knownPod{
		identity: aggregator.Pod{
			Namespace: p.Namespace, Name: p.Name, Workload: workload,
			App: p.Labels["app"], Version: p.Labels["version"],
			CanonicalService:  first(workload, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"),
			CanonicalRevision: first("latest", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"),
		},
		created: p.CreationTimestamp.Time,
		wired:   wired,
		leaving: p.DeletionTimestamp != nil,
	}
}

// cronJobSuffix is what a CronJob's controller appends to a Job's name: its time in minutes.
var cronJobSuffix = regexp.MustCompile(`-\d{8,}$`)

func workloadOf(p *metav1.PartialObjectMetadata) string {
	owner := metav1.GetControllerOf(p)
	switch {
	case owner == nil:
		return p.Name
	case owner.Kind == "ReplicaSet" && p.Labels["pod-template-hash"] != "":
		return strings.TrimSuffix(owner.Name, "-"+p.Labels["pod-template-hash"])
	case owner.Kind == "Job":
		return cronJobSuffix.ReplaceAllString(owner.Name, "")
	}
	return owner.Name
}
