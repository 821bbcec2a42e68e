package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
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
	next       int // who is killed next
	looking    context.CancelFunc
}

// installPair is installMeshpulse of two.
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
	var looking context.Context
	looking, p.looking = context.WithCancel(context.Background())
	go p.look(looking)
	return p, p.replicas[0].answered(ctx)
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

// restart kills one of the two in turn, while both are ready, and starts it anew after a while.
func (p *pair) restart(ctx context.Context) error {
	if !p.api.leads(0) || !p.api.leads(1) {
		return errors.New("a replica is to be killed while the other one is not ready: leave more time between two")
	}
	i := p.next
	p.next = 1 - i
	p.kill(i)
	p.killed++
	slog.Info("a replica is killed", "replica", i, "so far", p.killed)
	proc.Sleep(ctx, pairAway)
	if ctx.Err() != nil {
		return nil
	}
	return p.launch(i)
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

// front plays a Service. It is safe for concurrent use.
type front struct {
	listener net.Listener

	mu    sync.Mutex
	turn  int
	ends  []string
	led   []bool
	conns []map[net.Conn]bool
}

func openFront(address string) (*front, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	f := &front{listener: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return f, nil
}

func (f *front) address() string { return f.listener.Addr().String() }

func (f *front) close() {
	_ = f.listener.Close()
	for i := range f.ends {
		f.cut(i)
	}
}

// add adds an end, to which nothing is led yet.
func (f *front) add(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends, f.led, f.conns = append(f.ends, address), append(f.led, false), append(f.conns, map[net.Conn]bool{})
}

func (f *front) to(i int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ends[i]
}

// lead says whether new connections go to an end.
func (f *front) lead(i int, to bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.led[i] = to
}

func (f *front) leads(i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return i < len(f.led) && f.led[i]
}

// cut ends all connections to an end.
func (f *front) cut(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns[i] {
		_ = c.Close()
	}
}

// next is the end that has its turn, -1 if there is none.
func (f *front) next() (int, string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range f.ends {
		f.turn = (f.turn + 1) % len(f.ends)
		if f.led[f.turn] {
			return f.turn, f.ends[f.turn]
		}
	}
	return -1, ""
}

// serve hands a connection on until either end is gone.
func (f *front) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	i, address := f.next()
	if i < 0 {
		return
	}
	up, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	f.mu.Lock()
	led := f.led[i]
	f.conns[i][c], f.conns[i][up] = true, true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.conns[i], c)
		delete(f.conns[i], up)
	}()
	if !led { // killed meanwhile
		return
	}
	go func() {
		_, _ = io.Copy(c, up)
		_ = c.Close() // its replica is gone
	}()
	_, _ = io.Copy(up, c)
}
