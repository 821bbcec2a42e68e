package relay_test

import (
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// A stranger that opens connections and says nothing keeps no replica out, and does not hold more
// than its share.
func TestConnectionsOfAStrangerKeepNoReplicaOut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	other := "127.0.0.1:1" // nobody listens there
	first := start(t, relay.Config{Self: memberAt(address), Static: []string{address, other}}, l)

	stranger := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
	const tries = 100
	refused := 0
	for range tries {
		c, err := stranger.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(patience))
		// gRPC's settings come to who is let in.
		if _, err := c.Read(make([]byte, 1)); err != nil {
			refused++
		}
	}
	if refused < tries/2 || refused == tries {
		t.Errorf("%d of %d connections are refused", refused, tries)
	}
	if got := first.metric("meshpulse_relay_refused_connections_total"); got < float64(refused) {
		t.Errorf("%v are counted, %d refused", got, refused)
	}
	second := start(t, relay.Config{Self: memberAt(other), Static: []string{address, other}}, nil)
	second.Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"}).Send(time.Now(), []byte("flush"))
	first.sink.wait(t, 1)
}

// Connections give their place back.
func TestConnectionsThatAreClosedMakeRoom(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	start(t, relay.Config{Self: memberAt(address), Static: []string{address}}, l)
	for i := range 200 {
		until(t, "it is let in", func() bool {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetReadDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			return err == nil
		})
		if t.Failed() {
			t.Fatalf("at %d", i)
		}
	}
}

// What waits is counted by the memory that it takes.
func TestAQueueHoldsNoMoreMemoryThanItMay(t *testing.T) {
	address, other := "127.0.0.1:2", "127.0.0.1:1" // nobody listens there
	const most = 1 << 20
	r := start(t, relay.Config{Self: memberAt(address), Static: []string{address, other}, QueueBytes: most}, nil)
	s := r.Sender(&aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	message := noise(17 << 10) // which waits in a buffer of 32 KiB
	for range 100 {
		s.Send(time.Now(), message)
	}
	if got, want := r.metric("meshpulse_relay_dropped_frames_total"), float64(100-most/(32<<10)); got != want {
		t.Errorf("%v are dropped, want %v", got, want)
	}
}

// Two that cannot hear each other both do what one should: nobody else would.
func TestReplicasThatDoNotHearEachOtherBothLead(t *testing.T) {
	addresses := []string{"127.0.0.1:1", "127.0.0.1:2"} // nobody listens there
	for _, address := range addresses {
		r := start(t, relay.Config{Self: memberAt(address), Static: addresses, Since: time.Now().Add(-time.Minute)}, nil)
		until(t, "it leads", func() bool { return r.Leads("shop") })
	}
}

func memberAt(address string) fleet.Member { return fleet.Member{Name: address, Address: address} }

// noise is what does not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}
