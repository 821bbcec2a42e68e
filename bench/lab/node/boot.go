package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/meshpulse/meshpulse/bench/documents"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/process"
)

// The addresses of the cluster, which are seen inside its network namespace alone. The files in
// config name them too.
const (
	nodeIP    = "10.213.0.10"
	gatewayIP = "10.213.0.1"
	services  = "10.213.96.0/20"
)

//go:embed config
var config embed.FS

// node is the running cluster of one node.
type node struct {
	*lab
	cluster *cluster.Cluster
	// cniPlugins is the folder of the CNI plugins.
	cniPlugins string
	// image is meshpulse's, NAME:TAG@DIGEST, known once imported has told that every image is
	// there.
	image    string
	imported chan error
	// before are the cluster's objects before meshpulse was installed.
	before string
	// documents are the blocks of commands that the project's documents have for a cluster.
	documents []documents.Block

	mu sync.Mutex
	// running are the processes beside the control plane.
	running []*process.Process
	// typedAlready are the documents' commands that were run, as they stand there.
	typedAlready map[string]bool
}

// built are the programs that make builds.
func (l *lab) built() []string {
	var all []string
	for _, name := range []string{
		"controlplane-" + kubeVersion, "node-" + kubeVersion, "coredns-" + corednsVersion, "kube-router-" + kubeRouterVersion, "pod", "podinfo", "hey",
		"helm-" + helmVersion, certManagerCRDs,
	} {
		all = append(all, l.binary(name))
	}
	if l.istio {
		all = append(all, l.istioBuilt()...)
	}
	if l.only == onlyUpgrade {
		all = append(all, l.previous("image.tar"))
	}
	return append(all, l.archive())
}

// archive is what `make image` has written.
func (l *lab) archive() string { return filepath.Join(l.root, "bin", "meshpulse-image.tar") }

// tools are the programs that get-tools fetches.
const tools = "containerd containerd-shim-runc-v2 ctr runc nft iptables iptables-save iptables-restore ipset ip"

// findTools names what is missing, with the remedy. From here on they are on the PATH.
func (l *lab) findTools() error {
	for _, variable := range l.environment() {
		if path, ok := strings.CutPrefix(variable, "PATH="); ok {
			if err := os.Setenv("PATH", path); err != nil {
				return err
			}
		}
	}
	for _, name := range strings.Fields(tools) {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: install it (Debian's packages: containerd runc containernetworking-plugins nftables iptables ipset iproute2), "+
				"or remove %s and run `make lab-node` where there is apt-get", err, l.tools)
		}
	}
	_, err := l.findCNIPlugins()
	return err
}

func (l *lab) findCNIPlugins() (string, error) {
	for _, dir := range []string{filepath.Join(l.tools, "root/usr/lib/cni"), "/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "ptp")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no CNI plugins in /usr/lib/cni, /opt/cni/bin or /usr/libexec/cni: install containernetworking-plugins")
}

// boot starts everything up to a node that is ready, with DNS. What it started ends with the
// namespaces.
func (l *lab) boot(ctx context.Context) (*node, error) {
	n := &node{lab: l, typedAlready: map[string]bool{}}
	var err error
	if n.documents, err = documents.Read(l.root); err != nil {
		return nil, err
	}
	if n.cniPlugins, err = l.findCNIPlugins(); err != nil {
		return nil, err
	}
	if err := n.writeConfig("containerd.toml", "cni/10-lab.conflist:cni.conflist", "kubelet.yaml", "kube-proxy.yaml"); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(l.state, "resolv.conf"), []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		return nil, err
	}
	programs := map[string]string{"kubectl": l.binary("controlplane-" + kubeVersion), "helm": l.binary("helm-" + helmVersion)}
	if l.istio {
		programs["istioctl"] = l.istioBinary("istioctl")
	}
	for name, program := range programs {
		if err := os.Symlink(program, filepath.Join(l.state, "bin", name)); err != nil {
			return nil, err
		}
	}
	imported := make(chan error, 1)
	go func() { imported <- n.startContainerd(ctx) }() // beside the control plane's start: both wait for the disk
	n.cluster, err = cluster.Boot(ctx, cluster.Config{
		Binary: l.binary("controlplane-" + kubeVersion), Dir: l.state, Address: net.JoinHostPort(nodeIP, "6443"), Services: services,
	})
	if err := errors.Join(err, <-imported); err != nil {
		return nil, err
	}
	return n, n.startNode(ctx)
}

