package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/link"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

// Two replicas of meshpulse in the place of one. Outside pods nobody plays their Services, so two
// fronts do: what the API server asks goes to a replica that is ready, in turn, and a sidecar's
// connection to one that lives. What leads to a replica, from the other one and from sidecars, goes
// over a link that can be cut.

const (
	// pairRetention is how far back the two keep, and so how long one that comes back warms up: the
	// queries' [1m], the surge detector's newest 10 s, and a flush.
	pairRetention = 75 * time.Second
	// pairAway is how long a replica that was killed stays away.
	pairAway = 15 * time.Second
	// unready is for how long a replica's probe fails before it is not led to: the manifests' eight
	// times two seconds.
	unready = 16 * time.Second
)

// pair are two replicas and their fronts. The first's manifests are both's.
type pair struct {
	*meshpulse // the first
	replicas   [2]*meshpulse
	peers      [2]*link.Link // before the port for the other replica of each, whose name is its address
	ingests    [2]*link.Link // before the port for sidecars of each
	api, sinks *front
	mu         sync.Mutex // who is led to, and who lives
	killed     int
	next       int        // who is killed next
	oracle     *meshpulse // one by itself beside the two, nil without
	looking    context.CancelFunc
}

// installPair is installMeshpulse of two, and an oracle beside them.
func installPair(ctx context.Context, l *lab, c *cluster.Cluster, dir string, options meshpulseOptions) (_ *pair, err error) {
	p := &pair{}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	if p.api, err = openFront(net.JoinHostPort(serviceIP, "443")); err != nil {
		return nil, err
	}
	if p.sinks, err = openFront("127.0.0.1:0"); err != nil {
		return nil, err
	}
	hosts, ports, err := p.openPeers()
	if err != nil {
		return nil, err
	}
	names := p.peers[0].Address() + "," + p.peers[1].Address()
	for i := range p.replicas {
		own := options
		own.host = hosts[i]
		own.flags = append([]string{
			"--retention=" + pairRetention.String(), "--peers=" + names, "--peers-address=" + ports[i], "--replica-name=" + p.peers[i].Address(),
		}, options.flags...)
		if i == 0 {
			p.replicas[0], err = prepareMeshpulse(ctx, l, c, dir, own)
		} else {
			p.replicas[1], err = p.replicas[0].another(ctx, filepath.Join(dir, "meshpulse-2"), own)
		}
		if err != nil {
			return nil, err
		}
		if p.ingests[i], err = link.Open(link.Config{Upstream: p.replicas[i].ingest, Opaque: true}); err != nil {
			return nil, err
		}
		p.api.add(net.JoinHostPort(hosts[i], "443"))
		p.sinks.add(p.ingests[i].Address())
		if err := p.launch(i); err != nil {
			return nil, err
		}
	}
	p.meshpulse = p.replicas[0]
	if options.oracle {
		if err := p.startOracle(ctx, dir, options); err != nil {
			return nil, err
		}
	}
	var looking context.Context
	looking, p.looking = context.WithCancel(context.Background())
	go p.look(looking)
	return p, p.replicas[0].answered(ctx)
}

// startOracle starts one by itself, to which the front copies all that sidecars send.
func (p *pair) startOracle(ctx context.Context, dir string, options meshpulseOptions) (err error) {
	options.host = "127.96.0.23"
	options.flags = append([]string{"--retention=" + pairRetention.String()}, options.flags...)
	if p.oracle, err = p.another(ctx, filepath.Join(dir, "oracle"), options); err != nil {
		return err
	}
	p.sinks.copyTo(p.oracle.ingest)
	return p.oracle.launch()
}

// openPeers finds each replica's host and its port for the other, and opens what leads there.
func (p *pair) openPeers() (hosts, ports [2]string, err error) {
	free, err := cluster.FreePorts(len(p.peers))
	if err != nil {
		return hosts, ports, err
	}
	for i := range p.peers {
		hosts[i] = fmt.Sprintf("127.96.0.%d", 21+i)
		ports[i] = net.JoinHostPort(hosts[i], strconv.Itoa(free[i]))
		if p.peers[i], err = link.Open(link.Config{Upstream: ports[i], Opaque: true}); err != nil {
			return hosts, ports, err
		}
	}
	return hosts, ports, nil
}

// sink is the front's.
func (p *pair) sink() string { return p.sinks.address() }

