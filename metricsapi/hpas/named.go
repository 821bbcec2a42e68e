package hpas

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/common/model"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/meshpulse/meshpulse/aggregator"
)

const (
	// windowKey and reporterKey are the keys of a named metric's selector that are not labels to
	// match as they are.
	windowKey    = "window"
	reporterKey  = "reporter"
	namespaceKey = "destination_workload_namespace"
	// serviceNamespaceKey is that of the service that is asked for, which its callers know whether
	// or not a pod is there.
	serviceNamespaceKey = "destination_service_namespace"

	defaultWindow   = "1m"
	defaultReporter = "destination"
)

// Named are the metrics that need no PromQL. M stands for the label matchers, W for the window.
//
//   - In flight is Little's law: seconds of request time spent per second. It adds up over pods and
//     is 0 when idle.
//   - Active are the requests that the pods' sidecars have open now, and pending those that wait
//     for a connection where they come from: gauges, which move before any request ends
//     (named_proxy.go).
//   - The average is _sum/_count as in Prometheus, uncorrected. Envoy adds 2ab/(a+b) for a request
//     of the bin [a, b), and durations are cut to whole milliseconds: against what requests took it
//     is 0.45 ms too low from 1 to 9 ms and within 0.1 ms from 10 to 1000 ms where latencies spread
//     over their bins; a single value of 100 or more is off by up to 5 % (1000 ms reads 1047.6).
//     Nothing on the wire tells where in its bin a request lies, and which are below 10 ms only
//     buckets tell, whose bounds a pod may set: so a correction would be a guess, and differ from
//     the dashboards that targets are chosen by (bench/results/quantiles.md).
//   - Durations are milliseconds. Quantiles are those of the store's finer view, good to a few per
//     cent where Istio's buckets can be off by 30 %.
//   - An error is a response code of 5xx, as in the success rates of Istio's own dashboards
//     ("non-5xx responses"). A failed gRPC call is none: its response code is 200 and its status in
//     grpc_response_status, of which the dashboards leave open what a failure is (NOT_FOUND may be
//     an answer). README.md has the PromQL for the codes that Envoy takes for 5xx. The "or
//     vector(0)" makes the ratio 0 where there are requests and no error has ever been counted;
//     without requests the denominator is missing or 0, and so is the ratio.
//
// A function and not a variable: nobody can change it.
func Named(name string) (template string, ok bool) {
	const duration = "istio_request_duration_milliseconds"
	quantile := func(q string) string {
		return "histogram_quantile(" + q + ", sum(rate(" + duration + "{M}[W])))"
	}
	switch name {
	case "istio-requests-per-second":
		return "sum(rate(istio_requests_total{M}[W]))", true
	case "istio-requests-in-flight":
		return "sum(rate(" + duration + "_sum{M}[W])) / 1000", true
	case requestsActive:
		return "sum(" + aggregator.ActiveMetric + "{M})", true
	case requestsPending:
		return "sum(" + aggregator.PendingMetric + "{M})", true
	case "istio-request-duration-avg":
		return "sum(rate(" + duration + "_sum{M}[W])) / sum(rate(" + duration + "_count{M}[W]))", true
	case "istio-request-duration-p50":
		return quantile("0.5"), true
	case "istio-request-duration-p90":
		return quantile("0.9"), true
	case "istio-request-duration-p95":
		return quantile("0.95"), true
	case "istio-request-duration-p99":
		return quantile("0.99"), true
	case "istio-error-ratio":
		return `(sum(rate(istio_requests_total{M,response_code=~"5.."}[W])) or vector(0)) / sum(rate(istio_requests_total{M}[W]))`, true
	}
	return "", false
}

// NamedExpression is the PromQL of a named metric under a selector, always limited to the namespace
// of the request. The error says which part of the selector cannot be served. unknown holds the
// labels that Istio does not set by itself.
func NamedExpression(name, namespace string, selector labels.Selector) (expr string, unknown []string, err error) {
	template, ok := Named(name)
	if !ok {
		return "", nil, fmt.Errorf("%s is not a metric that needs no PromQL", name)
	}
	if name == requestsActive || name == requestsPending {
		expr, err = proxyExpression(name, template, namespace, selector)
		return expr, nil, err
	}
	window := defaultWindow
	reporter := reporterKey + "=" + strconv.Quote(defaultReporter)
	matchers := []string{namespaceKey + "=" + strconv.Quote(namespace)}
	requirements, _ := selector.Requirements()
	for _, r := range sortedRequirements(requirements) {
		switch r.Key() {
		case windowKey:
			window, err = namedWindow(r)
		case reporterKey:
			reporter, err = namedReporter(r)
		case namespaceKey:
			if !r.Matches(labels.Set{namespaceKey: namespace}) {
				err = fmt.Errorf("selector %s: the metric is limited to the namespace of the request, %s", r.String(), namespace)
			}
		default:
			if !isIstioLabel(r.Key()) && !slices.Contains(unknown, r.Key()) {
				unknown = append(unknown, r.Key())
			}
			var m string
			m, err = namedMatcher(r)
			matchers = append(matchers, m)
		}
		if err != nil {
			return "", nil, err
		}
	}
	matchers = append(matchers, reporter)
	expr = strings.ReplaceAll(template, "W]", window+"]")
	return strings.ReplaceAll(expr, "{M", "{"+strings.Join(matchers, ",")), unknown, nil
}

