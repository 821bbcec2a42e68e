package metricsapi

import (
	"context"
	"fmt"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/metricsapi/cluster"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// inCluster is the file of what a cluster holds.
const inCluster = "cluster"

// InCluster is what a cluster tells of a finding.
type InCluster struct {
	// Wiring is that of the target's pods; nil where the target has none.
	Wiring *cluster.Wiring `json:"wiring,omitempty"`
	// Answers are what its metrics are now, where meshpulse has the external metrics API.
	Answers []ClusterAnswer `json:"answers,omitempty"`
}

// ClusterAnswer is what an HPA controller would be told of a metric.
type ClusterAnswer struct {
	Metric string `json:"metric"`
	Value  string `json:"value,omitempty"` // the sum of the answer's items
	// Coverage is how many sidecars report of those that should: 3/3.
	Coverage string `json:"coverage,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Error    string `json:"error,omitempty"`
}

// AddCluster adds the HPAs and ScaledObjects of a cluster, whose pods and answers Report then looks
// at. The kubeconfig is kubectl's own where it is "".
func (l *Lint) AddCluster(ctx context.Context, kubeconfig string) error {
	look, err := cluster.NewLook(kubeconfig)
	if err != nil {
		return err
	}
	if err := look.HPAs(ctx, func(page []byte) { l.read(inCluster, page) }); err != nil {
		return err
	}
	if err := look.ScaledObjects(ctx, func(page []byte) { l.read(inCluster, page) }); err != nil {
		return err
	}
	server, err := look.ServerOf(ctx, "v1beta1.external.metrics.k8s.io")
	if err != nil {
		return err
	}
	custom, err := look.ServerOf(ctx, "v1beta2.custom.metrics.k8s.io")
	if err != nil {
		return err
	}
	l.Words.Custom = l.Words.Custom || ours(custom)
	l.look, l.report.Cluster = look, &LookedAt{Server: server}
	return nil
}

// LookedAt is the cluster that was looked at.
type LookedAt struct {
	// Server is NAMESPACE/NAME of the Service that has the external metrics API, "" for none.
	Server string `json:"externalMetrics"`
}

// ours says whether a Service is meshpulse's.
func ours(server string) bool { return strings.HasSuffix(server, "/"+serverName) }

// inspect adds to a finding what its cluster tells of it.
func (l *Lint) inspect(ctx context.Context, s subject, f *Finding, wirings map[string]map[string]*cluster.Wiring) error {
	if f.File != inCluster || s.hpa == nil || f.Verdict == VerdictOthers {
		return nil
	}
	of := wirings[f.Namespace]
	if of == nil {
		var err error
		if of, err = l.look.Wirings(ctx, f.Namespace); err != nil {
			return err
		}
		wirings[f.Namespace] = of
	}
	ref := s.hpa.Spec.ScaleTargetRef
	f.Cluster = &InCluster{Wiring: of[ref.Name]}
	if p := unwired(ref.Kind+" "+ref.Name, f.Cluster.Wiring); p != nil {
		f.Problems = append(f.Problems, *p)
	}
	for _, w := range l.Words.Read(*s.hpa).Metrics {
		switch {
		case f.Kind != "HorizontalPodAutoscaler", w.Kind == autoscalingv2.PodsMetricSourceType: // of pods that the target's scale tells
		case w.Custom():
			f.Cluster.Answers = append(f.Cluster.Answers, l.askObject(ctx, f.Namespace, w))
		case ours(l.report.Cluster.Server):
			f.Cluster.Answers = append(f.Cluster.Answers, l.ask(ctx, f.Namespace, w))
		}
	}
	if f.Verdict == VerdictServed && (len(f.Problems) > 0 || f.Cluster.failed()) {
		f.Verdict = VerdictDoubtful
	}
	return nil
}

func (c *InCluster) failed() bool {
	for _, a := range c.Answers {
		if a.Error != "" {
			return true
		}
	}
	return false
}

// unwired says what the pods of a target lack to report; nil for nothing.
func unwired(target string, w *cluster.Wiring) *hpas.Problem {
	const wire = "Set envoyMetricsService for the mesh or in the annotation proxy.istio.io/config of the pods, and restart them: it is read when a sidecar starts"
	text := ""
	switch {
	case w == nil:
		return nil // it may run none now
	case w.Sidecars == 0:
		text = fmt.Sprintf("none of the %d pods of %s runs a sidecar of Istio's, so none reports. Label the namespace istio-injection: enabled, and restart them", w.Pods, target)
	case w.Wired == 0:
		text = fmt.Sprintf("none of the %d sidecars of %s is told where to send its statistics. %s", w.Sidecars, target, wire)
	case w.Wired < w.Sidecars:
		text = fmt.Sprintf("%d of the %d sidecars of %s are not told where to send their statistics. %s", w.Sidecars-w.Wired, w.Sidecars, target, wire)
	default:
		return nil
	}
	return &hpas.Problem{Reason: hpas.ReasonUnpointedSidecars, Message: text}
}

func (l *Lint) ask(ctx context.Context, namespace string, w hpas.Metric) ClusterAnswer {
	a := ClusterAnswer{Metric: w.Written}
	list, err := l.look.External(ctx, namespace, w.Name, w.Selector.String())
	if err != nil {
		a.Error = err.Error()
		return a
	}
	var sum resource.Quantity
	for _, item := range list.Items {
		sum.Add(item.Value)
		a.Coverage, a.Reason = item.MetricLabels[labelCoverage], item.MetricLabels[labelReason]
	}
	a.Value = sum.String()
	return a
}

func (l *Lint) askObject(ctx context.Context, namespace string, w hpas.Metric) ClusterAnswer {
	a := ClusterAnswer{Metric: w.Written}
	list, err := l.look.Object(ctx, namespace, w.Name, w.Selector.String())
	if err != nil {
		a.Error = err.Error()
		return a
	}
	for _, item := range list.Items {
		a.Value = item.Value.String()
	}
	return a
}
