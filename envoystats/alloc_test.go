package envoystats

import (
	"testing"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/service/metrics/v3"
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
func (nowhere) Close()                                                          {}

func TestAMessageOfKnownSeriesAllocatesNothing(t *testing.T) {
	for mode, file := range modes {
		server, err := newServer(Config{}, func(aggregator.Pod) podStream { return nowhere{} })
		if err != nil {
			t.Fatal(err)
		}
		st := &stream{server: server}
		s := server.scans.get()
		all := messages(t, file)
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
			t.Errorf("naming %s: %v allocations a message", mode, n)
		}
		if len(s.batch.Samples) != 10 {
			t.Errorf("naming %s: %d samples, want 2 counters, 6 histograms and 2 summaries of durations", mode, len(s.batch.Samples))
		}
	}
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
