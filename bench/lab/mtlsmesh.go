package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/identity"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
	"github.com/meshpulse/meshpulse/bench/sidecar"
	"github.com/meshpulse/meshpulse/bench/web"
)

const (
	// provenNamespace has sidecars that prove themselves, halfNamespace every second one.
	provenNamespace, halfNamespace = "proven", "half"
	provenPods, halfPods           = 3, 4
	// mtlsFlush is short, so that a minute has many of them.
	mtlsFlush = time.Second
	// mtlsLife is how long a certificate is valid.
	mtlsLife = time.Minute
	// mtlsRate is what each pod receives, in requests a second: no flush is without any.
	mtlsRate = 10
)

// mtlsMesh is a mesh whose sidecars prove themselves with certificates of an authority of the
// lab's.
type mtlsMesh struct {
	lab       *lab
	cluster   *cluster.Cluster
	dir       string
	meshpulse *meshpulse
	agent     *mesh.Agent
	service   *identity.Service

	mu       sync.Mutex
	agents   map[string]*identity.Agent // by namespace and name of the pod
	signer   *identity.Authority
	roots    []*identity.Authority
	away     bool // nothing is renewed
	renewals int
}

// startMTLS boots all of it; it returns when every pod is ready.
func (l *lab) startMTLS(ctx context.Context, c *cluster.Cluster, dir string, first *identity.Authority) (_ *mtlsMesh, err error) {
	m := &mtlsMesh{lab: l, cluster: c, dir: dir, agents: map[string]*identity.Agent{}, service: &identity.Service{Life: mtlsLife}}
	defer func() {
		if err != nil {
			m.stop()
		}
	}()
	m.use(first, first)
	address, err := m.service.Start()
	if err != nil {
		return nil, err
	}
	if m.meshpulse, err = installMeshpulse(ctx, l, c, dir, meshpulseOptions{flags: identityFlags(address, m.file("roots.pem"), m.file("token"))}); err != nil {
		return nil, err
	}
	if err := writeToken(ctx, c, "meshpulse", istioAudience, m.file("token")); err != nil {
		return nil, err
	}
	m.agent, err = mesh.Start(ctx, mesh.Config{
		Client: c.Client, Dir: filepath.Join(dir, "pods"), Envoy: l.envoy, Apps: l.apps(), TLS: m.identify,
		Sink: func(string, string) string { return m.meshpulse.sink() }, FlushInterval: mtlsFlush, ReadyChanged: func(string, string, []string) {},
	})
	if err != nil {
		return nil, err
	}
	for namespace, pods := range map[string]int32{provenNamespace: provenPods, halfNamespace: halfPods} {
		if err := m.create(ctx, namespace, pods); err != nil {
			return nil, err
		}
	}
	for begin := time.Now(); m.agent.Ready(provenNamespace, workload) < provenPods || m.agent.Ready(halfNamespace, workload) < halfPods; {
		if !sleep(ctx, 200*time.Millisecond) || time.Since(begin) > readyTimeout {
			return nil, fmt.Errorf("pods are not ready, see the logs in %s: %w", dir, ctx.Err())
		}
	}
	return m, nil
}

func (m *mtlsMesh) file(name string) string { return filepath.Join(m.dir, "ca-"+name) }

// identityFlags have meshpulse ask an authority of the lab's for its certificate.
func identityFlags(address, roots, token string) []string {
	return []string{
		"--ingest-mtls=permissive", "--ingest-ca-address=" + address, "--ingest-ca-server-name=" + identity.ServerName,
		"--ingest-ca-root-file=" + roots, "--ingest-ca-token-file=" + token,
	}
}

// istioAudience is that of the projected token of meshpulse's own pod.
const istioAudience = "istio-ca"

// writeToken writes a token of a service account of meshpulse's namespace, for an audience: "" is
// the API server.
func writeToken(ctx context.Context, c *cluster.Cluster, account, audience, path string) error {
	var audiences []string
	if audience != "" {
		audiences = append(audiences, audience)
	}
	day := int64(24 * 3600)
	answer, err := c.Client.CoreV1().ServiceAccounts(systemNamespace).CreateToken(ctx, account,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, ExpirationSeconds: &day}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(answer.Status.Token), 0o600)
}

// create makes a namespace with pods, and an HPA whose queries tell each pod's totals.
func (m *mtlsMesh) create(ctx context.Context, namespace string, pods int32) error {
	if _, err := m.cluster.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	d := deployment(scenario.Lane{Namespace: namespace, Replicas: pods})
	if _, err := m.cluster.Client.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return err
	}
	return m.cluster.Apply(ctx, []byte(strings.ReplaceAll(mtlsHPA, "NAMESPACE", namespace)))
}

// mtlsHPA asks for what keeps no replicas, so that what is seen is answered whatever is held.
const mtlsHPA = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: totals
  namespace: NAMESPACE
  annotations:
    metric-config.external.prometheus-query.prometheus/counted: 'sum by (pod) (istio_requests_total{namespace="NAMESPACE"})'
    metric-config.external.prometheus-query.prometheus/timed: 'sum by (pod) (istio_request_duration_milliseconds_count{namespace="NAMESPACE"})'
