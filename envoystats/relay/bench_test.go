package relay_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/bench/fleet"
)

// BenchmarkRelay is what a flush of 20 label sets costs on its way: sender and receiver together,
// without what the receiver does with it.
func BenchmarkRelay(b *testing.B) {
	messages, err := fleet.NewMessages(20, 0, false)
	if err != nil {
		b.Fatal(err)
	}
	flush := messages.Append(nil, 0, 0, 2, 1_000_000)
	all := begin(b, 2, nil)
	all[1].sink.forgets = true
	s := all[0].Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	s.Send(time.Now(), flush)
	<-all[1].sink.came
	before := cpu(b)
	for b.Loop() {
		s.Send(time.Now(), flush)
		<-all[1].sink.came
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(all[0].metric("meshpulse_relay_sent_bytes_total")/float64(b.N+1), "bytes/op")
	b.SetBytes(int64(len(flush)))
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
