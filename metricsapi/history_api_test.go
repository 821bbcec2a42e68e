package metricsapi

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

// simAPI is what the API server tells of pods that have left Pending.
type simAPI struct {
	pods    map[string]*corev1.Pod // by namespace/name
	version int
	deaf    bool
}

// simIndex is an index of pods with what an informer does done by hand: nothing in it depends on
// chance or on who runs first.
type simIndex struct {
	*cluster.Pods
	api    *simAPI
	source *cache.ListWatch
	watch  *watch.FakeWatcher // nil while none is open
	listed atomic.Bool
}

func newSimIndex(api *simAPI) *simIndex {
	x := &simIndex{api: api}
	var err error
	if x.Pods, err = cluster.NewPods(nil, time.Now); err != nil {
		panic(err)
	}
	x.source = x.Freshness().Follow(&cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			if api.deaf {
				return nil, errors.New("no route to host")
			}
			return &corev1.PodList{}, nil
		},
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return x.watch, nil },
	})
	x.list()
	return x
}

func (x *simIndex) Synced() error {
	if !x.listed.Load() {
		return errors.New("the pods have not been read from the API server yet")
	}
	return x.Freshness().Stale()
}

// Fresh reports whether all pods are known now.
func (x *simIndex) Fresh() bool { return x.Synced() == nil }

// InStep reports whether they are as the API server has them now.
func (x *simIndex) InStep() bool { return x.listed.Load() && x.Freshness().Age() == 0 }

// list is what an informer begins with, and begins anew with. It reports whether that succeeds. It
// asks once: the cluster, which asks again, goes on meanwhile.
func (x *simIndex) list() bool {
	once, end := context.WithCancel(context.Background())
	end()
	if _, err := x.source.ListWithContext(once, metav1.ListOptions{}); err != nil {
		return false
	}
	for _, key := range slices.Sorted(slices.Values(x.Store().ListKeys())) {
		if x.api.pods[key] == nil {
			x.goes(key, true)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(x.api.pods)) {
		x.comes(x.api.pods[key])
	}
	x.watch = watch.NewFake()
	x.listed.Store(true)
	if _, err := x.source.WatchWithContext(context.Background(), metav1.ListOptions{}); err != nil {
		panic(err)
	}
	return true
}

// close ends the watch.
func (x *simIndex) close() {
	if x.watch != nil {
		x.watch.Stop()
		x.watch = nil
	}
}

// comes is a pod that is new or has changed.
func (x *simIndex) comes(o *corev1.Pod) {
	c, err := x.Transform(o.DeepCopy())
	if err != nil {
		panic(err)
	}
	was, exists, _ := x.Store().Get(c)
	if _ = x.Store().Update(c); exists {
		x.OnUpdate(was, c)
	} else {
		x.OnAdd(c, false)
	}
}

// goes is a pod that is deleted, unseen if a list tells it.
func (x *simIndex) goes(key string, unseen bool) {
	was, exists, _ := x.Store().GetByKey(key)
	if !exists {
		return
	}
	_ = x.Store().Delete(was)
	if unseen {
		was = cache.DeletedFinalStateUnknown{Key: key, Obj: was}
	}
	x.OnDelete(was)
}

// tell is the API server's news of a pod.
func (c *simCluster) tell(o *corev1.Pod) {
	c.api.version++
	o.ResourceVersion = strconv.Itoa(c.api.version)
	c.api.pods[o.Namespace+"/"+o.Name] = o
	if c.meshpulse != nil && c.index.watch != nil {
		c.index.comes(o)
	}
}

// untell is the API server's news that a pod is deleted.
func (c *simCluster) untell(key string) {
	delete(c.api.pods, key)
	if c.meshpulse != nil && c.index.watch != nil {
		c.index.goes(key, false)
	}
}

// deafen ends the watch of the pods, and fails lists for a time. client-go tries again ever less
// often.
func (c *simCluster) deafen(lasts time.Duration) {
	c.api.deaf = true
	c.after(lasts, func() { c.api.deaf = false })
	if c.meshpulse != nil {
		c.index.close()
		c.relist(time.Second)
	}
}

// relist lists after a time, and again until that succeeds.
func (c *simCluster) relist(in time.Duration) {
	index := c.index
	c.after(in, func() {
		if c.meshpulse != nil && c.index == index && index.watch == nil && !index.list() {
			c.relist(cluster.AskAgain)
		}
	})
}

// simObject is a pod's metadata as a ReplicaSet of the workload makes it, with a sidecar or
// without.
func simObject(namespace, workload, name string, template int, created time.Time, wired, rollout bool) *corev1.Pod {
	hash, label := strconv.FormatInt(0x7f3b0000+int64(template), 16), "pod-template-hash"
	if rollout {
		label = "rollouts-pod-template-hash"
	}
	set := workload + "-" + hash
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, GenerateName: set + "-", CreationTimestamp: metav1.NewTime(created), Labels: map[string]string{label: hash},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: set, Controller: new(true)}},
	}}
	if wired {
		o.Annotations = map[string]string{meshpod.StatusAnnotation: "{}"}
	}
	return o
}

func (p *simPod) object(rollout bool) *corev1.Pod {
	o := simObject("test", "podinfo", p.name, p.template, p.created, true, rollout)
	if p.leaving {
		o.DeletionTimestamp, o.DeletionGracePeriodSeconds = new(metav1.NewTime(p.left.Add(30*time.Second))), new(int64(30))
	}
	return o
}

// besides makes a pod of a workload whose sidecars never report: in the namespace, or one of the
// same name in another.
func (c *simCluster) besides(age time.Duration) {
	c.made++
	namespace, workload := "test", "load-tester"
	if c.elsewhere {
		namespace, workload = "other", "podinfo"
	}
	name := workload + "-beside-" + strconv.Itoa(c.made)
	c.beside = append(c.beside, namespace+"/"+name)
	c.tell(simObject(namespace, workload, name, 0, time.Now().Add(-age).Truncate(time.Second), true, false))
}
