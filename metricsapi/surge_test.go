package metricsapi

import (
	"maps"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/metricsapi/internal/fixture"
)

func TestSurgeOnlyRaises(t *testing.T) {
	from := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	surge := aggregator.Surge{Active: true, Value: 60.2, Rate: 60.2, Baseline: 2, Since: from, From: from, To: from.Add(5 * time.Second)}
	calm := surge
	calm.Active = false
	absurd := surge
	absurd.Value = 9223372036854775.808 // one beyond int64 in thousandths
	tests := map[string]struct {
		seen  []int64
		surge aggregator.Surge
		want  []int64
	}{
		"a surge above the value":      {seen: []int64{10_000}, surge: surge, want: []int64{60_200}},
		"a surge below the value":      {seen: []int64{70_000}, surge: surge, want: []int64{70_000}},
		"no surge":                     {seen: []int64{10_000}, surge: calm, want: []int64{10_000}},
		"a surge beyond int64":         {seen: []int64{10_000}, surge: absurd, want: []int64{10_000}},
		"several items are left alone": {seen: []int64{10_000, 20_000}, surge: surge, want: []int64{10_000, 20_000}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			v := verdict{reason: "as it was"}
			for _, milli := range tc.seen {
				v.items = append(v.items, item{milli: milli})
			}
			raised := v.raise(tc.surge)
			var got []int64
			for _, it := range raised.items {
				got = append(got, it.milli)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("items (-want +got):\n%s", d)
			}
			if changed := cmp.Diff(tc.seen, got) != ""; changed != (raised.surge != nil) || changed == (raised.reason == "as it was") {
				t.Errorf("surge %v, reason %q", raised.surge, raised.reason)
			}
		})
	}
	if got, want := describeSurge(&surge), "60.2/s over 5s to 12:00:05Z, 2/s before"; got != want {
		t.Errorf("label %q, want %q", got, want)
	}
}

// An alert on the first raise, or the first that fails, needs what was there before it.
func TestRaisesAreCountedFromZero(t *testing.T) {
	registry := prometheus.NewRegistry()
	newMetrics(registry)
	want := []string{raiseConflict, raiseFailed, raiseForbidden, raiseObserved, raiseDone, raiseStale, raiseYielded}
	text := "# HELP meshpulse_metricsapi_surge_raises_total Raises of targets at surges, by what became of them.\n" +
		"# TYPE meshpulse_metricsapi_surge_raises_total counter\n"
	for _, outcome := range want {
		text += "meshpulse_metricsapi_surge_raises_total{outcome=\"" + outcome + "\"} 0\n"
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(text), "meshpulse_metricsapi_surge_raises_total"); err != nil {
		t.Error(err)
	}
}

// The same of answers by outcome and events by reason, whichever the code has.
func TestAnswersAndEventsAreCountedFromZero(t *testing.T) {
	registry := prometheus.NewRegistry()
	newMetrics(registry)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for metric, from := range map[string]struct{ file, since, constant string }{
		"meshpulse_metricsapi_answers_total": {"answer.go", "", `(?m)^\toutcome\w+ += "(\w+)"`},
		"meshpulse_metricsapi_events_total":  {"hpas/problem.go", "// Reasons of problems.", `(?m)^\tReason\w+ += "(\w+)"`},
	} {
		source, err := os.ReadFile(from.file)
		if err != nil {
			t.Fatal(err)
		}
		_, constants, _ := strings.Cut(string(source), from.since)
		want := map[string]bool{}
		for _, match := range regexp.MustCompile(from.constant).FindAllStringSubmatch(constants, -1) {
			want[match[1]] = true
		}
		got := map[string]bool{}
		for _, f := range families {
			for _, m := range f.Metric {
				if f.GetName() == metric && m.GetCounter().GetValue() == 0 {
					got[m.Label[0].GetValue()] = true
				}
			}
		}
		if len(want) < 10 || !maps.Equal(got, want) {
			t.Errorf("%s: at 0 are %v, want %v", metric, got, want)
		}
	}
}

// TestSurgeIsAnswered: from annotations to the answer, its labels and /debug/hpas, over a real
// store.
func TestSurgeIsAnswered(t *testing.T) {
	var now atomic.Pointer[time.Time]
	start := time.Now()
	now.Store(&start)
	s := startServer(t, func(o *Options) { o.Now = func() time.Time { return *now.Load() } })
	s.write("hpa.yaml", fixture.HPA("podinfo", "", fixture.External("istio-requests-per-second", `{matchLabels: {destination_workload: podinfo}}`, `type: AverageValue, averageValue: "10"`)))
	path := metricPath("test", "istio-requests-per-second", "destination_workload=podinfo")
	// Without its HPA a named metric is answered too, and nobody looks for surges.
	eventually(t, func() bool { return len(s.Status(t.Context()).Metrics) == 1 }, func() string { return "the HPA has not been read" })

	st := s.store.Connect(aggregator.Pod{Namespace: "test", Name: "a", Workload: "podinfo", FlushInterval: 5 * time.Second})
	defer st.Close()
	count := 1000.0
	flush := func(i int, requests float64) {
		at := s.store.Started().Add(time.Duration(i) * 5 * time.Second)
		count += requests
		stamp := at.UnixMilli()
		b := &aggregator.Batch{Timestamp: stamp, Samples: []aggregator.Sample{{Key: 1, Timestamp: stamp, Kind: aggregator.Counter, Value: count}}}
		if err := st.Commit(at, b, surgeSeries{}); err != nil {
			t.Fatal(err)
		}
		now.Store(&at)
	}
	for i := range 100 {
		flush(i+1, 10)
	}
	if body := s.eventually(path, http.StatusOK); strings.Contains(body, labelSurge) {
		t.Errorf("steady traffic: %s", body)
	}
	flush(101, 300)
	flush(102, 300)
	body := s.eventually(path, http.StatusOK)
	if !strings.Contains(body, `"value":"60"`) || !strings.Contains(body, labelSurge+`":"60/s over 5s`) {
		t.Errorf("the surge is not answered: %s", body)
	}
	status := s.Status(t.Context()).Metrics[0]
	if status.Value != "60" || status.Surge == nil || !status.Surge.Active || !status.Surge.AnswerRaised || !status.Surge.Ready || status.Surge.Tail > 1e-6 {
		t.Errorf("status %+v, surge %+v", status, status.Surge)
	}
}

// surgeSeries names the one series of the test's pod.
type surgeSeries struct{}

func (surgeSeries) Describe(int) (string, []aggregator.Label, error) {
	return "istio_requests_total", []aggregator.Label{
		{Name: "reporter", Value: "destination"}, {Name: "destination_workload", Value: "podinfo"}, {Name: "destination_workload_namespace", Value: "test"},
	}, nil
}
