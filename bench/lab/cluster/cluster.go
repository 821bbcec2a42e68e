// Package cluster boots a real Kubernetes control plane on loopback: etcd, kube-apiserver with RBAC
// and the aggregation layer, and kube-controller-manager with the controllers that an HPA needs. It
// knows nothing of meshpulse or of Envoy. Without an Address there is no kubelet and no scheduler:
// package mesh plays the node.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/meshpulse/meshpulse/bench/process"
	"github.com/meshpulse/meshpulse/bench/web"
)

// Config says how to boot.
type Config struct {
	// Binary is the multi-call binary (folder controlplane).
	Binary string
	// Dir is the run's own folder: certificates, kubeconfigs, etcd's data and the logs.
	Dir string
	// HPASync is the HPA controller's sync period; 0 is Kubernetes' default, 15 s.
	HPASync time.Duration
	// DownscaleStabilization is how long the HPA controller waits before it scales down an HPA that
	// sets no behavior; 0 is Kubernetes' default, 5 minutes.
	DownscaleStabilization time.Duration
	// EventTTL is how long the API server keeps an event; 0 is Kubernetes' default, an hour.
	EventTTL time.Duration
	// Address is where the API server listens, host:port, for nodes and pods that reach it there.
	// By default it is a free port on loopback, which is for a cluster without nodes.
	Address string
	// Services is the range of the Services' addresses (default 127.96.0.0/16).
	Services string
}

// Cluster is a running control plane.
type Cluster struct {
	// CA signs for everything in the cluster.
	CA *Authority
	// Server is the API server's URL.
	Server string
	// Kubeconfig is the administrator's.
	Kubeconfig string
	// Client acts as the administrator.
	Client *kubernetes.Clientset
	// BootTime is how long Boot took.
	BootTime time.Duration

	config Config
	// serve are the API server's arguments, for another start.
	serve []string

	mu                           sync.Mutex
	etcd, apiserver, controllers *process.Process // nil before the start, or while killed
}

const bootTimeout = 60 * time.Second

// controllers are what an HPA over a Deployment needs where there is no node; the others would only
// cost CPU.
const controllers = "horizontal-pod-autoscaler-controller,deployment-controller,replicaset-controller," +
	"endpointslice-controller,serviceaccount-controller,namespace-controller,garbage-collector-controller"

// Boot starts the control plane and returns when the API server is ready and the controllers run.
// On an error nothing is left running.
func Boot(ctx context.Context, config Config) (*Cluster, error) {
	if config.HPASync == 0 {
		config.HPASync = 15 * time.Second
	}
	if config.DownscaleStabilization == 0 {
		config.DownscaleStabilization = 5 * time.Minute
	}
	if config.EventTTL == 0 {
		config.EventTTL = time.Hour
	}
	if config.Services == "" {
		config.Services = "127.96.0.0/16"
	}
	start := time.Now()
	pki := filepath.Join(config.Dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return nil, fmt.Errorf("folder of the run: %w", err)
	}
	c := &Cluster{config: config, Kubeconfig: filepath.Join(config.Dir, "admin.kubeconfig")}
	if err := c.boot(ctx, pki); err != nil {
		c.Stop()
		return nil, err
	}
	c.BootTime = time.Since(start)
	return c, nil
}

func (c *Cluster) boot(ctx context.Context, pki string) error {
	var err error
	if c.CA, err = writePKI(pki, c.config.servingNames()); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	etcdURL, err := c.startEtcd(ctx)
	if err != nil {
		return err
	}
	if err := c.startAPIServer(ctx, etcdURL); err != nil {
		return err
	}
	return c.startControllers(ctx)
}

func (c *Cluster) pki(name string) string { return filepath.Join(c.config.Dir, "pki", name) }

// servingNames are the API server's. The first address of the Services' range is its own.
func (c Config) servingNames() []string {
	names := []string{"127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	if host, _, err := net.SplitHostPort(c.Address); err == nil {
		names = append(names, host)
	}
	if first, _, err := net.ParseCIDR(c.Services); err == nil {
		first = first.To4()
		first[3]++
		names = append(names, first.String())
	}
	return names
}

// listen is where the API server listens, and what that takes.
func (c *Cluster) listen() (address string, flags []string, err error) {
	if c.config.Address == "" {
		ports, err := FreePorts(1)
		if err != nil {
			return "", nil, err
		}
		// A loopback address is no valid endpoint.
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])), []string{"--endpoint-reconciler-type=none"}, nil
	}
	return c.config.Address, []string{
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true", // what may be is said by each namespace's pod security
		"--kubelet-client-certificate=" + c.pki("admin.crt"), "--kubelet-client-key=" + c.pki("admin.key"),
		"--kubelet-certificate-authority=" + c.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
	}, nil
}

func (c *Cluster) startEtcd(ctx context.Context) (url string, err error) {
	ports, err := FreePorts(2)
	if err != nil {
		return "", err
	}
	url = "http://127.0.0.1:" + strconv.Itoa(ports[0])
	c.etcd, err = c.start("etcd", "--data-dir="+filepath.Join(c.config.Dir, "etcd"),
		"--client-url="+url, "--peer-url=http://127.0.0.1:"+strconv.Itoa(ports[1]))
	if err != nil {
		return "", err
	}
	return url, await(ctx, "etcd", c.etcd, healthy(http.DefaultClient, url+"/health"))
}

