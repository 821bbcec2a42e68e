package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/meshpulse/meshpulse/bench/attack"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

const (
	victimNamespace, fleetNamespace = "shop", "fleet"
	victims, fleetPods              = 10, 40
	// truth is what the victims receive in all, in requests a second.
	truth = 500.0
	// victimTarget is a pod's target of the victims' HPA: within the HPA's tolerance of the truth,
	// so that it wants the replicas that there are, and far enough that an answer that only keeps
	// them is not the truth.
	victimTarget = 52
	attackSync   = 5 * time.Second
)

const victimQuery = `istio_requests_total{reporter="destination",destination_workload="podinfo",destination_workload_namespace="shop"}`

// victimHPA, with victimTarget, has a compiled query, one for Prometheus' engine, and a metric
// without a query.
const victimHPA = `apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: web
  namespace: shop
  annotations:
    metric-config.external.prometheus-query.prometheus/compiled: sum(rate(` + victimQuery + `[10s]))
    metric-config.external.prometheus-query.prometheus/engine: sum(rate(` + victimQuery + `[10s] offset 1ms))
spec:
  minReplicas: 1
  maxReplicas: 100
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: podinfo}
  metrics:
  - {type: External, external: {metric: {name: prometheus-query, selector: {matchLabels: {query-name: compiled}}}, target: {type: AverageValue, averageValue: "52"}}}
  - {type: External, external: {metric: {name: istio-requests-per-second, selector: {matchLabels: {destination_workload: podinfo, window: 10s}}}, target: {type: AverageValue, averageValue: "52"}}}
  - {type: External, external: {metric: {name: prometheus-query, selector: {matchLabels: {query-name: engine}}}, target: {type: AverageValue, averageValue: "52"}}}
`

// arena is a cluster with victims, a fleet and the attackers' own pods.
type arena struct {
	lab       *lab
	cluster   *cluster.Cluster
	dir       string
	nodes     *nodes
	meshpulse *meshpulse
	client    *http.Client
	evil      sync.Once // the authors' namespaces and HPAs
	evilErr   error
}

// setUp makes the pods and the HPA. meshpulse comes with each attack.
func (a *arena) setUp(ctx context.Context) error {
	a.client = a.cluster.AdminClient()
	own := *a.lab // a copy of the program, which nothing else runs
	own.meshpulse = filepath.Join(a.dir, "meshpulse-binary")
	if err := copyFile(own.meshpulse, a.lab.meshpulse); err != nil {
		return err
	}
	a.lab = &own
	a.nodes = &nodes{client: a.cluster.Client, namespaces: []string{victimNamespace, fleetNamespace}}
	for _, ns := range []string{victimNamespace, fleetNamespace, attack.Namespace} {
		if err := a.namespace(ctx, ns); err != nil {
			return err
		}
	}
	for ns, n := range map[string]int32{victimNamespace: victims, fleetNamespace: fleetPods} {
		d := deployment(scenario.Lane{Namespace: ns, Replicas: n})
		if _, err := a.cluster.Client.AppsV1().Deployments(ns).Create(ctx, d, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for _, p := range attack.Own() {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace}, Spec: deployment(scenario.Lane{}).Spec.Template.Spec}
		if _, err := a.cluster.Client.CoreV1().Pods(p.Namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
		if err := a.nodes.run(ctx, p.Namespace, p.Name, p.Address); err != nil {
			return err
		}
	}
	if err := a.cluster.Apply(ctx, []byte(victimHPA)); err != nil {
		return err
	}
	for { // until the controllers have made all of them
		if err := a.nodes.look(ctx); err != nil {
			return err
		}
		if len(a.nodes.running(victimNamespace)) == victims && len(a.nodes.running(fleetNamespace)) == fleetPods {
			return nil
		}
		if !sleep(ctx, 200*time.Millisecond) {
			return fmt.Errorf("the pods are not there: %w", ctx.Err())
		}
	}
}

func (a *arena) namespace(ctx context.Context, name string) error {
	_, err := a.cluster.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

func (a *arena) close() {
	if a.meshpulse != nil {
		a.meshpulse.stop()
	}
}

// sent is a metric as meshpulse answers it.
type sent struct {
	value float64
	held  string
	err   error
	took  time.Duration
}

// copyFile copies a program.
func copyFile(to, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// metricOf is what is asked for: by the name of a query, "" for the metric that has none.
func metricOf(query string) (metric, selector string) {
	if query == "" {
		return "istio-requests-per-second", "destination_workload=podinfo,window=10s"
	}
	return "prometheus-query", "query-name=" + query
}

// ask asks meshpulse itself, without the API server before it, which would be measured too.
func (a *arena) ask(ctx context.Context, server, token, query string) (s sent) {
	metric, selector := metricOf(query)
	path := server + "/apis/external.metrics.k8s.io/v1beta1/namespaces/" + victimNamespace + "/" + metric + "?labelSelector=" + url.QueryEscape(selector)
	asked := time.Now()
	defer func() { s.took = time.Since(asked) }()
	s.value = math.NaN()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return sent{err: err}
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := a.client.Do(request)
	if err != nil {
		s.err = err
		return s
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.err = err
		return s
	}
	var list struct {
		Message string
		Items   []struct {
			MetricLabels map[string]string
			Value        resource.Quantity
		}
	}
	if err := json.Unmarshal(body, &list); err != nil || len(list.Items) != 1 {
		s.err = fmt.Errorf("%s: %.300s", response.Status, list.Message)
		return s
	}
	s.value, s.held = list.Items[0].Value.AsApproximateFloat64(), list.Items[0].MetricLabels["meshpulse_reason"]
	return s
}

// desired is what the HPA controller wants; 0 where it cannot be read.
func (a *arena) desired(ctx context.Context) int32 {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	hpa, err := a.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(victimNamespace).Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		return 0
	}
	return hpa.Status.DesiredReplicas
}

// brief is the first line of an error, for a cell.
func brief(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	return strings.ReplaceAll(text, "|", "/")
}
