package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/meshpulse/meshpulse/bench/web"
)

// comparedWith is a Prometheus whose Service's port is not its pod's, and an HPA of which
// meshpulse, which no sidecar reports to, has no value.
const comparedWith = `
apiVersion: v1
kind: Namespace
metadata: {name: monitoring}
---
apiVersion: v1
kind: Service
metadata: {name: prometheus, namespace: monitoring}
spec: {selector: {app: prometheus}, ports: [{port: 9090, targetPort: 9091}]}
---
apiVersion: v1
kind: Pod
metadata: {name: prometheus, namespace: monitoring, labels: {app: prometheus}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: prometheus, image: ` + sidecarImage + `, command: ["/pod", "prometheus", ":9091"]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: compared
  namespace: monitoring
  annotations:
    metric-config.external.prometheus-query.prometheus/requests: sum(rate(istio_requests_total{destination_workload="compared"}[1m]))
spec:
  maxReplicas: 2
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: compared}
  metrics:
    - type: External
      external:
        metric: {name: prometheus-query, selector: {matchLabels: {query-name: requests}}}
        target: {type: AverageValue, averageValue: "10"}
`

// What becomes of a comparison: the Prometheus has a value, or gives no answer.
const (
	theyAnswer = "ours_missing"
	noAnswer   = "no_answer"
)

// shadowSteps compare with a Prometheus through the NetworkPolicy, on a cluster without meshpulse.
func (r *reader) shadowSteps() []step {
	install := func(ctx context.Context, url string) error {
		_, err := r.sh(ctx, "manifests/install.sh --image "+r.image+" --no-apiservice --shadow-prometheus "+url)
		return err
	}
	return []step{
		{"install.sh --shadow-prometheus: a Service's Prometheus answers, through the NetworkPolicy", func(ctx context.Context) (err error) {
			if r.before, err = r.objects(ctx); err != nil {
				return err
			}
			if err := r.cluster.Apply(ctx, []byte(comparedWith)); err != nil {
				return err
			}
			if _, err := r.kubectl(ctx, "--namespace=monitoring", "wait", "--for=condition=Ready", "pod/prometheus", "--timeout=50s"); err != nil {
				return err
			}
			if err := install(ctx, "http://prometheus.monitoring.svc:9090"); err != nil {
				return err
			}
			return r.comparedNext(ctx, theyAnswer)
		}},
		{"without the rule it gives no answer", func(ctx context.Context) error {
			if _, err := r.sh(ctx, "kubectl apply -f manifests/base/networkpolicy.yaml"); err != nil {
				return err
			}
			return r.comparedNext(ctx, noAnswer)
		}},
		{"by an address: its port is let through", func(ctx context.Context) error {
			address, err := r.kubectl(ctx, "--namespace=monitoring", "get", "pod", "prometheus", "-o", "jsonpath={.status.podIP}")
			if err != nil {
				return err
			}
			if err := install(ctx, "http://"+address+":9091"); err != nil {
				return err
			}
			return r.comparedNext(ctx, theyAnswer)
		}},
		{"uninstall.sh, and the Prometheus goes: nothing is left", func(ctx context.Context) error {
			_, err := r.sh(ctx, "manifests/uninstall.sh && kubectl delete namespace monitoring")
			return errors.Join(err, r.eventually(ctx, time.Minute, func() error { return r.sameObjects(ctx) }))
		}},
	}
}

// comparedNext waits until two comparisons in a row have come to this, the other outcome to none in
// between: a rule may come a moment after its policy.
func (r *reader) comparedNext(ctx context.Context, want string) error {
	other := map[string]string{theyAnswer: noAnswer, noAnswer: theyAnswer}[want]
	var begun map[string]float64
	return r.eventually(ctx, 2*time.Minute, func() error {
		now, err := r.comparisons(ctx)
		if err != nil {
			return err
		}
		if begun == nil || now[other] != begun[other] || now[want] < begun[want] {
			begun = now
		}
		if now[want] < begun[want]+2 {
			return fmt.Errorf("comparisons %v: not yet two in a row %s", now, want)
		}
		return nil
	})
}

// comparisons is how many of each outcome meshpulse's pod counts.
func (r *reader) comparisons(ctx context.Context) (map[string]float64, error) {
	pod, err := r.pod(ctx)
	if err != nil {
		return nil, err
	}
	client := r.cluster.AdminClient()
	client.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true // its authority is install.sh's
	body, err := web.Get(ctx, client, "https://"+net.JoinHostPort(pod.Status.PodIP, "10250")+"/metrics")
	if err != nil {
		return nil, err
	}
	found := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, `meshpulse_shadow_comparisons_total{outcome="`); ok {
			outcome, number, _ := strings.Cut(strings.TrimSpace(rest), `"} `)
			if found[outcome], err = strconv.ParseFloat(number, 64); err != nil {
				return nil, err
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("/metrics counts no comparisons")
	}
	return found, nil
}
