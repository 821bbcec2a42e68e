package load

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// requestTimeout bounds a single request: longer than any scenario's queue, so that overload shows as latency.
const requestTimeout = 30 * time.Second

// Generator sends one profile to one URL.
type Generator struct {
	url    string
	client *http.Client

	mu      sync.Mutex
	sent    int
	late    time.Duration // the worst delay of a request's start behind its time
	codes   map[int]int   // answers by status; 0 is no answer
	answers []float64     // durations of what was answered, in milliseconds
}

// NewGenerator sends to url, over as many connections as the open loop needs.
func NewGenerator(url string) *Generator {
	transport := &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute}
	return &Generator{url: url, client: &http.Client{Timeout: requestTimeout, Transport: transport}, codes: map[int]int{}}
}

// Run sends the profile's requests, its time 0 being start, and returns when the last one has been answered. It ends
// early, without an error, when ctx does.
func (g *Generator) Run(ctx context.Context, start time.Time, p Profile) {
	var wg sync.WaitGroup
	defer g.client.CloseIdleConnections()
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	p.Arrivals(func(at time.Duration) bool {
		due := start.Add(at)
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return false
			case <-timer.C:
			}
		}
		if ctx.Err() != nil {
			return false
		}
		g.started(time.Since(due))
		wg.Go(func() { g.send(ctx) })
		return true
	})
}

func (g *Generator) started(late time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sent++
	g.late = max(g.late, late)
}

func (g *Generator) send(ctx context.Context) {
	start := time.Now()
	code, err := g.get(ctx)
	if errors.Is(err, context.Canceled) {
		return // the run was ended: no answer is nobody's fault
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.codes[code]++
	g.answers = append(g.answers, float64(time.Since(start))/float64(time.Millisecond))
}

// get is the status of one request, 0 with the error when there was none.
func (g *Generator) get(ctx context.Context) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("x-source-workload", "lab-load")
	response, err := g.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return 0, err
	}
	return response.StatusCode, nil
}

// Result is what a generator has seen.
type Result struct {
	Sent, OK, Failed int
	// Late is the worst delay of a request's start behind its time: the generator's own error.
	Late time.Duration
	// Average and P95 are of all answered requests, in milliseconds.
	Average, P95 float64
}

// Result sums up what was seen so far.
func (g *Generator) Result() Result {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := Result{Sent: g.sent, Late: g.late}
	for code, n := range g.codes {
		if code == http.StatusOK {
			r.OK += n
		} else {
			r.Failed += n
		}
	}
	if len(g.answers) == 0 {
		return r
	}
	sorted := slices.Sorted(slices.Values(g.answers))
	sum := 0.0
	for _, ms := range sorted {
		sum += ms
	}
	r.Average = sum / float64(len(sorted))
	r.P95 = sorted[(len(sorted)*95+99)/100-1]
	return r
}
