package aggregator

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/meshpulse/meshpulse/bench/durations"
)

var istioBounds = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// recorded is what an Envoy keeps of durations; it gives what the sidecar then sends, as seen in
// captures.
type recorded struct{ durations.Recorded }

// buckets are cumulative.
func (r *recorded) buckets(bounds []float64, inclusive bool) []Bucket {
	buckets := make([]Bucket, len(bounds))
	for i, b := range bounds {
		buckets[i] = Bucket{UpperBound: b, Count: uint64(r.Below(b, inclusive))}
	}
	return buckets
}

// quantiles are a summary's.
func (r *recorded) quantiles(older bool) (qs []float64) {
	for _, q := range SummaryQuantiles {
		qs = append(qs, r.Quantile(q, older))
	}
	return qs
}

// distribution draws durations in milliseconds.
type distribution func(r *rand.Rand) float64

var distributions = map[string]distribution{
	"lognormal":   func(r *rand.Rand) float64 { return 60 * math.Exp(0.6*r.NormFloat64()) },
	"exponential": func(r *rand.Rand) float64 { return 80 * r.ExpFloat64() },
	"bimodal":     func(r *rand.Rand) float64 { return []float64{12, 12, 340}[r.IntN(3)] * math.Exp(0.1*r.NormFloat64()) },
	"long tail":   func(r *rand.Rand) float64 { return min(20*math.Pow(1-r.Float64(), -1/1.3), 3e6) },
	"timeouts at 1 s": func(r *rand.Rand) float64 {
		return []float64{1000, 40 * math.Exp(0.5*r.NormFloat64())}[min(1, r.IntN(8))]
	},
	"a few ms":          func(r *rand.Rand) float64 { return 1 + 6*r.Float64() },
	"below 1 ms":        func(r *rand.Rand) float64 { return r.Float64() },
	"all in one bucket": func(r *rand.Rand) float64 { return 520 + 400*r.Float64() },
}

// mixture draws a distribution: one to three of a lognormal, an exponential, a long tail, a
// constant, an even one.
func mixture(r *rand.Rand) distribution {
	var of []distribution
	var weights []float64
	total := 0.0
	for range 1 + r.IntN(3) {
		at, wide := 2*math.Pow(2000, r.Float64()), r.Float64()
		of = append(of, []distribution{
			func(r *rand.Rand) float64 { return at * math.Exp((0.1+wide)*r.NormFloat64()) },
			func(r *rand.Rand) float64 { return at * r.ExpFloat64() },
			func(r *rand.Rand) float64 { return min(at*math.Pow(1-r.Float64(), -1/(1.1+2*wide)), 3e6) },
			func(*rand.Rand) float64 { return at },
			func(r *rand.Rand) float64 { return at * (1 + 3*wide*r.Float64()) },
		}[r.IntN(5)])
		weights = append(weights, 0.05+r.Float64())
		total += weights[len(weights)-1]
	}
	return func(r *rand.Rand) float64 {
		u := r.Float64() * total
		for i, w := range weights {
			if u -= w; u < 0 {
				return of[i](r)
			}
		}
		return of[0](r)
	}
}

// senders are pods that send a minute of flushes.
type senders struct {
	name      string
	pods      int
	requests  float64 // a flush of a pod, on average
	hot       float64 // the first pod has so many times as many
	different bool    // each pod has a distribution of its own, bounds of its own and an Envoy of its own age
	coarse    int     // so many of the pods send no summaries
}

var fleets = []senders{
	{name: "one pod", pods: 1, requests: 25},
	{name: "one busy pod", pods: 1, requests: 1000},
	{name: "20 pods of 5 requests a minute", pods: 20, requests: 5. / 12},
	{name: "20 pods", pods: 20, requests: 25},
	{name: "one hot pod among 20", pods: 20, requests: 10, hot: 20},
	{name: "different pods", pods: 5, requests: 50, different: true},
	{name: "half of the pods without summaries", pods: 4, requests: 50, coarse: 2},
}

const minute = 12 // flushes

// send fills a store with the fleet's minute and returns what its Envoys recorded and the bounds
// that all have.
func (f senders) send(t *testing.T, draw distribution, r *rand.Rand) (s *Store, all *recorded, bounds []float64) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	all, bounds = &recorded{}, istioBounds
	for pod := range f.pods {
		p := Pod{Namespace: "test", Name: fmt.Sprint(pod), FlushInterval: 5 * time.Second, InclusiveBounds: r.IntN(2) == 0}
		if f.different && pod > 0 {
			draw = mixture(r)
		}
		own := istioBounds
		if f.different && pod%2 == 1 {
			own = []float64{2, 20, 125, 1000, 4000, 60000} // 125 lies within a bin
			bounds = []float64{1000, 60000}
		}
		requests := f.requests
		if pod == 0 && f.hot > 0 {
			requests *= f.hot
		}
		st := s.Connect(p)
		for k := range minute {
			var flush recorded
			for range poisson(r, requests) {
				flush.Record(draw(r))
			}
			all.Add(&flush.Recorded)
			var quantiles []float64
			if pod >= f.coarse {
				quantiles = flush.quantiles(!p.InclusiveBounds)
			}
			commit(t, s, st, time.Duration(k+1)*5*time.Second, uint64(flush.Count), flush.buckets(own, p.InclusiveBounds), quantiles)
		}
		st.Close()
	}
	return s, all, bounds
}

