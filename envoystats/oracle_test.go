package envoystats

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

// The oracle says what a message holds by means of the generated decoder, in the plainest way.

// expected is a batch with names in place of keys.
type expected struct {
	Timestamp int64
	Samples   []expectedSample
	Refused   map[string]int
	Skipped   int
	Sizes     bool // the stream has sent histograms of sizes
}

type expectedSample struct {
	Series    string // family and labels as on the wire, and whether it is a counter
	Timestamp int64
	Kind      aggregator.Kind
	Value     float64
	Count     uint64
	Buckets   []aggregator.Bucket
	Quantiles []float64
}

// oracle decodes the message of a stream that has sent histograms of sizes before, or not. The
// error is the generated decoder's.
func oracle(c Config, sizes bool, b []byte) (expected, error) {
	c = c.withDefaults()
	var m metricsv3.StreamMetricsMessage
	if err := proto.Unmarshal(b, &m); err != nil {
		return expected{}, err
	}
	e := expected{Refused: map[string]int{}, Sizes: sizes}
	for _, f := range m.GetEnvoyMetrics() {
		wanted := oracleReads(c, sizes, f.GetType(), f.GetName())
		if !wanted {
			e.Skipped++
		} else if len(f.GetMetric()) == 0 {
			e.Refused["no_metric"]++
		}
		for _, metric := range f.GetMetric() {
			timestamp := metric.GetTimestampMs()
			if e.Timestamp == 0 && timestamp > 0 && timestamp <= maxTimestamp {
				e.Timestamp = timestamp
			}
			if !wanted {
				continue
			}
			if why := oracleRefuses(c, f, metric); why != "" {
				e.Refused[why]++
				continue
			}
			e.Samples = append(e.Samples, oracleSample(f, metric))
			e.Sizes = e.Sizes || f.GetType() == dto.MetricType_HISTOGRAM && oracleSize(f.GetName())
		}
	}
	return e, nil
}

// oracleOtherForms counts the families of a stream's first message that are Istio's under names
// that are not read.
func oracleOtherForms(c Config, b []byte) int {
	c = c.withDefaults()
	var m metricsv3.StreamMetricsMessage
	if err := proto.Unmarshal(b, &m); err != nil {
		return 0
	}
	other := regexp.MustCompile(`^(?s)(istiocustom\.)?.+istio_(requests_total|request_duration_milliseconds|re(quest|sponse)_(bytes|messages_total)|tcp_)`)
	n := 0
	for _, f := range m.GetEnvoyMetrics() {
		name := strings.TrimPrefix(f.GetName(), "istiocustom.")
		switch kind := f.GetType(); {
		case kind != dto.MetricType_COUNTER && kind != dto.MetricType_HISTOGRAM && kind != dto.MetricType_SUMMARY:
		case !oracleKeeps(c, f.GetName()):
			if other.MatchString(f.GetName()) && !strings.HasPrefix(name, "istio_") {
				n++
			}
		case kind == dto.MetricType_COUNTER && strings.HasPrefix(name, "istio_"):
			for _, m := range f.GetMetric() {
				switch oracleRefuses(c, f, m) {
				case "name_too_long", "not_utf8", "too_many_labels", "label_too_long":
				default:
					return 0
				}
			}
		}
	}
	return n
}

// oracleReads says whether a family is read.
func oracleReads(c Config, sizes bool, kind dto.MetricType, name string) bool {
	switch kind {
	case dto.MetricType_COUNTER, dto.MetricType_HISTOGRAM, dto.MetricType_GAUGE:
		return oracleKeeps(c, name)
	case dto.MetricType_SUMMARY:
		return oracleKeeps(c, name) && (!sizes || !oracleSize(name))
	}
	return false
}

func oracleSize(name string) bool {
	metric, _, _ := strings.Cut(strings.TrimPrefix(name, "istiocustom."), ".")
	return metric == "istio_request_bytes" || metric == "istio_response_bytes"
}

