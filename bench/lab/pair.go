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
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/meshpulse/meshpulse/bench/lab/cluster"
	"github.com/meshpulse/meshpulse/bench/lab/proc"
)

// Two replicas of meshpulse in the place of one. Outside pods nobody plays their Services, so two
// fronts do: what the API server asks goes to a replica that is ready, in turn, and a sidecar's
// connection to one that lives.

// pairRetention is how far back the two keep, and so how long one that comes back warms up: the
// queries' [1m], the surge detector's newest 10 s, and a flush.
const pairRetention = 75 * time.Second

// pairAway is how long a replica that was killed stays away.
const pairAway = 15 * time.Second

// pair are two replicas and their fronts. The first's manifests are both's.
type pair struct {
	*meshpulse // the first
	replicas   [2]*meshpulse
	api, sinks *front
	killed     int
	next       int // who is killed next
	looking    context.CancelFunc
}

// installPair is installMeshpulse of two.
func installPair(ctx context.Context, l *lab, c *cluster.Cluster, dir string, options meshpulseOptions) (_ *pair, err error) {
	ports, err := cluster.FreePorts(2)
	if err != nil {
		return nil, err
	}
	p := &pair{}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	peer := func(i int) string { return fmt.Sprintf("127.96.0.%d:%d", 21+i, ports[i]) }
	if p.api, err = openFront(net.JoinHostPort(serviceIP, "443")); err != nil {
		return nil, err
	}
	if p.sinks, err = openFront("127.0.0.1:0"); err != nil {
		return nil, err
	}
	options.flags = append(slices.Clone(options.flags), "--retention="+pairRetention.String(), "--peers="+peer(0)+","+peer(1))
	for i := range p.replicas {
		own, host := options, fmt.Sprintf("127.96.0.%d", 21+i)
		own.flags = append(slices.Clone(options.flags), "--bind-address="+host, "--peers-address="+peer(i))
		if i == 0 {
			p.replicas[0], err = prepareMeshpulse(ctx, l, c, dir, own)
		} else {
			p.replicas[1], err = p.replicas[0].another(ctx, filepath.Join(dir, "meshpulse-2"), own)
		}
		if err != nil {
			return nil, err
		}
		p.api.add(net.JoinHostPort(host, "443"))
		p.sinks.add(p.replicas[i].ingest)
		if err := p.replicas[i].launch(); err != nil {
			return nil, err
		}
		p.sinks.lead(i, true)
	}
	p.meshpulse = p.replicas[0]
	var looking context.Context
	looking, p.looking = context.WithCancel(context.Background())
	go p.look(looking)
	return p, p.replicas[0].answered(ctx)
}

// sink is the front's.
func (p *pair) sink() string { return p.sinks.address() }

// look leads the API server's connections to the replicas that are ready, as a Service does by
// their probes.
func (p *pair) look(ctx context.Context) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, //nolint:gosec // as a probe
	}}
	for proc.Sleep(ctx, 250*time.Millisecond) {
		for i := range p.replicas {
			ready := false
			if r, err := client.Get("https://" + p.api.to(i) + "/readyz"); err == nil {
				_ = r.Body.Close()
				ready = r.StatusCode == http.StatusOK
			}
			p.api.lead(i, ready)
		}
	}
}

// restart kills one of the two in turn, while both are ready, and starts it anew after a while.
func (p *pair) restart(ctx context.Context) error {
	if !p.api.leads(0) || !p.api.leads(1) {
		return errors.New("a replica is to be killed while the other one is not ready: leave more time between two")
	}
	i := p.next
	p.next = 1 - i
	p.api.lead(i, false)
	p.sinks.lead(i, false)
	p.replicas[i].kill()
	p.api.cut(i)
	p.sinks.cut(i)
	p.killed++
	slog.Info("a replica is killed", "replica", i, "so far", p.killed)
	proc.Sleep(ctx, pairAway)
	if ctx.Err() != nil {
		return nil
	}
	err := p.replicas[i].launch()
	p.sinks.lead(i, err == nil)
	return err
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

func (p *pair) stop() {
	if p.looking != nil {
		p.looking()
	}
	for _, f := range []*front{p.api, p.sinks} {
		if f != nil {
			f.close()
		}
	}
	for _, r := range p.replicas {
		if r != nil {
			r.stop()
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
