package hpa

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	autoscalingclient "k8s.io/client-go/kubernetes/typed/autoscaling/v2"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	autoscalinglisters "k8s.io/client-go/listers/autoscaling/v2"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/tools/cache"
	fcache "k8s.io/client-go/tools/cache/testing"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
)

// controller is a real HPA controller with its flags.
type controller struct {
	tolerance       float64
	downscale, sync time.Duration
	looks           int // at each HPA
}

// run lets the controller look at every world's HPA. It has a worker for each, so that none waits
// for another and every look comes a whole sync period after the last.
func (c controller) run(t *testing.T, worlds []*world) {
	utilruntime.ErrorHandlers = nil // metrics fail on purpose, and the default handler sleeps
	ctx, stop := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
	source := fcache.NewFakeControllerSource()
	byNamespace := map[string]*world{}
	for _, w := range worlds {
		byNamespace[w.namespace] = w
		source.Add(w.hpa())
	}
	informer := cache.NewSharedIndexInformer(source, &autoscalingv2.HorizontalPodAutoscaler{}, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{{Group: "apps", Version: "v1"}})
	mapper.Add(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, meta.RESTScopeNamespace)
	hpas := podautoscaler.NewHorizontalController(ctx, events{}, scales(byNamespace), statuses{source: source}, mapper,
		readings{worlds: byNamespace}, hpaInformer{informer}, podInformer(byNamespace),
		c.sync-deciding, c.downscale, c.tolerance, 0, 0)
	go informer.RunWithContext(ctx)
	go hpas.Run(ctx, len(worlds))

	time.Sleep(time.Duration(c.looks)*c.sync - c.sync/2)
	stop()
	synctest.Wait()
	source.Shutdown()
}

// scales are the targets' scale subresources.
type scales map[string]*world

func (s scales) Scales(namespace string) scale.ScaleInterface { return scaleOf{world: s[namespace]} }

type scaleOf struct {
	scale.ScaleInterface
	world *world
}

// Get is the beginning of a look.
func (s scaleOf) Get(context.Context, schema.GroupResource, string, metav1.GetOptions) (*autoscalingv1.Scale, error) {
	l := s.world.begin()
	return &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.world.namespace, Name: "target"},
		Spec:       autoscalingv1.ScaleSpec{Replicas: l.Spec},
		Status:     autoscalingv1.ScaleStatus{Replicas: l.Status, Selector: "app=target"},
	}, nil
}

// Update is its end, where something changes.
func (s scaleOf) Update(_ context.Context, _ schema.GroupResource, to *autoscalingv1.Scale, _ metav1.UpdateOptions) (*autoscalingv1.Scale, error) {
	s.world.decide()
	s.world.before, s.world.spec = s.world.spec, to.Spec.Replicas
	s.world.looks[len(s.world.looks)-1].Replicas = to.Spec.Replicas
	return to, nil
}

// readings is the metrics API.
type readings struct {
	metrics.MetricsClient
	worlds map[string]*world
}

func (r readings) GetExternalMetric(name, namespace string, _ labels.Selector) ([]int64, time.Time, error) {
	w := r.worlds[namespace]
	w.decide()
	l := &w.looks[len(w.looks)-1]
	i, err := strconv.Atoi(name[len("metric-"):])
	if err != nil {
		return nil, time.Time{}, err
	}
	if l.Milli[i] == nil {
		return nil, time.Time{}, errors.New("no value")
	}
	v := *l.Milli[i]
	return []int64{v / 3, v - v/3}, time.Now(), nil // the controller adds items up
}

func (readings) GetResourceMetric(context.Context, corev1.ResourceName, string, labels.Selector, string) (metrics.PodMetricsInfo, time.Time, error) {
	return nil, time.Time{}, errors.New("no resource metrics here")
}

// statuses takes the HPAs' statuses; the controller sees what it wrote through its informer.
type statuses struct {
	autoscalingclient.HorizontalPodAutoscalerInterface
	source *fcache.FakeControllerSource
}

func (s statuses) HorizontalPodAutoscalers(string) autoscalingclient.HorizontalPodAutoscalerInterface {
	return s
}

func (s statuses) UpdateStatus(_ context.Context, h *autoscalingv2.HorizontalPodAutoscaler, _ metav1.UpdateOptions) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	written := h.DeepCopy()
	s.source.Modify(written)
	return written.DeepCopy(), nil
}

type hpaInformer struct{ informer cache.SharedIndexInformer }

func (i hpaInformer) Informer() cache.SharedIndexInformer { return i.informer }

func (i hpaInformer) Lister() autoscalinglisters.HorizontalPodAutoscalerLister {
	return autoscalinglisters.NewHorizontalPodAutoscalerLister(i.informer.GetIndexer())
}

// podInformer knows each world's pods: as many as its look says, the first of them ready.
type podInformer map[string]*world

func (p podInformer) Informer() cache.SharedIndexInformer { return synced{} }
func (p podInformer) Lister() corelisters.PodLister       { return podLister{worlds: p} }

type synced struct{ cache.SharedIndexInformer }

func (synced) HasSynced() bool { return true }

type podLister struct {
	corelisters.PodLister
	worlds map[string]*world
}

func (p podLister) Pods(namespace string) corelisters.PodNamespaceLister {
	return podsOf{world: p.worlds[namespace]}
}

type podsOf struct {
	corelisters.PodNamespaceLister
	world *world
}

func (p podsOf) List(labels.Selector) ([]*corev1.Pod, error) {
	l := p.world.looks[len(p.world.looks)-1]
	pods := make([]*corev1.Pod, l.Pods)
	ready, unready := p.pod(corev1.ConditionTrue), p.pod(corev1.ConditionFalse)
	for i := range pods { // they are only counted
		if pods[i] = unready; int32(i) < l.Ready {
			pods[i] = ready
		}
	}
	return pods, nil
}

func (p podsOf) pod(ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.world.namespace, Name: "target", Labels: map[string]string{"app": "target"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
	}
}

// events drops the controller's events.
type events struct{ coreclient.EventInterface }

func (e events) Events(string) coreclient.EventInterface { return e }

func (events) CreateWithEventNamespaceWithContext(_ context.Context, e *corev1.Event) (*corev1.Event, error) {
	return e, nil
}

func (events) CreateWithEventNamespace(e *corev1.Event) (*corev1.Event, error) { return e, nil }

func (events) PatchWithEventNamespaceWithContext(_ context.Context, e *corev1.Event, _ []byte) (*corev1.Event, error) {
	return e, nil
}

func (events) PatchWithEventNamespace(e *corev1.Event, _ []byte) (*corev1.Event, error) {
	return e, nil
}
