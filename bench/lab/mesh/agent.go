// Package mesh plays the nodes and the mesh: every pod of the cluster gets a real app and a real
// Envoy sidecar on a loopback address of its own, and traffic enters through a gateway that is one
// more Envoy. It knows pods and Envoys, and it must not know meshpulse: the sidecars push to an
// address that it is told. How Istio names a pod is meshpod's.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/metricsapi/cluster/meshpod"
)

// NodeName is the node whose pods the agent runs. A pod names it in its template (spec.nodeName),
// as there is no scheduler; a pod without a node would be deleted without its grace period.
const NodeName = "lab"

// StartDelayAnnotation is how long a pod takes from Running to Ready, such as 20s.
const StartDelayAnnotation = "lab.meshpulse.io/start-delay"

// drainTime is how long a sidecar goes on after its pod was told to end and left the gateway:
// Istio's terminationDrainDuration.
const drainTime = 5 * time.Second

// Config says how pods are run.
type Config struct {
	Client kubernetes.Interface
	// Dir takes a folder for each pod: bootstraps and logs.
	Dir string
	// Envoy is the binary of the sidecars; Apps are the binaries of the apps, by the image of the
	// pod's first container, with the arguments that go before the container's own. $(POD_IP) in
	// any of them is the pod's address.
	Envoy string
	Apps  map[string]App
	// Sink is where a pod's sidecar pushes, host:port.
	Sink func(namespace, pod string) string
	// TLS is how a pod's sidecar proves itself, and nil of one that does not; a nil function where
	// none does. With one the sidecars' streams come from the pods' addresses, as in a cluster.
	TLS func(object *corev1.Pod) (*sidecar.TLS, error)
	// FlushInterval of the sidecars.
	FlushInterval time.Duration
	// EvictionInterval lets the sidecars forget stats that were not used for so long (default
	// never).
	EvictionInterval time.Duration
	// ReadyChanged is called with a workload's ready sidecars (host:port), from several goroutines,
	// never at once for one workload and always with the newest set last.
	ReadyChanged func(namespace, workload string, addresses []string)
}

// App is a program that stands in for an image.
type App struct {
	Path string
	Args []string
}

// Agent runs the pods.
type Agent struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	nextIP   int
	pods     map[string]*pod          // by UID
	heldBack map[string]chan struct{} // by namespace: closed when its pods may get ready again
}

// Start watches the node's pods and runs them until Stop.
func Start(ctx context.Context, config Config) (*Agent, error) {
	a := &Agent{config: config, pods: map[string]*pod{}, heldBack: map[string]chan struct{}{}}
	a.ctx, a.cancel = context.WithCancel(ctx)
	factory := informers.NewSharedInformerFactoryWithOptions(config.Client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", NodeName).String()
		}))
	informer := factory.Core().V1().Pods().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { a.seen(o.(*corev1.Pod)) },
		UpdateFunc: func(_, o any) { a.seen(o.(*corev1.Pod)) },
		DeleteFunc: a.gone,
	})
	if err != nil {
		a.cancel()
		return nil, err
	}
	factory.Start(a.ctx.Done())
	if !cache.WaitForCacheSync(a.ctx.Done(), informer.HasSynced) {
		a.cancel()
		return nil, errors.New("node agent: the pods cannot be watched")
	}
	return a, nil
}

// Stop ends every pod's processes at once and waits until they are gone.
func (a *Agent) Stop() {
	a.cancel()
	a.wg.Wait()
}

// seen starts a pod that is new and tells one that has to end.
func (a *Agent) seen(object *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pods[string(object.UID)]
	if p == nil {
		if a.ctx.Err() != nil {
			return
		}
		p = a.newPod(object)
		a.pods[string(object.UID)] = p
		a.wg.Go(func() {
			a.run(p)
			a.forget(p)
		})
	}
	if object.DeletionTimestamp != nil {
		p.terminate(time.Duration(*object.DeletionGracePeriodSeconds) * time.Second)
	}
}

// gone kills what a pod still runs when it was deleted without its grace period.
func (a *Agent) gone(object any) {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = unknown.Obj
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if deleted, ok := object.(*corev1.Pod); ok && a.pods[string(deleted.UID)] != nil {
		a.pods[string(deleted.UID)].cancel()
	}
}

func (a *Agent) forget(p *pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pods, p.uid)
}

// newPod gives the pod the next address; none is used twice in a run, so that nothing is mistaken
// for its predecessor.
func (a *Agent) newPod(object *corev1.Pod) *pod {
	p := &pod{
		uid: string(object.UID), object: object, workload: meshpod.Workload(&object.ObjectMeta),
		address: fmt.Sprintf("127.97.%d.%d", a.nextIP/250, a.nextIP%250+1),
		ending:  make(chan struct{}),
	}
	a.nextIP++
	p.ctx, p.cancel = context.WithCancel(a.ctx)
	return p
}

