package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/bench/lab/scenario"
)

const (
	// workload is every lane's Deployment, the guides' name.
	workload = "podinfo"
	// appImage is the lab's own app (mesh.RunApp), podinfoImage the guides'.
	appImage     = "meshpulse-lab/app"
	podinfoImage = "ghcr.io/stefanprodan/podinfo"
	// sampleInterval is how exact the times of a report are.
	sampleInterval = 250 * time.Millisecond
)

// createLane makes the lane's namespace, Deployment and HPA.
func (r *loop) createLane(ctx context.Context, ln *lane) error {
	client := r.cluster.Client
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ln.Namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := client.AppsV1().Deployments(ln.Namespace).Create(ctx, deployment(ln.Lane), metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := r.source.prepare(ctx, ln.hpa); err != nil {
		return fmt.Errorf("HPA of %s: %w", ln.Namespace, err)
	}
	others, err := ln.Others()
	if err != nil {
		return err
	}
	for _, hpa := range others {
		if err := r.source.prepare(ctx, hpa); err != nil {
			return fmt.Errorf("HPA %s of %s: %w", hpa.Name, ln.Namespace, err)
		}
	}
	least := 1
	if ln.hpa.Spec.MinReplicas != nil {
		least = int(*ln.hpa.Spec.MinReplicas)
	}
	ln.trace = scenario.Trace{
		Namespace: ln.Namespace, Load: ln.Load, From: r.scenario.MeasureFrom.Duration,
		PerReplica: ln.PerReplica, Min: least, Max: int(ln.hpa.Spec.MaxReplicas),
	}
	return nil
}

// deployment is what the pods are made from: marked as Istio's injector would mark them.
func deployment(l scenario.Lane) *appsv1.Deployment {
	labels := map[string]string{"app": workload, "version": "v1"}
	image := l.Image
	if image == "" {
		image = appImage
	}
	grace := int64(30)
	annotations := map[string]string{
		"sidecar.istio.io/status": `{"containers":["istio-proxy"],"revision":"default"}`,
		mesh.StartDelayAnnotation: l.StartDelay.Duration.String(),
	}
	if l.Inclusions != "" {
		annotations["sidecar.istio.io/statsInclusionRegexps"] = l.Inclusions
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: workload, Namespace: l.Namespace},
		Spec: appsv1.DeploymentSpec{
			Replicas: &l.Replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": workload}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations},
				Spec: corev1.PodSpec{
					NodeName:                      mesh.NodeName,
					TerminationGracePeriodSeconds: &grace,
					Containers: []corev1.Container{
						{Name: workload, Image: image, Args: l.Args, Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}}},
						{Name: "istio-proxy", Image: "istio/proxyv2"},
					},
				},
			},
		},
	}
}

// sample records what is seen of a lane until ctx ends. The lane that talks prints a line now and
// then.
func (r *loop) sample(ctx context.Context, ln *lane, talk bool) {
	value, held, asked, spoken := math.NaN(), "", time.Time{}, time.Time{}
	proc.Every(ctx, sampleInterval, func() {
		now := time.Now()
		if now.Before(ln.start) {
			return
		}
		hpa, err := r.cluster.Client.AutoscalingV2().HorizontalPodAutoscalers(ln.Namespace).Get(ctx, ln.hpa.Name, metav1.GetOptions{})
		if err != nil {
			return // KEDA makes its HPA a moment later; a run that ends cancels
		}
		direct := r.askDirectly && ln.hpa.Spec.Metrics[0].External != nil
		if direct && now.Sub(asked) >= time.Second {
			asked = now
			value, held, _ = answer(ctx, r.cluster, ln.hpa) // no answer is NaN
			r.askOracleNow(ctx, ln)
		} else if !direct {
			value = shown(hpa)
		}
		s := scenario.Sample{
			At: now.Sub(ln.start), RPS: ln.Load.Rate(now.Sub(ln.start)), Value: value, Held: held,
			Desired: int(hpa.Status.DesiredReplicas), Ready: r.agent.Ready(ln.Namespace, workload),
		}
		ln.trace.Samples = append(ln.trace.Samples, s)
		if talk && now.Sub(spoken) >= 10*time.Second {
			spoken = now
			slog.Info("lab", "namespace", ln.Namespace, "t", s.At.Round(time.Second), "rps", s.RPS, "value", fmt.Sprintf("%.2f", s.Value), "held", s.Held, "desired", s.Desired, "ready", s.Ready)
		}
	})
}