// writeConfig renders files of the folder config into the run's state, each under its own name or
// under the one before a colon.
func (n *node) writeConfig(names ...string) error {
	for _, name := range names {
		target, source, renamed := strings.Cut(name, ":")
		if !renamed {
			source = target
		}
		text, err := config.ReadFile("config/" + source)
		if err != nil {
			return err
		}
		t, err := template.New(source).Parse(string(text))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, map[string]string{
			"State": n.state, "PKI": n.pki(""), "Node": nodeName, "CgroupRoot": n.cgroup, "CNIPlugins": n.cniPlugins,
		}); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(n.state, target), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) pki(name string) string { return filepath.Join(l.state, "pki", name) }

// start starts a program of the node.
func (n *node) start(name, command string, args ...string) (*process.Process, error) {
	p, err := process.Start(filepath.Join(n.logs, name+".log"), command, args...)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.running = append(n.running, p)
	return p, nil
}

// startContainerd starts it and imports the images: those that the node itself needs at once, the
// others beside what comes next.
func (n *node) startContainerd(ctx context.Context) error {
	p, err := n.start("containerd", "containerd", "--config", filepath.Join(n.state, "containerd.toml"))
	if err != nil {
		return err
	}
	err = p.Await(ctx, time.Minute, func(ctx context.Context) error {
		_, err := output(ctx, 5*time.Second, "ctr", "version")
		return err
	})
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	images, err := n.images()
	if err != nil {
		return err
	}
	if err := n.importImages(ctx, images[:ofNode]); err != nil {
		return err
	}
	n.imported = make(chan error, 1)
	go func() {
		ctx := context.WithoutCancel(ctx) // beyond the step that starts it
		n.imported <- errors.Join(n.importArchive(ctx, n.archive()), n.importImages(ctx, images[ofNode:]), n.pinImage(ctx))
	}()
	return nil
}