func (c *Cluster) startAPIServer(ctx context.Context, etcdURL string) error {
	address, flags, err := c.listen()
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	c.Server = "https://" + address
	c.serve = append(flags,
		"--etcd-servers="+etcdURL,
		"--bind-address="+host, "--advertise-address="+host, "--secure-port="+port,
		"--service-cluster-ip-range="+c.config.Services,
		"--authorization-mode=Node,RBAC",
		"--client-ca-file="+c.pki("ca.crt"),
		"--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.pki("sa.key"), "--service-account-signing-key-file="+c.pki("sa.key"),
		"--requestheader-client-ca-file="+c.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+c.pki("front-proxy-client.crt"),
		"--proxy-client-key-file="+c.pki("front-proxy-client.key"),
		"--event-ttl="+c.config.EventTTL.String(),
		"--enable-aggregator-routing=false", // an aggregated API is reached at its Service's clusterIP
		"--v=1")
	if c.apiserver, err = c.start("kube-apiserver", c.serve...); err != nil {
		return err
	}
	if err := WriteKubeconfig(c.Kubeconfig, Kubeconfig{Server: c.Server, CAFile: c.pki("ca.crt"), CertFile: c.pki("admin.crt"), KeyFile: c.pki("admin.key")}); err != nil {
		return err
	}
	rc := &rest.Config{
		Host: c.Server, QPS: 200, Burst: 400,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.pki("ca.crt"), CertFile: c.pki("admin.crt"), KeyFile: c.pki("admin.key")},
	}
	if c.Client, err = kubernetes.NewForConfig(rc); err != nil {
		return err
	}
	return await(ctx, "kube-apiserver", c.apiserver, c.ready)
}

func (c *Cluster) startControllers(ctx context.Context) error {
	ports, err := FreePorts(1)
	if err != nil {
		return err
	}
	run := controllers
	if c.config.Address != "" {
		run = "*" // Kubernetes' default: nodes need more of them, and pods the rest
	}
	kubeconfig := filepath.Join(c.config.Dir, "controller-manager.kubeconfig")
	if err := WriteKubeconfig(kubeconfig, Kubeconfig{Server: c.Server, CAFile: c.pki("ca.crt"), CertFile: c.pki("controller-manager.crt"), KeyFile: c.pki("controller-manager.key")}); err != nil {
		return err
	}
	c.controllers, err = c.start("kube-controller-manager",
		"--kubeconfig="+kubeconfig, "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig,
		"--bind-address=127.0.0.1", "--secure-port="+strconv.Itoa(ports[0]),
		"--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"),
		"--leader-elect=false",
		"--use-service-account-credentials=true", // so that RBAC is tested as each controller
		"--service-account-private-key-file="+c.pki("sa.key"), "--root-ca-file="+c.pki("ca.crt"),
		"--horizontal-pod-autoscaler-sync-period="+c.config.HPASync.String(),
		"--horizontal-pod-autoscaler-downscale-stabilization="+c.config.DownscaleStabilization.String(),
		"--flex-volume-plugin-dir="+filepath.Join(c.config.Dir, "plugins"), // by default below /usr
		"--controllers="+run, "--v=1")
	if err != nil {
		return err
	}
	return await(ctx, "kube-controller-manager", c.controllers, healthy(web.Insecure(), fmt.Sprintf("https://127.0.0.1:%d/healthz", ports[0])))
}

// start runs one program of the multi-call binary.
func (c *Cluster) start(program string, args ...string) (*process.Process, error) {
	return process.Start(filepath.Join(c.config.Dir, program+".log"), c.config.Binary, append([]string{program}, args...)...)
}

func await(ctx context.Context, name string, p *process.Process, ready func(context.Context) error) error {
	if err := p.Await(ctx, bootTimeout, ready); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// ready says whether the API server is.
func (c *Cluster) ready(ctx context.Context) error {
	return c.Client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// healthy says whether who answers there is: on loopback it does not matter who that is.
func healthy(client *http.Client, url string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := web.Get(ctx, client, url)
		return err
	}
}

// Stop ends the control plane, last started first. It is killed: its data ends with the run, and an
// API server that is asked politely waits for a minute.
func (c *Cluster) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range []*process.Process{c.controllers, c.apiserver, c.etcd} {
		if p != nil {
			p.Kill()
		}
	}
}

// Failed is an error when one of the programs has ended by itself.
func (c *Cluster) Failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, p := range []*process.Process{c.etcd, c.apiserver, c.controllers} {
		if p != nil {
			errs = append(errs, p.Ended())
		}
	}
	return errors.Join(errs...)
}

// KillAPIServer kills the API server (SIGKILL).
func (c *Cluster) KillAPIServer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.apiserver != nil {
		c.apiserver.Kill()
		c.apiserver = nil
	}
}

// RestartAPIServer starts a killed API server again, at the same address with the same data, and
// returns when it is ready.
func (c *Cluster) RestartAPIServer(ctx context.Context) error {
	p, err := c.start("kube-apiserver", c.serve...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.apiserver = p
	c.mu.Unlock()
	return await(ctx, "kube-apiserver", p, c.ready)
}

// FreePorts finds n TCP ports on 127.0.0.1 that are free now.
func FreePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }() // all at once, so that no port is found twice
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}
