package cluster

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/aggregator"
)

// Pods knows the pods of the cluster through an informer, and for a while those that are gone. An
// answer costs what it looks at, so pods are found by what queries name: namespace and workload,
// canonical service. A stream is found by its address.
type Pods struct {
	client   kubernetes.Interface // nil in tests
	informer cache.SharedIndexInformer
	indexed  cache.ResourceEventHandlerRegistration // puts what the informer has into the maps
	fresh    *Freshness
	now      func() time.Time
	contain  Contain

	mu sync.RWMutex
	// workloads have pods, or have had some; the other maps are of the same, by namespace, name and
	// canonical service.
	workloads                      map[Workload]*workloadPods
	byNamespace, byName, byService map[string][]*workloadPods
	leaving                        map[types.NamespacedName]leaving       // pods that exist
	gone                           map[types.NamespacedName]*workloadPods // where a pod that is gone was
	pruned                         time.Time
	addresses                      podAddresses
}

// Workload names what pods are of, as Istio has it: a Deployment as a rule.
type Workload struct{ Namespace, Name string }

// Compare orders by namespace, then by name, as [cmp.Compare] does.
func (w Workload) Compare(o Workload) int {
	return cmp.Or(strings.Compare(w.Namespace, o.Namespace), strings.Compare(w.Name, o.Name))
}

// workloadPods are the pods of a workload.
type workloadPods struct {
	Workload
	pods     []*cachedPod
	gone     []gonePod // in the order of their going
	services []serviceCount
}

// gonePod is a pod that carried a sidecar, and when it was gone.
type gonePod struct {
	*cachedPod
	left time.Time // see Pod
	gone time.Time
}

// serviceCount is how many pods of a workload, with those that are gone, are of a canonical
// service: as a rule all.
type serviceCount struct {
	name string
	n    int
}

// leaving is when a pod's deletion began; seconds since 1970. created tells it from others of its
// name.
type leaving struct{ created, left uint32 }

// GoneFor is how long a pod that is gone is remembered: as long as the longest window of a query,
// the default of --max-retention.
const GoneFor = time.Hour

// NewPods returns the cluster's pods, which are known once Run has read them. The error is the
// informer's.
func NewPods(client kubernetes.Interface, now func() time.Time) (*Pods, error) {
	x := &Pods{
		client: client, fresh: NewFreshness("pods", now), now: now, leaving: map[types.NamespacedName]leaving{}, gone: map[types.NamespacedName]*workloadPods{}, workloads: map[Workload]*workloadPods{},
		byNamespace: map[string][]*workloadPods{}, byName: map[string][]*workloadPods{}, byService: map[string][]*workloadPods{}, addresses: newPodAddresses(),
	}
	var pods corev1client.PodInterface
	if client != nil {
		pods = client.CoreV1().Pods(metav1.NamespaceAll)
	}
	source := x.fresh.Follow(listPods(pods, x.Transform))
	x.informer = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, client), &corev1.Pod{}, 0, cache.Indexers{})
	if err := x.informer.SetTransform(x.Transform); err != nil {
		return nil, err
	}
	var err error
	x.indexed, err = x.informer.AddEventHandler(x)
	return x, err
}

