package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	autoscalingclient "k8s.io/client-go/kubernetes/typed/autoscaling/v2"
	listers "k8s.io/client-go/listers/autoscaling/v2"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// clusterSource watches the HPAs of all namespaces through an informer. A change wakes it at once.
type clusterSource struct {
	// replace is told of all of them, at first and whenever one has changed.
	replace func([]hpas.HPA)
	// scaled is told of each change of an HPA's status; nil if nobody asks for it.
	scaled func(old, now *autoscalingv2.HorizontalPodAutoscaler)

	contain  contain
	log      *slog.Logger
	informer cache.SharedIndexInformer
	fresh    *freshness
	lister   listers.HorizontalPodAutoscalerLister
	// dirty holds at most one token: something has changed since the last Replace.
	dirty chan struct{}
	ready atomic.Bool
	now   autoscalingclient.HorizontalPodAutoscalersGetter // asks the API server itself
}

func newClusterSource(client kubernetes.Interface, contain contain, log *slog.Logger, now func() time.Time) (*clusterSource, error) {
	s := &clusterSource{contain: contain, now: client.AutoscalingV2(), log: log, fresh: newFreshness("HPAs", now), dirty: make(chan struct{}, 1)}
	hpas := client.AutoscalingV2().HorizontalPodAutoscalers(metav1.NamespaceAll)
	source := s.fresh.follow(&cache.ListWatch{
		ListWithContextFunc:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return hpas.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return hpas.Watch(ctx, o) },
	})
	s.informer = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, client), &autoscalingv2.HorizontalPodAutoscaler{}, 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	s.lister = listers.NewHorizontalPodAutoscalerLister(s.informer.GetIndexer())
	if err := s.informer.SetTransform(stripManagedFields); err != nil {
		return nil, err
	}
	_, err := s.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.wake() },
		DeleteFunc: func(any) { s.wake() },
		UpdateFunc: func(old, now any) {
			contain.run("hpas", "a change", func() {
				s.update(old.(*autoscalingv2.HorizontalPodAutoscaler), now.(*autoscalingv2.HorizontalPodAutoscaler))
			})
		},
	})
	return s, err
}

func (s *clusterSource) update(before, after *autoscalingv2.HorizontalPodAutoscaler) {
	if hpas.Changed(before, after) {
		s.wake()
	}
	if s.scaled != nil {
		s.scaled(before, after)
	}
}

// stripManagedFields drops what is never read and is the largest part of many an HPA.
func stripManagedFields(object any) (any, error) {
	if h, ok := object.(*autoscalingv2.HorizontalPodAutoscaler); ok {
		h.ManagedFields = nil
	}
	return object, nil
}

func (s *clusterSource) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// replaceAgain is how long after a fault the HPAs are taken anew.
const replaceAgain = 10 * time.Second

// run tells of the HPAs until the context ends.
func (s *clusterSource) run(ctx context.Context) error {
	go s.informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), s.informer.HasSynced) {
		return nil // the context has ended
	}
	for {
		list, err := s.list()
		if err != nil {
			return err
		}
		switch taken := s.contain.run("hpas", "all", func() { s.replace(list) }); {
		case !taken: // the HPAs of before stay
			time.AfterFunc(replaceAgain, s.wake)
		case s.ready.CompareAndSwap(false, true):
			s.log.Info("hpas synced", "hpas", len(list))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.dirty:
		}
	}
}

func (s *clusterSource) list() ([]hpas.HPA, error) {
	objects, err := s.lister.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list HPAs: %w", err)
	}
	list := make([]hpas.HPA, len(objects))
	for i, o := range objects {
		list[i] = hpas.HPA{HorizontalPodAutoscaler: o}
	}
	return list, nil
}

// freshness tells how long ago the HPAs were last in step with the API server.
func (s *clusterSource) freshness() *freshness { return s.fresh }

// synced says why the HPAs are not known yet, nil once they are.
func (s *clusterSource) synced() error {
	if !s.ready.Load() {
		return errors.New("the HPAs have not been read from the API server yet")
	}
	return nil
}

// replicas are an HPA's status.currentReplicas; ok is false where nobody knows.
func (s *clusterSource) replicas(namespace, name string) (int32, bool) {
	h, err := s.lister.HorizontalPodAutoscalers(namespace).Get(name)
	if err != nil {
		return 0, false
	}
	return h.Status.CurrentReplicas, true
}

// status is what the controller last wrote of an HPA's replicas, the larger of current and desired.
func (s *clusterSource) status(namespace, name string) (int32, bool) {
	h, err := s.lister.HorizontalPodAutoscalers(namespace).Get(name)
	if err != nil {
		return 0, false
	}
	return max(h.Status.CurrentReplicas, h.Status.DesiredReplicas), true
}

// hpa returns an HPA as the informer has it, false if it is gone.
func (s *clusterSource) hpa(namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, bool) {
	h, err := s.lister.HorizontalPodAutoscalers(namespace).Get(name)
	return h, err == nil
}

// current returns an HPA as the API server has it at this moment.
func (s *clusterSource) current(ctx context.Context, namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	return s.now.HorizontalPodAutoscalers(namespace).Get(ctx, name, metav1.GetOptions{})
}