// run is a pod's whole life.
func (a *Agent) run(p *pod) {
	defer p.kill()
	defer p.cancel() // before that: what is being started sees it
	log := slog.With("pod", p.object.Namespace+"/"+p.object.Name, "address", p.address)
	if err := a.live(p); err != nil && p.ctx.Err() == nil {
		log.Error("pod failed", "err", err)
	}
	a.setReady(p, false)
	if p.ctx.Err() != nil {
		return // deleted by force, or the lab ends
	}
	p.stop()
	if err := a.remove(p); err != nil && a.ctx.Err() == nil {
		log.Error("pod cannot be deleted", "err", err)
	}
}

// remove tells the API server that the pod has ended, as often as it takes: it may be down.
func (a *Agent) remove(p *pod) error {
	none := int64(0)
	for {
		// Not the pod's context: the deletion is seen, and ends that, before it is answered.
		err := a.config.Client.CoreV1().Pods(p.object.Namespace).Delete(a.ctx, p.object.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &none, Preconditions: &metav1.Preconditions{UID: &p.object.UID},
		})
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		if apierrors.IsConflict(err) { // another pod of this name
			return err
		}
		select {
		case <-a.ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// live starts the pod, makes it ready and returns when it has drained after it was told to end.
func (a *Agent) live(p *pod) error {
	dir := filepath.Join(a.config.Dir, p.object.Namespace, p.object.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := p.start(a.config, dir); err != nil {
		return err
	}
	if err := a.insist(p, false); err != nil {
		return err
	}
	delay, err := startDelay(p.object)
	if err != nil {
		return err
	}
	if !p.wait(delay) || !a.mayGetReady(p) {
		return nil // told to end before it was ready
	}
	if err := a.insist(p, true); err != nil {
		return err
	}
	a.setReady(p, true)
	select {
	case <-p.ending:
	case <-p.ctx.Done():
		return nil
	}
	a.setReady(p, false)
	p.drain()
	return nil
}

// insist writes the pod's status as often as it takes. An answer that it cannot be written is an
// error.
func (a *Agent) insist(p *pod, ready bool) error {
	for {
		err := a.patchStatus(p, ready)
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
			return err
		}
		if !p.wait(time.Second) {
			return nil // told to end
		}
	}
}

// setReady tells the gateway. The lock is held throughout, so that the newest set is told last.
func (a *Agent) setReady(p *pod, ready bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.ready == ready {
		return
	}
	p.ready = ready
	var addresses []string
	for _, other := range a.pods {
		if other.ready && other.workload == p.workload && other.object.Namespace == p.object.Namespace {
			addresses = append(addresses, net.JoinHostPort(other.address, strconv.Itoa(inboundPort)))
		}
	}
	a.config.ReadyChanged(p.object.Namespace, p.workload, addresses)
}

// Sidecar is a running Envoy of a pod.
type Sidecar struct {
	Namespace, Workload, Pod string
	PID                      int
	// Admin is Envoy's admin address, host:port.
	Admin string
	Ready bool
}

// Sidecars are the Envoys that run now.
func (a *Agent) Sidecars() []Sidecar {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Sidecar
	for _, p := range a.pods {
		if s := p.running(); s != nil {
			all = append(all, Sidecar{
				Namespace: p.object.Namespace, Workload: p.workload, Pod: p.object.Name,
				PID: s.PID(), Admin: strings.TrimPrefix(s.AdminURL(), "http://"), Ready: p.ready,
			})
		}
	}
	return all
}

// Requests are the requests that each pod's Envoy has counted, by namespace/name.
func (a *Agent) Requests(ctx context.Context) (map[string]int64, error) {
	a.mu.Lock()
	running := map[string]*sidecar.Sidecar{}
	for _, p := range a.pods {
		if s := p.running(); s != nil {
			running[p.object.Namespace+"/"+p.object.Name] = s
		}
	}
	a.mu.Unlock()
	all := map[string]int64{}
	for key, s := range running {
		n, err := s.RequestsTotal(ctx)
		if err != nil {
			return nil, err
		}
		all[key] = n
	}
	return all, nil
}

// Ready is how many of a workload's pods are ready.
func (a *Agent) Ready(namespace, workload string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, p := range a.pods {
		if p.ready && p.workload == workload && p.object.Namespace == namespace {
			n++
		}
	}
	return n
}

func startDelay(object *corev1.Pod) (time.Duration, error) {
	text := object.Annotations[StartDelayAnnotation]
	if text == "" {
		return 0, nil
	}
	delay, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s: %w", StartDelayAnnotation, err)
	}
	return delay, nil
}
