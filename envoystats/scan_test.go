package envoystats

import (
	"bytes"
	"errors"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

func TestScanReadsWhatTheGeneratedDecoderReads(t *testing.T) {
	for _, file := range captures(t) {
		for _, keep := range [][]string{nil, {""}, {"probe", "cluster."}} {
			c := Config{Keep: keep}
			s, keys, names := newScan(c), new(seen), newSeries()
			samples, sizes := 0, false
			for i, b := range messages(t, file) {
				want, err := oracle(c, sizes, b)
				if err != nil {
					t.Fatal(err)
				}
				got, err := scanned(s, keys, b)
				if err != nil {
					t.Fatalf("%s message %d, keep %q: %v", file, i, keep, err)
				}
				if diff := names.diff(want, got); diff != "" {
					t.Errorf("%s message %d, keep %q: want -, got +\n%s", file, i, keep, diff)
				}
				if len(got.Refused) > 0 {
					t.Errorf("%s message %d, keep %q: Envoy's own samples refused: %v", file, i, keep, got.Refused)
				}
				samples += len(got.Samples)
				sizes = want.Sizes
			}
			if isProbe := filepath.Base(filepath.Dir(file)) == "p-probe"; samples == 0 && (keep != nil || !isProbe) {
				t.Errorf("%s, keep %q: no samples", file, keep)
			}
		}
	}
}

// repeated is a message that says who reports n times, with a node's name of this size each.
func repeated(t *testing.T, n, size int) []byte {
	t.Helper()
	once := message(t)
	once = append(once, protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType),
		identifier(t, &corev3.Node{Id: "sidecar~10.0.0.1~web-0.test~" + strings.Repeat("n", size)}))...)
	return bytes.Repeat(once, n)
}

func TestAnIdentifierThatComesOftenIsJoinedOnceAndWithinItsLimit(t *testing.T) {
	const often = 5000
	for name, size := range map[string]int{"within": 100, "beyond": 1000} {
		t.Run(name, func(t *testing.T) {
			s, b := newScan(Config{}), repeated(t, often, size)
			before := allocated()
			if err := s.read(b, new(seen)); err != nil {
				t.Fatal(err)
			}
			if got := allocated() - before; got > 8*maxIdentifier {
				t.Errorf("%d bytes were allocated for a message of %d", got, len(b))
			}
			_, err := readNode(s.identifier)
			if beyond := size > 200; errors.Is(err, errNodeSize) != beyond || !beyond && err != nil {
				t.Errorf("error %v", err)
			}
		})
	}
}

// The scan's identifier must not be written over the message that it is part of.
func TestAnIdentifierInPartsIsThatOfTheGeneratedDecoder(t *testing.T) {
	node := identifier(t, &corev3.Node{Id: "sidecar~10.0.0.1~web-0.test~x"})
	field := func(b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)
	}
	meta := identifier(t, &corev3.Node{Metadata: metadata(t, map[string]any{"NAME": "web-1"})})
	b := slices.Concat(field(node), message(t, request(1000, 5)), field(meta), message(t, request(2000, 6)))
	whole := slices.Clone(b)
	s := newScan(Config{})
	if err := s.read(b, new(seen)); err != nil {
		t.Fatal(err)
	}
	pod, err := readNode(s.identifier)
	if err != nil || pod.Name != "web-1" || pod.Namespace != "test" || !bytes.Equal(b, whole) {
		t.Errorf("pod %+v, error %v, message as it was: %v", pod, err, bytes.Equal(b, whole))
	}
}

// allocated is how many bytes the process has ever allocated.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// What is refused leaves nothing behind that would be taken for another sample's.
func TestARefusedSampleLeavesNothingInTheBatch(t *testing.T) {
	const h, sum = dto.MetricType_HISTOGRAM, dto.MetricType_SUMMARY
	good := []*dto.MetricFamily{
		family("istio_good", h, histogram(1000, 1, 2, 1, 1, 2, 2)),
		family("istio_good", sum, summary(1000, 1, 2, quantiles(1, 1, 1, 1, 1, 1, 1, 1, 1, 1)...)),
	}
	bad := []*dto.MetricFamily{
		family("istio_bad", h, histogram(1000, math.NaN(), 5, 1, 1, 2, 2, 3, 3)),
		family("istio_bad", h, histogram(0, 1, 5, 1, 1, 2, 2, 3, 3)),
		family("istio_bad", sum, summary(1000, math.NaN(), 5, quantiles(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)...)),
	}
	s := newScan(Config{Keep: allOfIstio})
	if err := s.read(message(t, append(bad, good...)...), new(seen)); err != nil {
		t.Fatal(err)
	}
	if len(s.batch.Samples) != 2 || s.batch.Refused != len(bad) {
		t.Fatalf("%d samples, %d refused", len(s.batch.Samples), s.batch.Refused)
	}
	if len(s.batch.Buckets) != 2 || len(s.batch.Quantiles) != 10 {
		t.Errorf("%d buckets and %d quantiles, want those of the good samples", len(s.batch.Buckets), len(s.batch.Quantiles))
	}
	if got := s.batch.Samples[0]; got.First != 0 || got.Last != 2 {
		t.Errorf("the histogram's buckets are [%d:%d]", got.First, got.Last)
	}
}

