package envoystats

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/meshpulse/meshpulse/aggregator"
	"github.com/meshpulse/meshpulse/envoystats/relay"
)

// Config is what a sink can be told. The zero value of a field means its default.
type Config struct {
	// Keep lists prefixes of the families that are read for whoever asks, after Istio's stat prefix
	// "istiocustom." has been taken off (default: requests, their durations, messages, TCP; ""
	// keeps everything). istio_request_duration_milliseconds is always read: a counter's past is
	// taken from it. Of Istio's others those are read that the store asks for. The store has to be
	// told the same (Kept).
	Keep []string
	// CustomTags names the tags that Telemetry resources add to Istio's own. They are needed where
	// tags come joined in the family's name; without, what follows the last known tag is kept whole
	// in the label custom_tags.
	CustomTags []string
	// MaxMessageBytes bounds one message (default 64 MiB). A sidecar whose flush is larger loops
	// for ever, so it is well above what they send.
	MaxMessageBytes int
	// MaxStreams bounds the streams that are open at once (default 50,000).
	MaxStreams int
	// MaxConnections bounds the connections that are open at once (default MaxStreams and a tenth
	// or a hundred more: one that was lost is noticed later than its successor comes; as many as a
	// quarter of MemoryLimit is for at most, at 32 KiB each, and 64 where there is TLS). It is
	// never more than the process may open files, less a quarter of those and 32 at least: HTTPS
	// needs some.
	MaxConnections int
	// MaxPendingBytes bounds what has come in of messages that are not whole yet, of all
	// connections together. Beyond it the connection that holds most of them is closed. After a
	// restart or a network's pause all sidecars send at once, and none may be cut off for that: a
	// flush is less than a third of what its sidecar's rings take, which are three quarters of the
	// memory at most. So the default is a quarter of MemoryLimit, and at least four messages of
	// MaxMessageBytes and 16 MiB.
	MaxPendingBytes int
	// MemoryLimit is how many bytes the process is meant to take, which is GOMEMLIMIT (default 4
	// GiB).
	MemoryLimit int64
	// MaxBytesPerSecond bounds what one stream may send, a message counting 4 KiB more, with five
	// seconds' worth at once (default 16 MiB: more than one flush of MaxMessageBytes in five
	// seconds). Beyond it the stream's next message is read later.
	MaxBytesPerSecond int
	// MaxCallerSeries is how many series a stream has before those that differ in what callers of
	// the pod choose share one (default 10,000, half of what the store takes of a pod): the Host
	// header and Telemetry's own tags, which then are missing, with otel_metric_overflow="true" in
	// their place.
	MaxCallerSeries int
	// CountersAsDeltas is the store's.
	CountersAsDeltas bool
	// MaxNameBytes bounds a family's name (default 8 KiB: in Istio's default mode all labels are in
	// it), MaxLabelBytes the name or value of one label (default 2 KiB), MaxLabels the labels of a
	// series (default 64), MaxBuckets the buckets of a histogram (default 256). A sample beyond is
	// dropped and counted.
	MaxNameBytes, MaxLabelBytes, MaxLabels, MaxBuckets int
	// TLS serves the sink over TLS alone; a client certificate that it verified sets
	// [aggregator.Pod.Peer], and proves nothing more. Nil is plaintext: who reaches the port can
	// then report as any pod whose address the store does not hold against it.
	TLS *tls.Config
	// Mutual serves it in plaintext and over mutual TLS, in the place of TLS; nil does not.
	Mutual *Mutual
	// Replicas get what they keep beside or in the place of this one; nil where there are none.
	Replicas *relay.Replicas
	// Registerer receives the sink's own metrics; nil keeps them unregistered.
	Registerer prometheus.Registerer
	// Logger takes the state changes of streams (default slog.Default).
	Logger *slog.Logger
	// Now is the clock that stamps a message's arrival (default time.Now).
	Now func() time.Time

	// times are for tests, which do not want to wait; zero is the default.
	times times
	// contain does what a panic must not go beyond; nil does it without.
	contain func(part, subject string, do func()) bool
}

