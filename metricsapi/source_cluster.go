package metricsapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/autoscaling/v2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// source keeps the catalog in step with where HPAs come from.
type source interface {
	// run feeds the catalog until the context ends.
	run(ctx context.Context) error
	// synced says why the HPAs are not known yet, nil once they are.
	synced() error
	// replicas are an HPA's status.currentReplicas; ok is false where nobody knows.
	replicas(namespace, name string) (n int32, ok bool)
}

// clusterSource watches the HPAs of all namespaces through an informer. A change wakes it at once.
type clusterSource struct {
	catalog  *catalog
	log      *slog.Logger
	informer cache.SharedIndexInformer
	fresh    *freshness
	lister   listers.HorizontalPodAutoscalerLister
	// dirty holds at most one token: something has changed since the last Replace.
	dirty chan struct{}
	ready atomic.Bool
	// scaled is told of each change of an HPA's status; nil if nobody asks for it.
	scaled func(old, now *autoscalingv2.HorizontalPodAutoscaler)
}

func newClusterSource(client kubernetes.Interface, c *catalog, log *slog.Logger, now func() time.Time) (*clusterSource, error) {
	s := &clusterSource{catalog: c, log: log, fresh: newFreshness("HPAs", now), dirty: make(chan struct{}, 1)}
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
			c.store.Contain("hpas", "a change", func() {
				s.update(old.(*autoscalingv2.HorizontalPodAutoscaler), now.(*autoscalingv2.HorizontalPodAutoscaler))
			})
		},
	})
	return s, err
}

func (s *clusterSource) update(before, after *autoscalingv2.HorizontalPodAutoscaler) {
	if changed(before, after) {
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

// changed says whether an update touches what is read from an HPA. The controller writes its status at every sync.
func changed(old, now *autoscalingv2.HorizontalPodAutoscaler) bool {
	return old.UID != now.UID || !sameNotes(old.Annotations, now.Annotations) || !equality.Semantic.DeepEqual(old.Spec, now.Spec)
}

func (s *clusterSource) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// replaceAgain is how long after a fault the HPAs are taken anew.
const replaceAgain = 10 * time.Second

func (s *clusterSource) run(ctx context.Context) error {
	go s.informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), s.informer.HasSynced) {
		return nil // the context has ended
	}
	for {
		var err error
		taken := s.catalog.store.Contain("hpas", "all", func() { err = s.replace() })
		switch {
		case err != nil:
			return err
		case !taken: // the HPAs of before stay
			time.AfterFunc(replaceAgain, s.wake)
		case s.ready.CompareAndSwap(false, true):
			s.log.Info("hpas synced", "hpas", len(s.catalog.current.Load().hpas))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.dirty:
		}
	}
}

func (s *clusterSource) replace() error {
	objects, err := s.lister.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list HPAs: %w", err)
	}
	list := make([]sourceHPA, len(objects))
	for i, o := range objects {
		list[i] = sourceHPA{HorizontalPodAutoscaler: o}
	}
	s.catalog.Replace(list)
	return nil
}

func (s *clusterSource) synced() error {
	if !s.ready.Load() {
		return errors.New("the HPAs have not been read from the API server yet")
	}
	return nil
}

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

// clientConfig reads the kubeconfig, or the pod's service account where it is "".
func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		c, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("not in a Kubernetes pod: give --kubeconfig FILE, or run on files with --standalone --hpa-dir DIR")
		}
		return c, err
	}
	if f, err := os.Open(kubeconfig); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w: give a file that can be read, or leave the flag out inside a cluster", err)
	} else if err := f.Close(); err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s is not a kubeconfig with a current context: %w", kubeconfig, err)
	}
	return c, nil
}