// look leads the API server's connections to the replicas that are ready, as a Service does by
// their probes.
func (p *pair) look(ctx context.Context) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, //nolint:gosec // as a probe
	}}
	var good [2]time.Time
	for proc.Sleep(ctx, 250*time.Millisecond) {
		for i := range p.replicas {
			before := p.replicas[i].current()
			ready := false
			if r, err := client.Get("https://" + p.api.to(i) + "/readyz"); err == nil {
				_ = r.Body.Close()
				ready = r.StatusCode == http.StatusOK
			}
			if ready {
				good[i] = time.Now()
			}
			p.mu.Lock()
			if before != nil && before == p.replicas[i].current() && (ready || time.Since(good[i]) > unready) {
				p.api.lead(i, ready)
			}
			p.mu.Unlock()
		}
	}
}

// kill kills one of the two, and what leads to it.
func (p *pair) kill(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.api.lead(i, false)
	p.sinks.lead(i, false)
	p.replicas[i].kill()
	p.api.cut(i)
	p.sinks.cut(i)
}

// launch starts one of the two. It is led to once it is ready.
func (p *pair) launch(i int) error {
	err := p.replicas[i].launch()
	p.sinks.lead(i, err == nil)
	return err
}

// restart kills one of the two in turn and starts it anew after a while.
func (p *pair) restart(ctx context.Context) error {
	i := p.next
	p.next = 1 - i
	return p.killAndLaunch(ctx, i)
}

// killAndLaunch kills one of the two, while both are ready, and starts it anew after a while.
func (p *pair) killAndLaunch(ctx context.Context, i int) error {
	if !p.api.leads(0) || !p.api.leads(1) {
		return errors.New("a replica is to be killed while the other one is not ready: leave more time between two")
	}
	p.kill(i)
	p.killed++
	slog.Info("a replica is killed", "replica", i, "so far", p.killed)
	proc.Sleep(ctx, pairAway)
	if ctx.Err() != nil {
		return nil
	}
	return p.launch(i)
}

// firstOwner is who of the two answers for a namespace, and acts.
func (p *pair) firstOwner(namespace string) int {
	var members []fleet.Member
	for _, l := range p.peers {
		members = append(members, fleet.Member{Name: l.Address(), State: fleet.Active})
	}
	first := fleet.Owners(namespace, members)[0]
	return slices.IndexFunc(members, func(m fleet.Member) bool { return m.Name == first.Name })
}

// roll is a rolling update: the second first, as of a StatefulSet, and the next once it is ready
// again. Nothing new is led to one that ends.
func (p *pair) roll(ctx context.Context) error {
	for i := len(p.replicas) - 1; i >= 0; i-- {
		p.mu.Lock()
		p.api.lead(i, false)
		p.sinks.lead(i, false)
		p.mu.Unlock()
		if err := p.replicas[i].leave(); err != nil {
			return err
		}
		slog.Info("a replica has ended", "replica", i)
		if err := p.launch(i); err != nil {
			return err
		}
		for !p.api.leads(i) {
			if !proc.Sleep(ctx, 100*time.Millisecond) {
				return nil
			}
			if err := p.failed(); err != nil {
				return err
			}
		}
		slog.Info("a replica is ready again", "replica", i)
	}
	return nil
}

// prepare is the first's: the HPA is the cluster's.
func (p *pair) prepare(ctx context.Context, hpa *autoscalingv2.HorizontalPodAutoscaler) error {
	return p.meshpulse.prepare(ctx, hpa)
}

func (p *pair) failed() error {
	return errors.Join(p.replicas[0].failed(), p.replicas[1].failed())
}

func (p *pair) processes() map[string]int {
	all := map[string]int{}
	for i, r := range p.replicas {
		if running := r.current(); running != nil {
			all[fmt.Sprintf("meshpulse-%d", i)] = running.PID()
		}
	}
	return all
}

// wireBytes is what those that are there have been sent.
func (p *pair) wireBytes(ctx context.Context) (sum float64, err error) {
	var errs []error
	for _, r := range p.replicas {
		n, err := r.wireBytes(ctx)
		sum, errs = sum+n, append(errs, err)
	}
	if slices.Contains(errs, nil) {
		return sum, nil
	}
	return 0, errors.Join(errs...)
}

func (p *pair) stop() {
	if p.looking != nil {
		p.looking()
	}
	for _, f := range []*front{p.api, p.sinks} {
		if f != nil {
			f.close()
		}
	}
	if p.oracle != nil {
		p.oracle.stop()
	}
	for i, r := range p.replicas {
		if r != nil {
			r.stop()
		}
		for _, l := range []*link.Link{p.peers[i], p.ingests[i]} {
			if l != nil {
				l.Close()
			}
		}
	}
}