func (n *node) importImages(ctx context.Context, images []image) error {
	for _, image := range images {
		file := filepath.Join(n.state, "image.tar")
		if err := image.write(file); err != nil {
			return fmt.Errorf("image %s: %w", image.name, err)
		}
		if err := n.importArchive(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) importArchive(ctx context.Context, file string) error {
	_, err := output(ctx, 2*time.Minute, "ctr", "--namespace", "k8s.io", "images", "import", file)
	return err
}

// pinImage finds the digest of meshpulse's image and gives it the name that a registry would have
// it by.
func (n *node) pinImage(ctx context.Context) error {
	listed, err := output(ctx, time.Minute, "ctr", "--namespace", "k8s.io", "images", "list", "name=="+imageName)
	if err != nil {
		return err
	}
	digest := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(listed)
	if digest == "" {
		return fmt.Errorf("%s holds no image %s: %s", n.archive(), imageName, listed)
	}
	n.image = imageName + "@" + digest
	repository, _, _ := strings.Cut(imageName, ":")
	_, err = output(ctx, time.Minute, "ctr", "--namespace", "k8s.io", "images", "tag", imageName, repository+"@"+digest)
	return err
}

// startNode starts what makes a node of it, and waits until it is ready.
func (n *node) startNode(ctx context.Context) error {
	for name, identity := range map[string][]string{
		"kubelet":        {"system:node:" + nodeName, "system:nodes", nodeName, nodeIP},
		"kube-proxy":     {"system:kube-proxy", ""},
		"kube-scheduler": {"system:kube-scheduler", ""},
		"kube-router":    {"lab-kube-router", "system:masters"},
		"injector":       {"lab-injector", "", nodeIP},
	} {
		if err := n.identity(name, identity[0], identity[1], identity[2:]...); err != nil {
			return err
		}
	}
	node := n.binary("node-" + kubeVersion)
	for _, program := range [][]string{
		{
			"kube-scheduler", node, "kube-scheduler", "--kubeconfig=" + n.kubeconfigOf("kube-scheduler"), "--authentication-kubeconfig=" + n.kubeconfigOf("kube-scheduler"),
			"--authorization-kubeconfig=" + n.kubeconfigOf("kube-scheduler"), "--bind-address=127.0.0.1", "--leader-elect=false",
		},
		{
			"kubelet", node, "kubelet", "--kubeconfig=" + n.kubeconfigOf("kubelet"), "--config=" + filepath.Join(n.state, "kubelet.yaml"),
			"--node-ip=" + nodeIP, "--hostname-override=" + nodeName, "--v=2",
		},
		{"kube-proxy", node, "kube-proxy", "--config=" + filepath.Join(n.state, "kube-proxy.yaml"), "--v=2"},
	} {
		if _, err := n.start(program[0], program[1], program[2:]...); err != nil {
			return err
		}
	}
	return n.eventually(ctx, time.Minute, func() error {
		return n.expect(ctx, "True", "get", "node", nodeName, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	})
}

// startRouter enforces NetworkPolicies; it wants the node to be known.
func (n *node) startRouter() error {
	_, err := n.start("kube-router", n.binary("kube-router-"+kubeRouterVersion), "--run-router=false", "--run-firewall=true", "--run-service-proxy=false",
		"--kubeconfig="+n.kubeconfigOf("kube-router"), "--hostname-override="+nodeName, "--service-cluster-ip-range="+services,
		"--metrics-port=0", "--health-port=0")
	return err
}

// identity makes a certificate with a kubeconfig that uses it.
func (n *node) identity(name, user, group string, names ...string) error {
	var groups []string
	if group != "" {
		groups = []string{group}
	}
	if err := n.cluster.CA.WriteFiles(n.pki(""), name, user, groups, names); err != nil {
		return err
	}
	return cluster.WriteKubeconfig(n.kubeconfigOf(name), cluster.Kubeconfig{
		Server: n.cluster.Server, CAFile: n.pki("ca.crt"), CertFile: n.pki(name + ".crt"), KeyFile: n.pki(name + ".key"),
	})
}

func (l *lab) kubeconfigOf(name string) string { return filepath.Join(l.state, name+".kubeconfig") }

// startInjector serves the webhook and tells the API server of it.
func (n *node) startInjector(ctx context.Context) error {
	certificate, err := tls.LoadX509KeyPair(n.pki("injector.crt"), n.pki("injector.key"))
	if err != nil {
		return err
	}
	address := net.JoinHostPort(nodeIP, "15017")
	listener, err := tls.Listen("tcp", address, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/inject", serveInjection)
	go func() { _ = http.Serve(listener, mux) }() // until the process ends
	return n.cluster.Apply(ctx, fmt.Appendf(nil, webhook, address, base64.StdEncoding.EncodeToString(n.cluster.CA.PEM)))
}

// startDNS starts CoreDNS in pods and waits until it answers.
func (n *node) startDNS(ctx context.Context) error {
	text, err := config.ReadFile("config/coredns.yaml")
	if err != nil {
		return err
	}
	if err := n.cluster.Apply(ctx, text); err != nil {
		return err
	}
	return n.rollout(ctx, "kube-system", "coredns")
}

// failed is an error when a program of the node has ended by itself.
func (n *node) failed() error {
	errs := []error{n.cluster.Failed()}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.running {
		errs = append(errs, p.Ended())
	}
	return errors.Join(errs...)
}
