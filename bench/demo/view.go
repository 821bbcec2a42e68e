package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/metricsapi"
	"github.com/meshpulse/meshpulse/metricsapi/explain"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

// window is that of the HPAs' queries: over it the load generator's own numbers are taken.
const window = time.Minute

// view is what is shown at one moment.
type view struct {
	running time.Duration
	status  metricsapi.Status
	seen    *load.Seen // nil while recordings are fed
	hint    string     // how to ask for oneself
}

// look asks meshpulse and the load generator.
func (d *demo) look(ctx context.Context) (view, error) {
	status, err := d.server.Status(ctx)
	if err != nil {
		return view{}, fmt.Errorf("asking meshpulse: %w", err)
	}
	v := view{running: time.Since(d.started), status: status, hint: d.curl()}
	if d.load != nil {
		now := time.Now()
		seen := d.load.Between(now.Add(-window), now)
		v.seen = &seen
	}
	return v, nil
}

// curl is the command that asks the API as an HPA controller does.
func (d *demo) curl() string {
	return fmt.Sprintf("In a browser, with plots: %s\nAsk the API as an HPA would (-k: the certificate is self-made):\n  curl -sk '%s%s'",
		d.page, d.server.URL, standalone.MetricPath("test", "prometheus-query", "query-name=processed-requests-per-second"))
}

// lineLegend says how to read a line.
const lineLegend = "A line every 5 s: how much is known; each HPA (without its podinfo-) with what the API answers and, after >, the replicas\n" +
	"that it would ask for if it were the only one; what the load generator saw."

// line is the view where there is no terminal.
func (v view) line() string {
	parts := []string{fmt.Sprintf("%4s  %s", v.running.Round(time.Second), v.known())}
	problem := ""
	for _, m := range v.status.Metrics {
		name := strings.TrimPrefix(m.HPA, "podinfo-")
		if m.Error != "" {
			parts = append(parts, name+" no value")
			problem = cmp.Or(problem, m.Error)
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %8s > %s", name, value(m), replicas(m)))
	}
	if problem != "" {
		parts = append(parts, explain.Cut(problem, 100))
	}
	if v.seen != nil {
		parts = append(parts, fmt.Sprintf("load %.2f/s, average %.1f ms, P95 %.0f ms%s", v.seen.Rate, v.seen.Average, v.seen.P95, v.failed()))
	}
	return strings.Join(parts, " | ")
}

// known is how much the answers stand on: of all HPAs the fewest sidecars, the oldest sample, and
// the windows that are not covered yet.
func (v view) known() string {
	if len(v.status.Metrics) == 0 {
		return "no HPAs"
	}
	fewest, oldest := v.status.Metrics[0], v.status.Metrics[0]
	filling := ""
	for _, m := range v.status.Metrics {
		if m.Reporting < fewest.Reporting {
			fewest = m
		}
		if m.AgeSeconds != nil && (oldest.AgeSeconds == nil || *m.AgeSeconds > *oldest.AgeSeconds) {
			oldest = m
		}
		if text := " " + coverage(m); m.CoveredSeconds < m.WindowSeconds && !strings.Contains(filling, text) {
			filling += text
		}
	}
	if filling != "" {
		filling = ", window" + filling
	}
	return fmt.Sprintf("%s sidecars, newest %s%s", sidecarsOf(fewest), age(oldest), filling)
}

// events names every HPA that has a Warning event, "" if none has.
func (v view) events() string {
	var parts []string
	for _, m := range v.status.Metrics {
		if e := event(m); e != "" {
			parts = append(parts, strings.TrimPrefix(m.HPA, "podinfo-")+" "+e)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "Warning events, the first of each HPA (kubectl describe hpa would show them): " + strings.Join(parts, ", ")
}

// truth is what the load generator saw.
func (v view) truth() string {
	if v.seen == nil {
		return "Recorded flushes are fed: there is no load to compare with."
	}
	return fmt.Sprintf("The load generator drives %g requests/s; over the last %s it saw %.2f/s, average %.1f ms, P95 %.0f ms%s",
		rate, min(v.running, window).Round(time.Second), v.seen.Rate, v.seen.Average, v.seen.P95, v.failed())
}

// failed is what to say of requests that failed.
func (v view) failed() string {
	if v.seen.Failed == 0 {
		return ""
	}
	return fmt.Sprintf(", %d of %d failed", v.seen.Failed, v.seen.Requests)
}

// queryName is the name of a query in the guides' form, else that of the metric.
func queryName(m metricsapi.MetricStatus) string {
	if name, ok := strings.CutPrefix(m.Selector, "query-name="); ok {
		return name
	}
	return m.Metric
}

// value is what the API answers, for people: 26.94/s in place of 26940m.
func value(m metricsapi.MetricStatus) string {
	if m.Error != "" {
		return "none yet"
	}
	q, err := resource.ParseQuantity(m.Value)
	if err != nil {
		return m.Value
	}
	v := q.AsApproximateFloat64()
	switch {
	case m.Metric == "istio-requests-in-flight":
		return fmt.Sprintf("%.2f in flight", v)
	case strings.HasPrefix(m.Metric, "istio-request-duration-"), strings.Contains(m.Expression, "_duration_milliseconds"):
		return fmt.Sprintf("%.1f ms", v)
	case m.Metric == "istio-requests-per-second", strings.Contains(m.Expression, "rate("):
		return fmt.Sprintf("%.2f/s", v)
	default:
		return m.Value
	}
}

func replicas(m metricsapi.MetricStatus) string {
	if m.DesiredReplicas == 0 {
		return "-"
	}
	return fmt.Sprint(m.DesiredReplicas)
}

func age(m metricsapi.MetricStatus) string {
	if m.AgeSeconds == nil {
		return "-"
	}
	return fmt.Sprintf("%.1fs", *m.AgeSeconds)
}

func sidecarsOf(m metricsapi.MetricStatus) string {
	return fmt.Sprintf("%d/%d", m.Reporting, m.Expected)
}

// coverage is how much of the window is known: 23s/60s while it fills.
func coverage(m metricsapi.MetricStatus) string {
	return fmt.Sprintf("%.0fs/%.0fs", m.CoveredSeconds, m.WindowSeconds)
}

// event is the reason of the HPA's first Warning event. That all of them scale one workload is the
// demo's own doing.
func event(m metricsapi.MetricStatus) string {
	for _, p := range m.Events {
		if p.Reason != hpas.ReasonSharedTarget {
			return p.Reason
		}
	}
	return ""
}