// Exists reports whether a pod does, pending ones included, and when one that does not has left,
// zero if that is not known.
func (x *Pods) Exists(namespace, name string) (exists bool, left time.Time) {
	if _, exists, _ = x.informer.GetStore().GetByKey(namespace + "/" + name); exists {
		return true, time.Time{}
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	if w := x.gone[types.NamespacedName{Namespace: namespace, Name: name}]; w != nil {
		for _, g := range w.gone {
			if g.name == name {
				left = g.gone
			}
		}
	}
	return false, left
}

// ServiceAccount is the name of the service account that a pod runs as, pending ones included, and
// when that pod was created; "" of one that is not known to exist. Neither ever changes.
func (x *Pods) ServiceAccount(namespace, name string) (account string, created time.Time) {
	o, _, _ := x.informer.GetStore().GetByKey(namespace + "/" + name) // the error is of a key that cannot be read
	if c, ok := o.(*cachedPod); ok {
		return c.of.Value().account, time.Unix(int64(c.created), 0)
	}
	return "", time.Time{}
}

// Known returns who a pod that exists or has left is and when it was created, false if it is not
// known.
func (x *Pods) Known(namespace, name string) (identity aggregator.Pod, created time.Time, ok bool) {
	p, ok := x.Get(namespace, name)
	return p.Identity, p.Created, ok
}

func (x *Pods) add(o any) {
	if c, ok := o.(*cachedPod); ok {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.addresses.come(c)
		if !c.pending {
			x.put(c)
		}
	}
}

// put adds a pod to its workload. The mutex is held.
func (x *Pods) put(c *cachedPod) {
	key := c.workload()
	w := x.workloads[key]
	if w == nil {
		w = &workloadPods{Workload: key}
		x.workloads[key] = w
		x.byNamespace[key.Namespace] = append(x.byNamespace[key.Namespace], w)
		x.byName[key.Name] = append(x.byName[key.Name], w)
	}
	w.pods = append(w.pods, c)
	x.count(w, c, 1)
}

// count counts a pod that comes or goes under its canonical service. The mutex is held.
func (x *Pods) count(w *workloadPods, c *cachedPod, by int) {
	name := c.of.Value().canonical
	i := slices.IndexFunc(w.services, func(s serviceCount) bool { return s.name == name })
	if i < 0 {
		i = len(w.services)
		w.services = append(w.services, serviceCount{name: name})
		x.byService[name] = append(x.byService[name], w)
	}
	if w.services[i].n += by; w.services[i].n == 0 {
		w.services = slices.Delete(w.services, i, i+1)
		without(x.byService, name, w)
	}
	if len(w.pods)+len(w.gone) == 0 {
		delete(x.workloads, w.Workload)
		without(x.byNamespace, w.Namespace, w)
		without(x.byName, w.Name, w)
	}
}

// without takes a workload out of a map.
func without(m map[string][]*workloadPods, key string, w *workloadPods) {
	if m[key] = remove(m[key], w); len(m[key]) == 0 {
		delete(m, key)
	}
}

// remove takes an element out, whatever that does to the order.
func remove[T comparable](from []T, what T) []T {
	i := slices.Index(from, what)
	if i < 0 {
		return from
	}
	var none T
	last := len(from) - 1
	from[i], from[last] = from[last], none
	return from[:last]
}

func (x *Pods) replace(before, after any) {
	old, ok1 := before.(*cachedPod)
	c, ok2 := after.(*cachedPod)
	if !ok1 || !ok2 {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.addresses.change(old, c)
	switch {
	case old.pending && c.pending:
		return
	case old.pending:
		x.put(c)
		return
	}
	w := x.workloads[old.workload()]
	if w == nil {
		x.put(c)
		return
	}
	if i := slices.Index(w.pods, old); i >= 0 && old.workload() == c.workload() && old.of.Value().canonical == c.of.Value().canonical {
		w.pods[i] = c
		return
	}
	x.put(c) // before the old one goes, so that a workload does not come and go
	w.pods = remove(w.pods, old)
	x.count(w, old, -1)
}

// forget moves a pod to those that are gone.
func (x *Pods) forget(o any) {
	if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = unknown.Obj
	}
	last, ok := o.(*cachedPod)
	if !ok {
		return
	}
	now, key := x.now(), types.NamespacedName{Namespace: last.namespace(), Name: last.name}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.leaving[key].created == last.created {
		delete(x.leaving, key)
	}
	if now.Sub(x.pruned) > GoneFor/10 {
		x.prune(now)
	}
	x.addresses.leave(last)
	w, c := x.take(key, last.workload())
	if c != nil {
		x.addresses.take(c)
	}
	switch {
	case c == nil:
		return
	case !c.wired:
		x.count(w, c, -1)
		return
	}
	left := now // without a grace period, or it has finished
	if last.left != 0 {
		left = time.Unix(int64(last.left), 0)
	}
	w.gone = append(w.gone, gonePod{c, left, now})
	if x.gone[key] != nil { // its name had been used before
		x.drop(key)
	}
	x.gone[key] = w
}

// take takes a pod out of its workload, as a rule the one of that name. The mutex is held.
func (x *Pods) take(key types.NamespacedName, workload Workload) (*workloadPods, *cachedPod) {
	out := func(w *workloadPods) *cachedPod {
		i := slices.IndexFunc(w.pods, func(c *cachedPod) bool { return c.name == key.Name })
		if i < 0 {
			return nil
		}
		c := w.pods[i]
		w.pods = remove(w.pods, c)
		return c
	}
	if w := x.workloads[workload]; w != nil {
		if c := out(w); c != nil {
			return w, c
		}
	}
	for _, w := range x.byNamespace[key.Namespace] {
		if c := out(w); c != nil {
			return w, c
		}
	}
	return nil, nil
}

// drop forgets a pod that is gone, the first of its name. The mutex is held.
func (x *Pods) drop(key types.NamespacedName) {
	w := x.gone[key]
	delete(x.gone, key)
	i := slices.IndexFunc(w.gone, func(p gonePod) bool { return p.name == key.Name })
	c := w.gone[i].cachedPod
	w.gone = slices.Delete(w.gone, i, i+1)
	x.count(w, c, -1)
}

func (x *Pods) prune(now time.Time) {
	x.pruned = now
	maps.DeleteFunc(x.leaving, func(_ types.NamespacedName, l leaving) bool { return now.Sub(time.Unix(int64(l.left), 0)) > GoneFor }) // not seen to go
	for key, w := range x.gone {
		for len(w.gone) > 0 && now.Sub(w.gone[0].gone) > GoneFor {
			x.drop(types.NamespacedName{Namespace: key.Namespace, Name: w.gone[0].name})
		}
	}
}

// Each calls f with every pod of the sets, and with those that have left since a time: a name that
// was used again comes twice. The pods of a workload follow each other. f must not keep the pod,
// and must not ask the index.
func (x *Pods) Each(sets []aggregator.Meant, since time.Time, f func(*Pod)) {
	var seen map[*workloadPods]bool
	if len(sets) > 1 {
		seen = map[*workloadPods]bool{}
	}
	var p Pod
	x.mu.RLock()
	defer x.mu.RUnlock()
	visit := func(w *workloadPods) {
		if seen[w] {
			return
		}
		if seen != nil {
			seen[w] = true
		}
		for _, c := range w.pods {
			c.tell(&p)
			f(&p)
		}
		for _, g := range slices.Backward(w.gone) {
			if !g.gone.After(since) {
				break
			}
			g.tell(&p)
			p.Left = g.left
			f(&p)
		}
	}
	for _, set := range sets {
		x.workloadsOf(set, visit)
	}
}

// workloadsOf calls visit with every workload that has pods of the set. The mutex is held.
func (x *Pods) workloadsOf(set aggregator.Meant, visit func(*workloadPods)) {
	var found []*workloadPods
	switch {
	case set.Workload != "" && set.Namespace != "":
		if w := x.workloads[Workload{set.Namespace, set.Workload}]; w != nil {
			visit(w)
		}
		return
	case set.Workload != "":
		found = x.byName[set.Workload]
	case set.CanonicalService != "":
		found = x.byService[set.CanonicalService]
	case set.Namespace != "":
		found = x.byNamespace[set.Namespace]
	default:
		for _, w := range x.workloads {
			visit(w)
		}
		return
	}
	for _, w := range found {
		if set.Namespace == "" || set.Namespace == w.Namespace {
			visit(w)
		}
	}
}

// Get returns a pod that exists, else one that is gone, else false.
func (x *Pods) Get(namespace, name string) (p Pod, ok bool) {
	o, ok, _ := x.informer.GetStore().GetByKey(namespace + "/" + name) // the error is of a key that cannot be read
	if c, isPod := o.(*cachedPod); ok && isPod && !c.pending {
		c.tell(&p)
		return p, true
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	w := x.gone[types.NamespacedName{Namespace: namespace, Name: name}]
	if w == nil {
		return p, false
	}
	for _, g := range w.gone {
		if g.name == name {
			g.tell(&p)
			p.Left = g.left
		}
	}
	return p, true
}
