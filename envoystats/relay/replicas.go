package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/fleet"
)

// Config is what [Replicas] are told. The zero value of a field means its default, where it does
// not say otherwise.
type Config struct {
	// Self is this replica: its name, and the address at which the others find it. Required.
	Self fleet.Member
	// Static are the addresses of all replicas, which then are their names; this one's may be among
	// them. Without it [Replicas.SetMembers] tells who there is.
	Static []string
	// History is how long a replica beside others has to be up before it is asked (default 5m).
	History time.Duration
	// Since is when it began to take flushes (default now).
	Since time.Time
	// TLS proves replicas to each other; nil is plaintext, which is for loopback addresses alone.
	TLS *TLS
	// QueueBytes bounds what waits to be sent to one replica (default 64 MiB).
	QueueBytes int
	// MaxMessageBytes bounds one message, uncompressed (default 64 MiB).
	MaxMessageBytes int
	// Registerer receives the package's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Logger takes state changes (default slog.Default).
	Logger *slog.Logger
	// Now is the clock (default time.Now).
	Now func() time.Time
}

const (
	// beatEvery is how often a replica says that it lives. Four of them make up the second after
	// which it is not asked any more.
	beatEvery = 250 * time.Millisecond
	// introduction is how long a replica by itself waits for others of a list to say what they are,
	// before it takes itself for one of the first.
	introduction = 2 * time.Second
	// company is by how much longer another replica may have been up that has no more history to
	// speak of: all that begin together are ready together, however one is ahead of the others.
	company = 10 * time.Second
	// FreshFor is how long a replica counts as alive, for what only one of them does.
	FreshFor = 3 * time.Second
)

