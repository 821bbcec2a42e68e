package envoystats

import (
	"fmt"
	"time"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// relayed is a stream that another replica has taken in. What the sidecar said of itself was read
// there, and its certificate held against it; the rest is as if it had come here.
type relayed struct{ st *stream }

// Relayed opens such a stream. The error says what is wrong with the pod.
func (s *Server) Relayed(p aggregator.Pod) (relay.Stream, error) {
	if len(p.Namespace) > maxNamespace || !isLabel(p.Namespace) || len(p.Name) > maxNodeName || !isName(p.Name) {
		return nil, fmt.Errorf("a replica relays pod %.300q of namespace %.300q: %w", p.Name, p.Namespace, errNodeOdd)
	}
	st := &stream{server: s, peer: p.Peer, addr: p.Address, sender: p.Sender, pod: p, relayed: true}
	st.knows()
	return relayed{st}, nil
}

// Message is part of [relay.Stream].
func (r relayed) Message(arrival time.Time, message []byte) (more bool) {
	st := r.st
	st.server.contained(st.subject(), func() {
		scan := st.server.scans.get()
		own := scan.buf
		scan.buf = message
		reason, err := st.message(arrival, scan)
		scan.buf = own
		st.server.scans.put(scan)
		if more = err == nil; !more && reason != endDraining {
			_ = st.refuse(reason, err)
		}
	})
	return more
}

// End is part of [relay.Stream].
func (r relayed) End() { r.st.close() }
