package mesh

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/sidecar"
)

// Ports of a pod: Envoy takes what comes in and hands it to the app.
const (
	inboundPort = 8080
	appPort     = "9898"
	adminPort   = 15000
)

// pod is one pod and its processes.
type pod struct {
	uid, workload, address string
	object                 *corev1.Pod
	ctx                    context.Context // ends when the pod is to be killed
	cancel                 context.CancelFunc
	ready                  bool // guarded by the agent's lock

	endOnce sync.Once
	grace   time.Duration // set before ending is closed
	ending  chan struct{} // closed when the pod is told to end

	telling sync.Mutex // held while the API server is told whether the pod is ready

	mu      sync.Mutex
	sidecar *sidecar.Sidecar
	app     *process.Process
}

// terminate tells the pod to end within grace.
func (p *pod) terminate(grace time.Duration) {
	p.endOnce.Do(func() {
		p.grace = grace
		close(p.ending)
	})
}

// wait is true after d, false when the pod has to end before.
func (p *pod) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ending:
	case <-p.ctx.Done():
	}
	return false
}

// drain lets the requests that are under way end.
func (p *pod) drain() {
	select {
	case <-time.After(min(drainTime, p.grace)):
	case <-p.ctx.Done():
	}
}

// start starts the app, then the sidecar in front of it.
func (p *pod) start(config Config, dir string) error {
	container := p.object.Spec.Containers[0]
	program, ok := config.Apps[container.Image]
	if !ok {
		return fmt.Errorf("no program stands in for image %q", container.Image)
	}
	var args []string
	for _, arg := range slices.Concat(program.Args, container.Args) {
		args = append(args, strings.ReplaceAll(arg, "$(POD_IP)", p.address))
	}
	app, err := process.Start(filepath.Join(dir, "app.log"), program.Path, args...)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.app = app
	p.mu.Unlock()
	if err := p.startSidecar(config, dir); err != nil {
		return err
	}
	return p.awaitApp(app)
}

func (p *pod) startSidecar(config Config, dir string) error {
	var tls *sidecar.TLS
	if config.TLS != nil {
		var err error
		if tls, err = config.TLS(p.object); err != nil {
			return err
		}
	}
	envoy, err := sidecar.Start(p.ctx, sidecar.Options{
		TLS: tls, FromAddress: config.TLS != nil, ServiceAccount: p.object.Spec.ServiceAccountName,
		Binary: config.Envoy, Dir: dir,
		Pod: p.object.Name, Namespace: p.object.Namespace, Workload: p.workload,
		Version: p.object.Labels["version"], Labels: p.object.Labels, Annotations: p.object.Annotations,
		Address: p.address, InboundPort: inboundPort, AdminPort: adminPort,
		Upstreams: []string{net.JoinHostPort(p.address, appPort)},
		Sink:      config.Sink(p.object.Namespace, p.object.Name), FlushInterval: config.FlushInterval, EvictionInterval: config.EvictionInterval,
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil { // the pod is gone, and has killed what it knew of
		envoy.Kill()
		return p.ctx.Err()
	}
	p.sidecar = envoy
	return nil
}

// awaitApp waits until the app takes connections.
func (p *pod) awaitApp(app *process.Process) error {
	for {
		connection, err := net.DialTimeout("tcp", net.JoinHostPort(p.address, appPort), time.Second)
		if err == nil {
			return connection.Close()
		}
		select {
		case <-app.Exited():
			return fmt.Errorf("app ended: %s", app.Tail(5))
		case <-p.ctx.Done():
			return p.ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *pod) running() *sidecar.Sidecar {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sidecar
}

// stop ends the sidecar, which sends its last flush, then the app.
func (p *pod) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sidecar != nil {
		_ = p.sidecar.Stop() // one that had to be killed is gone all the same
		p.sidecar = nil
	}
	if p.app != nil {
		_ = p.app.Stop()
		p.app = nil
	}
}

// kill ends what is left at once.
func (p *pod) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sidecar != nil {
		p.sidecar.Kill()
		p.sidecar = nil
	}
	if p.app != nil {
		p.app.Kill()
		p.app = nil
	}
}

// patchStatus writes what a kubelet would: the pod runs, on its address, and is ready or not.
func (a *Agent) patchStatus(p *pod, ready bool) error {
	now := metav1.Now()
	condition := corev1.ConditionFalse
	if ready {
		condition = corev1.ConditionTrue
	}
	var conditions []corev1.PodCondition
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.PodScheduled} {
		conditions = append(conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	for _, kind := range []corev1.PodConditionType{corev1.ContainersReady, corev1.PodReady} {
		conditions = append(conditions, corev1.PodCondition{Type: kind, Status: condition, LastTransitionTime: now})
	}
	var containers []corev1.ContainerStatus
	for _, c := range p.object.Spec.Containers {
		containers = append(containers, corev1.ContainerStatus{
			Name: c.Name, Image: cmp.Or(c.Image, "none"), Ready: ready,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	patch, err := json.Marshal(map[string]any{"status": corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: p.address, PodIPs: []corev1.PodIP{{IP: p.address}}, HostIP: "127.0.0.1",
		StartTime: &now, Conditions: conditions, ContainerStatuses: containers,
	}})
	if err != nil {
		return err
	}
	_, err = a.config.Client.CoreV1().Pods(p.object.Namespace).Patch(p.ctx, p.object.Name,
		types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
