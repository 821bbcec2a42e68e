// Package durations is what is known of request durations: what an Envoy keeps of them, and what an
// answer that is computed from its flushes can be held to.
//
// It knows Envoy's bins (libcircllhist) and how its summaries place a quantile. It must not know
// meshpulse: what meshpulse answers is held against it, in aggregator's tests and in bench/report.
package durations

import (
	"math"
	"slices"
)

// Recorded is what an Envoy keeps of durations: whole milliseconds, counted in bins of two
// significant digits (libcircllhist). Bin 0 is 0, the others begin at 1.0, 1.1 … 9.9, 10, 11 … 99,
// 100, 110 …
type Recorded struct {
	Bins  [1 + 90*8]float64
	Count float64
	Sum   float64 // of the whole milliseconds
	Exact float64 // of the durations before they were cut to whole milliseconds
}

// Record counts a duration in milliseconds.
func (r *Recorded) Record(v float64) {
	r.Count++
	r.Exact += v
	v = math.Floor(v)
	r.Sum += v
	r.Bins[BinOf(v)]++
}

// BinOf is the bin of a duration in milliseconds.
func BinOf(v float64) int {
	if v < 1 {
		return 0
	}
	exponent := 0
	for v >= 10 {
		v /= 10
		exponent++
	}
	return 1 + 90*exponent + int(v*10+1e-9) - 10
}

// Add counts what another has recorded.
func (r *Recorded) Add(o *Recorded) {
	for i := range r.Bins {
		r.Bins[i] += o.Bins[i]
	}
	r.Count, r.Sum, r.Exact = r.Count+o.Count, r.Sum+o.Sum, r.Exact+o.Exact
}

// Edges returns where a bin begins and ends.
func Edges(bin int) (from, to float64) {
	if bin == 0 {
		return 0, 0
	}
	bin--
	digits, unit := float64(bin%90+10), math.Pow10(bin/90)/10
	return digits * unit, (digits + 1) * unit
}

// At returns the bin of the request of rank ceil(q n), and its place there as Envoy's summary has
// it: k of m requests at k/(m+1).
func (r *Recorded) At(q float64) (bin int, place float64) {
	rank, below := max(1, math.Ceil(q*r.Count-1e-9)), 0.0
	for bin, n := range r.Bins {
		if below+n >= rank {
			return bin, (rank - below) / (n + 1)
		}
		below += n
	}
	return 0, math.NaN()
}

// Reached returns the first bin that ends at a rank or beyond, with the rank's place there: before
// Envoy 1.38 quantile q of n requests was at q n, and k of m requests of a bin at k/m.
func (r *Recorded) Reached(rank float64) (bin int, place float64) {
	below := 0.0
	for bin, n := range r.Bins {
		if n > 0 && below+n >= rank {
			return bin, (rank - below) / n
		}
		below += n
	}
	return 0, math.NaN()
}

// Below returns how many requests a bucket holds that ends at a bound: those of the bins that begin
// there or below, before Envoy 1.38 (not inclusive) of those that end there or below.
func (r *Recorded) Below(bound float64, inclusive bool) (n float64) {
	for bin, c := range r.Bins {
		from, to := Edges(bin)
		if to <= bound*(1+1e-12) || inclusive && from <= bound*(1+1e-12) {
			n += c
		}
	}
	return n
}

// Quantile returns what a summary tells of q. older is one of an Envoy before 1.38.
func (r *Recorded) Quantile(q float64, older bool) float64 {
	bin, place := r.At(q)
	if older {
		bin, place = r.Reached(q * r.Count)
	}
	from, to := Edges(bin)
	return from + (to-from)*place
}

// Within is the interval that an answer is held in: within 5 % or 1 ms of [Q(q-0.01), Q(q+0.01)],
// for P99 within 10 % of [Q(0.985), Q(0.995)], each request standing for its bin.
func (r *Recorded) Within(q float64) (from, to float64) {
	margin := 0.01
	if q > 0.95 {
		margin = 0.005
	}
	lower, _ := r.At(q - margin)
	upper, _ := r.At(q + margin)
	from, _ = Edges(lower)
	_, to = Edges(upper)
	if q > 0.95 {
		return from * 0.9, to*1.1 + 1e-9 // 0 is the middle of the zero bucket
	}
	return min(from*0.95, from-1), max(to*1.05, to+1)
}

// Bounded reports whether there are enough requests for a bound, and no gap of x to 1.3 x within
// one bucket of all pods whose rank is within 0.15 of q: there nothing on the wire tells on which
// side of it a request lies.
func (r *Recorded) Bounded(q float64, bounds []float64) bool {
	if r.Count < 100 || q > 0.95 && r.Count < 1000 {
		return false
	}
	below, last := 0.0, 0
	for bin, n := range r.Bins {
		if n == 0 {
			continue
		}
		_, x := Edges(last)
		y, _ := Edges(bin)
		if below > 0 && math.Abs(below/r.Count-q) <= 0.15 {
			for _, b := range append(slices.Clone(bounds), math.Inf(1)) {
				if to := min(y, b); x > 0 && to >= 1.3*x {
					return false
				}
				x = max(x, min(y, b))
			}
		}
		below, last = below+n, bin
	}
	return true
}
