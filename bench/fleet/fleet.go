package fleet

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Fleet is a fleet of sidecars. It is safe for concurrent use.
type Fleet struct {
	config   Config
	template *template
	dial     []grpc.DialOption
	buffers  buffers
	sidecars []*sidecar
	calm     atomic.Bool // no more churn
	stats    struct {
		streams, opened, flushes, bytes, failed, mostFailed, replaced, restarted, lateMs atomic.Int64
		lastError                                                                        atomic.Pointer[string]
	}
}

// Stats is what a fleet has done since it was made.
type Stats struct {
	// Streams are open now; Opened counts all that ever were.
	Streams, Opened int64
	// Flushes were sent, of Bytes without framing; Failed could not be sent and are lost, as Envoy
	// loses them.
	Flushes, Bytes, Failed int64
	// MostFailed is how many flushes the sidecar has lost that has lost the most.
	MostFailed int64
	// Replaced and Restarted count the pods that were.
	Replaced, Restarted int64
	// LateMs is by how much the latest flush missed its time: whether the sender itself keeps up.
	LateMs int64
	// LastError is why the newest flush failed that did, "" if none did.
	LastError string
}

// New encodes the messages of a fleet. Nothing is sent before Run.
func New(c Config) (*Fleet, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	t, err := newTemplate(newTraffic(c.LabelSets, c.Busiest), c.Labels)
	if err != nil {
		return nil, err
	}
	f := &Fleet{config: c, template: t}
	if f.dial, err = dialOptions(c); err != nil {
		return nil, err
	}
	for i := range c.Pods {
		f.sidecars = append(f.sidecars, &sidecar{fleet: f, number: i, orders: make(chan order, 1)})
	}
	return f, nil
}

func plaintext() credentials.TransportCredentials { return insecure.NewCredentials() }

// Run lets the sidecars report until the context ends.
func (f *Fleet) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, s := range f.sidecars {
		all.Go(func() { s.run(ctx) })
	}
	all.Go(func() { f.churn(ctx, f.config.ReplacedPerMinute, replace) })
	all.Go(func() { f.churn(ctx, f.config.RestartedPerMinute, restart) })
	all.Wait()
}

// Reconnect breaks all connections at once; every sidecar connects anew and flushes.
func (f *Fleet) Reconnect() {
	for _, s := range f.sidecars {
		s.order(reconnect)
	}
}

// Calm ends churn: what is away comes back with its next flush.
func (f *Fleet) Calm() { f.calm.Store(true) }

// churn gives an order to random sidecars at the rate.
func (f *Fleet) churn(ctx context.Context, perMinute int, o order) {
	if perMinute == 0 {
		return
	}
	tick := time.NewTicker(time.Minute / time.Duration(perMinute))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if f.calm.Load() {
				return
			}
			f.pick().order(o)
		}
	}
}

// order tells the sidecar, unless it has not got round to an earlier order.
func (s *sidecar) order(o order) {
	select {
	case s.orders <- o:
	default:
	}
}

func (f *Fleet) late(by time.Duration) { raise(&f.stats.lateMs, by.Milliseconds()) }

// raise has a figure be n at least.
func raise(figure *atomic.Int64, n int64) {
	for {
		old := figure.Load()
		if n <= old || figure.CompareAndSwap(old, n) {
			return
		}
	}
}

func (f *Fleet) note(err error) {
	text := err.Error()
	f.stats.lastError.Store(&text)
}

// Stats returns what has been done so far. The latest flush's delay starts anew with each call.
func (f *Fleet) Stats() Stats {
	s := Stats{
		Streams:    f.stats.streams.Load(),
		Opened:     f.stats.opened.Load(),
		Flushes:    f.stats.flushes.Load(),
		Bytes:      f.stats.bytes.Load(),
		Failed:     f.stats.failed.Load(),
		MostFailed: f.stats.mostFailed.Load(),
		Replaced:   f.stats.replaced.Load(),
		Restarted:  f.stats.restarted.Load(),
		LateMs:     f.stats.lateMs.Swap(0),
	}
	if e := f.stats.lastError.Load(); e != nil {
		s.LastError = *e
	}
	return s
}
