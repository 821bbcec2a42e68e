package envoystats

import (
	"fmt"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/bench/fleet"
)

const benchLabelSets = 20

// benchSink is a sink over a store without the transport: a message's bytes go in where gRPC would
// hand them over.
func benchSink(b *testing.B, asLabels bool) (*Server, *aggregator.Store, *fleet.Messages) {
	store, err := aggregator.New(aggregator.Config{})
	if err != nil {
		b.Fatal(err)
	}
	server, err := NewServer(Config{Logger: slog.New(slog.DiscardHandler)}, store)
	if err != nil {
		b.Fatal(err)
	}
	messages, err := fleet.NewMessages(benchLabelSets, 0, asLabels)
	if err != nil {
		b.Fatal(err)
	}
	return server, store, messages
}

// processCPU is the process' CPU time, collector included, as the kernel counts it: wall time says
// little on a busy machine.
func processCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func receive(b *testing.B, st *stream, s *scan, at time.Time) {
	if reason, err := st.message(at, s); err != nil {
		b.Fatal(reason, err)
	}
}

// A flush of a known pod: scan and store. A hundred pods take turns, so that their tables are not
// in the caches.
func BenchmarkMessage(b *testing.B) {
	for naming, asLabels := range map[string]bool{"stock": false, "labels": true} {
		b.Run("naming="+naming, func(b *testing.B) {
			server, _, messages := benchSink(b, asLabels)
			const pods = 100
			now := time.Now()
			s := server.scans.get()
			streams := make([]*stream, pods)
			for pod := range streams {
				streams[pod] = &stream{server: server}
				defer streams[pod].close()
				for number := range int64(3) {
					at := now.Add(time.Duration(number) * 5 * time.Second)
					s.buf = messages.Append(s.buf[:0], pod/10, pod, number, at.UnixMilli())
					receive(b, streams[pod], s, at)
				}
			}
			b.ReportAllocs()
			before, i, flush := processCPU(b), 0, int64(3)
			for b.Loop() {
				at := now.Add(time.Duration(flush) * 5 * time.Second)
				s.buf = messages.Append(s.buf[:0], i/10, i, flush, at.UnixMilli()) // some 15 us, as the transport's copy
				receive(b, streams[i], s, at)
				if i++; i == pods {
					i, flush = 0, flush+1
				}
			}
			b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
			b.SetBytes(int64(len(s.buf)))
		})
	}
}

// The first flush of a new pod, with a thousand HPAs' queries registered.
func BenchmarkNewPod(b *testing.B) {
	for _, known := range []bool{false, true} {
		name := map[bool]string{false: "new", true: "known"}[known]
		b.Run("labelsets="+name, func(b *testing.B) {
			server, store, messages := benchSink(b, false)
			for i := range 1000 {
				q, err := store.Register(fmt.Sprintf(
					`sum(rate(istio_requests_total{destination_workload="svc-%04d",destination_workload_namespace="test",reporter="destination"}[1m]))`, i))
				if err != nil {
					b.Fatal(err)
				}
				defer q.Close()
			}
			s := server.scans.get()
			now := time.Now()
			first := func(pod int) *stream {
				workload := pod
				if known {
					workload = 0
				}
				st := &stream{server: server}
				s.buf = messages.Append(s.buf[:0], workload, pod, 0, now.UnixMilli())
				receive(b, st, s, now)
				return st
			}
			defer first(0).close()
			b.ReportAllocs()
			before, pod := processCPU(b), 0
			for b.Loop() {
				pod++
				defer first(pod).close()
			}
			b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}
