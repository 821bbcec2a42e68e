package relay_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// fullPod has every field that goes with a frame.
func fullPod() aggregator.Pod {
	return aggregator.Pod{
		Namespace: "shop", Name: "cart-0", Workload: "cart", App: "cart", Version: "v1", CanonicalService: "cart", CanonicalRevision: "v1",
		Address: "10.0.0.7:41000", ServiceAccount: "cart", Peer: "spiffe://cluster.local/ns/shop/sa/cart", Sender: "10.0.0.7",
		FlushInterval: time.Second, EvictionInterval: time.Minute, InclusiveBounds: true, Proof: aggregator.ProofIdentity, Strict: true, SendsActive: true, SendsPending: true,
	}
}

func TestAPodComesOutOfAFrameAsItWentIn(t *testing.T) {
	for _, p := range []aggregator.Pod{fullPod(), {Namespace: "shop", Name: "cart-0"}} {
		got, err := relay.ReadPod(relay.AppendPod(nil, &p))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			t.Error(diff)
		}
	}
}

// What only the receiver can know of a pod is not taken from another replica.
func TestWhatTheClusterKnowsOfAPodIsNotRelayed(t *testing.T) {
	p := fullPod()
	p.Waypoint, p.Proof = true, aggregator.ProofPod|aggregator.ProofAddress
	got, err := relay.ReadPod(relay.AppendPod(nil, &p))
	if err != nil || got.Waypoint || got.Proof != aggregator.ProofNone {
		t.Errorf("read %+v, %v", got, err)
	}
}

func field(n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
}

func TestAFrameOfALaterVersionsFieldsIsRead(t *testing.T) {
	b := append(field(1, relay.Version), field(2, 7)...)
	b = protowire.AppendBytes(protowire.AppendTag(b, 99, protowire.BytesType), []byte("new"))
	b = protowire.AppendFixed64(protowire.AppendTag(b, 98, protowire.Fixed64Type), 1)
	f, err := relay.ReadFrame(b)
	if err != nil || f.Stream != 7 {
		t.Errorf("read %+v, %v", f, err)
	}
}

func TestWhatIsNoFrameIsRefused(t *testing.T) {
	pod := relay.AppendPod(nil, &aggregator.Pod{Namespace: "shop", Name: "cart-0"})
	for name, b := range map[string][]byte{
		"nothing":               nil,
		"a version of its own":  field(1, relay.Version+1),
		"cut off":               {0x12, 0xff},
		"an age of a day":       append(field(1, relay.Version), field(4, uint64((24*time.Hour).Microseconds()))...),
		"a beat that is broken": append(field(1, relay.Version), 0x3a, 1, 0xff),
	} {
		if f, err := relay.ReadFrame(b); err == nil {
			t.Errorf("%s is read as %+v", name, f)
		}
	}
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"no name":             relay.AppendPod(nil, &aggregator.Pod{Namespace: "shop"}),
		"cut off":             pod[:len(pod)-1],
		"a text without end":  protowire.AppendBytes(protowire.AppendTag(bytes.Clone(pod), 3, protowire.BytesType), make([]byte, 1<<20)),
		"no field is right":   []byte("GET / HTTP/1.1"),
		"a name of no length": field(1, 3),
	} {
		if p, err := relay.ReadPod(b); err == nil {
			t.Errorf("%s is read as pod %+v", name, p)
		}
	}
}

func TestAStateThatIsNotKnownIsNoneToAsk(t *testing.T) {
	beat := field(1, 9)
	b := protowire.AppendBytes(protowire.AppendTag(field(1, relay.Version), 7, protowire.BytesType), beat)
	f, err := relay.ReadFrame(b)
	if err != nil || f.Beat == nil || f.Beat.State != fleet.Joining {
		t.Errorf("read %+v, %v", f.Beat, err)
	}
}

// FuzzFrame: whatever comes, reading ends, refers to no more than there is, and a pod that can be
// read is one that can be written.
func FuzzFrame(f *testing.F) {
	p := fullPod()
	pod := relay.AppendPod(nil, &p)
	f.Add(pod)
	f.Add(append(field(1, relay.Version), field(2, 7)...))
	f.Add(protowire.AppendBytes(protowire.AppendTag(field(1, relay.Version), 3, protowire.BytesType), pod))
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := relay.ReadFrame(b)
		if err == nil && len(frame.Pod)+len(frame.Message) > len(b) {
			t.Fatalf("%d bytes hold a pod of %d and a message of %d", len(b), len(frame.Pod), len(frame.Message))
		}
		for _, bytes := range [][]byte{frame.Pod, b} {
			p, err := relay.ReadPod(bytes)
			if err != nil {
				continue
			}
			if again, err := relay.ReadPod(relay.AppendPod(nil, &p)); err != nil || again != p {
				t.Fatalf("%+v is read as %+v, %v", p, again, err)
			}
		}
	})
}
