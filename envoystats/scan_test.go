package envoystats

import (
	"math"
	"path/filepath"
	"slices"
	"testing"

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
	s, keys := newScan(Config{}), new(seen)
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
	if !names[durationMetric] || names["istio_requests_total"] || !names["cluster_inbound_upstream_rq_2xx"] {
		t.Errorf("read %v", names)
	}
}
