package envoystats

import (
	"math"
	"testing"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// FuzzScan holds the scan to the generated decoder: what that accepts, the scan accepts with the
// same samples; what only the scan accepts is bad solely inside what it does not read, the
// identifier and families that are not kept.
func FuzzScan(f *testing.F) {
	for _, file := range captures(f) {
		for _, b := range messages(f, file) {
			if len(b) < 8<<10 {
				f.Add(false, b)
				f.Add(true, b)
				f.Add(false, b[:len(b)/2])
			}
		}
	}
	for _, b := range handmade() {
		f.Add(false, b)
		f.Add(true, b)
	}
	// Tight limits, so that they are met.
	c := Config{MaxNameBytes: 900, MaxLabelBytes: 50, MaxLabels: 26, MaxBuckets: 20}
	s, keys := newScan(c), new(seen)
	f.Fuzz(func(t *testing.T, sizes bool, b []byte) {
		keys.sizes, keys.istio = sizes, true
		got, scanErr := scanned(s, keys, b)
		want, err := oracle(c, sizes, b)
		switch {
		case err == nil && scanErr != nil:
			t.Fatal("the scan refuses what the generated decoder takes")
		case err == nil:
			if diff := newSeries().diff(want, got); diff != "" {
				t.Fatalf("want -, got +\n%s", diff)
			}
			describeAll(t, s)
			first, _ := scanned(s, &seen{sizes: sizes}, b)
			if got, want := first.Refused["other_form"], oracleOtherForms(c, b); got != want {
				t.Fatalf("%d families of another form, want %d", got, want)
			}
		case scanErr == nil:
			want, err := oracle(c, sizes, withoutUnread(t, c.withDefaults(), sizes, b))
			if err != nil {
				t.Fatalf("the scan takes what the generated decoder refuses in what it reads: %v", err)
			}
			want.Timestamp, want.Skipped = got.Timestamp, got.Skipped
			if diff := newSeries().diff(want, got); diff != "" {
				t.Fatalf("without what is not read: want -, got +\n%s", diff)
			}
		}
	})
}

// describeAll checks that no series can make Describe fail in another way than by an error.
func describeAll(t *testing.T, s *scan) {
	for i := range s.batch.Samples {
		name, labels, err := s.Describe(i)
		if err == nil && name == "" {
			t.Fatalf("sample %d has neither a name nor an error", i)
		}
		for _, l := range labels {
			if l.Name == "" || l.Value == "" {
				t.Fatalf("sample %d has a label without name or value: %q", i, labels)
			}
		}
	}
}

// withoutUnread takes the identifier and the families that are not kept out of a message.
func withoutUnread(t *testing.T, c Config, sizes bool, b []byte) []byte {
	var rest []byte
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeField(b)
		if n < 0 {
			t.Fatalf("the scan takes a malformed message: %v", protowire.ParseError(n))
		}
		field := b[:n]
		b = b[n:]
		_, _, tag := protowire.ConsumeTag(field)
		if typ == protowire.BytesType && num == 1 {
			continue
		}
		if typ == protowire.BytesType && num == 2 {
			if family, _ := protowire.ConsumeBytes(field[tag:]); !readsFamily(c, sizes, family) {
				continue
			}
		}
		rest = append(rest, field...)
	}
	return rest
}

// readsFamily says whether the family is one that the scan looks into.
func readsFamily(c Config, sizes bool, b []byte) bool {
	var name string
	var kind dto.MetricType
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		value := b[n : n+m]
		switch {
		case num == 1 && typ == protowire.BytesType:
			v, _ := protowire.ConsumeBytes(value)
			name = string(v)
		case num == 3 && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			kind = dto.MetricType(int32(v))
		}
		b = b[n+m:]
	}
	return oracleReads(c, sizes, kind, name)
}

// family and counter build what Envoy would not send.
func family(name string, kind dto.MetricType, metrics ...*dto.Metric) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Type: &kind, Metric: metrics}
}

func counter(timestamp int64, v float64, labels ...string) *dto.Metric {
	m := &dto.Metric{TimestampMs: &timestamp, Counter: &dto.Counter{Value: &v}}
	for i := 0; i+1 < len(labels); i += 2 {
		m.Label = append(m.Label, &dto.LabelPair{Name: &labels[i], Value: &labels[i+1]})
	}
	return m
}

func gauge(timestamp int64, v float64, labels ...string) *dto.Metric {
	m := counter(timestamp, 0, labels...)
	m.Counter, m.Gauge = nil, &dto.Gauge{Value: &v}
	return m
}