func oracleKeeps(c Config, name string) bool {
	name = strings.TrimPrefix(name, "istiocustom.")
	return strings.HasPrefix(name, "istio_request_duration_milliseconds") ||
		slices.ContainsFunc(c.Keep, func(p string) bool { return strings.HasPrefix(name, p) })
}

func oracleRefuses(c Config, f *dto.MetricFamily, m *dto.Metric) string {
	if len(f.GetName()) > c.MaxNameBytes {
		return "name_too_long"
	}
	if !utf8.ValidString(f.GetName()) {
		return "not_utf8"
	}
	for i, l := range m.GetLabel() {
		switch {
		case i >= c.MaxLabels:
			return "too_many_labels"
		case len(l.GetName()) > c.MaxLabelBytes, len(l.GetValue()) > c.MaxLabelBytes:
			return "label_too_long"
		case !utf8.ValidString(l.GetName()), !utf8.ValidString(l.GetValue()):
			return "not_utf8"
		}
	}
	if m.GetTimestampMs() <= 0 || m.GetTimestampMs() > maxTimestamp {
		return "timestamp"
	}
	bad := func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) || v < 0 }
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		switch {
		case m.Counter == nil:
			return "no_value"
		case bad(m.GetCounter().GetValue()):
			return "counter_value"
		}
	case dto.MetricType_GAUGE:
		switch v := m.GetGauge().GetValue(); {
		case m.Gauge == nil:
			return "no_value"
		case math.IsNaN(v), math.IsInf(v, 0):
			return "gauge_value"
		}
	case dto.MetricType_HISTOGRAM:
		return oracleRefusesHistogram(c, m.GetHistogram(), bad)
	case dto.MetricType_SUMMARY:
		return oracleRefusesSummary(m.GetSummary(), bad)
	}
	return ""
}

func oracleRefusesHistogram(c Config, h *dto.Histogram, bad func(float64) bool) string {
	if h == nil {
		return "no_value"
	}
	if bad(h.GetSampleSum()) {
		return "sum"
	}
	bound, count, finite := math.Inf(-1), uint64(0), 0
	for _, b := range h.GetBucket() {
		if math.IsNaN(b.GetUpperBound()) || b.GetUpperBound() <= bound {
			return "bucket_bounds"
		}
		if b.GetCumulativeCount() < count {
			return "bucket_counts"
		}
		if finite == c.MaxBuckets {
			return "too_many_buckets"
		}
		if !math.IsInf(b.GetUpperBound(), 1) {
			finite++
		}
		bound, count = b.GetUpperBound(), b.GetCumulativeCount()
	}
	if h.GetSampleCount() < count {
		return "bucket_counts"
	}
	if h.GetSampleCount() >= 1<<31 {
		return "interval_count"
	}
	return ""
}

func oracleRefusesSummary(s *dto.Summary, bad func(float64) bool) string {
	if s == nil {
		return "no_value"
	}
	if bad(s.GetSampleSum()) {
		return "sum"
	}
	if s.GetSampleCount() >= 1<<31 {
		return "interval_count"
	}
	var quantiles []float64
	last := 0.0
	for _, q := range s.GetQuantile() {
		quantiles = append(quantiles, q.GetQuantile())
		v := q.GetValue()
		if math.IsNaN(v) && s.GetSampleCount() == 0 {
			continue
		}
		if bad(v) || v < last {
			return "quantiles"
		}
		last = v
	}
	if !slices.Equal(quantiles, aggregator.SummaryQuantiles[:]) {
		return "quantiles"
	}
	return ""
}

