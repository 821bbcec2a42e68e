package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/meshpulse/meshpulse/bench/load"
	"github.com/meshpulse/meshpulse/metricsapi"
	"github.com/meshpulse/meshpulse/metricsapi/hpas"
)

func sample() view {
	age := 1.24
	return view{
		running: 23 * time.Second,
		status: metricsapi.Status{Metrics: []metricsapi.MetricStatus{
			{
				HPA: "podinfo-total", Metric: "prometheus-query", Selector: "query-name=rps",
				Expression: `sum(rate(istio_requests_total{reporter="destination"}[1m]))`, Value: "26968m", Displayed: "8990m/10 (avg)",
				DesiredReplicas: 3, AgeSeconds: &age, Reporting: 3, Expected: 3, CoveredSeconds: 22.6, WindowSeconds: 60,
				Events: []hpas.Problem{{Reason: "SharedTarget"}, {Reason: "NoisyRate"}, {Reason: "SeveralSeries"}},
			},
			{
				HPA: "podinfo-p95", Metric: "istio-request-duration-p95", Displayed: "<unknown>/250", Error: "no requests yet",
				Reporting: 3, Expected: 3, WindowSeconds: 60,
			},
		}},
		seen: &load.Seen{Requests: 690, Failed: 2, Rate: 27, Average: 80.04, P95: 201.4},
		hint: "curl",
	}
}

func TestViewShowsValuesReplicasAndHowFarTheWindowIs(t *testing.T) {
	v := sample()
	common := []string{"23s", "26.97/s", "3/3", "1.2s", "23s/60s", "0s/60s", "no requests yet", "27.00/s, average 80.0 ms, P95 201 ms, 2 of 690 failed"}
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"line":   {v.line(), append(common, "| total  26.97/s > 3 | p95 no value |")},
		"screen": {v.screen(200, 40), append(common, "rps", "8990m/10 (avg)", "istio-request-duration-p95", "NoisyRate", "m: a thousandth", "curl")},
		"events": {v.events(), []string{"total NoisyRate"}},
	} {
		for _, want := range test.want {
			if !strings.Contains(test.text, want) {
				t.Errorf("the %s does not hold %q:\n%s", name, want, test.text)
			}
		}
		if strings.Contains(test.text, "SharedTarget") {
			t.Errorf("the %s warns of what the demo does itself:\n%s", name, test.text)
		}
	}
	if text := v.line(); strings.Contains(text, "\n") || len(text) > 250 {
		t.Errorf("not one short line: %s", text)
	}
	v.seen = nil
	for _, text := range []string{v.line(), v.screen(200, 40)} {
		if strings.Contains(text, "drives") || strings.Contains(text, "load 2") {
			t.Errorf("a load is shown where recordings are fed: %s", text)
		}
	}
}

func TestScreenFitsTheTerminal(t *testing.T) {
	v := sample()
	v.hint = "Ask:\n  curl " + strings.Repeat("x", 150)
	for _, size := range [][2]int{{300, 60}, {120, 30}, {80, 24}, {60, 10}, {40, 5}, {10, 1}} {
		width, height := size[0], size[1]
		rows := 0
		text := v.screen(width, height)
		for line := range strings.Lines(strings.NewReplacer("\x1b[H", "", "\x1b[K", "", "\x1b[J", "").Replace(text)) {
			long := utf8.RuneCountInString(strings.TrimSuffix(line, "\n"))
			rows += max(1, (long+width-1)/width)
			if long > width && !strings.Contains(line, "curl") {
				t.Errorf("%d columns: the terminal would wrap %q", width, line)
			}
		}
		if rows > max(height-1, 1) {
			t.Errorf("%d rows of %d columns: it takes %d and the cursor's, so the header scrolls out:\n%s", height, width, rows, text)
		}
		for _, want := range []string{"podinfo-total", "26.97/s", "8990m/10 (avg)", "REPLICAS"} {
			if width >= 60 && !strings.Contains(text, want) {
				t.Errorf("%d columns: %q is missing:\n%s", width, want, text)
			}
		}
	}
}

func TestValuesAreForPeople(t *testing.T) {
	for _, test := range []struct{ metric, expr, value, want string }{
		{"prometheus-query", "sum(rate(istio_requests_total[1m]))", "29980m", "29.98/s"},
		{"prometheus-query", "sum(rate(istio_request_duration_milliseconds_sum[1m]))/sum(rate(istio_request_duration_milliseconds_count[1m]))", "78312m", "78.3 ms"},
		{"istio-requests-in-flight", "sum(rate(istio_request_duration_milliseconds_sum[1m]))/1000", "389m", "0.39 in flight"},
		{"istio-request-duration-p95", "", "1200", "1200.0 ms"},
		{"prometheus-query", "scalar(1)", "12500m", "12500m"},
	} {
		m := metricsapi.MetricStatus{Metric: test.metric, Expression: test.expr, Value: test.value}
		if got := value(m); got != test.want {
			t.Errorf("%s %s of %s: got %q, want %q", test.metric, test.value, test.expr, got, test.want)
		}
	}
}

func TestDurationEndsTheDemo(t *testing.T) {
	ctx, cancel, err := bounded(t.Context(), "1ms")
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	<-ctx.Done()
	if _, _, err := bounded(t.Context(), "60"); err == nil || !strings.Contains(err.Error(), "90s") {
		t.Errorf("without a unit: got %v, want an error with an example", err)
	}
	if ctx, _, err := bounded(t.Context(), ""); err != nil || ctx.Done() != t.Context().Done() {
		t.Errorf("without a duration: %v", err)
	}
}

func TestADemoThatEndsTooSoonSaysHowLongItTakes(t *testing.T) {
	for duration, want := range map[string]string{"60s": "DURATION=90s", "90s": "", "": ""} {
		ctx, cancel, err := bounded(t.Context(), duration)
		if err != nil {
			t.Fatal(err)
		}
		defer cancel()
		if text := tooShort(ctx); !strings.Contains(text, want) || want == "" && text != "" {
			t.Errorf("%q: got %q, want %q", duration, text, want)
		}
	}
}

// TestTheSummaryDrawsWhatWasAnswered: the end says how close the answers came.
func TestTheSummaryDrawsWhatWasAnswered(t *testing.T) {
	var p past
	if got := p.summary(); !strings.Contains(got, "No HPA was answered") {
		t.Errorf("without an answer: %s", got)
	}
	for range 3 {
		p.note(sample())
	}
	for _, want := range []string{"podinfo-total was answered 3 times, the last time 26.97 requests a second (*); the load generator saw 27.00 (.)", "*"} {
		if got := p.summary(); !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if lines := strings.Count(opening, "\n") + 1; lines != 3 {
		t.Errorf("it opens with %d lines", lines)
	}
}