func (c Config) withDefaults() Config {
	c.History = orDefault(c.History, 5*time.Minute)
	c.QueueBytes = orDefault(c.QueueBytes, 64<<20)
	c.MaxMessageBytes = orDefault(c.MaxMessageBytes, 64<<20)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Since.IsZero() {
		c.Since = c.Now()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

func orDefault[T comparable](given, usual T) T {
	var zero T
	if given == zero {
		return usual
	}
	return given
}

// ErrConfig is wrapped by what Validate returns.
var ErrConfig = errors.New("replicas")

// Validate returns an error that names the first setting that cannot be used. It wraps ErrConfig.
func (c Config) Validate() error {
	if c.Self.Name == "" {
		return fmt.Errorf("%w: this one has no name", ErrConfig)
	}
	for _, address := range append([]string{c.Self.Address}, c.Static...) {
		host, _, err := net.SplitHostPort(address)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %q is no address: give HOST:PORT", ErrConfig, address)
		case c.TLS == nil && !isLoopback(host):
			return fmt.Errorf("%w: %s can be reached from other machines, and nobody would have to prove that it is a replica: "+
				"give a certificate (--peers-cert-dir), or addresses of 127.0.0.0/8", ErrConfig, address)
		}
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Sink takes what other replicas relay.
type Sink interface {
	// Relayed opens a stream of a sidecar that another replica has taken in.
	Relayed(p aggregator.Pod) (Stream, error)
	// Streams is how many sidecars are connected to this replica itself.
	Streams() int
}

// Stream is one sidecar's stream, as it is relayed. Only one goroutine uses it.
type Stream interface {
	// Message applies a message that came at the given time. The bytes are good until it returns.
	// It reports whether more of the stream is to come.
	Message(arrival time.Time, message []byte) bool
	// End ends it.
	End()
}

// Replicas are all replicas of meshpulse, as one of them sees them. It is safe for concurrent use.
type Replicas struct {
	config  Config
	metrics *metrics
	warmth  *fleet.Warmth
	numbers atomic.Uint64 // of senders so far
	grpc    *grpc.Server
	listed  atomic.Bool // SetMembers was called
	sink    atomic.Pointer[Sink]
	answer  atomic.Pointer[func(context.Context, []byte) []byte]
	ending  atomic.Bool

	current atomic.Pointer[roster]
	mu      sync.Mutex // one change of the roster at a time
}

// roster is a list of replicas. It is never changed once it is published.
type roster struct {
	members []fleet.Member
	peers   map[string]*peer // all but this one, by name
}

// New returns the replicas as far as the configuration names them. Nothing is said to them before
// they are to be told something.
func New(c Config) (*Replicas, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	c.Self.State = fleet.Joining
	r := &Replicas{config: c, warmth: fleet.NewWarmth(c.Self.Name, c.Since, c.History)}
	r.current.Store(&roster{members: []fleet.Member{c.Self}, peers: map[string]*peer{}})
	var err error
	if r.metrics, err = newMetrics(c.Registerer, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	r.grpc = r.newServer()
	if len(c.Static) > 0 {
		members := []fleet.Member{c.Self}
		for _, address := range c.Static {
			if address != c.Self.Name {
				members = append(members, fleet.Member{Name: address, Address: address})
			}
		}
		r.setMembers(members)
	}
	return r, nil
}

// SetMembers says which replicas there are. Where this one is not among them it is taken for
// joining: its pod may just have begun.
func (r *Replicas) SetMembers(members []fleet.Member) {
	if !slices.ContainsFunc(members, r.isSelf) {
		members = append(slices.Clip(members), r.config.Self)
	}
	r.setMembers(members)
	r.listed.Store(true)
	r.see()
}

func (r *Replicas) isSelf(m fleet.Member) bool { return m.Name == r.config.Self.Name }

// setMembers begins to talk to those that are new, and leaves those that are gone.
func (r *Replicas) setMembers(members []fleet.Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.publish(members)
}

// publish is setMembers with the mutex held.
func (r *Replicas) publish(members []fleet.Member) {
	was := r.current.Load()
	if slices.Equal(was.members, members) {
		return
	}
	now := &roster{members: slices.Clone(members), peers: map[string]*peer{}}
	for _, m := range members {
		if r.isSelf(m) {
			continue
		}
		p := was.peers[m.Name]
		if p == nil || p.address != m.Address {
			p = r.connect(m)
		}
		now.peers[m.Name] = p
	}
	r.current.Store(now)
	for name, p := range was.peers {
		if now.peers[name] != p {
			p.leave()
		}
	}
}

// Members are the replicas that there are, this one among them.
func (r *Replicas) Members() []fleet.Member { return r.current.Load().members }

// Self is this replica's name.
func (r *Replicas) Self() string { return r.config.Self.Name }

// Owners returns the names of the replicas that answer for a namespace, the first in front.
func (r *Replicas) Owners(namespace string) []string {
	var names []string
	for _, m := range fleet.Owners(namespace, r.current.Load().members) {
		names = append(names, m.Name)
	}
	return names
}

// Several reports whether a replica may not keep what all namespaces send.
func (r *Replicas) Several() bool {
	n := 0
	for _, m := range r.current.Load().members {
		if m.State != fleet.Joining {
			n++
		}
	}
	return n > 2
}

// Silent is for how long nothing was heard of a replica; of one that was never heard of, for ever.
func (r *Replicas) Silent(name string) time.Duration {
	p := r.current.Load().peers[name]
	if p == nil {
		return math.MaxInt64
	}
	return p.silent(r.config.Now())
}

// Leads reports whether this replica is the one that does for a namespace what only one should: the
// first of its owners that is alive.
func (r *Replicas) Leads(namespace string) bool {
	for _, name := range r.Owners(namespace) {
		if name == r.Self() {
			return true
		}
		if r.Silent(name) < FreshFor {
			return false
		}
	}
	return false
}

// Cold says why this replica is not to be asked yet, nil if it is.
func (r *Replicas) Cold() error { return r.warmth.Cold(r.config.Now()) }

// Ask asks a replica and returns its answer.
func (r *Replicas) Ask(ctx context.Context, name string, request []byte) ([]byte, error) {
	p := r.current.Load().peers[name]
	if p == nil {
		return nil, fmt.Errorf("no replica %s is known", name)
	}
	return p.ask(ctx, request)
}

// Answer sets how questions of other replicas are answered.
func (r *Replicas) Answer(f func(ctx context.Context, request []byte) []byte) { r.answer.Store(&f) }

// Relay sets what takes the flushes that other replicas relay.
func (r *Replicas) Relay(s Sink) { r.sink.Store(&s) }

// beat is what this replica says of itself.
func (r *Replicas) beat() Beat {
	b := Beat{Ending: r.ending.Load(), Up: r.up()}
	if sink := r.sink.Load(); sink != nil {
		b.Streams = (*sink).Streams()
	}
	for _, m := range r.Members() {
		if r.isSelf(m) {
			b.State = m.State
		}
	}
	return b
}

// heard notes a sign of life.
func (r *Replicas) heard(name string, b *Beat) {
	p := r.current.Load().peers[name]
	if p == nil {
		return
	}
	if b != nil {
		p.ending.Store(b.Ending)
		p.ahead.Store(int64(b.Up - r.up()))
	}
	p.heard.Store(r.up().Nanoseconds() + 1)
	if b != nil && len(r.config.Static) > 0 {
		r.turn(name, b.State)
	}
}

// turn notes the state of a replica that the configuration names.
func (r *Replicas) turn(name string, state fleet.State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	members := slices.Clone(r.current.Load().members)
	for i := range members {
		if members[i].Name == name {
			members[i].State = state
		}
	}
	r.publish(members)
}

// up is for how long this replica has taken flushes.
func (r *Replicas) up() time.Duration { return r.config.Now().Sub(r.config.Since) }

// Run sees whether this replica is warm until the context ends.
func (r *Replicas) Run(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.look()
		}
	}
}

// look sees whether this replica is warm, once the others have said what they are, or have not for
// long.
func (r *Replicas) look() {
	static := len(r.config.Static) > 0
	known := r.listed.Load()
	if static {
		known = r.up() > introduction || r.heardOfAll()
	}
	if known {
		r.see()
	}
	if static && r.Cold() == nil {
		r.turn(r.Self(), fleet.Active)
	}
}

func (r *Replicas) heardOfAll() bool {
	for _, p := range r.current.Load().peers {
		if p.heard.Load() == 0 {
			return false
		}
	}
	return true
}

// see notes who has more history than this replica.
func (r *Replicas) see() {
	now := r.current.Load()
	members := slices.Clone(now.members)
	for i, m := range members {
		p := now.peers[m.Name]
		if p != nil && p.heard.Load() > 0 && time.Duration(p.ahead.Load()) < company {
			members[i].State = fleet.Joining
		}
	}
	r.warmth.See(members)
}

// Serve takes what other replicas say until Shutdown, after which it returns nil. It closes the
// listener.
func (r *Replicas) Serve(l net.Listener) error {
	b := &bounded{l, aggregator.NewShares(maxConnections, leastEach), r.metrics.unconnected}
	if err := r.grpc.Serve(b); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("replicas on %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown tells the others that this replica ends, sends them what waits for them, for as long as
// the context lasts, and ends what they say.
func (r *Replicas) Shutdown(ctx context.Context) {
	r.ending.Store(true)
	r.mu.Lock()
	peers := r.current.Load().peers
	r.mu.Unlock()
	var all sync.WaitGroup
	for _, p := range peers {
		all.Go(func() { p.drain(ctx) })
	}
	all.Wait()
	r.grpc.Stop()
}
