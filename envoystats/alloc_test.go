package envoystats

import (
	"slices"
	"testing"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/meshpulse/meshpulse/aggregator"
)

// modes are a flush of each naming mode.
var modes = map[string]string{
	"stock":  "testdata/captures/a-default/stream-0.pb.gz",
	"labels": "testdata/captures/b-labels/stream-0.pb.gz",
}

type nowhere struct{}

func (nowhere) Commit(time.Time, *aggregator.Batch, aggregator.Describer) error { return nil }
func (nowhere) Missed(time.Time)                                                {}
func (nowhere) Asked() *aggregator.Asked                                        { return nil }
func (nowhere) Close()                                                          {}

func TestAMessageOfKnownSeriesAllocatesNothing(t *testing.T) {
	for mode, file := range modes {
		for name, tc := range map[string]struct {
			messages [][]byte
			samples  int
		}{
			"with summaries":   {messages(t, file), 2 + 6 + 2}, // counters, histograms, summaries of durations
			"histograms alone": {without(t, dto.MetricType_SUMMARY, messages(t, file)), 2 + 6},
			"summaries alone":  {without(t, dto.MetricType_HISTOGRAM, messages(t, file)), 2 + 6},
		} {
			t.Run(mode+" naming, "+name, func(t *testing.T) { allocatesNothing(t, tc.messages, tc.samples) })
		}
	}
}

func allocatesNothing(t *testing.T, all [][]byte, samples int) {
	server, err := newServer(Config{Keep: []string{"istio_"}}, func(aggregator.Pod) podStream { return nowhere{} })
	if err != nil {
		t.Fatal(err)
	}
	st := &stream{server: server}
	s := server.scans.get()
	apply := func(b []byte) {
		s.buf = append(s.buf[:0], b...)
		if _, err := st.message(time.UnixMilli(1), s); err != nil {
			t.Fatal(err)
		}
	}
	apply(all[0])
	apply(all[1])
	apply(all[2])
	if n := testing.AllocsPerRun(100, func() { apply(all[3]) }); n != 0 {
		t.Errorf("%v allocations a message", n)
	}
	if len(s.batch.Samples) != samples {
		t.Errorf("%d samples, want %d", len(s.batch.Samples), samples)
	}
}

// without returns the messages without families of a type.
func without(t *testing.T, kind dto.MetricType, all [][]byte) [][]byte {
	t.Helper()
	for i, b := range all {
		var m metricsv3.StreamMetricsMessage
		if err := proto.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		m.EnvoyMetrics = slices.DeleteFunc(m.EnvoyMetrics, func(f *dto.MetricFamily) bool { return f.GetType() == kind })
		var err error
		if all[i], err = proto.Marshal(&m); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func BenchmarkScan(b *testing.B) {
	for mode, file := range modes {
		flush := messages(b, file)[2]
		b.Run("naming="+mode+"/decoder=scan", func(b *testing.B) {
			s, keys := newScan(Config{}), new(seen)
			keys.fit(64)
			b.SetBytes(int64(len(flush)))
			for b.Loop() {
				if err := s.read(flush, keys); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(s.batch.Samples)), "ns/sample")
			b.ReportAllocs()
		})
		b.Run("naming="+mode+"/decoder=generated", func(b *testing.B) {
			b.SetBytes(int64(len(flush)))
			for b.Loop() {
				var m metricsv3.StreamMetricsMessage
				if err := proto.Unmarshal(flush, &m); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*10), "ns/sample")
			b.ReportAllocs()
		})
	}
}
