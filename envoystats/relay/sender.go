package relay

import (
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

// Sender relays what one stream of a sidecar's brings to those that keep it. Only the stream's own
// goroutine uses it.
type Sender struct {
	of        *Replicas
	number    uint64
	namespace string
	pod       []byte // the frame's field

	roster *roster // that the following is from
	keeps  bool
	to     []*peer
	sent   bool // something of the stream was
}

// Sender returns what relays the stream of a pod.
func (r *Replicas) Sender(p *aggregator.Pod) *Sender {
	return &Sender{of: r, number: r.numbers.Add(1), namespace: p.Namespace, pod: appendField(nil, framePod, AppendPod(nil, p))}
}

// route finds out who keeps what the pod sends, where the replicas have changed.
func (s *Sender) route() {
	now := s.of.current.Load()
	if now == s.roster {
		return
	}
	was := s.to
	s.roster, s.keeps, s.to = now, false, nil
	for _, m := range fleet.Keepers(s.namespace, now.members) {
		if s.of.isSelf(m) {
			s.keeps = true
		} else if p := now.peers[m.Name]; p != nil {
			s.to = append(s.to, p)
		}
	}
	for _, p := range was { // who keeps it no more does not wait for it
		if now.peers[p.name] == p {
			s.endAt(p, s.to)
		}
	}
}

// endAt ends the stream at a replica that is none of those that keep it.
func (s *Sender) endAt(p *peer, keep []*peer) {
	for _, k := range keep {
		if k == p {
			return
		}
	}
	p.offer(packet{sender: s, arrival: s.of.config.Now()})
}

// Keeps reports whether this replica keeps what the pod sends.
func (s *Sender) Keeps() bool {
	s.route()
	return s.keeps
}

// scratch is what messages are compressed into.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// maxScratch is the largest scratch that is used again.
const maxScratch = 4 << 20

// Send relays a message that came in at the given time. It does not wait, and what there is no room
// for is dropped and counted. The bytes are free once it has returned.
func (s *Sender) Send(arrival time.Time, message []byte) {
	s.route()
	if len(s.to) == 0 {
		return
	}
	buf := scratch.Get().(*[]byte)
	if most := s2.MaxEncodedLen(len(message)); most > cap(*buf) {
		*buf = make([]byte, most)
	}
	compressed := s2.Encode((*buf)[:cap(*buf)], message)
	for _, p := range s.to {
		s.offer(p, arrival, compressed)
	}
	s.sent = true
	if cap(*buf) <= maxScratch {
		scratch.Put(buf)
	}
}

// offer gives a replica its own copy: gRPC writes it when it can.
func (s *Sender) offer(p *peer, arrival time.Time, compressed []byte) {
	need := protowire.SizeTag(frameMessage) + protowire.SizeBytes(len(compressed))
	if p.queued.Load()+int64(need) > int64(s.of.config.QueueBytes) {
		s.of.metrics.dropped(p.name, droppedFull)
		return
	}
	b := buffers.Get(need)
	size := int64(cap(*b)) // what it takes, which is up to twice of what is in it
	field := appendField((*b)[:0], frameMessage, compressed)
	*b = field
	k := packet{s, arrival, mem.NewBuffer(b, buffers), size}
	if !p.offer(k) {
		k.message.Free()
		s.of.metrics.dropped(p.name, droppedFull)
	}
}

// End says that the stream has ended.
func (s *Sender) End() {
	if !s.sent {
		return
	}
	now := s.of.config.Now()
	for _, p := range s.to {
		p.offer(packet{sender: s, arrival: now})
	}
}
