// Package load drives HTTP servers at a known rate that may change over time, and remembers what
// came back, as the truth that measured numbers are held against. It is an open loop: requests
// start when the profile says, whether or not earlier ones have been answered.
//
// It must not know what is measured or by whom.
//
// The known testers do something else: fortio's threads fall behind their rate when all wait for a
// slow server (fortio.org/fortio/periodic), k6's arrival rate drops iterations once its virtual
// users are busy (its dropped_iterations), and neither takes a step at a given instant and says how
// late each request began.
package load

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"
)

// requestTimeout bounds a single request: longer than any scenario's queue, so that overload shows
// as latency, and than a request of a minute.
const requestTimeout = 90 * time.Second

// Loop calls do at each time of the profile, counted from start, in a goroutine of its own; i
// counts the calls from 0. One that is late is made late, not left out. Loop returns when the
// profile or the context has ended and all calls have returned.
func Loop(ctx context.Context, start time.Time, p Profile, do func(i int, due time.Time)) {
	var calls sync.WaitGroup
	defer calls.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := 0
	p.Arrivals(func(at time.Duration) bool {
		due, i := start.Add(at), next
		next++
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
		}
		calls.Go(func() { do(i, due) })
		return true
	})
}

// Options is what to send. Targets and Profile must be set.
type Options struct {
	// Targets are the servers, host:port; requests go to them in turn.
	Targets []string
	// Profile is the rate over all targets, from Begin on (default: now).
	Profile Profile
	Begin   time.Time
	// Header goes with each request.
	Header http.Header
	// Remember is how long results are kept (default: to the end).
	Remember time.Duration
}

// Generator is a running load.
type Generator struct {
	options Options
	client  *http.Client
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu      sync.Mutex
	results []result // in the order of their ends
}

type result struct {
	end        time.Time
	took, late time.Duration
	failed     bool
}

// Start begins to send, until the profile or the context ends or Stop is called.
func Start(ctx context.Context, o Options) *Generator {
	if o.Begin.IsZero() {
		o.Begin = time.Now()
	}
	ctx, stop := context.WithCancel(ctx)
	transport := &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute}
	g := &Generator{options: o, stop: stop, client: &http.Client{Timeout: requestTimeout, Transport: transport}}
	g.done.Go(func() { Loop(ctx, o.Begin, o.Profile, g.send) })
	return g
}

// Wait returns when the load has ended and no request is in flight. Requests in flight are
// finished, not cut off, so that the servers' counts and the generator's agree.
func (g *Generator) Wait() {
	g.done.Wait()
	g.client.CloseIdleConnections()
}

// Stop ends the load, and waits.
func (g *Generator) Stop() {
	g.stop()
	g.Wait()
}

func (g *Generator) send(i int, due time.Time) {
	start := time.Now()
	err := g.request(g.options.Targets[i%len(g.options.Targets)])
	g.end(start, start.Sub(due), err != nil)
}

func (g *Generator) end(start time.Time, late time.Duration, failed bool) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.results = append(g.results, result{end: now, took: now.Sub(start), late: late, failed: failed})
	old := now.Add(-cmp.Or(g.options.Remember, math.MaxInt64))
	if len(g.results) > 1024 && g.results[len(g.results)/2].end.Before(old) {
		g.results = slices.Clone(g.results[len(g.results)/2:])
	}
}

// request has no context of the load's own: an end of the load lets it finish.
func (g *Generator) request(target string) error {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+target+"/", nil)
	if err != nil {
		return err
	}
	for name, values := range g.options.Header {
		req.Header[name] = values
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", target, resp.Status)
	}
	return nil
}

// Seen is what the load saw within a range of time.
type Seen struct {
	// Requests were answered, Failed of them badly or not at all.
	Requests, Failed int
	// Rate is answered requests a second.
	Rate float64
	// Average and P95 are milliseconds; NaN without requests.
	Average, P95 float64
	// Late is the worst delay of a request's start behind its time: the generator's own error.
	Late time.Duration
}

// Between returns what ended within (from, to]; a range that begins before the load does is cut to
// it.
func (g *Generator) Between(from, to time.Time) Seen {
	if from.Before(g.options.Begin) {
		from = g.options.Begin
	}
	seen := Seen{Average: math.NaN(), P95: math.NaN()}
	var took []float64
	sum := 0.0
	g.mu.Lock()
	for _, r := range g.results {
		if !r.end.After(from) || r.end.After(to) {
			continue
		}
		ms := float64(r.took) / float64(time.Millisecond)
		took = append(took, ms)
		sum += ms
		seen.Late = max(seen.Late, r.late)
		if r.failed {
			seen.Failed++
		}
	}
	g.mu.Unlock()
	seen.Requests = len(took)
	if len(took) == 0 {
		return seen
	}
	slices.Sort(took)
	n := float64(len(took))
	seen.Rate = n / to.Sub(from).Seconds()
	seen.Average = sum / n
	seen.P95 = took[int(math.Ceil(0.95*n))-1]
	return seen
}

// All returns what was seen since the load began.
func (g *Generator) All() Seen { return g.Between(time.Time{}, time.Now()) }