func commit(t *testing.T, s *Store, st *Stream, at time.Duration, n uint64, buckets []Bucket, quantiles []float64) {
	t.Helper()
	arrival := s.started.Add(at)
	b := &Batch{Timestamp: arrival.UnixMilli(), Buckets: buckets, Quantiles: quantiles}
	if quantiles != nil {
		b.Samples = append(b.Samples, Sample{Key: 1, Timestamp: b.Timestamp, Kind: Summary, Count: n, Last: uint32(len(b.Quantiles))})
	}
	b.Samples = append(b.Samples, Sample{Key: 1, Timestamp: b.Timestamp, Kind: Histogram, Count: n, Last: uint32(len(buckets))})
	if err := st.Commit(arrival, b, durationSeries{}); err != nil {
		t.Fatal(err)
	}
}

type durationSeries struct{}

func (durationSeries) Describe(int) (string, []Label, error) {
	return "istio_request_duration_milliseconds", nil, nil
}

func poisson(r *rand.Rand, mean float64) int {
	if mean > 50 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*r.NormFloat64())))
	}
	n := -1
	for left := mean; left > 0 || n < 0; n++ {
		left -= r.ExpFloat64()
	}
	return n
}

// quantile asks for the minute's, all of it.
func quantile(t *testing.T, s *Store, q float64, of string) float64 {
	t.Helper()
	query, err := s.Query(fmt.Sprintf("histogram_quantile(%v, %s)", q, of))
	if err != nil {
		t.Fatal(err)
	}
	a, err := query.Eval(t.Context(), s.started.Add(minute*5*time.Second))
	if err != nil || len(a.Values) != 1 {
		t.Fatalf("%s: %v, %v", of, a.Values, err)
	}
	return a.Values[0].V
}

const (
	finerMinute   = "sum(rate(istio_request_duration_milliseconds[61s]))"
	classicMinute = "sum by (le) (rate(istio_request_duration_milliseconds_bucket[61s]))"
)

// checkQuantiles returns how many answers were held against their bounds, how many classic buckets
// miss, and those that miss.
func checkQuantiles(t *testing.T, s *Store, all *recorded, bounds []float64) (held, classic int, misses []string) {
	t.Helper()
	for _, q := range []float64{0.5, 0.9, 0.95, 0.99} {
		if !all.Bounded(q, bounds) {
			continue
		}
		held++
		from, to := all.Within(q)
		if got := quantile(t, s, q, finerMinute); !(from <= got && got <= to) {
			misses = append(misses, fmt.Sprintf("P%g is %.4g, want it in [%.4g, %.4g]", 100*q, got, from, to))
		}
		if got := quantile(t, s, q, classicMinute); !(from <= got && got <= to) {
			classic++
		}
	}
	return held, classic, misses
}

func TestFinerQuantiles(t *testing.T) {
	for name, draw := range distributions {
		for _, f := range fleets {
			t.Run(strings.ReplaceAll(f.name+"/"+name, " ", "_"), func(t *testing.T) {
				s, all, bounds := f.send(t, draw, rand.New(rand.NewPCG(7, uint64(f.requests))))
				_, _, misses := checkQuantiles(t, s, all, bounds)
				for _, m := range misses {
					t.Error(m)
				}
			})
		}
	}
}

// TestFinerQuantilesOfMixtures draws distributions that nobody has thought of. Of these some miss
// by a little, classic buckets many: it holds the shares.
func TestFinerQuantilesOfMixtures(t *testing.T) {
	held, missed, classic := 0, 0, 0
	for _, f := range fleets {
		for seed := range uint64(25) {
			r := rand.New(rand.NewPCG(seed, 11))
			s, all, bounds := f.send(t, mixture(r), r)
			n, c, misses := checkQuantiles(t, s, all, bounds)
			held, missed, classic = held+n, missed+len(misses), classic+c
			for _, m := range misses {
				t.Logf("%s, seed %d: %s", f.name, seed, m)
			}
		}
	}
	t.Logf("%d quantiles: %d miss, of classic buckets %d", held, missed, classic)
	if missed*100 > held || classic < 30*missed {
		t.Errorf("%d of %d miss their bounds, of classic buckets %d", missed, held, classic)
	}
}
