package envoystats

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/meshpulse/meshpulse/aggregator"
)

// callers are what a pod's callers do: requests by Host header, and how long they took.
type callers struct {
	requests map[string]float64
	from     map[string]float64 // at the last flush
}

// flush are the families of the next flush, in label mode or joined.
func (c *callers) flush(at int64, joined bool, hosts ...string) []*dto.MetricFamily {
	var families []*dto.MetricFamily
	for _, host := range hosts {
		n := c.requests[host]
		labels := []string{
			"reporter", "destination", "destination_workload", "web", "destination_service", host, "destination_service_namespace", "test",
			"response_code", "200", "connection_security_policy", "none",
		}
		interval := histogram(at, 2*(n-c.from[host]), uint64(n-c.from[host]), 1, 0, 5, n-c.from[host], 10, n-c.from[host])
		requests := counter(at, n)
		name := ""
		if joined {
			for _, part := range labels {
				name += "." + part
			}
		} else {
			requests, interval = counter(at, n, labels...), &dto.Metric{Label: requestLabels(labels), Histogram: interval.Histogram, TimestampMs: interval.TimestampMs}
		}
		families = append(families,
			family("istiocustom.istio_requests_total"+name, dto.MetricType_COUNTER, requests),
			family("istiocustom.istio_request_duration_milliseconds"+name, dto.MetricType_HISTOGRAM, interval))
		c.from[host] = n
	}
	return families
}

func requestLabels(labels []string) []*dto.LabelPair { return counter(0, 0, labels...).Label }

// Each Host header is a series: past the limit they share one, and all requests are counted.
func TestLabelValuesThatCallersChooseShareASeriesPastALimit(t *testing.T) {
	const limit, flushes = 100, 40
	for _, joined := range []bool{false, true} {
		t.Run(fmt.Sprint("joined ", joined), func(t *testing.T) {
			store, err := aggregator.New(aggregator.Config{MaxSeriesPerPod: 2 * limit})
			if err != nil {
				t.Fatal(err)
			}
			server, err := NewServer(Config{MaxCallerSeries: limit}, store)
			if err != nil {
				t.Fatal(err)
			}
			st, s := &stream{server: server}, server.scans.get()
			defer st.close()
			c := callers{map[string]float64{}, map[string]float64{}}
			start, total := time.Now(), 0.0
			send := func(i int, families ...*dto.MetricFamily) {
				s.buf = hello(t, "web-0", families...)
				if reason, err := st.message(start.Add(time.Duration(i)*5*time.Second), s); err != nil {
					t.Fatal(reason, err)
				}
			}
			for i := range flushes {
				at := start.Add(time.Duration(i) * 5 * time.Second).UnixMilli()
				var hosts []string
				for n := range min(20*i, 400) + 1 {
					host := fmt.Sprintf("host-%d", n)
					hosts = append(hosts, host)
					if i < flushes-1 { // the last flush brings what the one before it held
						c.requests[host] += float64(n%7 + 1)
						total += float64(n%7 + 1)
					}
				}
				families := c.flush(at, joined, hosts...)
				half := len(families) / 4 * 2
				send(i, families[:half]...) // a flush in two messages
				send(i, families[half:]...)
			}
			now := start.Add(flushes * 5 * time.Second)
			for expr, want := range map[string]float64{
				`sum(max_over_time(istio_requests_total[5m]))`:                                                               total,
				`sum(max_over_time(istio_request_duration_milliseconds_count[5m]))`:                                          total,
				`sum(max_over_time(istio_request_duration_milliseconds_sum[5m]))`:                                            2 * total,
				`sum(max_over_time(istio_request_duration_milliseconds_bucket{le="5"}[5m]))`:                                 total,
				`sum(max_over_time(istio_request_duration_milliseconds_bucket{le="1"}[5m]))`:                                 0,
				`count(istio_requests_total{otel_metric_overflow="true",destination_service="",destination_workload="web"})`: 1,
				`count(istio_requests_total{otel_metric_overflow=""})`:                                                       limit / 2,
			} {
				q, err := store.Query(expr)
				if err != nil {
					t.Fatal(err)
				}
				a, err := q.Eval(t.Context(), now)
				if err != nil || len(a.Values) != 1 || math.Abs(a.Values[0].V-want) > 1e-6 {
					t.Errorf("%s: %v, error %v, want %v", expr, a.Values, err, want)
				}
			}
			if s.batch.Refused > 0 || s.shared == 0 {
				t.Errorf("%d samples refused, %d shared", s.batch.Refused, s.shared)
			}
		})
	}
}