// times are how long a connection is waited for.
type times struct {
	// handshake is for TLS and HTTP/2's preface; message for the first message, and for the end of
	// one that was begun.
	handshake, message time.Duration
	// quiet is how long nothing comes after a flush.
	quiet time.Duration
	// turn is how long a connection of which a message waits for its handler is not read, at most.
	// gRPC's keepalive waits longer.
	turn time.Duration
}

// ErrConfig is wrapped by what Validate returns.
var ErrConfig = errors.New("ingest configuration")

// Validate returns an error that names the first setting that cannot be used. It wraps ErrConfig.
func (c Config) Validate() error {
	for _, limit := range []struct {
		name       string
		value, max int
	}{
		{"MaxMessageBytes (--max-message-bytes)", c.MaxMessageBytes, 1 << 30},
		{"MaxStreams (--max-streams)", c.MaxStreams, math.MaxInt32},
		{"MaxConnections (--max-connections)", c.MaxConnections, math.MaxInt32},
		{"MaxPendingBytes (--max-pending-bytes)", c.MaxPendingBytes, math.MaxInt},
		{"MemoryLimit (GOMEMLIMIT)", int(c.MemoryLimit), math.MaxInt},
		{"MaxBytesPerSecond (--max-bytes-per-second)", c.MaxBytesPerSecond, math.MaxInt},
		{"MaxCallerSeries", c.MaxCallerSeries, math.MaxInt32},
		{"MaxNameBytes", c.MaxNameBytes, 1 << 20},
		{"MaxLabelBytes", c.MaxLabelBytes, 1 << 20},
		{"MaxLabels", c.MaxLabels, 1024},
		{"MaxBuckets", c.MaxBuckets, 4096},
	} {
		if limit.value < 0 || limit.value > limit.max {
			return fmt.Errorf("%w: %s is %d, must be between 1 and %d: leave it out for the default", ErrConfig, limit.name, limit.value, limit.max)
		}
	}
	if c.Keep != nil && len(c.Keep) == 0 {
		return fmt.Errorf("%w: nothing is to be kept (--keep): give at least one prefix, such as istio_requests_total, or leave it out for what most HPAs ask for", ErrConfig)
	}
	if c.TLS != nil && c.Mutual != nil {
		return fmt.Errorf("%w: TLS alone and mutual TLS: give one of them", ErrConfig)
	}
	if err := c.Mutual.validate(); err != nil {
		return err
	}
	for _, tag := range c.CustomTags {
		if tag == "" || strings.Contains(tag, ".") {
			return fmt.Errorf("%w: custom tag %q (--custom-tags): a tag's name is not empty and has no dots", ErrConfig, tag)
		}
	}
	return nil
}

// connectionBytes and secureBytes are what a connection with a stream takes, in plaintext and over
// TLS: 31 KB were measured with 8,000, and with 1,000 over TLS 67 KB of resident memory more (make
// bench-mtls), of which half is the collector's room and the rest a record, a chain and ciphers.
const connectionBytes, secureBytes = 32 << 10, 64 << 10

// connectionsOf is how many of the process' descriptors are for the sink's connections.
func connectionsOf(descriptors int) int { return max(1, descriptors-max(32, descriptors/4)) }

// leastPending leaves room for a message that is larger than a small MaxMessageBytes: gRPC refuses
// it by name, which a closed connection would not.
const leastPending = 16 << 20

// leastShare is how many connections and streams a sender has whatever others do, while there is
// room.
const leastShare = 16

// Kept are the prefixes of the metrics that are read for whoever asks, by their names in
// Prometheus: what [aggregator.Config.Keep] has to be.
func (c Config) Kept() []string {
	kept := []string{durationMetric}
	for _, prefix := range c.withDefaults().Keep {
		kept = append(kept, keptName(prefix))
	}
	return kept
}

