package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/bench/standalone"
	"github.com/meshpulse/meshpulse/metricsapi"
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
	return fmt.Sprintf("Ask the API as an HPA would (-k: the certificate is self-made):\n  curl -sk '%s%s'",
		d.server.URL, standalone.MetricPath("test", "prometheus-query", "query-name=processed-requests-per-second"))
}

// table is the view for a terminal.
func (v view) table() string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "meshpulse, running for %s. Ctrl-C ends everything.\n\n", v.running.Round(time.Second))
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "HPA\tQUERY\tVALUE\tTARGETS\tREPLICAS\tNEWEST\tSIDECARS\tWINDOW")
	var notes []string
	for _, m := range v.status.Metrics {
		value := m.Value
		if m.Error != "" {
			value = "none yet"
			notes = append(notes, queryName(m)+": "+m.Error)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d/%d\t%s\n",
			m.HPA, queryName(m), value, m.Displayed, replicas(m), age(m), m.Reporting, m.Expected, coverage(m))
	}
	_ = w.Flush() // into memory
	_, _ = fmt.Fprintf(&b, "\nVALUE is what the API answers (durations are milliseconds), TARGETS what kubectl get hpa would print,\n"+
		"REPLICAS what the metric alone would ask for (each HPA is shown as if it were the only one).\n\n%s\n\n%s\n", v.truth(), v.hint)
	for _, note := range notes {
		_, _ = fmt.Fprintf(&b, "\n%s", note)
	}
	return b.String()
}

// line is the view where there is no terminal.
func (v view) line() string {
	parts := []string{v.running.Round(time.Second).String()}
	for _, m := range v.status.Metrics {
		state := m.Error
		if m.Error == "" {
			state = fmt.Sprintf("%s, %s, %s replicas, newest %s", m.Value, m.Displayed, replicas(m), age(m))
		}
		parts = append(parts, fmt.Sprintf("%s: %s, %d/%d sidecars, %s", queryName(m), state, m.Reporting, m.Expected, coverage(m)))
	}
	return strings.Join(append(parts, v.truth()), " | ")
}

// truth is what the load generator saw.
func (v view) truth() string {
	if v.seen == nil {
		return "Recorded flushes are fed: there is no load to compare with."
	}
	text := fmt.Sprintf("The load generator drives %g requests/s; over the last %s it saw %.2f/s, average %.1f ms, P95 %.0f ms",
		rate, min(v.running, window).Round(time.Second), v.seen.Rate, v.seen.Average, v.seen.P95)
	if v.seen.Failed > 0 {
		text += fmt.Sprintf(", %d of %d failed", v.seen.Failed, v.seen.Requests)
	}
	return text
}

// queryName is the name of a query in the guides' form, else that of the metric.
func queryName(m metricsapi.MetricStatus) string {
	if name, ok := strings.CutPrefix(m.Selector, "query-name="); ok {
		return name
	}
	return m.Metric
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

// coverage is how much of the window is known: 23s/60s while it fills.
func coverage(m metricsapi.MetricStatus) string {
	return fmt.Sprintf("%.0fs/%.0fs", m.CoveredSeconds, m.WindowSeconds)
}