// watchTarget records what the lane's Deployment is told to have, until ctx ends: whoever scales
// it, and at the time at which the API server says so.
func (r *loop) watchTarget(ctx context.Context, ln *lane) {
	for ctx.Err() == nil {
		w, err := r.cluster.Client.AppsV1().Deployments(ln.Namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + workload})
		if err != nil {
			continue // the run's own look at the control plane tells
		}
		for event := range w.ResultChan() {
			d, ok := event.Object.(*appsv1.Deployment)
			if !ok || d.Spec.Replicas == nil {
				continue
			}
			asked := scenario.Asked{At: time.Since(ln.start), Replicas: int(*d.Spec.Replicas)}
			if n := len(ln.trace.Asked); n == 0 || ln.trace.Asked[n-1].Replicas != asked.Replicas {
				ln.trace.Asked = append(ln.trace.Asked, asked)
			}
		}
	}
}

func pathOf(namespace, metric string) string {
	return "/apis/external.metrics.k8s.io/v1beta1/namespaces/" + namespace + "/" + metric
}

// answer asks the external metrics API as the HPA controller does, for the HPA's first metric: the
// sum of the items, NaN and why where there is none.
func answer(ctx context.Context, c *cluster.Cluster, hpa *autoscalingv2.HorizontalPodAutoscaler) (value float64, held string, err error) {
	metric := hpa.Spec.Metrics[0].External.Metric
	path := externalMetrics + "/namespaces/" + hpa.Namespace + "/" + metric.Name
	request := c.Client.RESTClient().Get().AbsPath(path)
	if metric.Selector != nil {
		request = request.Param("labelSelector", metav1.FormatLabelSelector(metric.Selector))
	}
	result := request.Do(ctx)
	if err := result.Error(); err != nil { // Raw's own error would lack what meshpulse says
		return math.NaN(), "", err
	}
	body, err := result.Raw()
	if err != nil {
		return math.NaN(), "", err
	}
	return sumOf(body)
}