spec:
  maxReplicas: 10
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: nobody}
  metrics:
  - {type: External, external: {metric: {name: prometheus-query, selector: {matchLabels: {query-name: counted}}}, target: {type: AverageValue, averageValue: "1"}}}
  - {type: External, external: {metric: {name: prometheus-query, selector: {matchLabels: {query-name: timed}}}, target: {type: AverageValue, averageValue: "1"}}}
`

// identify gives a pod's sidecar an agent: in the half every second one.
func (m *mtlsMesh) identify(pod *corev1.Pod) (*sidecar.TLS, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := pod.Namespace + "/" + pod.Name
	n := 0
	for other := range m.agents {
		if strings.HasPrefix(other, pod.Namespace+"/") {
			n++
		}
	}
	if pod.Namespace == halfNamespace && n >= halfPods/2 {
		return nil, nil
	}
	socket := filepath.Join(m.dir, "sds-"+strconv.Itoa(len(m.agents)))
	a, err := identity.NewAgent(socket, identity.SPIFFE(pod.Namespace, pod.Spec.ServiceAccountName))
	if err != nil {
		return nil, err
	}
	m.agents[key] = a
	a.Trust(m.roots...)
	return &sidecar.TLS{Socket: socket, Peers: []string{identity.SPIFFE(systemNamespace, "meshpulse")}}, a.Renew(m.signer, mtlsLife)
}

// proves says whether a pod's sidecar does.
func (m *mtlsMesh) proves(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.agents[key] != nil
}

// use has an authority sign from now on, and these roots trusted by all.
func (m *mtlsMesh) use(signer *identity.Authority, roots ...*identity.Authority) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.signer, m.roots = signer, roots
	m.service.Use(signer, roots...)
	var all []byte
	for _, r := range roots {
		all = append(all, r.PEM...)
	}
	path := m.file("roots.pem")
	if err := errors.Join(os.WriteFile(path+".new", all, 0o600), os.Rename(path+".new", path)); err != nil {
		slog.Error("roots cannot be written", "err", err)
	}
	for _, a := range m.agents {
		a.Trust(roots...)
	}
}

// renew gives every sidecar a new certificate, unless that is held.
func (m *mtlsMesh) renew() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return nil
	}
	m.renewals++
	var errs []error
	for _, a := range m.agents {
		errs = append(errs, a.Renew(m.signer, mtlsLife))
	}
	return errors.Join(errs...)
}

// renewUntil renews at half of a certificate's life, as agents do, until the context ends.
func (m *mtlsMesh) renewUntil(ctx context.Context) {
	for sleep(ctx, mtlsLife/2) {
		if err := m.renew(); err != nil {
			slog.Error("certificates are not renewed", "err", err)
		}
	}
}

// hold has nothing renewed, or all again.
func (m *mtlsMesh) hold(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = away
}

// sidecarsOf are the running sidecars of a namespace.
func (m *mtlsMesh) sidecarsOf(namespaces ...string) (all []mesh.Sidecar) {
	for _, s := range m.agent.Sidecars() {
		for _, ns := range namespaces {
			if s.Namespace == ns {
				all = append(all, s)
			}
		}
	}
	return all
}

// connections is how many connections to the sink a sidecar has made so far.
func (m *mtlsMesh) connections(ctx context.Context, s mesh.Sidecar) (int64, error) {
	body, err := web.Get(ctx, webClient, "http://"+s.Admin+"/stats?filter=cluster.envoy_metrics_service.upstream_cx_total")
	if err != nil {
		return 0, err
	}
	_, number, _ := strings.Cut(strings.TrimSpace(string(body)), ": ")
	return strconv.ParseInt(strings.TrimSpace(number), 10, 64)
}

// totals are what meshpulse answers for a query, by pod. A pod of which nothing is known is
// missing.
func (m *mtlsMesh) totals(ctx context.Context, namespace, query string) (map[string]int64, error) {
	result := m.cluster.Client.RESTClient().Get().AbsPath("/apis/external.metrics.k8s.io/v1beta1/namespaces/"+namespace+"/prometheus-query").
		Param("labelSelector", "query-name="+query).Do(ctx)
	if err := result.Error(); err != nil {
		return nil, err
	}
	body, err := result.Raw()
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			MetricLabels map[string]string
			Value        resource.Quantity
		}
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	all := map[string]int64{}
	for _, item := range list.Items {
		all[item.MetricLabels["pod"]] = item.Value.Value()
	}
	return all, nil
}

func (m *mtlsMesh) stop() {
	if m.agent != nil {
		m.agent.Stop()
	}
	if m.meshpulse != nil {
		m.meshpulse.stop()
	}
	m.service.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.agents {
		a.Close()
	}
}