// Keeps reports whether a metric is read, by its name in Prometheus: for whoever asks, or as
// Istio's are where an HPA names them.
func (c Config) Keeps(metric string) bool {
	return slices.ContainsFunc(append(c.Kept(), istioPrefix), func(prefix string) bool { return strings.HasPrefix(metric, prefix) })
}

func (c Config) withDefaults() Config {
	if c.Keep == nil {
		c.Keep = []string{"istio_requests_total", durationMetric, "istio_request_messages_total", "istio_response_messages_total", "istio_tcp_"}
	}
	c.MaxMessageBytes = cmp.Or(c.MaxMessageBytes, 64<<20)
	c.MaxStreams = cmp.Or(c.MaxStreams, 50_000)
	c.MemoryLimit = cmp.Or(c.MemoryLimit, 4<<30)
	each := int64(connectionBytes)
	if c.TLS != nil || c.Mutual != nil {
		each = secureBytes
	}
	c.MaxConnections = cmp.Or(c.MaxConnections, min(c.MaxStreams+max(100, c.MaxStreams/10), max(1, int(c.MemoryLimit/4/each))))
	c.MaxConnections = min(c.MaxConnections, connectionsOf(descriptors()))
	c.MaxPendingBytes = cmp.Or(c.MaxPendingBytes, max(int(c.MemoryLimit/4), 4*c.MaxMessageBytes, leastPending))
	c.MaxBytesPerSecond = cmp.Or(c.MaxBytesPerSecond, 16<<20)
	c.times.handshake = cmp.Or(c.times.handshake, 30*time.Second)
	c.times.message = cmp.Or(c.times.message, time.Minute)
	c.times.turn = cmp.Or(c.times.turn, 5*time.Second)
	c.times.quiet = cmp.Or(c.times.quiet, quiet)
	c.MaxCallerSeries = cmp.Or(c.MaxCallerSeries, 10_000)
	c.MaxNameBytes = cmp.Or(c.MaxNameBytes, 8<<10)
	c.MaxLabelBytes = cmp.Or(c.MaxLabelBytes, 2<<10)
	c.MaxLabels = cmp.Or(c.MaxLabels, 64)
	c.MaxBuckets = cmp.Or(c.MaxBuckets, 256)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// rules returns what the scans of a server with this configuration share.
func (c Config) rules() *scanRules {
	r := &scanRules{
		stopped:          new(atomic.Bool),
		callerSeries:     c.MaxCallerSeries,
		deltas:           c.CountersAsDeltas,
		maxName:          c.MaxNameBytes,
		maxLabel:         c.MaxLabelBytes,
		maxLabels:        c.MaxLabels,
		maxBuckets:       c.MaxBuckets,
		names:            newNameParser(c.CustomTags),
		tags:             bootstrapTags(),
		counterSeed:      maphash.MakeSeed(),
		distributionSeed: maphash.MakeSeed(),
		gaugeSeed:        maphash.MakeSeed(),
		labelSeed:        maphash.MakeSeed(),
		ownSeed:          maphash.MakeSeed(),
	}
	for _, prefix := range append([]string{durationMetric}, c.Keep...) {
		if stat, ok := strings.CutPrefix(prefix, aggregator.ProxyPrefix); ok {
			r.proxy = append(r.proxy, proxyMetric(stat))
			continue
		}
		r.keep = append(r.keep, []byte(strings.TrimPrefix(prefix, statPrefix)))
	}
	return r
}

// podStream is what a stream needs of the store: an [aggregator.Stream].
type podStream interface {
	Asked() *aggregator.Asked
	Commit(arrival time.Time, b *aggregator.Batch, d aggregator.Describer) error
	Missed(arrival time.Time)
	Close()
}

// Server is the sink. It is safe for concurrent use.
type Server struct {
	config   Config
	connect  func(aggregator.Pod) podStream
	refused  func(p aggregator.Pod, why string) // is told who was, as which pod; nil in tests
	scans    *scans
	metrics  *metrics
	warnings *warnings
	conns    *connections
	grpc     *grpc.Server
	nodeSeed maphash.Seed       // tells whether an identifier is the one that a stream began with
	open     *aggregator.Shares // of streams, by sender
	draining atomic.Bool
}

// NewServer returns a sink that reports to the store, or an error that names the setting that is
// wrong.
func NewServer(c Config, store *aggregator.Store) (*Server, error) {
	c.contain = func(part, subject string, do func()) bool { return store.Contain(part, subject, do) }
	s, err := newServer(c, func(p aggregator.Pod) podStream { return store.Connect(p) })
	if err == nil {
		s.refused = store.NoteRefused
	}
	return s, err
}

func newServer(c Config, connect func(aggregator.Pod) podStream) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	given := c.MaxConnections
	c = c.withDefaults()
	if c.MaxConnections < given {
		c.Logger.Warn("fewer connections are taken than --max-connections says: the process may not have as many files open, raise that limit (ulimit -n)",
			slog.Int("max_connections", c.MaxConnections), slog.Int("descriptors", descriptors()))
	}
	if given > 0 && given < c.MaxStreams { // a connection can carry some, but Envoy opens one for each
		c.Logger.Warn("--max-connections is less than --max-streams, and as a rule a stream has a connection of its own: fewer sidecars get in, raise the one or lower the other",
			slog.Int("max_connections", given), slog.Int("max_streams", c.MaxStreams))
	}
	conns := &connections{
		mutual: c.Mutual, now: c.Now, quiet: c.times.quiet, shares: aggregator.NewShares(int64(c.MaxConnections), leastShare), max: c.MaxConnections,
		maxPending: int64(c.MaxPendingBytes), patience: c.times.message, turn: c.times.turn,
	}
	m, err := newMetrics(c.Registerer, conns)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	s := &Server{
		config:   c,
		connect:  connect,
		scans:    newScans(c.rules()),
		metrics:  m,
		warnings: &warnings{logger: c.Logger, now: c.Now},
		conns:    conns,
		open:     aggregator.NewShares(int64(c.MaxStreams), leastShare),
		nodeSeed: maphash.MakeSeed(),
	}
	conns.metrics, conns.warnings = m, s.warnings
	opts := append(c.ServerOptions(), grpc.ForceServerCodecV2(codec{s.scans}))
	if c.TLS != nil || c.Mutual != nil {
		opts = append(opts, grpc.ReadBufferSize(readBuffer), grpc.Creds(newDoors(c, s.conns)))
	}
	s.grpc = grpc.NewServer(opts...)
	s.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: "envoy.service.metrics.v3.MetricsService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName:    "StreamMetrics",
			Handler:       func(_ any, stream grpc.ServerStream) error { return s.streamMetrics(stream) },
			ClientStreams: true,
		}},
		Metadata: "envoy/service/metrics/v3/metrics_service.proto",
	}, nil)
	return s, nil
}

// Streams is how many sidecars are connected.
func (s *Server) Streams() int { return int(s.open.Taken()) }

// Serve accepts sidecars on the listener until Shutdown, after which it returns nil. It closes the
// listener.
func (s *Server) Serve(lis net.Listener) error {
	done := make(chan struct{})
	defer close(done)
	go s.conns.watch(done)
	if err := s.grpc.Serve(s.conns.listen(lis)); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("ingest on %s: %w", lis.Addr(), err)
	}
	return nil
}

// drainGrace is what streams are given to end by themselves: enough for a message that is on its
// way.
const drainGrace = time.Second

// Shutdown ends the sink: no new streams, every open one ends after the message it is in, and what
// does not within a second (Envoy never ends a stream by itself) or before the context ends is cut
// off, in the middle of a large message, too. It returns the context's error if that came first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	var err error
	select {
	case <-done:
	case <-time.After(drainGrace):
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.scans.rules.stopped.Store(true)
	s.grpc.Stop() // ends GracefulStop, too
	<-done
	return err
}