// sumOf is an answer's: the sum of its items, and the reason why it is held.
func sumOf(body []byte) (value float64, held string, err error) {
	var list struct {
		Items []struct {
			MetricLabels map[string]string `json:"metricLabels"`
			Value        resource.Quantity `json:"value"`
		} `json:"items"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return math.NaN(), "", err
	}
	if len(list.Items) == 0 {
		return math.NaN(), "", errors.New("no item")
	}
	for _, item := range list.Items {
		value += item.Value.AsApproximateFloat64()
		held = item.MetricLabels["meshpulse_reason"]
	}
	return value, held, nil
}

// shown is the value as far as the HPA's status tells: an average is given per replica.
func shown(hpa *autoscalingv2.HorizontalPodAutoscaler) float64 {
	for _, m := range hpa.Status.CurrentMetrics {
		var current autoscalingv2.MetricValueStatus
		switch {
		case m.External != nil:
			current = m.External.Current
		case m.Pods != nil:
			current = m.Pods.Current
		case m.Object != nil:
			current = m.Object.Current
		}
		if current.AverageValue != nil {
			return current.AverageValue.AsApproximateFloat64() * float64(hpa.Status.CurrentReplicas)
		}
		if current.Value != nil {
			return current.Value.AsApproximateFloat64()
		}
	}
	return math.NaN()
}

// inspect reads with kubectl, as a user would, the Warning events and the conditions of the lane's
// HPA.
func (r *loop) inspect(ctx context.Context, ln *lane) (warnings, conditions []string, err error) {
	out, err := r.cluster.Kubectl(ctx, nil, "get", "events", "--namespace="+ln.Namespace, "--output=json",
		"--field-selector=type=Warning,involvedObject.kind=HorizontalPodAutoscaler,involvedObject.name="+ln.hpa.Name)
	if err != nil {
		return nil, nil, err
	}
	var events corev1.EventList
	if err := json.Unmarshal([]byte(out), &events); err != nil {
		return nil, nil, fmt.Errorf("events: %w", err)
	}
	for _, e := range events.Items {
		warnings = append(warnings, e.Reason+": "+e.Message)
	}
	out, err = r.cluster.Kubectl(ctx, nil, "get", "horizontalpodautoscaler", ln.hpa.Name, "--namespace="+ln.Namespace, "--output=json")
	if err != nil {
		return nil, nil, err
	}
	var hpa autoscalingv2.HorizontalPodAutoscaler
	if err := json.Unmarshal([]byte(out), &hpa); err != nil {
		return nil, nil, fmt.Errorf("HPA: %w", err)
	}
	for _, c := range hpa.Status.Conditions {
		conditions = append(conditions, string(c.Type)+"="+string(c.Status))
	}
	return warnings, conditions, nil
}

// raises are the events on the lane's HPA that tell of meshpulse's own raises, in order.
func (r *loop) raises(ctx context.Context, ln *lane) ([]string, error) {
	events, err := r.cluster.Client.CoreV1().Events(ln.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "type=Normal,involvedObject.name=" + ln.hpa.Name})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(events.Items, func(a, b corev1.Event) int { return a.FirstTimestamp.Compare(b.FirstTimestamp.Time) })
	var found []string
	for _, e := range events.Items {
		if strings.HasPrefix(e.Reason, "Surge") {
			found = append(found, e.Reason+": "+e.Message)
		}
	}
	return found, nil
}

// act does the scenario's actions at their times.
func (r *loop) act(ctx context.Context, begin time.Time) error {
	for _, a := range r.scenario.Actions {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(begin.Add(a.At.Duration))):
		}
		slog.Info("action", "do", a.Do, "count", a.Count)
		if err := r.do(ctx, a); err != nil && ctx.Err() == nil {
			return fmt.Errorf("action %s: %w", a.Do, err)
		}
	}
	return nil
}

func (r *loop) do(ctx context.Context, a scenario.Action) error {
	switch a.Do {
	case scenario.RestartMeshpulse:
		return r.source.restart(ctx)
	case scenario.RollMeshpulse:
		p, ok := r.source.(*pair)
		if !ok {
			return errors.New("there is one replica alone")
		}
		return p.roll(ctx)
	case scenario.Rollout:
		return r.everyLane(func(ln *lane) error {
			patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"lab.meshpulse.io/rollout":%q}}}}}`, time.Now().Format(time.RFC3339))
			_, err := r.cluster.Client.AppsV1().Deployments(ln.Namespace).Patch(ctx, workload, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	case scenario.DeletePods:
		return r.everyLane(func(ln *lane) error { return r.deletePods(ctx, ln.Namespace, a.Count) })
	}
	return fmt.Errorf("unknown action %q", a.Do)
}

func (r *loop) everyLane(do func(*lane) error) error {
	var errs []error
	for _, ln := range r.lanes {
		errs = append(errs, do(ln))
	}
	return errors.Join(errs...)
}

func (r *loop) deletePods(ctx context.Context, namespace string, count int) error {
	pods := r.cluster.Client.CoreV1().Pods(namespace)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: "app=" + workload})
	if err != nil {
		return err
	}
	for _, pod := range list.Items[:min(count, len(list.Items))] {
		if err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// sleep is false when ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool { return proc.Sleep(ctx, d) }
