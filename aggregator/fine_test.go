package aggregator

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser/posrange"
)

var istioBounds = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// recorded is what Envoy keeps of a flush's durations: whole milliseconds in two-digit bins (libcircllhist). It gives what
// the sidecar then sends, as envoy-wire facts seen in captures have it.
type recorded []float64

func (r recorded) buckets(inclusive bool) []float64 {
	var c []float64
	for _, b := range istioBounds {
		n := 0.0
		for _, v := range r {
			if lo, hi := binOf(v); v == 0 || lo < b || inclusive && lo <= b && hi > b {
				n++
			}
		}
		c = append(c, n)
	}
	return append(c, float64(len(r)))
}

func (r recorded) quantiles() (codes [len(SummaryQuantiles)]uint16) {
	if len(r) == 0 {
		return codes
	}
	s := slices.Sorted(slices.Values(r))
	for i, q := range SummaryQuantiles {
		rank := max(1, int(math.Ceil(q*float64(len(s))-1e-9)))
		lo, hi := binOf(s[rank-1])
		k, m := 0, 0 // the rank's place among the m requests of its bin
		for j, v := range s {
			if a, _ := binOf(v); a == lo {
				m++
				if j < rank {
					k++
				}
			}
		}
		codes[i] = quantileCode(lo + (hi-lo)*float64(k)/float64(m+1))
	}
	return codes
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

// TestFinerQuantiles holds the answer within 5 % or 1 ms of [Q(q-0.01), Q(q+0.01)], each request standing for its bin.
func TestFinerQuantiles(t *testing.T) {
	shapes := []struct{ pods, flushes, requests int }{{1, 12, 25}, {1, 12, 1000}, {20, 12, 5}, {3, 60, 2}, {1, 1, 20000}}
	for name, draw := range distributions {
		for _, s := range shapes {
			for _, inclusive := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/pods=%d/flushes=%d/requests=%d/inclusive=%t", name, s.pods, s.flushes, s.requests, inclusive), func(t *testing.T) {
					r := rand.New(rand.NewPCG(uint64(s.requests), 7))
					f := newFine(newFineTables())
					l := newLayout(istioBounds)
					ends := l.ends(&Pod{InclusiveBounds: inclusive})
					var all recorded
					for range s.pods * s.flushes {
						var flush recorded
						for range s.requests {
							flush = append(flush, math.Floor(draw(r)))
						}
						codes := flush.quantiles()
						f.addInterval(ends, flush.buckets(inclusive), &codes)
						all = append(all, flush...)
					}
					checkQuantiles(t, f, all)
				})
			}
		}
	}
}

func checkQuantiles(t *testing.T, f *fine, all recorded) {
	t.Helper()
	slices.Sort(all)
	h := f.native()
	total := h.ZeroCount
	for _, c := range h.PositiveBuckets {
		total += c
	}
	if math.Abs(total-float64(len(all))) > 1e-6*float64(len(all)) || h.Count != float64(len(all)) {
		t.Errorf("%v requests in buckets, %v in all, want %d", total, h.Count, len(all))
	}
	at := func(q float64) (from, to float64) {
		return binOf(all[min(max(int(math.Ceil(q*float64(len(all)))), 1), len(all))-1])
	}
	for _, q := range []float64{0.5, 0.9, 0.95} {
		got, _ := promql.HistogramQuantile(q, h, "", posrange.PositionRange{})
		lo, _ := at(q - 0.01)
		_, hi := at(q + 0.01)
		if got < min(lo*0.95, lo-1) || got > max(hi*1.05, hi+1) {
			t.Errorf("P%g is %.4g, want it in [%.4g, %.4g]", 100*q, got, lo, hi)
		}
	}
}
