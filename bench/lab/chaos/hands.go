package chaos

import (
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/bench/identity"
	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/link"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
)

// System is what things go wrong in.
type System struct {
	Cluster *cluster.Cluster
	// API is the link between meshpulse and the API server.
	API *link.Link
	// Ingest is meshpulse's port for sidecars, in plaintext and over mutual TLS with certificates
	// of CA; Names is what the serving certificates of its API are issued to.
	Ingest string
	CA     *CA
	Names  []string
	// Replicas are all of meshpulse, one or more.
	Replicas []Replica
	// Namespaces are the lanes', by number, Workload the name of each one's Deployment. Agent, who
	// is there once faults are done, runs their pods, whose sidecars flush at the interval Flush.
	Namespaces []string
	Workload   string
	Agent      func() *mesh.Agent
	Flush      time.Duration
}

// Replica is one process of meshpulse.
type Replica struct {
	// Dir is the folder with the serving certificate of its API.
	Dir string
	// Kill ends it at once, Launch starts it again, and Pause stops it where it is or lets it go
	// on.
	Kill   func()
	Launch func() error
	Pause  func(on bool) error
	// Peers is the link from other replicas to it, Sidecars that from sidecars. Both are nil of one
	// by itself.
	Peers, Sidecars *link.Link
}

// Hands do faults, among others on the links between sidecars and meshpulse, which are theirs.
type Hands struct {
	system   System
	links    map[string][3]*link.Link // by namespace: those of its first and its second half, and its gateway's
	accounts map[string]*workload     // by namespace, whose service account its links prove to be
	flood    *link.Link               // of senders that are nobody's sidecar, in plaintext

	mu      sync.Mutex
	halves  map[string]int // of pods, by namespace and name
	next    map[string]int // half of a namespace's next pod
	flooded int64          // messages of senders that are nobody's sidecar, by links that are closed
}

// Open opens three links for each lane, and one for the flood. Those of a lane show the certificate
// of its namespace's service account to meshpulse, as each of its sidecars would, and of the
// gateways'; the second half of every second lane is in plaintext.
func Open(s System) (_ *Hands, err error) {
	h := &Hands{system: s, links: map[string][3]*link.Link{}, accounts: map[string]*workload{}, halves: map[string]int{}, next: map[string]int{}}
	if h.flood, err = link.Open(link.Config{Upstream: s.Ingest}); err != nil {
		return nil, err
	}
	gateways := &workload{ca: s.CA, id: identity.SPIFFE(mesh.GatewayNamespace, "default")}
	for lane, namespace := range s.Namespaces {
		account := &workload{ca: s.CA, id: identity.SPIFFE(namespace, "default")}
		h.accounts[namespace] = account
		var links [3]*link.Link
		for i, as := range []*workload{account, account, gateways} {
			config := link.Config{Upstream: s.Ingest, TLS: as.tls}
			if !proves(lane, i) {
				config.TLS = nil
			}
			if links[i], err = link.Open(config); err != nil {
				return nil, err
			}
		}
		h.links[namespace] = links
	}
	return h, nil
}

// proves reports whether a half of a lane, 0 or 1, proves itself; gateways do.
func proves(lane, half int) bool { return lane%2 == 0 || half != 1 }

// Close closes the links.
func (h *Hands) Close() {
	h.flood.Close()
	for _, links := range h.links {
		for _, l := range links {
			l.Close()
		}
	}
}

// Flooded is how many messages came of senders that are nobody's sidecar.
func (h *Hands) Flooded() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.flooded + h.flood.Messages()
}

// Sink is where a pod's sidecar pushes: a namespace's pods take turns between its two links, and
// keep theirs; gateway-NAMESPACE has its own.
func (h *Hands) Sink(namespace, pod string) string {
	if pod == "gateway-"+namespace {
		return h.links[namespace][2].Address()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	key := namespace + "/" + pod
	half, known := h.halves[key]
	if !known {
		half = h.next[namespace] % 2
		h.next[namespace]++
		h.halves[key] = half
	}
	return h.links[namespace][half].Address()
}