// What a series is called does not hang on how its bytes are arranged.
func TestTheKeyIsTheSameHoweverTheFieldsAreArranged(t *testing.T) {
	field := func(num protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), b)
	}
	label := func(name, value string) []byte {
		return field(1, slices.Concat(field(1, []byte(name)), field(2, []byte(value))))
	}
	a, b := label("a", "1"), label("b", "2")
	value := field(3, protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type), math.Float64bits(7)))
	timestamp := protowire.AppendVarint(protowire.AppendTag(nil, 6, protowire.VarintType), 1000)
	name := field(1, []byte("istiocustom.istio_requests_total"))
	keys := map[uint64]string{}
	s := newScan(Config{})
	for arrangement, families := range map[string][]byte{
		"as Envoy sends it":       slices.Concat(name, field(4, slices.Concat(a, b, value, timestamp))),
		"labels apart":            slices.Concat(name, field(4, slices.Concat(a, value, b, timestamp))),
		"labels last":             slices.Concat(name, field(4, slices.Concat(timestamp, value, a, b))),
		"name behind the metric":  slices.Concat(field(4, slices.Concat(a, b, value, timestamp)), name),
		"an unknown field before": slices.Concat(field(99, []byte("x")), name, field(4, slices.Concat(field(99, nil), a, b, value, timestamp))),
	} {
		if err := s.read(field(2, families), new(seen)); err != nil {
			t.Fatalf("%s: %v", arrangement, err)
		}
		if len(s.batch.Samples) != 1 || s.batch.Samples[0].Value != 7 || s.batch.Samples[0].Timestamp != 1000 {
			t.Fatalf("%s: samples %+v", arrangement, s.batch.Samples)
		}
		keys[s.batch.Samples[0].Key] = arrangement
		got, labels, err := s.Describe(0)
		if got != "istio_requests_total" || !slices.Equal(labels, []aggregator.Label{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}) || err != nil {
			t.Errorf("%s: %s %v, error %v", arrangement, got, labels, err)
		}
	}
	if len(keys) != 1 {
		t.Errorf("keys %v, want one", keys)
	}
}

func TestSummariesOfSizesAreReadWhereNoHistogramsOfThemCome(t *testing.T) {
	s, keys := newScan(Config{Keep: allOfIstio}), new(seen)
	for i, b := range messages(t, "testdata/captures/a-default/stream-0.pb.gz")[1:4] {
		var m metricsv3.StreamMetricsMessage
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		m.EnvoyMetrics = slices.DeleteFunc(m.EnvoyMetrics, func(f *dto.MetricFamily) bool {
			return f.GetType() == dto.MetricType_HISTOGRAM && oracleSize(f.GetName())
		})
		b, err := proto.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.read(b, keys); err != nil {
			t.Fatal(err)
		}
		sizes := 0
		for i := range s.batch.Samples {
			name, _, err := s.Describe(i)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(aggregator.Sizes[:], name) {
				sizes++
			}
		}
		if sizes != 4 {
			t.Errorf("message %d: %d summaries of sizes, want one of each of two label sets", i, sizes)
		}
	}
}

func TestTheDurationHistogramIsReadWhateverIsKept(t *testing.T) {
	c := Config{Keep: []string{"cluster."}}
	s := newScan(c)
	b := messages(t, "testdata/captures/a-default/stream-0.pb.gz")[1]
	if err := s.read(b, new(seen)); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for i := range s.batch.Samples {
		name, _, err := s.Describe(i)
		if err != nil {
			t.Fatal(err)
		}
		names[name] = true
	}
	if !names[durationMetric] || names["istio_requests_total"] || !names["envoy_cluster_inbound_upstream_rq"] {
		t.Errorf("read %v", names)
	}
}
