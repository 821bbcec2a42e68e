package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/meshpulse/meshpulse/envoystats/fleet"
	"github.com/meshpulse/meshpulse/envoystats/relay"
	"github.com/meshpulse/meshpulse/metricsapi/cluster"
)

// peers are the flags of several replicas. Without any there is one, which knows of no others.
type peers struct {
	static     []string
	service    string
	name       string
	address    string
	certDir    string
	queueBytes int
}

// defaultPeersAddress is where other replicas reach one that runs in a cluster.
const defaultPeersAddress = "0.0.0.0:15091"

// peerCertificate begins the name that the replicas' certificates hold, before their namespace.
const peerCertificate = "meshpulse-peer"

func (p *peers) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&p.static, "peers", nil, "several replicas: HOST:PORT of each, at which they talk to each other. Two keep everything that sidecars send to either; of more, two keep what a namespace's pods send")
	f.StringVar(&p.service, "peers-service", "", "several replicas in a cluster: NAMESPACE/NAME of the headless Service that lists them, in the place of --peers")
	f.StringVar(&p.address, "peers-address", "", "HOST:PORT to listen on for other replicas; with --peers it is the one of them that is this (with --peers-service default 0.0.0.0:15091)")
	f.StringVar(&p.name, "replica-name", "", "what this replica is called, with --peers-service its pod's name (default $POD_NAME, else the host's); with --peers the one of them at which the others find it (default --peers-address, where it listens)")
	f.StringVar(&p.certDir, "peers-cert-dir", "", "folder with tls.crt, tls.key and ca.crt by which replicas know each other; the certificate is for meshpulse-peer.NAMESPACE.svc, with --peers for meshpulse-peer. The files are read again at each connection. Without it addresses have to be of this machine")
	f.Var(byteSize[int]{&p.queueBytes}, "peers-queue-bytes", "most bytes that wait to be sent to one replica; past it they are counted and dropped (default 64Mi, and no more than an eighth of --memory-budget, which what waits is a part of)")
}

// given reports whether there are others.
func (p *peers) given() bool { return len(p.static) > 0 || p.service != "" }

// complete puts what is meant in the place of what was not given, and says what is wrong.
func (p *peers) complete(standalone bool) error {
	var wrong complaints
	if !p.given() {
		wrong.when(p.address != "" || p.name != "" || p.certDir != "" || p.queueBytes != 0,
			"--peers-address, --replica-name, --peers-cert-dir and --peers-queue-bytes are of several replicas: say which with --peers or --peers-service, or leave them out")
		return errors.Join(wrong...)
	}
	wrong.when(len(p.static) > 0 && p.service != "", "--peers and --peers-service both say which replicas there are: give one of them")
	wrong.when(p.service != "" && standalone, "--peers-service asks the API server, and --standalone asks none: give --peers")
	namespace, service, ok := strings.Cut(p.service, "/")
	wrong.when(p.service != "" && (!ok || namespace == "" || service == ""), "--peers-service %q: give NAMESPACE/NAME", p.service)
	if p.service != "" {
		p.address = cmp.Or(p.address, defaultPeersAddress)
		if p.name == "" {
			var err error
			p.name, err = podName()
			wrong.when(err != nil, "--replica-name: %w", err)
		}
	} else {
		wrong.when(p.address == "", "--peers needs --peers-address: give the one of them that is this replica's")
		wrong.when(p.name != "" && !slices.Contains(p.static, p.name), "--replica-name %q is none of --peers: give the one of them at which the others find this replica", p.name)
		p.name = cmp.Or(p.name, p.address)
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	return p.config().Validate()
}

// podName is the pod's, which is the host's but on its node's network.
func podName() (string, error) {
	if name := os.Getenv("POD_NAME"); name != "" {
		return name, nil
	}
	return os.Hostname()
}

// config is all but what proves the replicas.
func (p *peers) config() relay.Config {
	c := relay.Config{Self: fleet.Member{Name: p.name, Address: p.address}, Static: p.static, QueueBytes: p.queueBytes}
	if p.certDir != "" {
		c.TLS = &relay.TLS{}
	}
	return c
}

// certificateName is what a replica's certificate has to hold.
func (p *peers) certificateName() string {
	namespace, _, ok := strings.Cut(p.service, "/")
	if !ok {
		return peerCertificate
	}
	return peerCertificate + "." + namespace + ".svc"
}

// open reads the files and opens the port.
func (p *peers) open(o *serveOptions, log *slog.Logger, r prometheus.Registerer) (_ *relay.Replicas, _ net.Listener, err error) {
	c := p.config()
	c.Logger, c.Registerer, c.MaxMessageBytes = log, r, o.sink.MaxMessageBytes
	c.QueueBytes = queueBytes(p.queueBytes, o.store.MemoryBudget)
	c.Since, c.History = time.Now(), cmp.Or(o.store.Retention, 5*time.Minute) // with its monotonic reading, which the store's start is without
	if p.certDir != "" {
		if c.TLS, err = relay.NewTLS(p.certDir, p.certificateName(), log); err != nil {
			return nil, nil, fmt.Errorf("--peers-cert-dir: %w", err)
		}
	}
	l, err := listen("--peers-address", p.address)
	if err != nil {
		return nil, nil, err
	}
	replicas, err := relay.New(c)
	if err != nil {
		return nil, l, usageError{err}
	}
	if p.service != "" {
		o.api.PeersService, o.api.PeersFound = p.service, func(found []cluster.Replica) { replicas.SetMembers(membersOf(found)) }
	}
	return replicas, l, nil
}

// queueBytes is what may wait for one replica where it is not given. What waits leaves less of the
// memory budget for series, so it does not take the most of a small one.
func queueBytes(given int, budget int64) int {
	const usual = 64 << 20
	if given != 0 || budget == 0 {
		return cmp.Or(given, usual)
	}
	return int(min(usual, budget/8))
}

// membersOf says of replicas what their endpoints tell.
func membersOf(found []cluster.Replica) []fleet.Member {
	var members []fleet.Member
	for _, r := range found {
		m := fleet.Member{Name: r.Name, Address: r.Address, Zone: r.Zone, State: fleet.Joining}
		switch {
		case r.Leaving:
			m.State = fleet.Leaving
		case r.Ready:
			m.State = fleet.Active
		}
		members = append(members, m)
	}
	return members
}
