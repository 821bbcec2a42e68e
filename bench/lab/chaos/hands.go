package chaos

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/link"
	"github.com/meshpulse/meshpulse/bench/lab/mesh"
)

// System is what things go wrong in.
type System struct {
	Cluster *cluster.Cluster
	// API is the link between meshpulse and the API server.
	API *link.Link
	// Ingest is meshpulse's port (TLS) for sidecars, Dir the folder with its certificates, serving
	// and ingest, and Names what these are issued to.
	Ingest, Dir string
	Names       []string
	// Kill ends meshpulse at once, Launch starts it again.
	Kill   func()
	Launch func() error
	// Namespaces are the lanes', by number, Workload the name of each one's Deployment. Agent, who
	// is there once faults are done, runs their pods, whose sidecars flush at the interval Flush.
	Namespaces []string
	Workload   string
	Agent      func() *mesh.Agent
	Flush      time.Duration
}

// Hands do faults, among others on the links between sidecars and meshpulse, which are theirs.
type Hands struct {
	system System
	links  map[string][2]*link.Link // by namespace: those of its first and its second half
	flood  *link.Link               // of senders that are nobody's sidecar

	mu     sync.Mutex
	halves map[string]int // of pods, by namespace and name
	next   map[string]int // half of a namespace's next pod
}

// Open opens two links for each lane, and one for the flood. A link speaks TLS to meshpulse, as a
// sidecar would.
func Open(s System) (*Hands, error) {
	h := &Hands{system: s, links: map[string][2]*link.Link{}, halves: map[string]int{}, next: map[string]int{}}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Cluster.CA.PEM)
	config := link.Config{Upstream: s.Ingest, TLS: func() *tls.Config {
		return &tls.Config{RootCAs: roots, ServerName: s.Names[0], NextProtos: []string{"h2"}}
	}}
	var err error
	if h.flood, err = link.Open(config); err != nil {
		return nil, err
	}
	for _, namespace := range s.Namespaces {
		var pair [2]*link.Link
		for i := range pair {
			if pair[i], err = link.Open(config); err != nil {
				return nil, err
			}
		}
		h.links[namespace] = pair
	}
	return h, nil
}

// Close closes the links.
func (h *Hands) Close() {
	h.flood.Close()
	for _, pair := range h.links {
		pair[0].Close()
		pair[1].Close()
	}
}

// Flooded is how many messages came of senders that are nobody's sidecar.
func (h *Hands) Flooded() int64 { return h.flood.Messages() }

// Sink is where a pod's sidecar pushes: a namespace's pods take turns between its two links, and
// keep theirs.
func (h *Hands) Sink(namespace, pod string) string {
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