// What a pod counts for itself is its own, however much there is of it.
func TestSeriesWithoutACallersLabelsKeepTheirOwn(t *testing.T) {
	s, o := newScan(Config{Keep: allOfIstio, MaxCallerSeries: 10}), &overflow{}
	for flush := range int64(3) {
		var families []*dto.MetricFamily
		for n := range 50 {
			families = append(families,
				family("istio_requests_total", dto.MetricType_COUNTER, counter(1000*(flush+1), 1, "reporter", "source", "destination_service", fmt.Sprint(n))),
				family("envoy_x", dto.MetricType_COUNTER, counter(1000*(flush+1), 1, "y", fmt.Sprint(n))))
		}
		if err := s.read(message(t, families...), new(seen)); err != nil {
			t.Fatal(err)
		}
		before := slices.Clone(s.batch.Samples)
		if s.share(o); s.shared != 0 || !slices.Equal(before, s.batch.Samples) {
			t.Errorf("%d samples are shared", s.shared)
		}
	}
}

func TestACounterThatSharesBeginsAnewAsAnyOther(t *testing.T) {
	for deltas, want := range map[bool]float64{false: 5 + 3 + 2 + 4, true: 5 + 8 + 2 + 6} {
		s, o := newScan(Config{Keep: allOfIstio, MaxCallerSeries: 1, CountersAsDeltas: deltas}), &overflow{}
		sum := 0.0
		for i, v := range []float64{-1, 5, 8, 2, 6, -1, -1} {
			at := int64(1000 * (i + 1))
			families := []*dto.MetricFamily{family("istio_a", dto.MetricType_COUNTER, counter(at, 1, "own", "1")), family("istio_b", dto.MetricType_COUNTER, counter(at, 1))}
			if v >= 0 {
				families = append(families, family("istio_a", dto.MetricType_COUNTER, counter(at, v, "own", "2")))
			}
			b := message(t, families...)
			for range 2 { // the same flush twice counts once
				if err := s.read(b, new(seen)); err != nil {
					t.Fatal(err)
				}
				s.share(o)
				for i, sample := range s.batch.Samples {
					if s.origins[i].group == 0 {
						continue
					}
					if deltas {
						sum += sample.Value
					} else {
						sum = sample.Value
					}
				}
			}
		}
		if sum != want {
			t.Errorf("counters as deltas %v: %v, want %v", deltas, sum, want)
		}
	}
}

func TestKeysThatDoNotComeAreForgotten(t *testing.T) {
	s, o := newScan(Config{Keep: allOfIstio, MaxCallerSeries: 10}), &overflow{}
	for flush := range int64(300) {
		var families []*dto.MetricFamily
		for n := range 50 {
			families = append(families, family("istio_a", dto.MetricType_COUNTER, counter(5000*(flush+1), 1, "own", fmt.Sprint(flush/10, "-", n))))
		}
		if err := s.read(message(t, families...), new(seen)); err != nil {
			t.Fatal(err)
		}
		s.share(o)
	}
	if n := len(o.shared); n > 500 {
		t.Errorf("%d keys are remembered", n)
	}
	if len(o.own) > 10 || len(o.groups) != 1 {
		t.Errorf("%d have their own, %d groups", len(o.own), len(o.groups))
	}
}
