package hpas

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/meshpulse/meshpulse/aggregator"
)

// A trigger of KEDA's types external and external-push names a scaler by its address, and says in
// its metadata what it wants of it. Here is what it may say to meshpulse.

// Keys of a trigger's metadata, beside KEDA's own (scalerAddress, enableTLS, unsafeSsl).
const (
	TriggerQuery       = "query"               // PromQL; or
	TriggerMetric      = "metric"              // the name of a metric that needs none (Named),
	TriggerSelector    = "selector"            // its selector, as kubectl takes one: a=b,c in (d,e)
	TriggerWindow      = "window"              // and how far it looks back, as 30s
	TriggerThreshold   = "threshold"           // the target: what one replica should have; all of them, with metricType: Value
	TriggerActivation  = "activationThreshold" // above it the workload is active, 0 by default
	TriggerSurgeWindow = "surgeWindow"         // as the annotation surge-window
	TriggerSurgeAction = "surgeAction"         // as the annotation surge-action
	// TriggerToken is the environment variable of the workload that holds the bearer token: KEDA
	// sends its value and knows no other way to send one.
	TriggerToken = "tokenFromEnv"
)

// fromEnv ends the keys whose values KEDA takes from the workload's environment.
const fromEnv = "FromEnv"

// queryMetric is the name under which KEDA's HPA has a trigger with PromQL.
const queryMetric = "meshpulse-query"

// Trigger is what the metadata of a trigger asks for.
type Trigger struct {
	// Metric is its name in KEDA's HPA, which has s and the place of the trigger before it.
	Metric string
	Expr   string
	// Threshold is the target, above 0.
	Threshold resource.Quantity
	// Activation: above it the workload is active. It is not negative.
	Activation float64
	Surge      Surge

	named   bool
	unknown []string // labels in the selector that Istio does not set
}

// TriggerError is metadata that cannot be served.
type TriggerError struct {
	Key string
	Why string // with the remedy
}

func (e *TriggerError) Error() string { return "metadata key " + e.Key + ": " + e.Why }

func badTrigger(key, format string, args ...any) error {
	return &TriggerError{key, fmt.Sprintf(format, args...)}
}

// TriggerKeys are all keys that a trigger's metadata may have, FromEnv ones left out.
func TriggerKeys() []string {
	return []string{
		"scalerAddress", "enableTLS", "unsafeSsl", TriggerQuery, TriggerMetric, TriggerSelector, TriggerWindow,
		TriggerThreshold, TriggerActivation, TriggerSurgeWindow, TriggerSurgeAction,
	}
}

// ReadTrigger reads a trigger's metadata in a ScaledObject of a namespace. The error is a
// *TriggerError about the first key that cannot be served.
func ReadTrigger(namespace string, metadata map[string]string) (Trigger, error) {
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		if !slices.Contains(TriggerKeys(), key) && !strings.HasSuffix(key, fromEnv) {
			return Trigger{}, badTrigger(key, "it is not known: a trigger has query, or metric with selector and window; threshold, activationThreshold, surgeWindow and surgeAction")
		}
	}
	said := func(key string) string { return strings.TrimSpace(metadata[key]) }
	t := Trigger{}
	if err := t.readWhat(namespace, said); err != nil {
		return Trigger{}, err
	}
	if err := t.readHowMuch(said); err != nil {
		return Trigger{}, err
	}
	for _, key := range [][2]string{{TriggerSurgeWindow, "surge-window"}, {TriggerSurgeAction, "surge-action"}} {
		if value := said(key[0]); value != "" {
			if want := t.Surge.read(key[1], value); want != "" {
				return Trigger{}, badTrigger(key[0], "%q is not %s", value, want)
			}
		}
	}
	return t, nil
}

// readWhat reads what is counted.
func (t *Trigger) readWhat(namespace string, said func(key string) string) error {
	query, metric := said(TriggerQuery), strings.ToLower(said(TriggerMetric))
	switch {
	case query != "" && metric != "":
		return badTrigger(TriggerMetric, "there is a query too: leave one of them out")
	case query != "":
		for _, key := range []string{TriggerSelector, TriggerWindow} {
			if said(key) != "" {
				return badTrigger(key, "it is of a metric, and there is a query: write it into that, as in rate(istio_requests_total{destination_workload=\"a\"}[1m])")
			}
		}
		if _, err := aggregator.ParseExpr(query); err != nil {
			return badTrigger(TriggerQuery, "%v: give a PromQL expression", err)
		}
		t.Metric, t.Expr = queryMetric, query
		return nil
	case metric == "":
		return badTrigger(TriggerQuery, "there is none, and no metric: give a PromQL expression, or metric: istio-requests-per-second with a selector")
	}
	if _, ok := Named(metric); !ok {
		return badTrigger(TriggerMetric, "%q is none that needs no PromQL: take istio-requests-per-second, istio-requests-in-flight, istio-request-duration-p95 (avg, p50, p90, p99) or istio-error-ratio, or give a query", metric)
	}
	selector, err := labels.Parse(said(TriggerSelector))
	if err != nil {
		return badTrigger(TriggerSelector, "%v: write it as destination_service_name=podinfo,reporter=source", err)
	}
	if window := said(TriggerWindow); window != "" {
		w, err := labels.ValidatedSelectorFromSet(labels.Set{windowKey: window})
		if err == nil {
			_, _, err = NamedExpression(metric, namespace, w)
		}
		if err != nil {
			return badTrigger(TriggerWindow, "%q is not a duration such as 30s or 1m", window)
		}
		if of, _ := w.Requirements(); Demanded(selector)[windowKey] == "" {
			selector = selector.Add(of...)
		} else {
			return badTrigger(TriggerWindow, "the selector has one too: leave one of them out")
		}
	}
	t.Metric, t.named = metric, true
	if t.Expr, t.unknown, err = namedOfCallers(metric, namespace, selector); err != nil {
		return badTrigger(TriggerSelector, "%v", err)
	}
	return nil
}

// namedOfCallers is NamedExpression, but what callers report is limited to the services of the
// namespace and not to its workloads: of a request that finds no pod the caller knows only the
// service.
func namedOfCallers(metric, namespace string, selector labels.Selector) (expr string, unknown []string, err error) {
	expr, unknown, err = NamedExpression(metric, namespace, selector)
	if Demanded(selector)[reporterKey] == "source" {
		of := "=" + strconv.Quote(namespace)
		expr = strings.ReplaceAll(expr, "{"+namespaceKey+of, "{"+serviceNamespaceKey+of)
	}
	return expr, unknown, err
}

// readHowMuch reads the thresholds.
func (t *Trigger) readHowMuch(said func(key string) string) error {
	threshold, err := resource.ParseQuantity(said(TriggerThreshold))
	switch {
	case said(TriggerThreshold) == "":
		return badTrigger(TriggerThreshold, "there is none: give what one replica should have, such as \"10\"")
	case err != nil:
		return badTrigger(TriggerThreshold, "%q is not a number such as 10 or 0.5", said(TriggerThreshold))
	case threshold.MilliValue() <= 0:
		return badTrigger(TriggerThreshold, "%q is not above 0, so replicas could not follow from it: give 0.001 or more", said(TriggerThreshold))
	}
	t.Threshold = threshold
	if said(TriggerActivation) == "" {
		return nil
	}
	activation, err := resource.ParseQuantity(said(TriggerActivation))
	if err != nil || activation.Sign() < 0 {
		return badTrigger(TriggerActivation, "%q is not a number from 0 on, such as 0 or 0.5", said(TriggerActivation))
	}
	t.Activation = activation.AsApproximateFloat64()
	return nil
}
