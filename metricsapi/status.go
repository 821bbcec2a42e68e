package metricsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// Status is the state of every metric of every HPA, as /debug/hpas shows it in JSON.
type Status struct {
	// Time is when it was looked at.
	Time time.Time `json:"time"`
	// Metrics are in the order of namespace, HPA, place in the HPA's spec.
	Metrics []MetricStatus `json:"metrics"`
}

// MetricStatus is one metric of one HPA. Quantities are in Kubernetes' form (10056m).
type MetricStatus struct {
	Namespace string `json:"namespace"`
	HPA       string `json:"hpa"`
	Metric    string `json:"metric"`
	// Type is Pods or Object for a metric of the custom metrics API; where it is not served here
	// Error says what to write in its place. Of pods Value is the sum, with what is held for those
	// that are left out of the answer. "" is External; others are not shown.
	Type       string `json:"type,omitempty"`
	Selector   string `json:"selector"`
	Expression string `json:"expression,omitempty"`
	// TargetType is AverageValue or Value, Target the quantity.
	TargetType string `json:"targetType"`
	Target     string `json:"target"`
	// Value is the sum of the answer's items, "" where Error says why there is none.
	Value string `json:"value,omitempty"`
	Error string `json:"error,omitempty"`
	// Reason explains a value that is not simply the expression's.
	Reason string `json:"reason,omitempty"`
	// Displayed is value and target as kubectl get hpa prints them: 10056m/10 (avg).
	Displayed string `json:"displayed"`
	// CurrentReplicas are the HPA's (status.currentReplicas); in standalone mode the reporting
	// sidecars stand in for them.
	CurrentReplicas int32 `json:"currentReplicas"`
	MinReplicas     int32 `json:"minReplicas"`
	MaxReplicas     int32 `json:"maxReplicas"`
	// DesiredReplicas is what this metric alone would ask for, within the limits and without the
	// controller's tolerance; 0 without a value.
	DesiredReplicas int32 `json:"desiredReplicas"`
	// AgeSeconds is how old the newest sample is; nil if none went in.
	AgeSeconds *float64 `json:"ageSeconds,omitempty"`
	// Reporting of Expected sidecars that could have the series have reported lately.
	Reporting int `json:"reporting"`
	Expected  int `json:"expected"`
	// Proven is how many of the reporting sidecars that the metric means have proven with a
	// certificate who they are, as n/n; "" where ingest does not ask for it (--ingest-mtls).
	// Unproven are others by name, 20 at most.
	Proven   string   `json:"proven,omitempty"`
	Unproven []string `json:"unproven,omitempty"`
	// CoveredSeconds of the WindowSeconds that the expression looks back are known.
	CoveredSeconds float64 `json:"coveredSeconds"`
	WindowSeconds  float64 `json:"windowSeconds"`
	// Surge is what is known of surges; nil where the metric is not watched for any.
	Surge *SurgeStatus `json:"surge,omitempty"`
	// Events are the Warning events of the HPA as a whole.
	Events []hpas.Problem `json:"events,omitempty"`
}

// manyUnproven is how many sidecars are named that have not proven who they are.
const manyUnproven = 20

// Status evaluates every metric of every HPA now; it is what /debug/hpas shows.
func (s *Server) Status(ctx context.Context) Status {
	at := s.provider.now()
	status := Status{Time: at, Metrics: []MetricStatus{}}
	for _, h := range s.provider.catalog.current.Load().hpas {
		others := h.Unserved
		for i, w := range h.Metrics {
			for ; len(others) > 0 && others[0].Place < w.Place; others = others[1:] {
				status.Metrics = append(status.Metrics, s.unservedStatus(h, others[0]))
			}
			status.Metrics = append(status.Metrics, s.metricStatus(ctx, h, w, h.offers[i], at))
		}
		for _, u := range others {
			status.Metrics = append(status.Metrics, s.unservedStatus(h, u))
		}
		for _, w := range h.others {
			m, _ := s.statusOf(h, w.Written, w.Target.Type, w.Goal())
			m.Selector, m.Expression, m.Error = w.Selector.String(), w.Expr, s.elsewhere()
			status.Metrics = append(status.Metrics, m)
		}
	}
	return status
}

