package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// scaledObjectsPath is where KEDA's are, where it is installed.
const scaledObjectsPath = "/apis/keda.sh/v1alpha1"

// servedEvery is how often it is looked whether an API is served that is not.
const servedEvery = 30 * time.Second

// ScaledObjects watches KEDA's ScaledObjects of all namespaces, once an API server serves them.
// Nobody waits for them.
type ScaledObjects struct {
	// Replace is told of all of them, at first and whenever one has changed; nil if nobody asks.
	Replace func([]hpas.ScaledObject)

	contain  Contain
	log      *slog.Logger
	api      rest.Interface
	informer cache.SharedIndexInformer
	fresh    *Freshness
	asking   *asking       // nil: none asks meshpulse
	dirty    chan struct{} // holds at most one token: something has changed since the last Replace
}

func newScaledObjects(config *rest.Config, api rest.Interface, contain Contain, log *slog.Logger, now func() time.Time) (*ScaledObjects, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	s := &ScaledObjects{contain: contain, log: log, api: api, fresh: NewFreshness("ScaledObjects", now), dirty: make(chan struct{}, 1)}
	of := client.Resource(schema.GroupVersionResource{Group: "keda.sh", Version: "v1alpha1", Resource: "scaledobjects"})
	source := s.fresh.Follow(&cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return of.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return of.Watch(ctx, o) },
	})
	s.informer = cache.NewSharedIndexInformer(source, &unstructured.Unstructured{}, 0, cache.Indexers{})
	if err := s.informer.SetTransform(keepSpec); err != nil {
		return nil, err
	}
	_, err = s.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: s.take, UpdateFunc: func(_, o any) { s.take(o) },
		DeleteFunc: func(o any) {
			if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = unknown.Obj
			}
			if of, ok := o.(*unstructured.Unstructured); ok {
				s.asking.set(objectKey(of), hpas.HPA{}, false)
			}
			s.wake()
		},
	})
	return s, err
}

// keepSpec drops what is never read.
func keepSpec(o any) (any, error) {
	if u, ok := o.(*unstructured.Unstructured); ok {
		u.SetManagedFields(nil)
		unstructured.RemoveNestedField(u.Object, "status")
	}
	return o, nil
}

func (s *ScaledObjects) take(o any) {
	if of, ok := o.(*unstructured.Unstructured); ok {
		s.contain.run("scaledobjects", objectKey(of).String(), func() { s.asking.take(of) })
	}
	s.wake()
}

func objectKey(o *unstructured.Unstructured) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func (s *ScaledObjects) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// Run tells of them until the context ends.
func (s *ScaledObjects) Run(ctx context.Context) {
	for s.api.Get().AbsPath(scaledObjectsPath).Do(ctx).Error() != nil { // KEDA is not there, or nothing is
		select {
		case <-ctx.Done():
			return
		case <-time.After(servedEvery):
		}
	}
	go s.informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), s.informer.HasSynced) {
		return
	}
	s.log.Info("scaled objects synced", "scaledobjects", len(s.informer.GetStore().List()))
	for {
		if s.Replace != nil {
			s.contain.run("scaledobjects", "all", func() { s.Replace(s.list()) })
		}
		select {
		case <-ctx.Done():
			return
		case <-s.dirty:
		}
	}
}

// list reads them as [hpas.DecodeScaledObjects] does, and leaves out what cannot be read: meshpulse
// lint tells of that.
func (s *ScaledObjects) list() (all []hpas.ScaledObject) {
	for _, o := range s.informer.GetStore().List() {
		text, err := json.Marshal(o)
		if err != nil {
			continue
		}
		found, _ := hpas.DecodeScaledObjects("", text)
		all = append(all, found...)
	}
	return all
}

// Read says why the ScaledObjects have never been known, nil once they have, or where nobody asks.
func (s *ScaledObjects) Read() error {
	if s != nil && !s.informer.HasSynced() {
		return errors.New("the ScaledObjects have not been read from the API server yet: is KEDA there, and may meshpulse read them (manifests/components/keda)?")
	}
	return nil
}

// Freshness tells how long ago the ScaledObjects were last in step with the API server.
func (s *ScaledObjects) Freshness() *Freshness { return s.fresh }
