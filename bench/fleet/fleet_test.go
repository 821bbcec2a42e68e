package fleet

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// decode returns a flush as a receiver that decodes it sees it.
func decode(t *testing.T, b []byte) *metricsv3.StreamMetricsMessage {
	t.Helper()
	m := new(metricsv3.StreamMetricsMessage)
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFlushesAreWhatAnEnvoySends(t *testing.T) {
	const sets, workload = 20, 37
	for name, tc := range map[string]struct {
		asLabels bool
		busiest  int
	}{
		"tags in the name": {}, "tags as labels": {asLabels: true}, "few label sets are busy": {busiest: 300},
	} {
		t.Run(name, func(t *testing.T) {
			asLabels, ahead := tc.asLabels, newTraffic(sets, tc.busiest).ahead(5)
			tmpl, err := newTemplate(newTraffic(sets, tc.busiest), asLabels)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now().UnixMilli()
			before := map[string]float64{}
			for number := range 2 * tmpl.traffic.flushes() {
				b := bytes.Clone(tmpl.flush(number, ahead).families)
				tmpl.patch(b, now+number, workload, number, ahead)
				m := decode(t, b)
				counters, intervals, kinds := map[string]float64{}, map[string]float64{}, map[dto.MetricType]int{}
				for _, family := range m.GetEnvoyMetrics() {
					metric := family.GetMetric()[0]
					if metric.GetTimestampMs() != now+number {
						t.Fatalf("%s: timestamp %d, want %d", family.GetName(), metric.GetTimestampMs(), now+number)
					}
					if !isIstio(family) {
						continue
					}
					kinds[family.GetType()]++
					key := metric.String()
					if !asLabels {
						key = family.GetName()
					}
					switch family.GetType() {
					case dto.MetricType_COUNTER:
						counters[labelsOf(family)] = metric.GetCounter().GetValue()
					case dto.MetricType_HISTOGRAM:
						intervals[labelsOf(family)] = float64(metric.GetHistogram().GetSampleCount())
					case dto.MetricType_SUMMARY:
					default:
						t.Fatalf("%s: type %s", key, family.GetType())
					}
				}
				if kinds[dto.MetricType_COUNTER] != sets || kinds[dto.MetricType_HISTOGRAM] != 3*sets || kinds[dto.MetricType_SUMMARY] != 3*sets {
					t.Fatalf("families: %v", kinds)
				}
				if len(counters) != sets || len(intervals) != sets {
					t.Fatalf("%d counters, %d label sets of histograms, want %d of each", len(counters), len(intervals), sets)
				}
				for key, v := range counters {
					if v-before[key] != intervals[key] {
						t.Fatalf("flush %d: counter went from %v to %v, its histogram says %v: %s", number, before[key], v, intervals[key], key)
					}
				}
				before = counters
			}
		})
	}
}

// labelsOf returns a family's tags, wherever they are.
func labelsOf(f *dto.MetricFamily) string {
	if ls := f.GetMetric()[0].GetLabel(); len(ls) > 0 {
		s := ""
		for _, l := range ls {
			s += l.GetName() + "=" + l.GetValue() + ","
		}
		return s
	}
	for i, r := range f.GetName() {
		if r == '.' && i > len("istiocustom.") {
			return f.GetName()[i:]
		}
	}
	return ""
}

func TestLastFlushHasCountersOnly(t *testing.T) {
	tmpl, err := newTemplate(newTraffic(2, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	f := &tmpl.flushes[0]
	b := append([]byte(nil), f.families[:f.last]...)
	tmpl.patch(b, time.Now().UnixMilli(), 0, 0, 0)
	found := 0
	for _, family := range decode(t, b).GetEnvoyMetrics() {
		switch family.GetType() {
		case dto.MetricType_HISTOGRAM, dto.MetricType_SUMMARY:
			t.Errorf("%s in the last flush", family.GetType())
		case dto.MetricType_COUNTER:
			if isIstio(family) {
				found++
			}
		}
	}
	if found != 2 {
		t.Errorf("%d request counters, want 2", found)
	}
}

func TestPodsAreToldApart(t *testing.T) {
	tmpl, err := newTemplate(newTraffic(1, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for pod := range 50 {
		for generation := range 3 {
			node := decode(t, tmpl.identify(pod/10, pod, generation)).GetIdentifier().GetNode()
			name := node.GetMetadata().GetFields()["NAME"].GetStringValue()
			if seen[name] || name == "" {
				t.Fatalf("pod name %q again", name)
			}
			seen[name] = true
			if want := "svc-" + digits(pod/10, 4); node.GetMetadata().GetFields()["WORKLOAD_NAME"].GetStringValue() != want {
				t.Fatalf("workload is not %s", want)
			}
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, c := range map[string]Config{
		"no target":           {},
		"a target of no port": {Target: "x"},
		"too many pods":       {Target: "x:1", Pods: maxPods + 1},
		"no label set":        {Target: "x:1", LabelSets: -1},
		"too many sets":       {Target: "x:1", LabelSets: maxLabelSets + 1},
		"a negative churn":    {Target: "x:1", ReplacedPerMinute: -1},
		"too fast a flush":    {Target: "x:1", Interval: time.Millisecond},
		"no pod a workload":   {Target: "x:1", PodsPerWorkload: -1},
		"negative pod count":  {Target: "x:1", Pods: -1},
	} {
		if c.Validate() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// How many move in a flush is what the figures of such a fleet stand on.
func TestFewLabelSetsAreBusyByZipfsLaw(t *testing.T) {
	for _, tc := range []struct{ sets, busiest, least, most int }{{20, 0, 20, 20}, {20, 300, 7, 9}, {2000, 50_000, 45, 55}} {
		tr := newTraffic(tc.sets, tc.busiest)
		moved := 0
		for _, counts := range tr.counts {
			for _, n := range counts {
				if n > 0 {
					moved++
				}
			}
		}
		if moved /= int(tr.flushes()); moved < tc.least || moved > tc.most {
			t.Errorf("%d of %d label sets move in a flush, want %d to %d", moved, tc.sets, tc.least, tc.most)
		}
	}
}

func TestTheExpositionShowsWhatIsFlushed(t *testing.T) {
	t.Run("all label sets move", func(t *testing.T) { expositionShowsFlushes(t, 0) })
	t.Run("few label sets are busy", func(t *testing.T) { expositionShowsFlushes(t, 300) })
}

func expositionShowsFlushes(t *testing.T, busiest int) {
	const sets, pod, flushes = 20, 4, 70
	e, err := NewExposition(sets, busiest, 3)
	if err != nil {
		t.Fatal(err)
	}
	// A counter; three histograms of 19 buckets, +Inf, sum and count.
	if got, want := e.Series(), sets*(1+3*22); got != want {
		t.Errorf("%d series, want %d", got, want)
	}
	want := map[float64]int{}
	tmpl, err := newTemplate(newTraffic(sets, busiest), true)
	if err != nil {
		t.Fatal(err)
	}
	ahead := tmpl.traffic.ahead(pod)
	b := bytes.Clone(tmpl.flush(flushes-1, ahead).families)
	tmpl.patch(b, time.Now().UnixMilli(), 3, flushes-1, ahead)
	for _, family := range decode(t, b).GetEnvoyMetrics() {
		if isIstio(family) && family.GetType() == dto.MetricType_COUNTER {
			want[family.GetMetric()[0].GetCounter().GetValue()]++
		}
	}
	got := map[float64]int{}
	for line := range strings.Lines(string(e.Append(nil, pod, flushes))) {
		if !strings.HasPrefix(line, "istio_requests_total{") {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			t.Fatal(err)
		}
		got[v]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counters: flushed -, shown +\n%s", diff)
	}
}
