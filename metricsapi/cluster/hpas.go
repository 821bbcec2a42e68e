package cluster

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

// HPAs watches the HPAs of all namespaces through an informer. A change wakes it at once.
type HPAs struct {
	// Replace is told of all of them, at first and whenever one has changed.
	Replace func([]hpas.HPA)
	// Scaled is told of each change of an HPA's status; nil if nobody asks for it.
	Scaled func(old, now *autoscalingv2.HorizontalPodAutoscaler)

	contain  Contain
	log      *slog.Logger
	informer cache.SharedIndexInformer
	fresh    *Freshness
	lister   listers.HorizontalPodAutoscalerLister
	// dirty holds at most one token: something has changed since the last Replace.
	dirty chan struct{}
	ready atomic.Bool
	after cache.InformerSynced // what has to be known before they are told of; nil: nothing
	// asking are ScaledObjects, of which KEDA makes some, or will; nil: they are nobody's here.
	asking *asking
	api    autoscalingclient.HorizontalPodAutoscalersGetter // not the informer's cache
}

// NewHPAs returns the cluster's HPAs, of which Run tells. The error is the informer's.
func NewHPAs(client kubernetes.Interface, contain Contain, log *slog.Logger, now func() time.Time) (*HPAs, error) {
	s := &HPAs{contain: contain, api: client.AutoscalingV2(), log: log, fresh: NewFreshness("HPAs", now), dirty: make(chan struct{}, 1)}
	hpas := client.AutoscalingV2().HorizontalPodAutoscalers(metav1.NamespaceAll)
	source := s.fresh.Follow(&cache.ListWatch{
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

func (s *HPAs) update(before, after *autoscalingv2.HorizontalPodAutoscaler) {
	if hpas.Changed(before, after) {
		s.wake()
	}
	if s.Scaled != nil {
		s.Scaled(before, after)
	}
}

// stripManagedFields drops what is never read and is the largest part of many an HPA.
func stripManagedFields(object any) (any, error) {
	if h, ok := object.(*autoscalingv2.HorizontalPodAutoscaler); ok {
		h.ManagedFields = nil
	}
	return object, nil
}

func (s *HPAs) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// replaceAgain is how long after a fault the HPAs are taken anew.
const replaceAgain = 10 * time.Second

// Run tells of the HPAs until the context ends.
func (s *HPAs) Run(ctx context.Context) error {
	go s.informer.RunWithContext(ctx)
	needed := []cache.InformerSynced{s.informer.HasSynced}
	if s.after != nil {
		needed = append(needed, s.after)
	}
	if !cache.WaitForCacheSync(ctx.Done(), needed...) {
		return nil // the context has ended
	}
	for {
		list, err := s.list()
		if err != nil {
			return err
		}
		switch taken := s.contain.run("hpas", "all", func() { s.Replace(list) }); {
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

func (s *HPAs) list() ([]hpas.HPA, error) {
	objects, err := s.lister.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list HPAs: %w", err)
	}
	list := make([]hpas.HPA, len(objects))
	for i, o := range objects {
		list[i] = hpas.HPA{HorizontalPodAutoscaler: o}
	}
	return s.asking.with(list), nil
}

// Freshness tells how long ago the HPAs were last in step with the API server.
func (s *HPAs) Freshness() *Freshness { return s.fresh }

// Synced says why the HPAs are not known yet, nil once they are.
func (s *HPAs) Synced() error {
	if !s.ready.Load() {
		return errors.New("the HPAs have not been read from the API server yet")
	}
	return nil
}

// Status is what the controller last wrote of an HPA's replicas, the larger of current and desired.
func (s *HPAs) Status(namespace, name string) (int32, bool) {
	h, ok := s.Known(namespace, name)
	if !ok {
		return 0, false
	}
	return max(h.Status.CurrentReplicas, h.Status.DesiredReplicas), true
}

// Known returns an HPA as the informer has it, false if it is gone.
func (s *HPAs) Known(namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, bool) {
	h, err := s.lister.HorizontalPodAutoscalers(namespace).Get(name)
	return h, err == nil
}

// Current returns an HPA as the API server has it at this moment.
func (s *HPAs) Current(ctx context.Context, namespace, name string) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	return s.api.HorizontalPodAutoscalers(namespace).Get(ctx, name, metav1.GetOptions{})
}
