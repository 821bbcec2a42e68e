// Package load drives HTTP servers open-loop at a known rate and remembers what came back, as the truth that measured
// numbers are held against.
//
// It must not know what is measured or by whom.
package load

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// remember is how long results are kept.
	remember = 10 * time.Minute
	// maxInFlight bounds the requests that wait for an answer; past it a request counts as failed.
	maxInFlight = 2000
)

// Options is what to send. Targets and Rate must be set.
type Options struct {
	// Targets are the servers, host:port; requests go to them in turn.
	Targets []string
	// Rate is requests a second over all targets.
	Rate float64
	// Header goes with each request.
	Header http.Header
}

// Generator is a running load.
type Generator struct {
	options Options
	started time.Time
	client  *http.Client
	stop    context.CancelFunc
	done    sync.WaitGroup

	mu       sync.Mutex
	inFlight int
	results  []result // in the order of their ends
}

type result struct {
	end    time.Time
	took   time.Duration
	failed bool
}

// Start begins to send at once, until the context ends or Stop is called.
func Start(ctx context.Context, o Options) *Generator {
	ctx, stop := context.WithCancel(ctx)
	g := &Generator{
		options: o, started: time.Now(), stop: stop,
		client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 100}},
	}
	g.done.Go(func() { g.pace(ctx) })
	return g
}

// Stop ends the load and returns when no request is in flight. Requests in flight are finished, not cut off, so that the
// servers' counts and the generator's agree.
func (g *Generator) Stop() {
	g.stop()
	g.done.Wait()
	g.client.CloseIdleConnections()
}

// pace sends by the schedule, whatever the answers do: a late request is sent late, not left out.
func (g *Generator) pace(ctx context.Context) {
	for i := 0; ; i++ {
		due := g.started.Add(time.Duration(float64(i) / g.options.Rate * float64(time.Second)))
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		target := g.options.Targets[i%len(g.options.Targets)]
		if !g.begin() {
			g.end(time.Now(), true)
			continue
		}
		g.done.Go(func() {
			start := time.Now()
			err := g.request(target)
			g.mu.Lock()
			g.inFlight--
			g.mu.Unlock()
			g.end(start, err != nil)
		})
	}
}

func (g *Generator) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inFlight == maxInFlight {
		return false
	}
	g.inFlight++
	return true
}

func (g *Generator) end(start time.Time, failed bool) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.results = append(g.results, result{end: now, took: now.Sub(start), failed: failed})
	if old := now.Add(-remember); len(g.results) > 1024 && g.results[len(g.results)/2].end.Before(old) {
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
}

// Between returns what ended within (from, to]; a range that begins before the load does is cut to it.
func (g *Generator) Between(from, to time.Time) Seen {
	if from.Before(g.started) {
		from = g.started
	}
	var took []float64
	sum, failed := 0.0, 0
	g.mu.Lock()
	for _, r := range g.results {
		if !r.end.After(from) || r.end.After(to) {
			continue
		}
		ms := float64(r.took) / float64(time.Millisecond)
		took = append(took, ms)
		sum += ms
		if r.failed {
			failed++
		}
	}
	g.mu.Unlock()
	seen := Seen{Requests: len(took), Failed: failed, Average: math.NaN(), P95: math.NaN()}
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

// Total is the number of requests that were answered so far.
func (g *Generator) Total() int {
	return g.Between(time.Time{}, time.Now()).Requests
}