func namedWindow(r labels.Requirement) (string, error) {
	value, ok := onlyValue(r)
	d, err := model.ParseDuration(value)
	if !ok || err != nil || d <= 0 {
		return "", fmt.Errorf("selector %s: window takes one duration such as 1m or 30s", r.String())
	}
	return d.String(), nil
}

// namedReporter takes one reporter: the ends of a call, and a waypoint between them, count the same
// requests.
func namedReporter(r labels.Requirement) (string, error) {
	value, ok := onlyValue(r)
	if !ok {
		return "", fmt.Errorf("selector %s: name one reporter (destination, source or waypoint); each counts the requests that the others count", r.String())
	}
	switch value {
	case "destination", "source", "waypoint":
		return namedMatcher(r)
	}
	return "", fmt.Errorf("selector %s: a reporter is destination, source or waypoint", r.String())
}

// namedMatcher writes a requirement as a PromQL matcher. In PromQL as in Kubernetes != and !~ hold
// for a missing label.
func namedMatcher(r labels.Requirement) (string, error) {
	if !model.LegacyValidation.IsValidLabelName(r.Key()) {
		return "", fmt.Errorf("selector %s: %q is not the name of a Prometheus label (letters, digits, underscores)", r.String(), r.Key())
	}
	values := r.ValuesUnsorted()
	slices.Sort(values)
	alternatives := make([]string, len(values))
	for i, v := range values {
		alternatives[i] = regexp.QuoteMeta(v)
	}
	either := strconv.Quote(strings.Join(alternatives, "|"))
	switch r.Operator() {
	case selection.Equals, selection.DoubleEquals, selection.In:
		if len(values) == 1 {
			return r.Key() + "=" + strconv.Quote(values[0]), nil
		}
		return r.Key() + "=~" + either, nil
	case selection.NotEquals, selection.NotIn:
		if len(values) == 1 {
			return r.Key() + "!=" + strconv.Quote(values[0]), nil
		}
		return r.Key() + "!~" + either, nil
	case selection.Exists:
		return r.Key() + `!=""`, nil
	case selection.DoesNotExist:
		return r.Key() + `=""`, nil
	}
	return "", fmt.Errorf("selector %s: %s is not served, labels are text", r.String(), r.Operator())
}

// isIstioLabel says whether Istio's stats filter sets the label by itself, or the store does
// (namespace, pod). Custom Telemetry tags are as good, but a name that is neither is more often a
// slip.
func isIstioLabel(name string) bool {
	switch name {
	case "namespace", "pod", reporterKey, namespaceKey,
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster",
		"destination_workload", "destination_principal", "destination_app", "destination_version", "destination_service",
		"destination_canonical_service", "destination_canonical_revision", "destination_service_name",
		"destination_service_namespace", "destination_cluster",
		"request_protocol", "response_code", "grpc_response_status", "response_flags", "connection_security_policy":
		return true
	}
	return false
}

// Canonical writes a selector so that two that mean the same by their form are equal: the request's
// a=b, a==b and a in (b) are the a: b of an HPA's matchLabels.
func Canonical(s labels.Selector) string {
	requirements, _ := s.Requirements()
	parts := make([]string, 0, len(requirements))
	for _, r := range sortedRequirements(requirements) {
		values := r.ValuesUnsorted()
		slices.Sort(values)
		operator := r.Operator()
		switch {
		case operator == selection.DoubleEquals, operator == selection.In && len(values) == 1:
			operator = selection.Equals
		case operator == selection.NotIn && len(values) == 1:
			operator = selection.NotEquals
		}
		// Keys and values cannot hold a comma, a space or an operator, so the text is unambiguous.
		parts = append(parts, r.Key()+" "+string(operator)+" "+strings.Join(values, "|"))
	}
	return strings.Join(slices.Compact(parts), ",")
}

// sortedRequirements returns the requirements in an order that depends on nothing but them.
func sortedRequirements(rs labels.Requirements) labels.Requirements {
	sorted := slices.Clone(rs)
	slices.SortFunc(sorted, func(a, b labels.Requirement) int {
		return cmp.Or(cmp.Compare(a.Key(), b.Key()), cmp.Compare(a.String(), b.String()))
	})
	return sorted
}

// onlyValue is the value that the requirement demands, if it demands exactly one.
func onlyValue(r labels.Requirement) (string, bool) {
	switch r.Operator() {
	case selection.Equals, selection.DoubleEquals, selection.In:
		if values := r.ValuesUnsorted(); len(values) == 1 {
			return values[0], true
		}
	}
	return "", false
}

// Demanded holds the labels for which the selector demands one value.
func Demanded(s labels.Selector) labels.Set {
	set := labels.Set{}
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		if v, ok := onlyValue(r); ok {
			set[r.Key()] = v
		}
	}
	return set
}
