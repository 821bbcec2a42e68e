package cluster

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	// Replace is told of all of them, at first and whenever one has changed.
	Replace func([]hpas.ScaledObject)

	contain  Contain
	log      *slog.Logger
	api      rest.Interface
	informer cache.SharedIndexInformer
	dirty    chan struct{} // holds at most one token: something has changed since the last Replace
}

func newScaledObjects(config *rest.Config, api rest.Interface, contain Contain, log *slog.Logger, now func() time.Time) (*ScaledObjects, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	s := &ScaledObjects{contain: contain, log: log, api: api, dirty: make(chan struct{}, 1)}
	of := client.Resource(schema.GroupVersionResource{Group: "keda.sh", Version: "v1alpha1", Resource: "scaledobjects"})
	source := NewFreshness("ScaledObjects", now).Follow(&cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return of.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return of.Watch(ctx, o) },
	})
	s.informer = cache.NewSharedIndexInformer(source, &unstructured.Unstructured{}, 0, cache.Indexers{})
	if err := s.informer.SetTransform(keepSpec); err != nil {
		return nil, err
	}
	_, err = s.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { s.wake() }, UpdateFunc: func(_, _ any) { s.wake() }, DeleteFunc: func(any) { s.wake() },
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
		s.contain.run("scaledobjects", "all", func() { s.Replace(s.list()) })
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