func oracleSample(f *dto.MetricFamily, m *dto.Metric) expectedSample {
	s := expectedSample{Timestamp: m.GetTimestampMs()}
	class := "counter"
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		s.Kind, s.Value = aggregator.Counter, m.GetCounter().GetValue()
	case dto.MetricType_GAUGE:
		class = "gauge"
		s.Kind, s.Value = aggregator.Gauge, m.GetGauge().GetValue()
	case dto.MetricType_HISTOGRAM:
		class = "distribution"
		h := m.GetHistogram()
		s.Kind, s.Value, s.Count = aggregator.Histogram, h.GetSampleSum(), h.GetSampleCount()
		for _, b := range h.GetBucket() {
			if !math.IsInf(b.GetUpperBound(), 1) {
				s.Buckets = append(s.Buckets, aggregator.Bucket{UpperBound: b.GetUpperBound(), Count: b.GetCumulativeCount()})
			}
		}
	case dto.MetricType_SUMMARY:
		class = "distribution"
		h := m.GetSummary()
		s.Kind, s.Value, s.Count = aggregator.Summary, h.GetSampleSum(), h.GetSampleCount()
		for _, q := range h.GetQuantile() {
			s.Quantiles = append(s.Quantiles, q.GetValue())
		}
	}
	s.Series = fmt.Sprintf("%s %q", class, f.GetName())
	for _, l := range m.GetLabel() {
		s.Series += fmt.Sprintf(" %q=%q", l.GetName(), l.GetValue())
	}
	return s
}

// scanned reads the message with the scan, in the oracle's terms. Equal keys become equal names, in
// order of appearance.
func scanned(s *scan, keys *seen, b []byte) (expected, error) {
	if err := s.read(b, keys); err != nil {
		return expected{}, err
	}
	keys.fit(len(s.batch.Samples))
	e := expected{Timestamp: s.batch.Timestamp, Refused: map[string]int{}, Skipped: int(s.skipped), Sizes: keys.sizes}
	for r, n := range s.refused {
		if n > 0 {
			e.Refused[refusal(r).String()] = int(n)
		}
	}
	for _, sample := range s.batch.Samples {
		got := expectedSample{
			Series: fmt.Sprintf("%016x", sample.Key), Timestamp: sample.Timestamp, Kind: sample.Kind,
			Value: sample.Value, Count: sample.Count,
		}
		switch sample.Kind {
		case aggregator.Histogram:
			got.Buckets = slices.Clone(s.batch.Buckets[sample.First:sample.Last])
		case aggregator.Summary:
			got.Quantiles = slices.Clone(s.batch.Quantiles[sample.First:sample.Last])
		}
		e.Samples = append(e.Samples, got)
	}
	return e, nil
}

// series holds the oracle's names and the scan's keys to a one-to-one relation over all messages
// that it sees.
type series struct{ keys, names map[string]string }

func newSeries() series { return series{map[string]string{}, map[string]string{}} }

// diff says where what was scanned is not what was expected.
func (r series) diff(want, got expected) string {
	if len(want.Samples) == len(got.Samples) {
		for i := range want.Samples {
			name, key := want.Samples[i].Series, got.Samples[i].Series
			if k, ok := r.keys[name]; ok && k != key {
				return fmt.Sprintf("%s has key %s and had %s", name, key, k)
			}
			if n, ok := r.names[key]; ok && n != name {
				return fmt.Sprintf("%s has the key of %s", name, n)
			}
			r.keys[name], r.names[key] = key, name
			got.Samples[i].Series = name
		}
	}
	return cmp.Diff(want, got, cmpopts.EquateNaNs(), cmpopts.EquateEmpty())
}

func newScan(c Config) *scan { return newScratch(c.withDefaults().rules()) }

// captures returns the recorded streams, and the messages of one.
func captures(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/captures/*/*.pb.gz")
	if err != nil || len(files) != 17 {
		t.Fatalf("%d captures, error %v", len(files), err)
	}
	return files
}

func messages(t testing.TB, file string) [][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	r := bufio.NewReader(z)
	for {
		b, err := readDelimited(r)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, b)
	}
}

func readDelimited(r *bufio.Reader) ([]byte, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	_, err = io.ReadFull(r, b)
	return b, err
}