func (s *Server) serveStatus(w http.ResponseWriter, r *http.Request) {
	leave, refused := s.provider.enter(r.Context())
	if refused != nil {
		http.Error(w, refused.message, http.StatusTooManyRequests)
		return
	}
	defer leave()
	body, err := json.MarshalIndent(s.Status(r.Context()), "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // a caller that has gone needs no answer
}

// elsewhere says who answers what is not answered here.
func (s *Server) elsewhere() string {
	if s.passing == nil {
		return "not answered here: the HPA, or its namespace, is not served (" + hpas.Serve + ", --serve-by)"
	}
	return "not answered here, but by " + s.passing.to.Address().String()
}

func (s *Server) unservedStatus(h hpaState, u hpas.Unserved) MetricStatus {
	m, _ := s.statusOf(h, u.Metric.Name, u.Target.Type, u.Goal())
	m.Type, m.Error = string(u.Kind), u.Why
	return m
}

// statusOf is the status of a metric before anything is known of its value. known: the replicas are
// those that the API server tells.
func (s *Server) statusOf(h hpaState, metric string, target autoscalingv2.MetricTargetType, goal *resource.Quantity) (m MetricStatus, known bool) {
	m = MetricStatus{
		Namespace: h.Namespace, HPA: h.Name, Metric: metric, TargetType: string(target), Target: "<unset>",
		MinReplicas: h.MinReplicas(), MaxReplicas: h.Spec.MaxReplicas, Events: h.problems,
	}
	if goal != nil {
		m.Target = goal.String()
	}
	m.display("<unknown>", target != autoscalingv2.ValueMetricType)
	now, known := s.source.Known(h.Namespace, h.Name)
	if known {
		m.CurrentReplicas = now.Status.CurrentReplicas
	}
	return m, known
}

func (s *Server) metricStatus(ctx context.Context, h hpaState, w hpas.Metric, o *offer, at time.Time) MetricStatus {
	goal, average := w.Goal(), w.Target.Type != autoscalingv2.ValueMetricType || w.PerReplica
	m, known := s.statusOf(h, w.Written, w.Target.Type, goal)
	m.Type, m.Selector, m.Expression = string(w.Kind), w.Selector.String(), w.Expr
	if o == nil {
		m.Error = w.Why
		return m
	}
	m.Expression = o.prepared.Text
	if !o.prepared.acquire() {
		m.Error = "the HPA has just changed"
		return m
	}
	defer o.prepared.release()
	v, a, refused := s.provider.rules.evaluate(ctx, subjectOf(w.Name, h.Namespace, o), o, o.prepared, at)
	m.Reporting, m.Expected, m.Reason = a.Reporting, v.expected, v.reason
	m.CoveredSeconds, m.WindowSeconds = a.Covered.Seconds(), a.Window.Seconds()
	if !a.Newest.IsZero() {
		age := at.Sub(a.Newest).Seconds()
		m.AgeSeconds = &age
	}
	if !known {
		m.CurrentReplicas = int32(a.Reporting)
	}
	if s.options.Proves && o.prepared.query != nil {
		proven, reporting, unproven := o.prepared.query.Proven(at, manyUnproven)
		m.Proven, m.Unproven = fmt.Sprintf("%d/%d", proven, reporting), unproven
	}
	if o.prepared.surge != nil {
		m.Surge = toSurgeStatus(o.prepared.surge.At(at), v.surge != nil)
	}
	m.Events = slices.Concat(m.Events, v.problems)
	if refused != nil {
		m.Error = refused.message
		return m
	}
	if len(v.items) > 1 && w.Kind != autoscalingv2.PodsMetricSourceType {
		m.Events = append(slices.Clone(m.Events), severalSeries(o))
	}
	m.setValue(v, average, goal)
	return m
}

// display is the form of kubectl get hpa.
func (m *MetricStatus) display(value string, average bool) {
	m.Displayed = value + "/" + m.Target
	if average {
		m.Displayed += " (avg)"
	}
}

// setValue does with the value what the HPA controller would
// (pkg/controller/podautoscaler/replica_calculator.go, GetExternalMetricReplicas and
// GetExternalPerPodMetricReplicas), but for its tolerance.
func (m *MetricStatus) setValue(v verdict, average bool, goal *resource.Quantity) {
	sum := v.sum()
	value := resource.NewMilliQuantity(sum, resource.DecimalSI)
	m.Value = value.String()
	switch n := int64(m.CurrentReplicas); {
	case !average:
		m.display(m.Value, false)
	case n > 0:
		m.display(resource.NewMilliQuantity((sum+n-1)/n, resource.DecimalSI).String(), true)
	}
	if goal == nil || goal.Sign() <= 0 {
		return
	}
	ratio := float64(sum) / float64(goal.MilliValue())
	if !average {
		ratio *= float64(m.CurrentReplicas)
	}
	m.DesiredReplicas = int32(min(max(math.Ceil(ratio), float64(m.MinReplicas)), float64(m.MaxReplicas)))
}
