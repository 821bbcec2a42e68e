package envoystats

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// pair is a sink whose replica has another sink, over loopback.
type pair struct {
	own, other *sink
	replicas   *relay.Replicas // as the own one sees them
}

// servePair starts them; the other one is active.
func servePair(t *testing.T) *pair {
	t.Helper()
	p := &pair{other: serveSink(t, Config{})}
	var sides [2]*relay.Replicas
	for i, name := range []string{"here", "replica"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		sides[i], err = relay.New(relay.Config{Self: fleet.Member{Name: name, Address: l.Addr().String()}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = sides[i].Serve(l) }()
		t.Cleanup(func() {
			gone, cut := context.WithCancel(context.Background())
			cut()
			sides[i].Shutdown(gone)
		})
		if name == "replica" {
			sides[1].Relay(p.other)
			p.replicas = sides[0]
			p.knows(fleet.Active, l.Addr().String())
		}
	}
	p.own = serveSink(t, Config{Replicas: p.replicas})
	return p
}

// knows says what the own one is beside the other, which is active.
func (p *pair) knows(own fleet.State, address string) {
	p.replicas.SetMembers([]fleet.Member{{Name: "here", Address: "127.0.0.1:1", State: own}, {Name: "replica", Address: address, State: fleet.Active}})
}

func (k *sink) waitFor(t *testing.T, n int) []commit {
	t.Helper()
	waitFor(t, fmt.Sprintf("%d flushes", n), func() bool { return len(k.recorder.all()) >= n })
	return k.recorder.all()
}

// What a replica relays comes to the same there, of every recorded stream: who it is, each sample,
// and that the stream has ended.
func TestWhatIsRelayedIsAsIfItHadComeHere(t *testing.T) {
	for _, file := range captures(t) {
		p := servePair(t)
		stream := p.own.open(t)
		for _, m := range messages(t, file) {
			stream.send(m)
		}
		stream.close()
		own := p.own.recorder.all()
		if len(own) == 0 {
			t.Fatalf("%s: nothing was taken", file)
		}
		if diff := cmp.Diff(own, p.other.waitFor(t, len(own)), cmp.AllowUnexported(commit{})); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
		waitFor(t, "the end", func() bool {
			p.other.recorder.mu.Lock()
			defer p.other.recorder.mu.Unlock()
			return p.other.recorder.closed == 1
		})
		if diff := cmp.Diff(p.own.recorder.pods, p.other.recorder.pods); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
}

// A message that cannot be read is missed at the other replica, too, and nothing else is.
func TestAMalformedMessageIsRelayedAsOne(t *testing.T) {
	p := servePair(t)
	p.own.open(t).send(hello(t, "cart-0", request(1000, 1)), []byte{0xff}, hello(t, "cart-0", request(2000, 2))).close()
	if got := p.other.waitFor(t, 2); got[1].values[0] != 2 {
		t.Errorf("taken: %v", got)
	}
	for name, k := range map[string]*sink{"here": p.own, "there": p.other} {
		if k.recorder.missed != 1 {
			t.Errorf("%d messages missed %s", k.recorder.missed, name)
		}
	}
}

// Of three replicas two keep what a namespace sends. The third hands it on as it comes.
func TestWhatOthersKeepIsNotReadHere(t *testing.T) {
	p := servePair(t)
	address := ""
	for _, m := range p.replicas.Members() {
		if m.Name == "replica" {
			address = m.Address
		}
	}
	members := []fleet.Member{
		{Name: "here", Address: "127.0.0.1:1", State: fleet.Active},
		{Name: "replica", Address: address, State: fleet.Active},
		{Name: "third", Address: "127.0.0.1:2", State: fleet.Active},
	}
	p.replicas.SetMembers(members)
	if owners := p.replicas.Owners("test"); slices.Contains(owners, "here") {
		t.Fatalf("%v own the namespace, and the test is of one that does not", owners)
	}
	const pods = "cart-0"
	stream := p.own.open(t).send(hello(t, pods, request(1000, 1)), hello(t, pods, request(2000, 2)))
	p.other.waitFor(t, 2)
	if n := len(p.own.recorder.all()); n != 0 {
		t.Errorf("%d flushes were read by who does not keep them", n)
	}
	// One of the owners is gone: from now on it is kept here.
	p.replicas.SetMembers(members[:2])
	stream.send(hello(t, pods, request(3000, 3))).close()
	if got := p.own.waitFor(t, 1); got[0].row != 3000 || len(got[0].series) == 0 {
		t.Errorf("taken: %+v", got)
	}
	p.other.waitFor(t, 3)
}

func TestAReplicaRelaysNoPodThatThereCannotBe(t *testing.T) {
	k := serveSink(t, Config{})
	for _, p := range []aggregator.Pod{{Namespace: "UPPER", Name: "a"}, {Namespace: "shop", Name: "a b"}, {Namespace: "shop", Name: "-"}} {
		if s, err := k.Relayed(p); err == nil {
			t.Errorf("%s/%s is taken: %v", p.Namespace, p.Name, s)
		}
	}
}

// What was refused is refused for good: its next message is not asked for.
func TestARelayedStreamThatIsRefusedEnds(t *testing.T) {
	k := serveSink(t, Config{})
	told := ""
	k.refused = func(_ aggregator.Pod, why string) { told = why }
	k.recorder.fail = aggregator.ErrIdentity
	s, err := k.Relayed(aggregator.Pod{Namespace: "test", Name: "cart-0"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Message(time.Now(), hello(t, "cart-0", request(1000, 1))) || told == "" {
		t.Errorf("more is asked for; told: %q", told)
	}
}

func TestAPanicEndsTheRelayedStreamAlone(t *testing.T) {
	store, err := aggregator.New(aggregator.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server, err := newServer(Config{Logger: slog.New(slog.DiscardHandler), contain: store.Contain}, func(aggregator.Pod) podStream { return panicking{} })
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.Relayed(aggregator.Pod{Namespace: "test", Name: "cart-0"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Message(time.Now(), hello(t, "cart-0", request(1000, 1))) {
		t.Error("a stream with a fault goes on")
	}
}