func histogram(timestamp int64, sum float64, count uint64, buckets ...float64) *dto.Metric {
	h := &dto.Histogram{SampleSum: &sum, SampleCount: &count}
	for i := 0; i+1 < len(buckets); i += 2 {
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &buckets[i], CumulativeCount: proto.Uint64(uint64(buckets[i+1]))})
	}
	return &dto.Metric{TimestampMs: &timestamp, Histogram: h}
}

func summary(timestamp int64, sum float64, count uint64, quantiles ...float64) *dto.Metric {
	s := &dto.Summary{SampleSum: &sum, SampleCount: &count}
	for i := 0; i+1 < len(quantiles); i += 2 {
		s.Quantile = append(s.Quantile, &dto.Quantile{Quantile: &quantiles[i], Value: &quantiles[i+1]})
	}
	return &dto.Metric{TimestampMs: &timestamp, Summary: s}
}

func message(t interface{ Fatal(...any) }, families ...*dto.MetricFamily) []byte {
	b, err := proto.Marshal(&metricsv3.StreamMetricsMessage{EnvoyMetrics: families})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type panics struct{}

func (panics) Fatal(v ...any) { panic(v) }

// handmade are messages that no Envoy sends.
func handmade() [][]byte {
	const c, h, s = dto.MetricType_COUNTER, dto.MetricType_HISTOGRAM, dto.MetricType_SUMMARY
	inf, nan := math.Inf(1), math.NaN()
	all := [][]byte{
		message(panics{}, family("istio_a", c, counter(1, 2), counter(1, 3, "a", "b", "c", "")), family("istio_a", h, histogram(1, 2, 3, 1, 1, inf, 3))),
		message(panics{}, family("istio_a", c), family("istio_b", c, &dto.Metric{TimestampMs: proto.Int64(5)}), family("istio_c", h, counter(1, 2))),
		message(panics{}, family("istio_a", c, counter(-1, 2), counter(math.MaxInt64, 2), counter(7, nan), counter(8, -1), counter(9, inf))),
		message(panics{}, family("istio_a", h, histogram(1, nan, 3), histogram(1, 2, 3, 1, 2, 1, 3), histogram(1, 2, 3, 1, 2, 2, 1), histogram(1, 2, 3, 1, 4), histogram(1, 2, 3, nan, 1))),
		message(panics{}, family("istio_a", s, summary(1, 2, 0), summary(1, 2, 3, 0, 1, .25, nan))),
		message(panics{}, family("istiocustom.istio_request_bytes.reporter.source", s, summary(1, 2, 3, 0, 1)), family("istio_request_bytes", h, histogram(1, 2, 3, 1, 1)), family("istio_request_bytes_x", s, summary(1, 2, 3))),
		message(panics{}, family("cluster.a", c, counter(1, 2)), family("x", dto.MetricType(99), counter(3, 4)), family("istio_x", dto.MetricType_GAUGE, counter(5, 6))),
		message(panics{}, family("istio_requests_total", dto.MetricType_GAUGE, gauge(5, -6), gauge(5, 7, "a", "b"), gauge(6, nan), gauge(6, inf), &dto.Metric{TimestampMs: proto.Int64(5)}),
			family("http.inbound_0.0.0.0_80;.downstream_rq_active", dto.MetricType_GAUGE, gauge(5, 3))),
		message(panics{}, family(oldName, c, counter(1, 2)), family("mesh.istio_request_bytes", h, histogram(1, 2, 3)), family("x.istio_tcp", s), family("istio_requests", c)),
		message(panics{}, family("istio_\xff", c, counter(1, 2)), family("istio_a", c, counter(1, 2, "a\xff", "b"))),
	}
	// A family's name behind its metrics, labels apart from each other, a value in two halves, a
	// bad exemplar.
	one, err := proto.Marshal(counter(3, 4, "a", "b"))
	if err != nil {
		panic(err)
	}
	pair := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("\x0a\x01c\x12\x01d"))
	exemplar := protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), []byte("\x12\x02\xff\xff"))
	for _, metric := range [][]byte{append(one, pair...), append(append([]byte{}, one...), one...), append(append([]byte{}, one...), exemplar...)} {
		f := protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), metric)
		f = protowire.AppendBytes(protowire.AppendTag(f, 1, protowire.BytesType), []byte("istiocustom.istio_requests_total"))
		all = append(all, protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), f))
	}
	return all
}
