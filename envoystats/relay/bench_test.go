package relay_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/bench/fleet"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// BenchmarkRelay is what a flush of 20 label sets costs on its way, as one of several that come at
// about the same time: sender and receiver together, without what the receiver does with it.
func BenchmarkRelay(b *testing.B) {
	const together = 16
	messages, err := fleet.NewMessages(20, 0, false)
	if err != nil {
		b.Fatal(err)
	}
	flush := messages.Append(nil, 0, 0, 2, 1_000_000)
	all := begin(b, 2, nil)
	all[1].sink.forgets = true
	var senders [together]*relay.Sender
	for i := range senders {
		senders[i] = all[0].Sender(&aggregator.Pod{Namespace: "shop", Name: fmt.Sprint("cart-", i)})
	}
	send := func() {
		for _, s := range senders {
			s.Send(time.Now(), flush)
		}
		for range senders {
			<-all[1].sink.came
		}
	}
	send()
	before := cpu(b)
	for b.Loop() {
		send()
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(together*b.N), "cpu-us/flush")
	b.ReportMetric(all[0].metric("meshpulse_relay_sent_bytes_total")/float64(together*(b.N+1)), "bytes/flush")
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
